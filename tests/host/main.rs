//! netlink, sandbox and doctor against the kernel, in namespaces of their own.
//! Needs root; ignored without.

#![expect(clippy::unwrap_used, reason = "what a test sets up must work")]

mod attach;
mod doctor;
mod exec;
mod gateway;
mod netlink;
mod sandbox;

use std::{future::Future, time::Duration};

use culvert::netlink::PairKind;
use culvert_tests::netns::expects_netkit;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// What pairs are tried: netkit where the kernel is known to have it.
fn kind() -> PairKind {
    if expects_netkit() { PairKind::Netkit } else { PairKind::Veth }
}

/// Runs `test` in a runtime with several threads, as the agent has.
fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}
