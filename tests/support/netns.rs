//! The testbed's namespaces, links and processes, and the programs in them.

#![expect(clippy::panic, reason = "what a test cannot ask the kernel fails it with why")]

use std::os::fd::AsFd as _;

use aya::programs::{SchedClassifier, TcAttachType};

pub use culvert_testbed::{netns::*, process::*, underlay::*, wait::*};

/// The tests run on a kernel that must have netkit, and are to show it: `cargo xtask test
/// --full` says so where it started that kernel.
pub fn expects_netkit() -> bool {
    std::env::var_os("CULVERT_TEST_DEVICE").is_some_and(|kind| kind == "netkit")
}

/// Names of the BPF programs at a device's tcx hook, as far as the kernel keeps them: 15
/// characters. (`bpftool net` tells of tcx only from its version 7.3 on.)
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
