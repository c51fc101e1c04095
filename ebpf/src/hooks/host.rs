//! `from_host`: tcx egress on a network's gateway device: what the host sends to containers.

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, DropReason, FdbKey, NeighKey},
    wire::{EthHdr, Ipv4Hdr, ethernet::ETH_P_IP, ipv4},
};

use crate::{
    act::tunnel::{Tunnel, Unsent},
    facts::{gso::longest_packet, inner::Inner},
    kernel::{
        redirect,
        skb::{ETH_LEN, IPV4_HEADERS, Packet as _, ensure, is_forwarded, store},
    },
    maps::{FDB, GATEWAYS, NEIGHBOURS, network, read},
    routed::from_forwarded,
    verdict::{Outcome, Seen, finish},
};

/// A frame that the host sends to a network.
#[classifier]
pub(crate) fn from_host(ctx: TcContext) -> i32 {
    let seen = Seen::of(&ctx, Direction::FromHost);
    let outcome = handle(&ctx, seen.ifindex);
    finish(&ctx, &seen, outcome)
}

#[inline(always)]
fn handle(ctx: &TcContext, ifindex: u32) -> Outcome {
    let vni = read(&GATEWAYS, &ifindex).ok_or(DropReason::UnknownGateway)?.value;
    let net = network(vni).ok_or(DropReason::UnknownNetwork)?;
    ensure(ctx, IPV4_HEADERS);
    let eth: EthHdr = ctx.read(0).ok_or(DropReason::Malformed)?;
    if eth.ethertype() != ETH_P_IP {
        return Err(DropReason::Unroutable);
    }
    if is_forwarded(ctx) {
        return from_forwarded::receive(ctx, vni);
    }
    let ip: Ipv4Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    if ipv4::is_multicast(&ip.dst) || ip.dst == [0xff; 4] {
        return Err(DropReason::NoReceiver);
    }
    let neighbour = NeighKey::v4(vni, ip.dst);
    let mac = read(&NEIGHBOURS, &neighbour).ok_or(DropReason::UnknownDestination)?.mac;
    let entry = read(&FDB, &FdbKey::new(vni, mac)).ok_or(DropReason::UnknownDestination)?;
    let eth = EthHdr::new(mac, net.gateway_mac, ETH_P_IP);
    if entry.ifindex != 0 {
        store(ctx, 0, &eth)?;
        redirect::out(entry.ifindex);
        return Ok(Action::Deliver);
    }
    let l3_len = ctx.len() - ETH_LEN as u32;
    let segment_len = longest_packet(ctx, l3_len, ip.protocol(), ip.header_len())?;
    let inner = Inner { eth, tos: Some(ip.tos()), l3_len, segment_len, hash: 0 };
    match (Tunnel { ctx, vni, flags: net.flags }).send(&inner, entry.vtep) {
        Ok(action) => Ok(action),
        Err(Unsent::TooBig(_)) => Err(DropReason::PacketTooBig),
        Err(Unsent::Dropped(reason)) => Err(reason),
    }
}
