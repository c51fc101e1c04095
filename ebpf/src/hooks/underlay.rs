//! `from_underlay`: tcx ingress on an uplink.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, DropReason, FdbKey, NetworkInfo, Note, RESERVED_VNI, VtepId, zone},
    datapath::tunnel_source::{TunnelSource, learns},
    wire::{
        EthHdr, Ipv4Hdr,
        ethernet::{self, ETH_P_ARP},
    },
};

use crate::{
    act::{decap, flood, translate::Hook},
    count::note,
    facts::{
        outer::{INNER, INNER_L3, Outer, Tunnelled, authorise, classify},
        tunnel_source,
    },
    kernel::{
        redirect,
        skb::{Packet as _, ensure, ifindex, is_for_host, linearise, load, strip_priority_tag},
    },
    maps::shares_port,
    pairs,
    routed::{from_external, from_peer_host},
    state::{
        heard,
        learned::{self, Place},
        path_mtu,
        queriers::{self, Receivers},
    },
    verdict::{Outcome, Seen, finish},
};

const DIRECTION: Direction = Direction::FromUnderlay;

/// A frame that arrives on an uplink.
#[classifier]
pub(crate) fn from_underlay(ctx: TcContext) -> i32 {
    let seen = Seen::of(&ctx, DIRECTION);
    let outcome = match pairs::from_underlay(&ctx).outcome() {
        Some(outcome) => outcome,
        None => handle(&ctx),
    };
    finish(&ctx, &seen, outcome)
}

#[inline(always)]
fn handle(ctx: &TcContext) -> Outcome {
    // Linux drops a frame to another MAC. A frame to a group address is not for one VTEP.
    if !is_for_host(ctx) {
        return Ok(Action::Pass);
    }
    if !strip_priority_tag(ctx) {
        // The frame is for a VLAN device on this link: the kernel delivers it.
        return Ok(Action::Pass);
    }
    ensure(ctx, INNER as u32);
    match classify(ctx, ctx.len()) {
        Err(reason) => return not_ours(ctx, reason),
        Ok(Outer::Vxlan(tunnelled)) => return decapsulate(ctx, &tunnelled),
        Ok(Outer::Icmp) => {
            linearise(ctx);
            path_mtu::note_report(ctx.skb.skb);
        }
        Ok(Outer::Other) => {}
    }
    from_external::receive(ctx, DIRECTION, zone::EXTERNAL, Hook::Ingress)
}

/// VXLAN that is not Culvert's. If a socket of another system has the port, too, the frame is
/// passed to it. Otherwise it is dropped with `reason`.
#[inline(always)]
fn not_ours(ctx: &TcContext, reason: DropReason) -> Outcome {
    if !shares_port(ifindex(ctx)) {
        return Err(reason);
    }
    note(DIRECTION, Note::ForeignVxlan, ctx.len());
    Ok(Action::Pass)
}

/// Where a decapsulated frame goes.
enum Receiver {
    /// To one local endpoint, by the interface index of its host side.
    Local(u32),
    /// To one local endpoint whose MAC was learned, by the interface index of its host side.
    Learned(u32),
    /// To all local endpoints.
    Flood,
    /// To the host itself: a container on another host answers the host.
    Host,
}

