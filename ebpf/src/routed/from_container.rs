//! Packets that a container sends to its gateway: to the host, to a published port, or out
//! of the host.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{
        Action, Direction, DropReason, EndpointInfo, FlowKey, MappedAddr, NetworkInfo, Note,
        PublishedEntry, PublishedKey, SealedU32, Tuple, VtepId, blocked, kind, zone,
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
    facts::{
        inner::Inner,
        routed::{Kind, Routed},
        sender::Sender,
    },
    globals::{PORTS_CLOSED, VTEP_IP, VXLAN_PORT},
    kernel::{
        fib::{self, Route},
        redirect,
    },
    maps::{
        BLOCKED, GATEWAYS, HOST_ADDRS, has, is_client_link, is_denied, is_host_addr, is_service,
        is_uplink, read, vtep_id, vxlan_port,
    },
    state::{epoch, flow_table, flows, fragments, routes::Question},
    verdict::hand_back,
};

const DIRECTION: Direction = Direction::FromContainer;

/// Routes a frame whose destination MAC is the gateway's. Sends the container an ICMP error if the
/// packet is dropped for a reason that ICMP can report.
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

/// Calls the steps one after the other. Each step is a BPF function of its own that works on
/// `work`, for a stack frame of its own.
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
            Err(_) if is_local(work) => {
                may_reach(net, &work.routed)?;
                to_host(net)?
            }
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
            // Answers of the host itself need no flow; only forwarded answers need one.
            Err(_) if step == Step::Track => {
                note(DIRECTION, Note::FlowRefused, ctx.len());
                target.zone = zone::HOST;
            }
            other => other?,
        }
        // Another CPU may have begun the flow: `target` is then the target of that flow.
        step = Step::towards(work);
    }
    match step {
        // The step of an ICMP error was replaced by another step above.
        Step::Error => Err(DropReason::NoFlow),
        // A flow to the host's stack is not translated.
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

/// The next step for a routed packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The packet goes to the host's stack.
    Host,
    /// The packet begins a flow to the host's stack.
    Track,
    /// The packet is an ICMP error. It may quote a packet of a flow.
    Error,
    /// The packet is a fragment to be held.
    Hold,
    /// The packet belongs to a flow that ends at this host.
    Deliver,
    /// The packet begins a flow to a published port.
    Publish,
    /// The packet belongs to a flow that leaves the host.
    Leave,
    /// The packet begins a masqueraded flow, which leaves the host.
    Masquerade,
    /// The packet belongs to a flow that another host of the cluster began itself.
    Tunnel,
}

impl Step {
    /// The step for a packet of a flow, by the zone of its target.
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

/// Finds the flow of a packet, or the flow that the packet begins. Stores the next step in `step`.
/// A BPF function of its own, for a stack frame of its own.
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
                // Since the flow began, the port was published, or the host has lost the address.
                flow_table::forget(&work.routed.key);
                return begin(sender, work);
            }
        }
        Kind::Error => return Ok(Step::Error),
        Kind::LateFragment | Kind::FirstOfHeld => return Ok(Step::Hold),
        Kind::HostFragment => return to_host(net),
        Kind::Unsupported if is_local(work) => {
            may_reach(net, &work.routed)?;
            return to_host(net);
        }
        Kind::Unsupported => return Err(DropReason::ProtocolUnsupported),
    }
    Ok(Step::towards(work))
}

/// Whether the destination is an address of the host.
#[inline(always)]
fn is_local(work: &Work) -> bool {
    is_host_addr(work.routed.ip.dst)
}

/// Whether a packet of a flow to the host's stack must still go to the host's stack.
#[inline(always)]
fn is_for_stack(net: &NetworkInfo, work: &mut Work) -> bool {
    let dst = work.routed.ip.dst;
    if dst == net.gateway_ip || is_local(work) { !is_published(work) } else { is_service(dst) }
}

