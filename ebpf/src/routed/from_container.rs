//! Packets that a container sends to its gateway: to the host, to a published port, or out
//! of the host.

use culvert_common::{
    abi::{
        Action, Direction, DropReason, EndpointInfo, NetworkInfo, Note, PublishedEntry, VtepId,
        kind, zone,
    },
    datapath::pmtu::Error,
    wire::{
        ethernet::ETH_P_IP,
        icmp::{
            V4_FRAG_NEEDED, V4_HOST_UNREACHABLE, V4_PROHIBITED, V4_TIME_EXCEEDED, V4_UNREACHABLE,
        },
        ipv4::{self, PROTO_ICMP, PROTO_TCP, PROTO_UDP},
        tcp,
    },
};

use super::{
    icmp_error,
    parse::parse,
    publish::{is_published, prepare},
    work::{Work, work},
};
use crate::{
    act::{
        answer,
        translate::{self, Hook, Macs, translate},
        tunnel::{Tunnel, Unsent},
    },
    count::note,
    facts::{inner::Inner, routed::Kind, sender::Sender},
    kernel::{
        fib::{self, Route},
        redirect,
    },
    maps::{
        GATEWAYS, has, is_client_link, is_denied, is_host_addr, is_service, is_uplink, vtep_id,
        vxlan_port,
    },
    state::{epoch, flow_table, flows, fragments, routes::Question},
    verdict::hand_back,
};

const DIRECTION: Direction = Direction::FromContainer;

/// Routes a frame whose destination MAC is the gateway's, and tells the container what went
/// wrong, if anything did.
#[inline(always)]
pub(crate) fn route(sender: &Sender<'_>, inner: &Inner) -> Result<Action, DropReason> {
    let work = work()?;
    work.error = None;
    let outcome = try_route(sender, inner, work);
    if outcome.is_err()
        && let Some(error) = work.error
    {
        answer::error(sender, &error);
    }
    outcome
}

/// Each step is a BPF function of its own that works on `work`, one after the other, for
/// the stack of each.
#[inline(always)]
fn try_route(sender: &Sender<'_>, inner: &Inner, work: &mut Work) -> Result<Action, DropReason> {
    let &Sender { ctx, ep, net, ifindex } = sender;
    if inner.eth.ethertype() != ETH_P_IP {
        return Err(DropReason::Unroutable);
    }
    parse(ctx, ep.vni, &mut work.routed)?;
    let mut step = Step::Host;
    decide(sender, work, &mut step)?;
    if step == Step::Error {
        let Work { routed, target, .. } = work;
        step = match icmp_error::translate(ctx.skb.skb, ep.incarnation, routed, target) {
            Ok(()) => Step::towards(work),
            Err(_) if is_local(work) => to_host(net)?,
            Err(_) => return Err(DropReason::NoFlow),
        };
    }
    if matches!(step, Step::Leave | Step::Masquerade) {
        find_route(sender, inner.segment_len, work, &mut step)?;
    }
    if matches!(step, Step::Masquerade | Step::Publish | Step::Track) {
        let Work { routed, new, target, .. } = work;
        match flows::begin(ctx, routed, new, target, DIRECTION) {
            Err(DropReason::TtlExceeded) => return Err(ttl_exceeded(net, work)),
            // The host itself answers without a flow; only forwarded answers need one.
            Err(_) if step == Step::Track => {
                note(DIRECTION, Note::FlowRefused, ctx.len());
                target.zone = zone::HOST;
            }
            other => other?,
        }
        // Another CPU may have begun the flow: its target decides.
        step = Step::towards(work);
    }
    match step {
        // An error has become another step above.
        Step::Error => Err(DropReason::NoFlow),
        // A flow to the host's stack is untranslated.
        Step::Host | Step::Track => {
            redirect::ingress(net.gateway_ifindex);
            Ok(Action::ToHost)
        }
        Step::Hold => fragments::hold(ctx, DIRECTION, &work.routed, ifindex),
        Step::Deliver | Step::Publish => {
            match translate::deliver(ctx, &work.routed, &work.target, Hook::Ingress) {
                Err(DropReason::TtlExceeded) => Err(ttl_exceeded(net, work)),
                other => other,
            }
        }
        Step::Tunnel => {
            if work.routed.ip.ttl() <= 1 {
                return Err(ttl_exceeded(net, work));
            }
            let macs = Macs { dst: inner.eth.dst, src: inner.eth.src };
            translate(ctx.skb.skb, &work.routed, &work.target.to, &macs, 1)?;
            let tunnel = Tunnel { ctx, vni: ep.vni, flags: net.flags };
            match tunnel.send(inner, VtepId(work.target.dest)) {
                Ok(action) => Ok(action),
                Err(Unsent::TooBig(mtu)) => Err(answer::too_big(sender, &inner.eth, mtu)),
                Err(Unsent::Dropped(reason)) => Err(reason),
            }
        }
        Step::Leave | Step::Masquerade => {
            translate(ctx.skb.skb, &work.routed, &work.target.to, &Macs::NONE, 1)?;
            redirect_to_next_hop(&work.route);
            Ok(Action::NatOut)
        }
    }
}

