//! `from_host`: tcx egress on a network's gateway device: frames that the host sends to containers.

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, DropReason, FdbKey, NeighKey, NetworkInfo},
    wire::{EthHdr, Ipv4Hdr, ethernet::ETH_P_IP, ipv4},
};

use crate::{
    act::{
        ask,
        tunnel::{Tunnel, Unsent},
    },
    facts::{gso::longest_packet, inner::Inner},
    kernel::{
        redirect,
        skb::{ETH_LEN, IPV4_HEADERS, Packet as _, ensure, is_forwarded, store},
    },
    maps::{GATEWAYS, NEIGHBOURS, network, read},
    routed::from_forwarded,
    state::{
        heard,
        learned::{self, Place},
    },
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
        let outcome = from_forwarded::receive(ctx, vni).outcome();
        return outcome.unwrap_or(Err(DropReason::HelperFailed));
    }
    let mut sent = Sent { action: Action::Deliver, unresolved: None };
    let result = send(ctx, vni, net, &mut sent);
    if let Some(target) = sent.unresolved {
        // The packet is dropped. The answer to the ARP request gives the MAC for later packets.
        ask::ask(ctx, vni, net, &target);
    }
    result.map(|()| sent.action)
}

/// Result for a packet that the host itself sends.
struct Sent {
    action: Action,
    /// Destination of the packet, if its MAC is unknown and an ARP request in the network may give
    /// it.
    unresolved: Option<[u8; 4]>,
}

/// Sends a packet of the host itself to the container that has its destination address. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
fn send(ctx: &TcContext, vni: u32, net: &NetworkInfo, sent: &mut Sent) -> Result<(), DropReason> {
    try_send(ctx, vni, net, &mut sent.unresolved).map(|action| sent.action = action)
}

#[inline(always)]
fn try_send(
    ctx: &TcContext,
    vni: u32,
    net: &NetworkInfo,
    unresolved: &mut Option<[u8; 4]>,
) -> Outcome {
    let ip: Ipv4Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    if ipv4::is_multicast(&ip.dst) || ip.dst == [0xff; 4] {
        return Err(DropReason::NoReceiver);
    }
    let learning = net.flags & NetworkInfo::LEARNING;
    let neighbour = NeighKey::v4(vni, ip.dst);
    let known = read(&NEIGHBOURS, &neighbour).map(|neighbour| neighbour.mac);
    let mac = match known {
        None if learning != 0 => heard::mac_of(&neighbour),
        known => known,
    };
    let mut place = Place::NONE;
    let mac = match mac {
        Some(mac) if learned::locate(&FdbKey::new(vni, mac), learning, &mut place) != 0 => mac,
        _ => {
            if learning != 0 && known.is_none() {
                *unresolved = Some(ip.dst);
            }
            return Err(DropReason::UnknownDestination);
        }
    };
    let eth = EthHdr::new(mac, net.gateway_mac, ETH_P_IP);
    if place.ifindex != 0 {
        store(ctx, 0, &eth)?;
        redirect::out(place.ifindex);
        return Ok(Action::Deliver);
    }
    let l3_len = ctx.len() - ETH_LEN as u32;
    let segment_len = longest_packet(ctx, l3_len, ip.protocol(), ip.header_len())?;
    let inner = Inner { eth, tos: Some(ip.tos()), l3_len, segment_len, hash: 0 };
    match (Tunnel { ctx, vni, flags: net.flags }).send(&inner, place.vtep) {
        Ok(action) => Ok(action),
        Err(Unsent::TooBig(_)) => Err(DropReason::PacketTooBig),
        Err(Unsent::Dropped(reason)) => Err(reason),
    }
}
