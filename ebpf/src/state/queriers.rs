//! The queriers of multicast groups: the local interfaces and VTEPs from which an IGMP or MLD
//! query, or a packet of PIM, has come in the last 260 s. Reports go only there.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use culvert_common::{
    abi::{QuerierKey, VtepId},
    datapath::membership::{self, Membership},
};

use crate::{facts::membership::membership, kernel::time::now_coarse, maps::QUERIERS};

/// Receivers of a frame to a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receivers {
    /// All endpoints of the network.
    All,
    /// The queriers of the network.
    Queriers,
    /// None, because the network has no querier.
    Nobody,
}

/// [`Receivers`] as numbers, which a global BPF function can return.
mod number {
    pub(super) const ALL: u32 = 0;
    pub(super) const QUERIERS: u32 = 1;
    pub(super) const NOBODY: u32 = 2;
}

/// The receivers of a frame to a group of the network `vni`, which comes from the interface
/// `ifindex` or from `vtep`; the other one is 0. Notes the sender of a query as a querier.
#[inline(always)]
pub(crate) fn receivers(skb: *mut __sk_buff, vni: u32, ifindex: u32, vtep: VtepId) -> Receivers {
    match find_receivers(skb, vni, ifindex, vtep.0) {
        number::NOBODY => Receivers::Nobody,
        number::QUERIERS => Receivers::Queriers,
        _ => Receivers::All,
    }
}

/// [`receivers`] as a global BPF function: the verifier checks it once.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_receivers(skb: *mut __sk_buff, vni: u32, ifindex: u32, vtep: u32) -> u32 {
    match membership(&TcContext::new(skb)) {
        Membership::Other => number::ALL,
        Membership::Asks => {
            let now = now_coarse();
            // Best effort: the sender asks again.
            for key in [key(vni, ifindex, vtep), key(vni, 0, 0)] {
                let _ = QUERIERS.insert(key, now, 0);
            }
            number::ALL
        }
        Membership::Report if is_querier(vni, 0, 0) != 0 => number::QUERIERS,
        Membership::Report => number::NOBODY,
    }
}

/// Whether a querier is behind `ifindex` or `vtep`. If both are 0: whether the network has a
/// querier. Returns 1 if so. A global BPF function: the verifier checks it once.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_querier(vni: u32, ifindex: u32, vtep: u32) -> u32 {
    let Some(asked) = QUERIERS.get_ptr(key(vni, ifindex, vtep)) else { return 0 };
    // The LRU map may recycle the entry for another querier at any time. It is one aligned word: in
    // the worst case a receiver that is no querier gets one report.
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
    let asked = unsafe { asked.read_volatile() };
    membership::wants_reports(asked, now_coarse()).into()
}

#[inline(always)]
fn key(vni: u32, ifindex: u32, vtep: u32) -> QuerierKey {
    QuerierKey { vni, ifindex, vtep: VtepId(vtep) }
}
