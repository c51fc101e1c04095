//! What the verbs do. Those that only ask take any [`Backend`](crate::api::Backend).

mod container;
mod doctor;
mod local;
mod logs;
mod nat;
mod network;
mod run;
mod show;

pub(super) use container::{attach, detach, ps, rm};
pub(super) use doctor::doctor;
pub(super) use local::{agent, completion, purge};
pub(super) use logs::logs;
pub(super) use nat::nat;
pub(super) use network::network;
pub(super) use run::{exec, run, supervise_detached};
pub(super) use show::{fdb, neighbours, stats, status, vtep};

use std::fmt::Display;

use super::{failure::Failure, tell};

/// Does `each` for every item, goes on after a refusal, and fails in the end
/// if there was one.
async fn for_all<T: Display>(
    items: &[T],
    mut each: impl AsyncFnMut(&T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut refused = false;
    for item in items {
        match each(item).await {
            Ok(()) => {}
            Err(Failure { code, line: Some(line) }) if code != 0 => {
                refused = true;
                tell(&line);
            }
            // The reader of our output is gone.
            Err(failure) => return Err(failure),
        }
    }
    if refused { Err(Failure::silent(1)) } else { Ok(()) }
}