/// The step for a packet that belongs to no flow yet.
#[inline(always)]
fn begin(sender: &Sender<'_>, work: &mut Work) -> Result<Step, DropReason> {
    let &Sender { ifindex, ep, net, .. } = sender;
    let dst = work.routed.ip.dst;
    let gateway = dst == net.gateway_ip;
    if gateway && net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    if let Err(reason) = may_reach(net, &work.routed) {
        if reason == DropReason::Blocked {
            work.error = Some(prohibited(net));
        }
        return Err(reason);
    }
    if gateway || is_local(work) {
        if !is_published(work) {
            // The socket of `cvgro0` is also that of other systems' vxlan devices.
            if is_vxlan(work) {
                return Err(DropReason::VxlanFromContainer);
            }
            fragments::note_host_datagram(&work.routed);
            return track(sender, work);
        }
        // A container of an internal network must not reach another network.
        if net.flags & NetworkInfo::INTERNAL != 0 && work.published.vni != ep.vni {
            return Err(DropReason::InternalNetwork);
        }
        // The source address does not identify a container that may send from any address, or whose
        // network's addresses other networks may have, too.
        let unproven = ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0
            || net.flags & NetworkInfo::HOST_ACCESS == 0;
        if unproven && work.published.flags & PublishedEntry::RESTRICTED != 0 {
            return Err(DropReason::Denied);
        }
        // The primary address is checked, because the container may send from an additional
        // address.
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
        // `find_route` makes this check for packets that leave the host; the host's stack does not
        // make it.
        if work.routed.key.protocol == PROTO_UDP && is_to_vtep(work) {
            return Err(DropReason::VxlanFromContainer);
        }
        return track(sender, work);
    }
    let tuple = work.routed.key.tuple;
    if work.routed.key.protocol == PROTO_ICMP && tuple.dst_port != [0; 2] {
        // An echo reply without a request. It has no source port that could be translated.
        return Err(DropReason::NoFlow);
    }
    work.target.to = tuple;
    work.target.zone = zone::EXTERNAL;
    work.target.dest = 0;
    Ok(Step::Masquerade)
}

/// Checks that the container may reach the destination of `routed`, which belongs to no flow: it is
/// no broadcast address of the LAN, no gateway of another network, and neither a store nor a host
/// that is closed to containers. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
fn may_reach(net: &NetworkInfo, routed: &Routed) -> Result<(), DropReason> {
    let Tuple { dst, dst_port, .. } = routed.key.tuple;
    // Most such segments are answers to the host, which reaches containers with the gateway's
    // address. They begin no flow there, not even to a published port. While ports are closed, they
    // are looked up: with SYN cookies the host begins a connection at a right acknowledgement.
    let is_tcp = routed.key.protocol == PROTO_TCP;
    if dst == net.gateway_ip
        && is_tcp
        && PORTS_CLOSED.load() == 0
        && routed.has_header
        && !tcp::opens(routed.tcp.flags)
    {
        return Ok(());
    }
    // One key for all look-ups: the stack is short.
    let mut key = PublishedKey::whole(MappedAddr::v4(dst));
    match why_blocked(&key) {
        blocked::BROADCAST => return Err(DropReason::Unroutable),
        blocked::GATEWAY if dst != net.gateway_ip => return Err(DropReason::Isolated),
        blocked::HOST if net.flags & NetworkInfo::BLOCK_HOSTS != 0 => {
            return Err(DropReason::Blocked);
        }
        _ => {}
    }
    // Clients reach etcd over TCP alone. A segment that opens no connection is checked, too: it would
    // begin a masqueraded flow, with which later segments pass.
    if is_tcp {
        (key.port, key.protocol) = (dst_port, PROTO_TCP);
        if why_blocked(&key) != 0 {
            return Err(DropReason::Blocked);
        }
    }
    if net.flags & NetworkInfo::BLOCK_HOSTS == 0 {
        return Ok(());
    }
    // The host itself connects to containers. Their answers belong to no flow.
    let is_here = dst == net.gateway_ip
        || u32::from_ne_bytes(dst) == VTEP_IP.load()
        || has(&HOST_ADDRS, &key.addr);
    if is_here && opens(&routed.key, routed.tcp.flags) {
        return Err(DropReason::Blocked);
    }
    Ok(())
}

/// The entry of `BLOCKED` under `key`; 0 if there is none.
#[inline(always)]
fn why_blocked(key: &PublishedKey) -> u32 {
    read(&BLOCKED, key).map_or(0, |SealedU32 { value, .. }| value)
}

/// Whether the packet can be the first one of an exchange. Other packets are answers.
#[inline(always)]
fn opens(key: &FlowKey, tcp_flags: u8) -> bool {
    match key.protocol {
        PROTO_TCP => tcp::opens(tcp_flags),
        PROTO_ICMP => key.tuple.dst_port == [0; 2],
        _ => true,
    }
}

