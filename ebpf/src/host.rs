//! `from_host`: tcx egress on a network's gateway device: what the host itself
//! sends to containers.

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, DropReason, EndpointInfo, FdbKey, NeighKey},
    wire::{
        EthHdr, Ipv4Hdr, TcpHdr,
        ethernet::ETH_P_IP,
        ipv4::{self, PROTO_TCP},
    },
};

use crate::{
    container::Sender,
    encap::{self, Inner},
    maps::{FDB, GATEWAYS, NEIGHBOURS, NETWORKS, UNDERLAY, lookup},
    packet::{
        ETH_LEN, PLAIN, Packet as _, ensure, gso_size, ifindex, is_forwarded, load, redirect, store,
    },
    verdict,
};

/// A frame that the host sends to a network.
#[classifier]
pub(crate) fn from_host(ctx: TcContext) -> i32 {
    let (port, bytes) = (ifindex(&ctx), ctx.len());
    let outcome = handle(&ctx, port);
    verdict::tc(&ctx, Direction::FromHost, port, bytes, outcome)
}

#[inline(always)]
fn handle(ctx: &TcContext, port: u32) -> Result<Action, DropReason> {
    let &vni = lookup!(GATEWAYS, port).ok_or(DropReason::UnknownGateway)?;
    // Only what the host sends itself: with ip_forward it would take others' packets to
    // any port of any container.
    if is_forwarded(ctx) {
        return Err(DropReason::Isolated);
    }
    let net = lookup!(NETWORKS, vni).ok_or(DropReason::UnknownNetwork)?;
    ensure(ctx, PLAIN);
    let eth: EthHdr = ctx.read(0).ok_or(DropReason::Malformed)?;
    if eth.ethertype() != ETH_P_IP {
        return Err(DropReason::Unroutable);
    }
    let ip: Ipv4Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    if ipv4::is_multicast(&ip.dst) || ip.dst == [0xff; 4] {
        return Err(DropReason::NoReceiver);
    }
    let neighbour =
        lookup!(NEIGHBOURS, NeighKey::v4(vni, ip.dst)).ok_or(DropReason::UnknownDestination)?;
    let entry =
        lookup!(FDB, FdbKey::new(vni, neighbour.mac)).ok_or(DropReason::UnknownDestination)?;
    let eth = EthHdr::new(neighbour.mac, net.gateway_mac, ETH_P_IP);
    if entry.ifindex != 0 {
        store(ctx, 0, &eth)?;
        redirect(entry.ifindex);
        return Ok(Action::Deliver);
    }
    let path = lookup!(UNDERLAY, entry.vtep).ok_or(DropReason::NoUnderlayPath)?;
    let l3_len = ctx.len() - ETH_LEN as u32;
    let inner =
        Inner { eth, tos: Some(ip.tos()), l3_len, segment_len: segment_len(ctx, &ip)?, hash: 0 };
    if inner.segment_len > encap::path_mtu(&entry.vtep, path) {
        return Err(DropReason::PacketTooBig);
    }
    let ep = EndpointInfo { vni, ..EndpointInfo::NONE };
    let sender = Sender { ctx, port, ep: &ep, net };
    let mut reason = DropReason::HelperFailed;
    let vtep = u32::from_ne_bytes(entry.vtep);
    match encap::encapsulate(&sender, &inner, vtep, path, &mut reason) {
        0 => Ok(Action::Encap),
        _ => Err(reason),
    }
}

/// The longest L3 packet once a GSO frame is cut into segments.
#[inline(always)]
fn segment_len(ctx: &TcContext, ip: &Ipv4Hdr) -> Result<u32, DropReason> {
    let gso = gso_size(ctx);
    if gso == 0 {
        return Ok(ctx.len() - ETH_LEN as u32);
    }
    let header_len = ip.header_len();
    let upper = match ip.protocol() {
        PROTO_TCP => load::<TcpHdr>(ctx, ETH_LEN + header_len as usize)?.header_len(),
        _ => 8,
    };
    Ok(gso + header_len + upper)
}