/// What a routed packet calls for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is the host's.
    Host,
    /// It begins a flow to the host's stack.
    Track,
    /// It is an ICMP error, about a packet of a flow perhaps.
    Error,
    /// It is a fragment to be held.
    Hold,
    /// It is of a flow that ends at this host.
    Deliver,
    /// It begins a flow to a published port.
    Publish,
    /// It is of a flow that leaves the host.
    Leave,
    /// It begins a masqueraded flow, which leaves the host.
    Masquerade,
    /// It is of a flow that another host of the cluster began itself.
    Tunnel,
}

impl Step {
    /// What the packet of a flow calls for.
    #[inline(always)]
    fn towards(work: &Work) -> Self {
        match work.target.zone {
            zone::EXTERNAL => Self::Leave,
            zone::TUNNEL => Self::Tunnel,
            zone::HOST => Self::Host,
            other if zone::client_link(other).is_some() => Self::Leave,
            _ => Self::Deliver,
        }
    }
}

/// Finds the flow of a packet, or what it begins. A BPF function of its own, for its stack.
#[inline(never)]
fn decide(sender: &Sender<'_>, work: &mut Work, step: &mut Step) -> Result<(), DropReason> {
    hand_back(try_decide(sender, work), step)
}

#[inline(always)]
fn try_decide(sender: &Sender<'_>, work: &mut Work) -> Result<Step, DropReason> {
    let &Sender { ctx, ep, net, .. } = sender;
    if net.flags & NetworkInfo::INTERNAL != 0 && work.routed.ip.dst != net.gateway_ip {
        return Err(DropReason::InternalNetwork);
    }
    match work.routed.kind {
        Kind::Flow => {
            let Work { routed, target, .. } = work;
            if !flows::find(DIRECTION, routed, ep.incarnation, ctx.len(), target)? {
                return begin(sender, work);
            }
            if work.target.zone == zone::HOST {
                if is_for_stack(net, work) {
                    return to_host(net);
                }
                // The port was published since, or the host has lost the address.
                flow_table::forget(&work.routed.key);
                return begin(sender, work);
            }
        }
        Kind::Error => return Ok(Step::Error),
        Kind::LateFragment | Kind::FirstOfHeld => return Ok(Step::Hold),
        Kind::HostFragment => return to_host(net),
        Kind::Unsupported if is_local(work) => return to_host(net),
        Kind::Unsupported => return Err(DropReason::ProtocolUnsupported),
    }
    Ok(Step::towards(work))
}

/// The destination is an address of the host.
#[inline(always)]
fn is_local(work: &Work) -> bool {
    is_host_addr(work.routed.ip.dst)
}

/// The packet of a flow to the host's stack still goes there.
#[inline(always)]
fn is_for_stack(net: &NetworkInfo, work: &mut Work) -> bool {
    let dst = work.routed.ip.dst;
    if dst == net.gateway_ip || is_local(work) { !is_published(work) } else { is_service(dst) }
}