/// The step of a packet for the host. Fails if the network does not let containers and hosts reach
/// each other.
#[inline(always)]
fn to_host(net: &NetworkInfo) -> Result<Step, DropReason> {
    if net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    Ok(Step::Host)
}

/// The step for a packet that begins a flow to the host's stack: netfilter may send the packet on,
/// and the host then forwards the answers. A packet that can only be an answer goes to the host's
/// stack without a flow.
#[inline(always)]
fn track(sender: &Sender<'_>, work: &mut Work) -> Result<Step, DropReason> {
    let &Sender { ifindex, ep, net, .. } = sender;
    let key = work.routed.key;
    let step = to_host(net)?;
    // No answer of another machine can come back into an internal network, so no flow is needed.
    if !opens(&key, work.routed.tcp.flags) || net.flags & NetworkInfo::INTERNAL != 0 {
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

/// Prepares the ICMP error that tells the container the MTU of the route.
#[inline(always)]
fn too_big(net: &NetworkInfo, work: &mut Work) -> DropReason {
    let (kind, code, mtu) = (V4_UNREACHABLE, V4_FRAG_NEEDED, fib::mtu(&work.route));
    work.error = Some(Error { from: net.gateway_ip, kind, code, mtu });
    DropReason::PacketTooBig
}

/// Prepares the ICMP error that tells the container that the TTL ran out.
#[inline(always)]
fn ttl_exceeded(net: &NetworkInfo, work: &mut Work) -> DropReason {
    let from = net.gateway_ip;
    work.error = Some(Error { from, kind: V4_TIME_EXCEEDED, code: 0, mtu: 0 });
    DropReason::TtlExceeded
}

/// Finds the route of a packet out of the host. Stores the route in `work.route`, and the flow that
/// the packet begins in `work.new`. A BPF function of its own, for a stack frame of its own.
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
    // The route of a masqueraded flow is looked up with the container's address as the source: the
    // first packet has no other source yet. So a routing rule for that address applies to the whole
    // flow.
    let masqueraded = work.target.kind & kind::MASQUERADE != 0;
    let to = if masqueraded { work.routed.key.tuple } else { work.target.to };
    let (tos, gateway) = (work.routed.ip.tos(), net.gateway_ifindex);
    // The epoch is read before the maps: if a map changes in between, the cached entry is not
    // valid.
    let epoch = epoch::current();
    let question = Question::new(to, work.target.to.src, protocol, tos, gateway);
    let link = zone::client_link(work.target.zone);
    if question.find(segment_len, &mut work.route) {
        // A flow of another link may have cached the answer to the same question.
        if link.is_some_and(|link| link != work.route.ifindex) {
            return Err(DropReason::NotAnUplink);
        }
        return leave(sender, work, begins);
    }
    match fib::ask(ctx, &mut work.route, (&to, protocol, tos), gateway, segment_len) {
        fib::SUCCESS => {}
        fib::FRAG_NEEDED => return Err(too_big(net, work)),
        // No unicast route: the destination is an address of the host that the agent has not yet
        // written to `HOST_ADDRS`, or it has no route. The host's stack sends the right answer.
        fib::NOT_FORWARDED if net.flags & NetworkInfo::BLOCK_HOSTS != 0 => {
            return Err(DropReason::Blocked);
        }
        fib::NOT_FORWARDED => return to_host(net),
        answer => return Err(no_route(net, work, answer)),
    }
    let ifindex = work.route.ifindex;
    if has(&GATEWAYS, &ifindex) {
        return Err(DropReason::Isolated);
    }
    // An answer to a client of a client link must leave by that link, any other packet by an
    // uplink.
    match link {
        Some(link) if ifindex == link && is_client_link(ifindex) => {}
        Some(_) => return Err(DropReason::NotAnUplink),
        None if is_uplink(ifindex) => {}
        None => return Err(no_uplink(net, work)),
    }
    if begins {
        return leave(sender, work, true);
    }
    // The source of an ICMP error may be a router behind the container.
    let is_lost = work.routed.kind == Kind::Flow && is_lost(ctx, gateway, work) != 0;
    if is_lost {
        end(ctx, work)?;
    } else {
        question.keep(&work.route, epoch);
    }
    leave(sender, work, is_lost)
}

/// Whether the packet of a flow would leave with a source address that the host has lost. Returns 1
/// if so, else 0. `work.route` is the packet's route. A BPF function of its own, for a stack frame
/// of its own.
#[inline(never)]
fn is_lost(ctx: &TcContext, gateway: u32, work: &mut Work) -> u32 {
    let source = work.target.to.src;
    // The source address of a route is one of the host's addresses.
    if source == fib::source(&work.route) {
        return 0;
    }
    if work.target.kind & kind::MASQUERADE == 0 {
        return (!is_host_addr(source)).into();
    }
    // The kernel has chosen this address, so the kernel is asked: while no agent runs, `HOST_ADDRS`
    // has neither the new addresses nor the changes of the old ones. The kernel has no unicast
    // route to an address of the host. All else is as in the packet, so that the same routing rules
    // apply: the main table may have no route that leads to the address after its loss.
    let (key, tos) = (work.routed.key, work.routed.ip.tos());
    let to = Tuple { dst: source, ..key.tuple };
    match fib::ask(ctx, &mut work.probe, (&to, key.protocol, tos), gateway, 0) {
        fib::SUCCESS..=fib::PROHIBIT | fib::FRAG_NEEDED => 1,
        _ => 0,
    }
}

/// Ends the flow of a packet whose source address the host has lost, as Linux does
/// (`nf_nat_masquerade`). A masqueraded flow begins anew with the source address of the route. The
/// other side does not know a TCP connection from that address, and resets it. An answer of a
/// published port is dropped.
#[inline(always)]
fn end(ctx: &TcContext, work: &mut Work) -> Result<(), DropReason> {
    note(DIRECTION, Note::SourceLost, ctx.len());
    flow_table::forget(&work.routed.key);
    if work.target.kind & kind::MASQUERADE == 0 {
        return Err(DropReason::NoFlow);
    }
    work.target.to = work.routed.key.tuple;
    Ok(())
}

/// Whether the packet is VXLAN by its port.
#[inline(always)]
fn is_vxlan(work: &Work) -> bool {
    let key = &work.routed.key;
    key.protocol == PROTO_UDP && key.tuple.dst_port == VXLAN_PORT.load().to_be_bytes()
}

/// Whether the packet is VXLAN for a VTEP: it would leave with the address of this host's VTEP as
/// its source. Without a path to the VTEP, its port is taken to be this host's.
#[inline(always)]
fn is_to_vtep(work: &Work) -> bool {
    let tuple = &work.routed.key.tuple;
    let vtep = vtep_id(tuple.dst);
    let port = || vxlan_port(vtep).unwrap_or(VXLAN_PORT.load());
    vtep.is_some() && port().to_be_bytes() == tuple.dst_port
}

/// The step for a packet that leaves the host by the route in `work.route`.
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

/// Fills `work.new` with a masqueraded flow. Its new source address is that of the route.
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

/// Sends the frame to the next hop of the route when the program returns. A BPF function of its
/// own, for a stack frame of its own.
#[inline(never)]
fn redirect_to_next_hop(route: &Route) -> u32 {
    let mut next_hop = redirect::next_hop(route.family.into(), fib::next_hop(route));
    redirect::neighbour(route.ifindex, &mut next_hop);
    0
}

/// Prepares the ICMP error that tells the container that its packet may not leave by the interface
/// of its route.
#[inline(always)]
fn no_uplink(net: &NetworkInfo, work: &mut Work) -> DropReason {
    work.error = Some(prohibited(net));
    DropReason::NotAnUplink
}

/// The ICMP error that tells the container that its packet is prohibited.
#[inline(always)]
fn prohibited(net: &NetworkInfo) -> Error {
    Error { from: net.gateway_ip, kind: V4_UNREACHABLE, code: V4_PROHIBITED, mtu: 0 }
}

/// Prepares the ICMP error that tells the container why its packet has no route. `answer` is the
/// result of the route look-up.
#[inline(always)]
fn no_route(net: &NetworkInfo, work: &mut Work, answer: u32) -> DropReason {
    let code = if answer == fib::PROHIBIT { V4_PROHIBITED } else { V4_HOST_UNREACHABLE };
    let from = net.gateway_ip;
    work.error = Some(Error { from, kind: V4_UNREACHABLE, code, mtu: 0 });
    DropReason::NoRoute
}
