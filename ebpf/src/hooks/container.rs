//! `from_container`: tcx ingress on the host side of a container's veth. With netkit it runs
//! on the container's side while the container transmits, and at tcx ingress of the host side
//! for fragments that come in again.

use aya_ebpf::{
    macros::{classifier, map},
    maps::PerCpuArray,
    programs::TcContext,
};
use culvert_common::{
    abi::{
        Action, Direction, DropReason, EndpointInfo, FdbKey, NetworkInfo, Note, RateKey, VtepId,
    },
    datapath::rate,
    wire::{
        ethernet::{self, BROADCAST},
        ipv6::NEXT_ICMPV6,
    },
};

use crate::{
    act::{
        answer::{self, Answer, NdAnswer},
        flood,
        tunnel::{Tunnel, Unsent},
    },
    count::note,
    facts::{
        gso::longest_packet,
        inner::Inner,
        sender::{Protocol, Sender, UpperLayer, check_ipv6, check_ipv6_headers, inspect},
    },
    kernel::{
        memory::own,
        redirect,
        skb::{
            ETH_LEN, IPV4_HEADERS, ensure, is_transmitted, is_truthful, linearise, store,
            vlan_present,
        },
    },
    pairs,
    routed::from_container as routed,
    state::{
        heard,
        learned::{self, Place},
        queriers::{self, Receivers},
        rates,
    },
    verdict::{Outcome, Seen, finish},
};

/// The frame that the program processes. It is not on the BPF stack, which has only 512 bytes.
#[map]
static INNER: PerCpuArray<Inner> = PerCpuArray::with_max_entries(1, 0);

/// A frame that a container sends.
#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    let seen = Seen::of(&ctx, Direction::FromContainer);
    let outcome = match pairs::from_container(&ctx, seen.ifindex).outcome() {
        Some(outcome) => outcome,
        None => handle(&ctx, seen.ifindex),
    };
    finish(&ctx, &seen, outcome)
}

#[inline(always)]
fn handle(ctx: &TcContext, ifindex: u32) -> Outcome {
    let sender = Sender::identify(ctx, ifindex)?;
    let &Sender { ep, net, .. } = &sender;
    if vlan_present(ctx) {
        return Err(DropReason::VlanTagged);
    }
    ensure(ctx, IPV4_HEADERS);
    let inner = own(&INNER, 0).ok_or(DropReason::HelperFailed)?;
    *inner = Inner::default();
    let mut protocol = Protocol::Checked;
    inspect(&sender, inner, &mut protocol)?;
    if is_transmitted(ctx) && !is_truthful(ctx, inner.eth.ethertype()) {
        return Err(DropReason::Malformed);
    }
    // With the usual source check every MAC and address of a container is known already.
    let learns =
        net.flags & NetworkInfo::LEARNING != 0 && ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0;
    let answer = match protocol {
        Protocol::Checked => None,
        Protocol::Arp => {
            linearise(ctx);
            if learns {
                heard::listen(Direction::FromContainer, ctx, ep.vni, ETH_LEN);
            }
            let mut answer = None;
            answer::arp(&sender, &mut answer)?;
            if answer.is_none() && learns && inner.eth.dst == net.gateway_mac {
                // An ARP packet for a host. All hosts have the gateway's MAC, so the packet may be
                // for another host, and is sent to all.
                inner.eth.dst = BROADCAST;
                store(ctx, 0, &inner.eth)?;
            }
            answer
        }
        Protocol::Ipv6 => {
            linearise(ctx);
            ipv6(&sender, inner)?
        }
    };
    if let Some(action) = answer {
        return Ok(action);
    }
    if learns {
        let key = FdbKey::new(ep.vni, inner.eth.src);
        learned::source(Direction::FromContainer, key, VtepId::NONE, ifindex, ctx.len());
    }
    forward(&sender, inner)
}

