//! Packets of containers whose route leads out of no uplink.

use std::sync::Arc;

use culvert_common::abi::DropReason;

use super::fake::{Paper, Running, World, eventually};
use crate::{agent::egress, api::Backend as _};

async fn problems(host: &Running) -> Vec<String> {
    host.agent.status().await.unwrap().problems
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_leave_by_no_uplink_are_told_once_they_are_dropped() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let drop_packet = || {
        *one.paper.state().dropped.entry(DropReason::NotAnUplink).or_default() += 1;
    };
    // These were dropped before the agent began.
    drop_packet();
    one.paper.state().other_links.ethernet = vec!["lan0".to_owned()];
    let keeper = tokio::spawn(egress::keep(Arc::clone(&one.shared)));
    eventually("it is told", || async {
        // The counter grows at each check: the agent may read it first after the first check.
        let problems = problems(&one).await;
        if problems.is_empty() {
            drop_packet();
            return false;
        }
        let [line] = problems.as_slice() else { panic!("{problems:?}") };
        line.contains("out of lan0, which is no uplink")
            && line.ends_with("--uplink up0 --uplink lan0")
    })
    .await;
    one.shared.ending.shutdown.cancel();
    keeper.await.unwrap();
    one.stop().await;
}
