//! Translation: new addresses and ports are written into packets, and the packets are delivered.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    programs::TcContext,
};
use bytemuck::{Pod, Zeroable};
use culvert_common::{
    abi::{Action, DropReason, Tuple},
    datapath::nat,
    wire::{
        EthHdr, Ipv4Hdr,
        ethernet::ETH_P_IP,
        ipv4::{PROTO_ICMP, PROTO_UDP},
    },
};

use crate::{
    facts::routed::{Kind, Routed},
    globals::LOOPBACK,
    kernel::{
        redirect,
        skb::{ETH_LEN, add_to_checksum, drop_route, gso_size, store},
    },
    maps::{endpoint, network},
    state::flows::{Target, is_hop},
};

/// Ethernet and IPv4 header, written at once.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Headers {
    eth: EthHdr,
    ip: Ipv4Hdr,
}

/// Destination and source MAC.
#[derive(Clone, Copy)]
pub(crate) struct Macs {
    /// Destination.
    pub(crate) dst: [u8; 6],
    /// Source.
    pub(crate) src: [u8; 6],
}

impl Macs {
    /// The MACs of frames of the loopback device, and of frames whose MACs the kernel fills in.
    pub(crate) const NONE: Self = Self { dst: [0; 6], src: [0; 6] };
}

/// Writes the addresses and ports `to` into the packet `routed`, and decrements its TTL if `hop` is
/// not 0. A BPF function of its own, for a stack frame of its own.
///
/// The kernel's helper handles complete checksums, and checksums that the network card fills in. A
/// UDP checksum of 0 (none) stays 0.
#[inline(never)]
pub(crate) fn translate(
    skb: *mut __sk_buff,
    routed: &Routed,
    to: &Tuple,
    macs: &Macs,
    hop: u32,
) -> Result<(), DropReason> {
    try_translate(&TcContext::new(skb), routed, to, macs, hop != 0)
}

#[inline(always)]
fn try_translate(
    ctx: &TcContext,
    routed: &Routed,
    to: &Tuple,
    macs: &Macs,
    hop: bool,
) -> Result<(), DropReason> {
    let headers = Headers {
        eth: EthHdr::new(macs.dst, macs.src, ETH_P_IP),
        ip: nat::readdress(&routed.ip, to.src, to.dst, hop),
    };
    store(ctx, 0, &headers)?;
    if routed.kind != Kind::Flow || !routed.has_header {
        return Ok(());
    }
    let (protocol, from) = (routed.key.protocol, &routed.key.tuple);
    let checksum = routed.l4 + nat::checksum_offset(protocol);
    // A UDP checksum of 0 means that there is none, and stays 0 (RFC 768).
    let flags = if protocol == PROTO_UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    if protocol != PROTO_ICMP {
        let addresses = nat::address_difference(from, to);
        add_to_checksum(ctx, checksum, addresses, flags | u64::from(BPF_F_PSEUDO_HDR))?;
    }
    let ports = nat::port_difference(protocol, from, to);
    if from.src_port == to.src_port && from.dst_port == to.dst_port {
        return Ok(());
    }
    add_to_checksum(ctx, checksum, ports, flags)?;
    let at = (routed.l4 + nat::ports_offset(protocol)) as usize;
    if protocol == PROTO_ICMP {
        store(ctx, at, &nat::echo_id(to))
    } else {
        store(ctx, at, &[to.src_port, to.dst_port])
    }
}

/// The hook of the program that delivers a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// tcx ingress of a device whose frames may be sent with bpf_redirect_peer, which bypasses the
    /// veth's queue.
    Ingress,
    /// tcx ingress of the loopback device or of a client link: the frames may have a route and
    /// netfilter state of the host, which the veth's queue removes.
    Queue,
    /// tcx egress, where bpf_redirect_peer does not work.
    Egress,
}

/// Translates the packet and hands it to the container that `target` names, or to
/// the host itself. Not for packets that leave the host.
#[inline(always)]
pub(crate) fn deliver(
    ctx: &TcContext,
    routed: &Routed,
    target: &Target,
    hook: Hook,
) -> Result<Action, DropReason> {
    let hop = is_hop(routed.key.zone, target.zone);
    if target.dest == 0 {
        translate(ctx.skb.skb, routed, &target.to, &Macs::NONE, 0)?;
        redirect::ingress(LOOPBACK.load());
        return Ok(Action::ToHost);
    }
    if hop && routed.ip.ttl() <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let ep = endpoint(target.dest).ok_or(DropReason::UnknownEndpoint)?;
    let net = network(ep.vni).ok_or(DropReason::UnknownNetwork)?;
    let macs = Macs { dst: ep.mac, src: net.gateway_mac };
    translate(ctx.skb.skb, routed, &target.to, &macs, hop.into())?;
    match hook {
        Hook::Ingress => redirect::peer(ctx, target.dest)?,
        // A datagram that is longer than the veth's MTU: the loopback device's MTU allows it, and
        // it is not fragmented. `bpf_redirect_peer` bypasses the MTU check of the veth.
        Hook::Queue if gso_size(ctx) == 0 && ctx.len() > u32::from(ep.mtu) + ETH_LEN as u32 => {
            drop_route(ctx)?;
            redirect::peer(ctx, target.dest)?;
        }
        Hook::Queue | Hook::Egress => redirect::out(target.dest),
    }
    Ok(Action::NatDeliver)
}
