//! `from_underlay`: tcx ingress on an uplink.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, DropReason, FdbKey, NetworkInfo, Note, RESERVED_VNI, VtepId, zone},
    datapath::learn,
    wire::{
        EthHdr, Ipv4Hdr,
        ethernet::{self, ETH_P_ARP},
    },
};

use crate::{
    act::{decap, flood, translate::Hook},
    count::note,
    facts::outer::{INNER, INNER_L3, Outer, Tunnelled, authorise, classify},
    kernel::{
        redirect,
        skb::{Packet as _, ensure, ifindex, is_for_host, linearise, strip_priority_tag},
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
        Err(reason) => not_ours(ctx, reason),
        Ok(Outer::Other) => from_external::receive(ctx, DIRECTION, zone::EXTERNAL, Hook::Ingress),
        Ok(Outer::Icmp) => {
            linearise(ctx);
            if path_mtu::learn(ctx.skb.skb) != 0 {
                note(DIRECTION, Note::PathMtuLearnt, ctx.len());
            }
            from_external::receive(ctx, DIRECTION, zone::EXTERNAL, Hook::Ingress)
        }
        Ok(Outer::Vxlan(tunnelled)) => decapsulate(ctx, &tunnelled),
    }
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
    let eth: EthHdr = ctx.read(INNER).ok_or(DropReason::OuterMalformed)?;
    if eth.is_vlan() {
        return Err(DropReason::VlanTagged);
    }
    if !learn::valid_source(&eth.src) {
        return Err(DropReason::InvalidSourceMac);
    }
    let source = FdbKey::new(vni, eth.src);
    let mut known = Place::NONE;
    let is_known = learned::locate(&source, 0, &mut known) != 0;
    if is_known && known.ifindex != 0 {
        return Err(DropReason::LocalSourceMac);
    }
    // Whether there is nothing to learn from the frame: its network does not learn, or the agent's
    // FDB has its source MAC at the same VTEP.
    let is_settled = net.flags & NetworkInfo::LEARNING == 0 || (is_known && known.vtep == vtep);
    let contents = decap::inspect(ctx, outer, &eth)?;
    let receiver = find_receiver(vni, net, &eth)?;
    // The frame was sent by another host itself, not by a container of that host.
    let of_host = eth.src == net.gateway_mac;
    let learns = net.flags & NetworkInfo::LEARNING != 0 && !of_host;
    if matches!(receiver, Receiver::Host) && !contents.is_for_host(net) {
        let is_reply = learns && eth.ethertype() == ETH_P_ARP;
        if is_reply && take_reply(ctx.skb.skb, &source, vtep.0) != 0 {
            return Ok(Action::Absorb);
        }
        return Err(DropReason::UnknownDestination);
    }
    if learns {
        learned::source(DIRECTION, source, vtep, 0, ctx.len());
        if eth.ethertype() == ETH_P_ARP {
            heard::listen(DIRECTION, ctx, vni, INNER_L3);
        }
    }

    decap::unwrap(ctx, outer, &contents, &eth)?;
    match receiver {
        Receiver::Host => {
            redirect::ingress(net.gateway_ifindex);
            Ok(Action::ToHost)
        }
        Receiver::Local(ifindex) | Receiver::Learned(ifindex) if of_host => {
            from_peer_host::deliver(ctx, net, (vtep, outer.vtep), ifindex)
        }
        Receiver::Local(ifindex) => {
            if is_settled {
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

/// Learns from an ARP reply to a request of this host. Only a VTEP of another system sends it as
/// unicast: a Culvert host makes it a broadcast. Returns 1 if the sender was noted, else 0. A BPF
/// function of its own, to keep the stack frame of its caller small.
#[inline(never)]
fn take_reply(skb: *mut __sk_buff, source: &FdbKey, vtep: u32) -> u32 {
    let ctx = TcContext::new(skb);
    if !heard::listen(DIRECTION, &ctx, source.vni, INNER_L3) {
        return 0;
    }
    learned::source(DIRECTION, *source, VtepId(vtep), 0, ctx.len());
    1
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