/// Checks an IPv6 packet, and answers it if it is a neighbour solicitation
/// whose answer is known.
#[inline(always)]
fn ipv6(sender: &Sender<'_>, inner: &mut Inner) -> Answer {
    let mut l4 = UpperLayer::default();
    let mut tclass = 0;
    check_ipv6(sender, inner.l3_len, &mut l4, &mut tclass)?;
    inner.tos = Some(tclass);
    let network_len = (l4.offset - ETH_LEN) as u32;
    inner.segment_len = longest_packet(sender.ctx, inner.l3_len, l4.protocol, network_len)?;
    let mut mac = [0; 6];
    let mut answer = NdAnswer::Forward;
    if l4.protocol == NEXT_ICMPV6 {
        answer::icmpv6(sender, &l4, &mut mac, &mut answer)?;
    }
    if l4.offset != UpperLayer::PLAIN {
        check_ipv6_headers(sender.ctx, &l4)?;
    }
    match answer {
        NdAnswer::Forward => Ok(None),
        NdAnswer::Absorb => Ok(Some(Action::Absorb)),
        NdAnswer::Reply => answer::nd(sender, mac).map(Some),
    }
}

/// Finds out where the frame goes and sends it there.
#[inline(always)]
fn forward(sender: &Sender<'_>, inner: &Inner) -> Outcome {
    let &Sender { ctx, ifindex, ep, net } = sender;
    if ethernet::is_multicast(&inner.eth.dst) {
        return flood_limited(sender, inner);
    }
    if inner.eth.dst == net.gateway_mac && net.gateway_ifindex != 0 {
        return routed::route(sender, inner);
    }
    let mut place = Place::NONE;
    let learning = net.flags & NetworkInfo::LEARNING;
    let found = learned::locate(&FdbKey::new(ep.vni, inner.eth.dst), learning, &mut place);
    if found == 0 {
        return flood_limited(sender, inner);
    }
    let Place { ifindex: local, vtep } = place;
    let outcome = if local != 0 {
        if local == ifindex {
            return Err(DropReason::SameInterface);
        }
        redirect::peer(ctx, local).map(|()| Action::Deliver)
    } else {
        match tunnel(sender).send(inner, vtep) {
            Ok(action) => Ok(action),
            Err(Unsent::TooBig(mtu)) => Err(answer::too_big(sender, &inner.eth, mtu)),
            Err(Unsent::Dropped(reason)) => Err(reason),
        }
    };
    if found == learned::STATIC && outcome.is_ok() {
        pairs::keep_outbound(sender, local, vtep);
    }
    outcome
}

/// The tunnel of the sender's network.
#[inline(always)]
fn tunnel<'a>(sender: &Sender<'a>) -> Tunnel<'a> {
    Tunnel { ctx: sender.ctx, vni: sender.ep.vni, flags: sender.net.flags }
}

/// Floods, within the endpoint's rate limit. An IGMP or MLD report goes only to the queriers of the
/// network.
#[inline(always)]
fn flood_limited(sender: &Sender<'_>, inner: &Inner) -> Outcome {
    let &Sender { ctx, ifindex, ep, net } = sender;
    if ep.bum_rate != 0 {
        let limit = RateKey { kind: RateKey::BUM, id: ifindex };
        // The interval is at most 1 s, so it fits 32 bits.
        let interval_ns = rate::interval_ns(ep.bum_rate) as u32;
        if !rates::allow(limit, interval_ns, ep.bum_burst) {
            return Err(DropReason::BumRateLimited);
        }
    }
    let receivers = queriers::receivers(ctx.skb.skb, ep.vni, ifindex, VtepId::NONE);
    if receivers == Receivers::Nobody {
        note(Direction::FromContainer, Note::ReportAbsorbed, ctx.len());
        return Ok(Action::Absorb);
    }
    const FROM: u8 = Direction::FromContainer.code();
    let only_queriers = receivers == Receivers::Queriers;
    flood::everywhere::<FROM>(&tunnel(sender), net, ifindex, inner, only_queriers)
}