/// What a packet begins that is of no flow yet.
#[inline(always)]
fn begin(sender: &Sender<'_>, work: &mut Work) -> Result<Step, DropReason> {
    let &Sender { ifindex, ep, net, .. } = sender;
    let dst = work.routed.ip.dst;
    let gateway = dst == net.gateway_ip;
    if gateway && net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    if gateway || is_local(work) {
        if !is_published(work) {
            fragments::is_host(&work.routed);
            return track(sender, work);
        }
        // An internal network leads to no other one.
        if net.flags & NetworkInfo::INTERNAL != 0 && work.published.vni != ep.vni {
            return Err(DropReason::InternalNetwork);
        }
        // The address tells nothing about a container that may send with any, or whose network's
        // addresses other networks have, too.
        let unproven = ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0
            || net.flags & NetworkInfo::HOST_ACCESS == 0;
        if unproven && work.published.flags & PublishedEntry::RESTRICTED != 0 {
            return Err(DropReason::Denied);
        }
        // The container may have other addresses to send from.
        if is_denied(ep.ipv4) {
            return Err(DropReason::Denied);
        }
        prepare(work, ifindex, ep.incarnation)?;
        return Ok(Step::Publish);
    }
    if !ipv4::is_host(&dst) {
        return Err(DropReason::Unroutable);
    }
    if is_service(dst) {
        // `find_route` checks what leaves; the host's stack does not.
        if work.routed.key.protocol == PROTO_UDP && is_to_vtep(work) {
            return Err(DropReason::VxlanFromContainer);
        }
        return track(sender, work);
    }
    let tuple = work.routed.key.tuple;
    if work.routed.key.protocol == PROTO_ICMP && tuple.dst_port != [0; 2] {
        // The reply to an echo that nobody has sent. It has no source port to choose.
        return Err(DropReason::NoFlow);
    }
    work.target.to = tuple;
    work.target.zone = zone::EXTERNAL;
    work.target.dest = 0;
    Ok(Step::Masquerade)
}

/// The packet is the host's, if containers of the network may talk to it.
#[inline(always)]
fn to_host(net: &NetworkInfo) -> Result<Step, DropReason> {
    if net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    Ok(Step::Host)
}

/// The packet begins a flow to the host's stack: netfilter may send it on, and the host then
/// forwards the answers. A packet that can only be an answer itself is handed on without a flow.
#[inline(always)]
fn track(sender: &Sender<'_>, work: &mut Work) -> Result<Step, DropReason> {
    let &Sender { ifindex, ep, net, .. } = sender;
    let key = work.routed.key;
    let opens = match key.protocol {
        PROTO_TCP => work.routed.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN,
        PROTO_ICMP => key.tuple.dst_port == [0; 2],
        _ => true,
    };
    let step = to_host(net)?;
    // Out of an internal network no answer of another machine comes back.
    if !opens || net.flags & NetworkInfo::INTERNAL != 0 {
        return Ok(step);
    }
    let new = &mut work.new;
    new.key = key;
    new.target.to = key.tuple;
    new.target.zone = zone::HOST;
    new.target.dest = 0;
    new.target.kind = kind::HOST;
    new.from = ifindex;
    new.from_incarnation = ep.incarnation;
    new.to_incarnation = 0;
    new.of_host = false;
    Ok(Step::Track)
}

/// The container is to be told what the route takes.
#[inline(always)]
fn too_big(net: &NetworkInfo, work: &mut Work) -> DropReason {
    let (kind, code, mtu) = (V4_UNREACHABLE, V4_FRAG_NEEDED, fib::mtu(&work.route));
    work.error = Some(Error { from: net.gateway_ip, kind, code, mtu });
    DropReason::PacketTooBig
}

/// The container is to be told that the TTL ran out.
#[inline(always)]
fn ttl_exceeded(net: &NetworkInfo, work: &mut Work) -> DropReason {
    let from = net.gateway_ip;
    work.error = Some(Error { from, kind: V4_TIME_EXCEEDED, code: 0, mtu: 0 });
    DropReason::TtlExceeded
}

/// Finds the route of a packet out of the host. Leaves it in `work.route`, and in
/// `work.new` the flow that it begins. A BPF function of its own, for its stack.
#[inline(never)]
fn find_route(
    sender: &Sender<'_>,
    segment_len: u32,
    work: &mut Work,
    step: &mut Step,
) -> Result<(), DropReason> {
    let begins = *step == Step::Masquerade;
    hand_back(try_find_route(sender, segment_len, work, begins), step)
}

