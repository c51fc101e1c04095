//! The working space of one packet: a BPF stack has 512 bytes for a whole chain of calls.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_common::{
    abi::{DropReason, PublishedEntry},
    datapath::pmtu::Error,
};

use crate::{
    facts::routed::Routed,
    kernel::{fib::Route, memory::own},
    state::flows::{NewFlow, Target},
};

/// The working space of one packet. Everything in it is written before it is read.
pub(super) struct Work {
    /// The packet.
    pub(super) routed: Routed,
    /// What it becomes.
    pub(super) target: Target,
    /// A flow that it begins.
    pub(super) new: NewFlow,
    /// The published port that it is for, if it begins a flow to one.
    pub(super) published: PublishedEntry,
    /// The route out of the host.
    pub(super) route: Route,
    /// A route that is only asked about.
    pub(super) probe: Route,
    /// What its sender is to be told of it.
    pub(super) error: Option<Error>,
}

#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's working space.
#[inline(always)]
pub(super) fn work() -> Result<&'static mut Work, DropReason> {
    own(&WORK, 0).ok_or(DropReason::HelperFailed)
}
