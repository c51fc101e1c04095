//! The working space of one packet. It is not on the BPF stack, which has only 512 bytes for a
//! whole chain of calls.

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
    /// Addresses and ports of the packet after translation, and its destination.
    pub(super) target: Target,
    /// The flow that the packet begins.
    pub(super) new: NewFlow,
    /// The published port of the packet, if the packet begins a flow to one.
    pub(super) published: PublishedEntry,
    /// The route out of the host.
    pub(super) route: Route,
    /// The ICMP error to send to the packet's sender; `None` if there is none.
    pub(super) error: Option<Error>,
}

#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's working space.
#[inline(always)]
pub(super) fn work() -> Result<&'static mut Work, DropReason> {
    own(&WORK, 0).ok_or(DropReason::HelperFailed)
}
