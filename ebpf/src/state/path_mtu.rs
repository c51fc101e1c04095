//! Path MTUs towards VTEPs (RFC 1191).

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use culvert_common::{
    abi::{PathMtu, Sealed as _, UnderlayPath, VtepId},
    datapath::pmtu,
    wire::{Icmpv4Hdr, Ipv4Hdr, UdpHdr, ipv4::PROTO_UDP},
};

use super::epoch;
use crate::{
    globals::VTEP_IP,
    kernel::{
        skb::{ETH_LEN, Packet as _},
        time::now,
    },
    maps::{PATH_MTU, read, underlay, vtep_id},
};

/// Time in ns for which a path MTU that a router reported is used (RFC 1191 §6.3).
const LIFETIME_NS: u64 = 600_000_000_000;

/// Bytes of the largest inner L3 packet that reaches a VTEP: the largest one on its route, or less
/// if a router on the path has reported a smaller MTU.
#[inline(always)]
pub(crate) fn of(vtep: VtepId, path: &UnderlayPath) -> u32 {
    let route = u32::from(path.inner_mtu);
    match read(&PATH_MTU, &vtep) {
        Some(learnt) if now() < learnt.expires_ns => learnt.inner_mtu.min(route),
        _ => route,
    }
}

/// The result of [`of`] for a packet of `len` bytes, but without a look-up in the map if every path
/// MTU that is accepted is large enough for the packet. Then the result is the largest inner L3
/// packet on the route.
#[inline(always)]
pub(crate) fn for_packet(len: u32, vtep: VtepId, path: &UnderlayPath) -> u32 {
    let route = u32::from(path.inner_mtu);
    if len <= pmtu::MIN_INNER_MTU.min(route) { route } else { of(vtep, path) }
}

/// Stores the MTU of an ICMP "fragmentation needed" about a datagram that this host sent to a VTEP.
/// The kernel does not store it, because it has no socket for the datagram. Returns 1 if the MTU
/// was stored, else 0. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn learn(skb: *mut __sk_buff) -> u32 {
    // Without `black_box` the compiler would pass the packet's bounds instead of the context.
    try_learn(&TcContext::new(core::hint::black_box(skb))).is_some().into()
}

#[inline(always)]
fn try_learn(ctx: &TcContext) -> Option<()> {
    const QUOTED: usize = ETH_LEN + Ipv4Hdr::LEN + Icmpv4Hdr::LEN;
    // The headers are read one by one. In one read the compiler would copy headers that may not be
    // in the packet.
    let ip = ctx.read::<Ipv4Hdr>(ETH_LEN)?;
    let icmp = ctx.read::<Icmpv4Hdr>(ETH_LEN + Ipv4Hdr::LEN)?;
    let quoted = ctx.read::<Ipv4Hdr>(QUOTED)?;
    let udp = ctx.read::<UdpHdr>(QUOTED + Ipv4Hdr::LEN)?;
    let ours = ip.header_len() == Ipv4Hdr::LEN as u32
        && !ip.is_fragment()
        && icmp.is_frag_needed()
        && quoted.header_len() == Ipv4Hdr::LEN as u32
        && quoted.protocol() == PROTO_UDP
        && u32::from_ne_bytes(quoted.src) == VTEP_IP.load();
    if !ours {
        return None;
    }
    let vtep = vtep_id(quoted.dst);
    let path = underlay(vtep)?;
    if udp.dst_port() != path.port {
        return None;
    }
    let (route, overhead) = (path.inner_mtu.into(), path.overhead());
    let inner_mtu = pmtu::path_mtu_from_icmp(icmp.next_hop_mtu(), route, overhead)?;
    let before = of(vtep, path);
    let now = now();
    let learnt = PathMtu { expires_ns: now + LIFETIME_NS, inner_mtu, seal: 0 }.sealed(&vtep);
    PATH_MTU.insert(vtep, learnt, 0).ok()?;
    if inner_mtu < before {
        // The entries of the flow cache have the larger path MTU.
        epoch::advance(now);
    }
    Some(())
}
