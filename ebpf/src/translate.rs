//! Addresses and ports written into packets, and packets sent where they lead.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_l4_csum_replace,
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
    flow::is_hop,
    maps::{ENDPOINTS, LOOPBACK, NETWORKS, lookup},
    packet::{ETH_LEN, Packet as _, gso_size, redirect, redirect_ingress, redirect_peer, store},
    parse::{Kind, Routed},
    work::Work,
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
    /// Those of the loopback device, and of frames whose MACs the kernel fills in.
    pub(crate) const NONE: Self = Self { dst: [0; 6], src: [0; 6] };
}

/// Writes the addresses and ports `to` into the packet `routed`, and takes one off
/// its TTL if `hop` is not 0. Returns 0, or 1 if the kernel refused. A function of
/// its own for the sake of the stack.
///
/// The kernel's helper knows which checksums are there, which the network card is
/// to fill in, and which cover what. That of a UDP datagram without one stays 0.
#[inline(never)]
pub(crate) fn translate(
    skb: *mut __sk_buff,
    routed: &Routed,
    to: &Tuple,
    macs: &Macs,
    hop: u32,
) -> u32 {
    match try_translate(&TcContext::new(skb), routed, to, macs, hop != 0) {
        Ok(()) => 0,
        Err(_) => 1,
    }
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
    if protocol != PROTO_ICMP {
        let addresses = nat::address_difference(from, to);
        add_to_checksum(ctx, checksum, protocol, addresses, u64::from(BPF_F_PSEUDO_HDR))?;
    }
    let ports = nat::port_difference(protocol, from, to);
    if from.src_port == to.src_port && from.dst_port == to.dst_port {
        return Ok(());
    }
    add_to_checksum(ctx, checksum, protocol, ports, 0)?;
    let at = (routed.l4 + nat::ports_offset(protocol)) as usize;
    if protocol == PROTO_ICMP {
        store(ctx, at, &nat::echo_id(to))
    } else {
        store(ctx, at, &[to.src_port, to.dst_port])
    }
}

/// Adds a [`nat::difference`] to a checksum of the upper layer.
#[inline(always)]
fn add_to_checksum(
    ctx: &TcContext,
    offset: u32,
    protocol: u8,
    difference: u32,
    flags: u64,
) -> Result<(), DropReason> {
    let zero_is_none = if protocol == PROTO_UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    let flags = flags | zero_is_none;
    // SAFETY: the pointer is the program's own context.
    match unsafe { bpf_l4_csum_replace(ctx.skb.skb, offset, 0, difference.into(), flags) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

/// Where the program that delivers sits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// tcx ingress of a device whose frames may be handed over past the queue.
    Ingress,
    /// tcx ingress of the loopback device: its frames carry a route of the host,
    /// which only the veth's queue takes off.
    Loopback,
}

/// Translates the packet and hands it to the container that `work.target` names, or to
/// the host itself. Not for packets that leave the host.
#[inline(always)]
pub(crate) fn deliver(ctx: &TcContext, work: &Work, hook: Hook) -> Result<Action, DropReason> {
    let Work { routed, target, .. } = work;
    let hop = is_hop(routed.key.zone, target.zone);
    if target.ifindex == 0 {
        if translate(ctx.skb.skb, routed, &target.to, &Macs::NONE, 0) != 0 {
            return Err(DropReason::HelperFailed);
        }
        redirect_ingress(LOOPBACK.load());
        return Ok(Action::ToHost);
    }
    if hop && routed.ip.ttl() <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let ep = lookup!(ENDPOINTS, target.ifindex).ok_or(DropReason::UnknownEndpoint)?;
    let net = lookup!(NETWORKS, ep.vni).ok_or(DropReason::UnknownNetwork)?;
    // The loopback device takes longer frames than a container does, whose veth would drop
    // them uncounted, and nobody cuts them here.
    let longest = ETH_LEN as u32 + u32::from(net.mtu);
    if hook == Hook::Loopback && gso_size(ctx) == 0 && ctx.len() > longest {
        return Err(DropReason::PacketTooBig);
    }
    let macs = Macs { dst: ep.mac, src: net.gateway_mac };
    if translate(ctx.skb.skb, routed, &target.to, &macs, hop.into()) != 0 {
        return Err(DropReason::HelperFailed);
    }
    match hook {
        Hook::Ingress => redirect_peer(ctx, target.ifindex)?,
        Hook::Loopback => redirect(target.ifindex),
    }
    Ok(Action::NatDeliver)
}
