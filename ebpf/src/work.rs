//! Where routed packets are worked on: a BPF stack has 512 bytes for a whole chain of
//! calls.

use aya_ebpf::{bindings::bpf_fib_lookup, macros::map, maps::PerCpuArray};

use culvert_common::datapath::pmtu::Error;

use crate::{
    flow::{NewFlow, Target},
    maps::own,
    parse::Routed,
};

/// The working space of one packet. Everything in it is written before it is read.
pub(crate) struct Work {
    /// The packet.
    pub(crate) routed: Routed,
    /// What it becomes.
    pub(crate) target: Target,
    /// A flow that it begins.
    pub(crate) new: NewFlow,
    /// The way out of the host.
    pub(crate) way: bpf_fib_lookup,
    /// What its sender is to be told of it.
    pub(crate) error: Option<Error>,
}

#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's working space.
#[inline(always)]
pub(crate) fn work() -> Option<&'static mut Work> {
    own(&WORK, 0)
}
