//! State that the tasks of the agent share, a type for each concern. `agent::shared` has
//! one of each.
//!
//! * [`Problems`]: what is wrong, for `status`.
//! * [`Readiness`]: whether the kernel holds what the store says.
//! * [`StoreHandle`]: the store, and how the exchange with it goes.
//! * [`Plugs`]: how far each local endpoint has come.
//! * [`MapCounts`]: how many entries the large maps have.
//! * [`Turns`]: one request at a time for a container.

mod counts;
mod plugs;
mod problems;
mod readiness;
mod store_handle;
mod turns;

pub(crate) use self::{
    counts::MapCounts,
    plugs::{PlugState, Plugs},
    problems::Problems,
    readiness::Readiness,
    store_handle::StoreHandle,
    turns::Turns,
};
