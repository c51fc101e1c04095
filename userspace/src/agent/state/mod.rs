//! State that the tasks of the agent share, a type for each concern. `agent::shared` has one
//! value of each type.
//!
//! * [`Problems`]: the problems that `status` shows.
//! * [`Shown`]: problems, repairs and sizes, as `status` shows them.
//! * [`Ending`]: how the agent ends.
//! * [`Regrouped`]: containers whose networks may have changed.
//! * [`Requests`]: what requests that change containers share.
//! * [`Disk`]: whether the state directory can be written.
//! * [`Repairs`]: what the agent has put right.
//! * [`Readiness`]: whether the state of the store is in the kernel.
//! * [`StoreHandle`]: the store, and whether it answers.
//! * [`Plugs`]: state of each local endpoint.
//! * [`MapCounts`]: number of entries of the large maps.
//! * [`PathMtuCounts`]: what became of the hints of smaller path MTUs.
//! * [`Launches`]: supervisors that are being started.
//! * [`Lives`]: since when agents of other nodes are not alive.
//! * [`Turns`]: a lock for each name, so that requests for one container run one at a time.

mod asked;
mod counts;
mod disk;
mod ending;
mod guarded;
mod launches;
mod lives;
mod path_mtus;
mod plugs;
mod problems;
mod readiness;
mod regrouped;
mod repairs;
mod requests;
mod shown;
mod store_handle;
mod turns;

pub(crate) use self::{
    counts::MapCounts,
    disk::Disk,
    ending::Ending,
    launches::Launches,
    lives::Lives,
    path_mtus::PathMtuCounts,
    plugs::{PlugState, Plugs},
    problems::{MOST, Problems},
    readiness::Readiness,
    regrouped::Regrouped,
    repairs::{Repair, Repairs},
    requests::Requests,
    shown::Shown,
    store_handle::StoreHandle,
    turns::Turns,
};
