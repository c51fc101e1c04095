//! The route cache: answers of the kernel's routes, used again by the same flow on the same
//! CPU for [`VALID_NS`].
//!
//! `bpf_fib_lookup` takes a third of the time of a translated packet. A change of a route, of
//! a rule, of a path MTU or of the host's addresses is followed after [`VALID_NS`] at most; a
//! change by the agent of what an answer was checked against is followed at once (the epoch).

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_common::abi::Tuple;

use super::epoch;
use crate::kernel::{
    fib::{self, Route},
    memory::own,
    time::now_coarse,
};

/// Flows whose route a CPU keeps.
const SLOTS: u32 = 1024;
/// For how long an answer is used.
const VALID_NS: u64 = 100_000_000;

/// All that the kernel's answer and the checks of it depend on, but for the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Question {
    to: Tuple,
    source: [u8; 4],
    gateway: u32,
    tos: u8,
    protocol: u8,
    pad: [u8; 2],
}

/// An entry of the cache. Of the kernel's answer only what is used: a copy of all of it
/// costs more than the look-up in the cache.
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
    /// How a packet `to` of `protocol` with the TOS `tos` leaves, as if it had come in on
    /// the interface `gateway`. It leaves with the source address `source`, which a masqueraded
    /// flow does not ask with.
    #[inline(always)]
    pub(crate) fn new(to: Tuple, source: [u8; 4], protocol: u8, tos: u8, gateway: u32) -> Self {
        Self { to, source, gateway, tos, protocol, pad: [0; 2] }
    }

    /// The entry for the question, or for another one that has the same slot.
    #[inline(always)]
    fn entry(&self) -> Option<&'static mut Entry> {
        let [a, b] = self.to.src_port;
        let [c, d] = self.to.dst_port;
        let hash = u32::from_ne_bytes(self.to.dst).wrapping_mul(0x9e37_79b1)
            ^ u32::from_ne_bytes([a, b, c, d]).wrapping_mul(0x85eb_ca6b);
        own(&ROUTES, hash.wrapping_mul(0xc2b2_ae35) >> 22)
    }

    /// Puts the answer into `route`, if the cache has one whose MTU takes `len` bytes.
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

    /// Keeps the answer `route`, which has passed every check under `epoch`.
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
