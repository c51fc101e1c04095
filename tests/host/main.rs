//! Tests of netlink, sandbox and doctor on the kernel, in namespaces of their own. They need root,
//! and are ignored without it.

#![expect(clippy::unwrap_used, reason = "what a test sets up must work")]

mod attach;
mod doctor;
mod exec;
mod netlink;
mod sandbox;

use std::{future::Future, time::Duration};

use culvert::netlink::PairKind;
use culvert_tests::netns::expects_netkit;

/// Deadline of every wait.
const DEADLINE: Duration = Duration::from_secs(10);

/// The kind of pairs under test: netkit if the kernel must have it, otherwise veth.
fn kind() -> PairKind {
    if expects_netkit() { PairKind::Netkit } else { PairKind::Veth }
}

/// Runs `test` in a runtime with several threads, like the agent's.
fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}
