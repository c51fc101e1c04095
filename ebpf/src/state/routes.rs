//! The route cache: answers of the kernel's route look-ups. Packets of the same flow on the same
//! CPU use an answer again, for at most [`VALID_NS`].
//!
//! `bpf_fib_lookup` takes a third of the time of a translated packet. A change of a route, of a
//! rule or of a path MTU takes effect after at most [`VALID_NS`]. An answer was also checked
//! against maps of the agent. A change of these maps begins a new epoch, so it takes effect at
//! once.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_common::abi::Tuple;

use super::epoch;
use crate::kernel::{
    fib::{self, Route},
    memory::own,
    time::now_coarse,
};

/// Slots of each CPU. A slot holds one answer.
const SLOTS: u32 = 1024;
/// Time in ns for which an answer is used.
const VALID_NS: u64 = 100_000_000;

/// The parameters of a route look-up: all that the kernel's answer depends on, except the kernel's
/// own tables.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Question {
    to: Tuple,
    gateway: u32,
    tos: u8,
    protocol: u8,
    pad: [u8; 2],
}

/// An entry of the cache. It has only the fields of the kernel's answer that are used: a copy of
/// the whole answer takes more time than the look-up in the cache.
#[repr(C)]
struct Entry {
    expires_ns: u64,
    epoch: u64,
    question: Question,
    ifindex: u32,
    source: [u8; 4],
    next_hop: [u32; 4],
    mtu: u16,
    family: u8,
    pad: u8,
}

#[map]
static ROUTES: PerCpuArray<Entry> = PerCpuArray::with_max_entries(SLOTS, 0);

impl Question {
    /// The route look-up of a packet with the addresses and ports `to`, the protocol `protocol` and
    /// the TOS `tos`, as if the packet had come in on the interface `gateway`.
    #[inline(always)]
    pub(crate) fn new(to: Tuple, protocol: u8, tos: u8, gateway: u32) -> Self {
        Self { to, gateway, tos, protocol, pad: [0; 2] }
    }

    /// The slot of the question. It may hold the entry of another question.
    #[inline(always)]
    fn entry(&self) -> Option<&'static mut Entry> {
        let [a, b] = self.to.src_port;
        let [c, d] = self.to.dst_port;
        let hash = u32::from_ne_bytes(self.to.dst).wrapping_mul(0x9e37_79b1)
            ^ u32::from_ne_bytes([a, b, c, d]).wrapping_mul(0x85eb_ca6b);
        own(&ROUTES, hash.wrapping_mul(0xc2b2_ae35) >> 22)
    }

    /// Puts the cached answer into `route`. Returns `false` if the cache has no valid answer with
    /// an MTU of at least `len` bytes.
    #[inline(always)]
    pub(crate) fn find(&self, len: u32, route: &mut Route) -> bool {
        let Some(entry) = self.entry() else { return false };
        let holds = now_coarse() < entry.expires_ns
            && entry.epoch == epoch::current()
            && entry.question == *self
            && len <= entry.mtu.into();
        if holds {
            let device = (entry.ifindex, entry.family);
            fib::set_answer(route, device, entry.source, entry.next_hop, entry.mtu);
        }
        holds
    }

    /// Caches the answer `route`. All checks of the answer were made in the epoch `epoch`.
    #[inline(always)]
    pub(crate) fn keep(self, route: &Route, epoch: u64) {
        let Some(entry) = self.entry() else { return };
        *entry = Entry {
            expires_ns: now_coarse() + VALID_NS,
            epoch,
            question: self,
            ifindex: route.ifindex,
            source: fib::source(route),
            next_hop: fib::next_hop(route),
            mtu: fib::mtu(route),
            family: route.family,
            pad: 0,
        };
    }
}

const _: () = assert!(SLOTS == 1 << (32 - 22));