/// Checks, decapsulates and delivers a VXLAN frame.
#[inline(always)]
fn decapsulate(ctx: &TcContext, outer: &Tunnelled) -> Outcome {
    let vni = outer.vni;
    ensure(ctx, (INNER_L3 + Ipv4Hdr::LEN) as u32);
    if outer.reserved_bits {
        note(DIRECTION, Note::ReservedBits, ctx.len());
    }
    let (net, vtep) = match authorise(outer) {
        Ok(known) => known,
        Err(reason @ DropReason::UnknownVni) if vni != RESERVED_VNI => {
            return not_ours(ctx, reason);
        }
        Err(reason) => return Err(reason),
    };
    let sender = tunnel_source::check(ctx, net, vni, vtep, outer.vtep)?;
    let eth: EthHdr = ctx.read(INNER).ok_or(DropReason::OuterMalformed)?;
    // Its bytes would take more stack if they were kept in registers.
    let eth = core::hint::black_box(&eth);
    let contents = decap::inspect(ctx, outer, eth)?;
    let receiver = find_receiver(vni, net, eth)?;
    // The frame was sent by another host itself, not by a container of that host.
    let of_host = sender == TunnelSource::Host;
    let mut what = 0;
    if learns(net) && !of_host && eth.ethertype() == ETH_P_ARP {
        what |= LEARN_ARP;
    }
    if sender == TunnelSource::Unknown {
        what |= LEARN_MAC;
    }
    if matches!(receiver, Receiver::Host) && !contents.is_for_host(net) {
        // Only a VTEP of another system sends its reply to a request of this host as unicast: a
        // Culvert host makes it a broadcast.
        if what & LEARN_ARP != 0 && learn_from(ctx.skb.skb, vni, vtep.0, what | IF_HEARD) != 0 {
            return Ok(Action::Absorb);
        }
        return Err(DropReason::UnknownDestination);
    }
    if what != 0 {
        learn_from(ctx.skb.skb, vni, vtep.0, what);
    }

    decap::unwrap(ctx, outer, &contents, eth)?;
    match receiver {
        Receiver::Host => {
            redirect::ingress(net.gateway_ifindex);
            Ok(Action::ToHost)
        }
        Receiver::Local(ifindex) | Receiver::Learned(ifindex) if of_host => {
            from_peer_host::deliver(ctx, net, vtep, ifindex)
        }
        Receiver::Local(ifindex) => {
            // The frames of other senders are not cached: each of them refreshes the learned entry.
            if sender == TunnelSource::Endpoint {
                pairs::keep_inbound(ifindex);
            }
            decap::hand_over(ctx, ifindex)
        }
        Receiver::Learned(ifindex) => decap::hand_over(ctx, ifindex),
        Receiver::Flood => {
            let receivers = queriers::receivers(ctx.skb.skb, vni, 0, vtep);
            if receivers == Receivers::Nobody {
                note(DIRECTION, Note::ReportAbsorbed, ctx.len());
                return Ok(Action::Absorb);
            }
            let only_queriers = receivers == Receivers::Queriers;
            let sent = flood::local(ctx, DIRECTION, vni, net, 0, only_queriers);
            flood::outcome(sent, only_queriers)
        }
    }
}

/// Bit of the argument of [`learn_from`]: the frame is an ARP packet of a container or of a host
/// without Culvert.
const LEARN_ARP: u32 = 1;
/// Bit of the argument of [`learn_from`]: the store does not have the source MAC.
const LEARN_MAC: u32 = 2;
/// Bit of the argument of [`learn_from`]: the MAC is learned only if the sender of the ARP packet
/// was noted.
const IF_HEARD: u32 = 4;

/// Learns from a frame of `vtep`, before its decapsulation. `what` has the bits that apply. Returns
/// 1 if the sender of the ARP packet was noted, else 0. A BPF function of its own, to keep the
/// stack frame of its caller small.
#[inline(never)]
fn learn_from(skb: *mut __sk_buff, vni: u32, vtep: u32, what: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let is_heard = what & LEARN_ARP != 0 && heard::listen(DIRECTION, &ctx, vni, INNER_L3);
    if what & LEARN_MAC != 0 && (is_heard || what & IF_HEARD == 0) {
        // The source MAC follows the destination MAC.
        let Ok(mac) = load(&ctx, INNER + 6) else { return 0 };
        learned::source(DIRECTION, FdbKey::new(vni, mac), VtepId(vtep), 0, ctx.len());
    }
    is_heard.into()
}

/// Finds the local endpoint, or endpoints, that a frame from the tunnel is for.
#[inline(always)]
fn find_receiver(vni: u32, net: &NetworkInfo, eth: &EthHdr) -> Result<Receiver, DropReason> {
    if ethernet::is_multicast(&eth.dst) {
        return Ok(Receiver::Flood);
    }
    if eth.dst == net.gateway_mac && net.gateway_ifindex != 0 {
        return Ok(Receiver::Host);
    }
    let mut place = Place::NONE;
    let learning = net.flags & NetworkInfo::LEARNING;
    match learned::locate(&FdbKey::new(vni, eth.dst), learning, &mut place) {
        // The store knows every endpoint of a network that does not learn.
        0 if learning == 0 => Err(DropReason::UnknownDestination),
        0 => Ok(Receiver::Flood),
        // The destination MAC is behind a VTEP: the frame must not go back into the tunnel that it
        // comes from.
        _ if place.ifindex == 0 => Err(DropReason::SplitHorizon),
        learned::STATIC => Ok(Receiver::Local(place.ifindex)),
        _ => Ok(Receiver::Learned(place.ifindex)),
    }
}
