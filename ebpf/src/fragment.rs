//! Fragments, which follow the first one of their datagram.

use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, programs::TcContext};
use culvert_common::{
    abi::{Action, DropReason, FragmentInfo, FragmentKey},
    wire::Ipv4Hdr,
};

use crate::{
    maps::{FRAGMENTS, lookup},
    parse::{Kind, Routed},
    work::Work,
};

/// How long the fragments of a datagram are waited for: Linux's `ipfrag_time`.
const LIFETIME_NS: u64 = 30_000_000_000;

fn key(zone: u32, ip: &Ipv4Hdr) -> FragmentKey {
    FragmentKey {
        zone,
        src: ip.src,
        dst: ip.dst,
        id: ip.id().to_be_bytes(),
        protocol: ip.protocol(),
        slot: 0,
    }
}

/// What is known of the datagram that a fragment other than the first belongs to.
#[inline(always)]
pub(crate) fn later(zone: u32, ip: &Ipv4Hdr) -> (Kind, ([u8; 2], [u8; 2])) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    match lookup!(FRAGMENTS, key(zone, ip)) {
        Some(info) if info.known != 0 && now < info.expires_ns => {
            (Kind::Flow, (info.src_port, info.dst_port))
        }
        _ => (Kind::LateFragment, ([0; 2], [0; 2])),
    }
}

/// Notes the ports of a datagram whose first fragment this is.
#[inline(always)]
pub(crate) fn first(routed: &Routed) -> Kind {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let info = FragmentInfo {
        expires_ns: now + LIFETIME_NS,
        src_port: routed.key.tuple.src_port,
        dst_port: routed.key.tuple.dst_port,
        known: 1,
        held: 0,
    };
    let _ = FRAGMENTS.insert(key(routed.key.zone, &routed.ip), info, 0);
    Kind::Flow
}

/// Notes that a datagram is the host's own, if this is its first fragment.
#[inline(always)]
pub(crate) fn is_host(_routed: &Routed) {}

/// Keeps a fragment until the first one of its datagram has come.
#[inline(always)]
pub(crate) fn hold(_ctx: &TcContext, _work: &Work, _ifindex: u32) -> Result<Action, DropReason> {
    Err(DropReason::FragmentUnknown)
}
