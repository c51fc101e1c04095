//! State that the tasks of the agent share, a type for each concern. `agent::shared` has one
//! value of each type.
//!
//! * [`Problems`]: the problems that `status` shows.
//! * [`Readiness`]: whether the state of the store is in the kernel.
//! * [`StoreHandle`]: the store, and whether it answers.
//! * [`Plugs`]: state of each local endpoint.
//! * [`MapCounts`]: number of entries of the large maps.
//! * [`Turns`]: a lock for each name, so that requests for one container run one at a time.

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