#[inline(always)]
fn try_find_route(
    sender: &Sender<'_>,
    segment_len: u32,
    work: &mut Work,
    begins: bool,
) -> Result<Step, DropReason> {
    let &Sender { ctx, net, .. } = sender;
    let protocol = work.routed.key.protocol;
    if protocol == PROTO_UDP && is_to_vtep(work) {
        return Err(DropReason::VxlanFromContainer);
    }
    // A masqueraded flow asks with the container's address, as its first packet did before there was
    // another: a rule for that address holds for the whole flow.
    let masqueraded = work.target.kind & kind::MASQUERADE != 0;
    let to = if masqueraded { work.routed.key.tuple } else { work.target.to };
    let (tos, gateway) = (work.routed.ip.tos(), net.gateway_ifindex);
    // Read before the maps are: a change in between makes the cached entry old.
    let epoch = epoch::current();
    let question = Question::new(to, protocol, tos, gateway);
    let link = zone::client_link(work.target.zone);
    if question.find(segment_len, &mut work.route) {
        // The same question may be one of a flow of another link.
        if link.is_some_and(|link| link != work.route.ifindex) {
            return Err(DropReason::NotAnUplink);
        }
        return leave(sender, work, begins);
    }
    match fib::ask(ctx, &mut work.route, (&to, protocol, tos), gateway, segment_len) {
        fib::SUCCESS => {}
        fib::FRAG_NEEDED => return Err(too_big(net, work)),
        // No unicast route: an address of the host's that the agent has not
        // told us of yet, or none. The host's stack knows what to say.
        fib::NOT_FORWARDED => return to_host(net),
        answer => return Err(no_route(net, work, answer)),
    }
    let ifindex = work.route.ifindex;
    if has(&GATEWAYS, &ifindex) {
        return Err(DropReason::Isolated);
    }
    // An answer to a client of a link leaves by that link, anything else by an uplink.
    let fits = match link {
        Some(link) => ifindex == link && is_client_link(ifindex),
        None => is_uplink(ifindex),
    };
    if !fits {
        return Err(DropReason::NotAnUplink);
    }
    if !begins {
        question.keep(&work.route, epoch);
    }
    leave(sender, work, begins)
}

/// The packet is VXLAN for a VTEP: it would leave with our VTEP's address as its source.
#[inline(always)]
fn is_to_vtep(work: &Work) -> bool {
    let tuple = &work.routed.key.tuple;
    let vtep = vtep_id(tuple.dst);
    vtep.is_some() && vxlan_port(vtep).is_some_and(|port| port.to_be_bytes() == tuple.dst_port)
}

/// The packet takes the route in `work.route`.
#[inline(always)]
fn leave(sender: &Sender<'_>, work: &mut Work, begins: bool) -> Result<Step, DropReason> {
    let &Sender { ifindex, ep, net, .. } = sender;
    if work.routed.ip.ttl() <= 1 {
        return Err(ttl_exceeded(net, work));
    }
    if begins {
        masquerade(work, ifindex, ep.incarnation);
        return Ok(Step::Masquerade);
    }
    Ok(Step::Leave)
}

/// Puts a flow that leaves with the source address of the route into `work.new`.
#[inline(always)]
fn masquerade(work: &mut Work, ifindex: u32, incarnation: u32) {
    let new = &mut work.new;
    new.key = work.routed.key;
    new.target = work.target;
    new.target.to.src = fib::source(&work.route);
    new.target.kind = kind::MASQUERADE;
    new.from = ifindex;
    new.from_incarnation = incarnation;
    new.to_incarnation = 0;
    new.of_host = true;
}

/// Sends the frame to the next hop of the route when the program returns. A BPF function of
/// its own, for its stack.
#[inline(never)]
fn redirect_to_next_hop(route: &Route) -> u32 {
    let mut next_hop = redirect::next_hop(route.family.into(), fib::next_hop(route));
    redirect::neighbour(route.ifindex, &mut next_hop);
    0
}

/// The container is to be told why its packet cannot leave; `answer` is the kernel's.
#[inline(always)]
fn no_route(net: &NetworkInfo, work: &mut Work, answer: u32) -> DropReason {
    let code = if answer == fib::PROHIBIT { V4_PROHIBITED } else { V4_HOST_UNREACHABLE };
    let from = net.gateway_ip;
    work.error = Some(Error { from, kind: V4_UNREACHABLE, code, mtu: 0 });
    DropReason::NoRoute
}
