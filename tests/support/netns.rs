//! The testbed's namespaces, links and processes, and the programs in them.

#![expect(clippy::panic, reason = "a test fails with the kernel's error")]

use std::os::fd::AsFd as _;

use aya::programs::{SchedClassifier, TcAttachType};

pub use culvert_testbed::{netns::*, process::*, underlay::*, wait::*};

/// Whether the kernel under test must have netkit. `cargo xtask test --full` sets
/// `CULVERT_TEST_DEVICE=netkit` on the emulated kernel.
pub fn expects_netkit() -> bool {
    std::env::var_os("CULVERT_TEST_DEVICE").is_some_and(|kind| kind == "netkit")
}

/// Names of the BPF programs at a device's tcx hook. The kernel keeps 15 characters of a name.
/// `bpftool net` shows tcx only since version 7.3.
///
/// # Panics
/// When the kernel refuses.
pub fn programs(netns: &Netns, ifname: &str, hook: TcAttachType) -> Vec<String> {
    let query = || SchedClassifier::query_tcx(ifname, hook);
    match culvert::netns::run_in(netns.fd().as_fd(), query) {
        Ok(Ok((_, programs))) => programs
            .iter()
            .map(|program| program.name_as_str().unwrap_or_default().to_owned())
            .collect(),
        Ok(Err(error)) => panic!("{ifname}: {error}"),
        Err(error) => panic!("{}: {error}", netns.name()),
    }
}
