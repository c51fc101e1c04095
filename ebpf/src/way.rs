//! Ways out of the host that were asked for a moment ago.
//!
//! To ask the kernel's routes costs a third of what a translated packet costs. Its answer
//! is used again by the same flow on the same CPU, for [`VALID_NS`]: so long a change of a
//! route, of a rule or of a path MTU may take to be followed. It is forgotten at once where
//! the agent changes what it was checked against.

use aya_ebpf::{
    bindings::bpf_fib_lookup, helpers::bpf_ktime_get_coarse_ns, macros::map, maps::PerCpuArray,
};
use culvert_common::abi::Tuple;

use crate::{fast, maps::own, work::Work};

/// Flows that a CPU remembers the way of.
const SLOTS: u32 = 1024;
/// For how long.
const VALID_NS: u64 = 100_000_000;

/// All that the kernel's answer depends on, but for its own tables.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Question {
    to: Tuple,
    gateway: u32,
    tos: u8,
    protocol: u8,
    pad: [u8; 2],
}

#[repr(C)]
struct Known {
    expires_ns: u64,
    generation: u64,
    question: Question,
    answer: Answer,
}

/// What is used of the kernel's answer: to copy all of it takes longer than all the rest.
#[repr(C)]
struct Answer {
    ifindex: u32,
    src: u32,
    next_hop: [u32; 4],
    mtu: u16,
    family: u8,
    pad: u8,
}

impl Answer {
    #[inline(always)]
    fn of(way: &bpf_fib_lookup) -> Self {
        // SAFETY: every bit pattern is valid for the members of the unions.
        let (mtu, src, next_hop) = unsafe {
            let (mtu, src) = (way.__bindgen_anon_1.mtu_result, way.__bindgen_anon_3.ipv4_src);
            (mtu, src, way.__bindgen_anon_4.ipv6_dst)
        };
        Self { ifindex: way.ifindex, src, next_hop, mtu, family: way.family, pad: 0 }
    }

    #[inline(always)]
    fn give(&self, way: &mut bpf_fib_lookup) {
        way.ifindex = self.ifindex;
        way.__bindgen_anon_3.ipv4_src = self.src;
        way.__bindgen_anon_4.ipv6_dst = self.next_hop;
        way.__bindgen_anon_1.mtu_result = self.mtu;
        way.family = self.family;
    }
}

#[map]
static WAYS: PerCpuArray<Known> = PerCpuArray::with_max_entries(SLOTS, 0);

impl Question {
    #[inline(always)]
    fn of(work: &Work, gateway: u32) -> Self {
        let (tos, protocol) = (work.routed.ip.tos(), work.routed.key.protocol);
        Self { to: work.target.to, gateway, tos, protocol, pad: [0; 2] }
    }

    /// Where the answer is, if there is one.
    #[inline(always)]
    fn slot(&self) -> Option<&'static mut Known> {
        let [a, b] = self.to.src_port;
        let [c, d] = self.to.dst_port;
        let hash = u32::from_ne_bytes(self.to.dst).wrapping_mul(0x9e37_79b1)
            ^ u32::from_ne_bytes([a, b, c, d]).wrapping_mul(0x85eb_ca6b);
        own(&WAYS, hash.wrapping_mul(0xc2b2_ae35) >> 22)
    }
}

const _: () = assert!(SLOTS == 1 << (32 - 22));

/// Puts the way of the packet `work.target` into `work.way`, if it is known to take `len`
/// bytes.
#[inline(always)]
pub(crate) fn find(work: &mut Work, gateway: u32, len: u32) -> bool {
    let question = Question::of(work, gateway);
    let Some(known) = question.slot() else { return false };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let holds = now < known.expires_ns
        && known.generation == fast::generation()
        && known.question == question
        && len <= known.answer.mtu.into();
    if holds {
        known.answer.give(&mut work.way);
    }
    holds
}

/// Remembers the way in `work.way`, which has passed every check under `generation`.
#[inline(always)]
pub(crate) fn remember(work: &Work, gateway: u32, generation: u64) {
    let question = Question::of(work, gateway);
    let Some(known) = question.slot() else { return };
    // SAFETY: the helper has no preconditions.
    let expires_ns = unsafe { bpf_ktime_get_coarse_ns() } + VALID_NS;
    *known = Known { expires_ns, generation, question, answer: Answer::of(&work.way) };
}
