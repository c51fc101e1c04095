//! Path MTUs towards VTEPs (RFC 1191).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    programs::TcContext,
};
use culvert_common::{
    abi::{Direction, Note, SealedU32, UnderlayPath, VtepId},
    datapath::pmtu,
    wire::{Icmpv4Hdr, Ipv4Hdr, UdpHdr, VxlanHdr},
};

use crate::{
    count::note,
    facts::inner::Inner,
    globals::{VTEP_IP, VXLAN_PORT},
    kernel::{
        skb::{ETH_LEN, Packet as _},
        time::now,
    },
    maps::{NETWORKS, PATH_HINTS, PATH_MTU, has, read, underlay, vtep_id},
};

const DIRECTION: Direction = Direction::FromUnderlay;

/// Offset of the IP header that an ICMP error quotes.
const QUOTED: usize = ETH_LEN + Ipv4Hdr::LEN + Icmpv4Hdr::LEN;
/// Offset of the quoted VXLAN header.
const QUOTED_VXLAN: usize = QUOTED + Ipv4Hdr::LEN + UdpHdr::LEN;

/// Bytes of the largest inner L3 packet that reaches a VTEP: the largest one on its route, or less
/// if the agent has found a smaller MTU on the path.
#[inline(always)]
pub(crate) fn of(vtep: VtepId, path: &UnderlayPath) -> u32 {
    let route = u32::from(path.inner_mtu);
    match read(&PATH_MTU, &vtep) {
        Some(learnt) if now() < learnt.expires_ns => learnt.inner_mtu.min(route),
        _ => route,
    }
}

/// The largest L3 packet for a VTEP of the kind of this one, bytes. The map is not read if every
/// path MTU that is accepted is large enough for the packet. Then the result is the largest one on
/// the route.
#[inline(always)]
pub(crate) fn for_packet(inner: &Inner, vtep: VtepId, path: &UnderlayPath) -> u32 {
    let route = u32::from(path.inner_mtu);
    if inner.segment_len <= pmtu::MIN_INNER_MTU.min(route) {
        return route;
    }
    pmtu::for_ethertype(inner.eth.ethertype(), of(vtep, path), route)
}

/// Notes the MTU of an ICMP "fragmentation needed" about a datagram that this host may have sent to
/// a VTEP: a hint for the agent, which probes the path before the programs use a smaller MTU. The
/// kernel does nothing with the error, because it has no socket for the datagram. A BPF function
/// of its own, for a stack frame of its own; it counts the note itself, so that its caller needs
/// no more of the stack.
#[inline(never)]
pub(crate) fn note_report(skb: *mut __sk_buff) {
    // Without `black_box` the compiler would pass the packet's bounds instead of the context.
    let ctx = TcContext::new(core::hint::black_box(skb));
    let event = match read_report(&ctx) {
        Report::Hint => Note::PathMtuHint,
        Report::Refused => Note::PathMtuRefused,
        Report::Nothing => return,
    };
    note(DIRECTION, event, ctx.len());
}

/// What an ICMP packet reports about the tunnel.
enum Report {
    /// A smaller MTU, which was noted as a hint.
    Hint,
    /// An error about a datagram of the tunnel that is not believed.
    Refused,
    /// Nothing, or no more than a hint that the agent has not read yet.
    Nothing,
}

#[inline(always)]
fn read_report(ctx: &TcContext) -> Report {
    // The headers are read one by one. In one read the compiler would copy headers that may not be
    // in the packet.
    let Some(ip) = ctx.read::<Ipv4Hdr>(ETH_LEN) else { return Report::Nothing };
    let Some(icmp) = ctx.read::<Icmpv4Hdr>(ETH_LEN + Ipv4Hdr::LEN) else { return Report::Nothing };
    let Some(quoted) = ctx.read::<Ipv4Hdr>(QUOTED) else { return Report::Nothing };
    let Some(udp) = ctx.read::<UdpHdr>(QUOTED + Ipv4Hdr::LEN) else { return Report::Nothing };
    let is_error =
        ip.header_len() == Ipv4Hdr::LEN as u32 && !ip.is_fragment() && icmp.is_frag_needed();
    let own = VTEP_IP.load().to_ne_bytes();
    if !is_error || !pmtu::is_of_tunnel(&own, &quoted, &udp) {
        return Report::Nothing;
    }
    let vtep = vtep_id(quoted.dst);
    let Some(path) = underlay(vtep) else {
        let is_vxlan = udp.dst_port() == VXLAN_PORT.load();
        return if is_vxlan { Report::Refused } else { Report::Nothing };
    };
    if udp.dst_port() != path.port {
        return Report::Nothing;
    }
    let mtu = icmp.next_hop_mtu();
    // The quote ends with the packet: padding of the link may follow.
    let has_vxlan = u32::from(ip.tot_len()) >= (QUOTED_VXLAN + VxlanHdr::LEN - ETH_LEN) as u32;
    if !pmtu::could_be_sent(&quoted, &udp, mtu) || (has_vxlan && !is_vni_known(ctx)) {
        return Report::Refused;
    }
    let (route, overhead) = (path.inner_mtu.into(), path.overhead());
    let Some(inner_mtu) = pmtu::path_mtu_from_icmp(mtu, route, overhead) else {
        return Report::Refused;
    };
    // One hint is enough for a probe. Further errors cost no write until the agent has read the hint.
    if has(&PATH_HINTS, &vtep) {
        return Report::Nothing;
    }
    let hint = SealedU32::new(&vtep, inner_mtu);
    match PATH_HINTS.insert(vtep, hint, BPF_NOEXIST.into()) {
        Ok(()) => Report::Hint,
        Err(_) => Report::Nothing,
    }
}

/// Whether the quoted VXLAN header is one that this host may have written.
#[inline(always)]
fn is_vni_known(ctx: &TcContext) -> bool {
    let Some(vxlan) = ctx.read::<VxlanHdr>(QUOTED_VXLAN) else { return false };
    pmtu::quoted_vni(&vxlan).is_some_and(|vni| has(&NETWORKS, &vni))
}
