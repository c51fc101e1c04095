//! Packets that a container sends to its gateway: to the host, to a published port,
//! to the outside.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers,
    programs::TcContext,
};
use culvert_common::{
    abi::{
        Action, Direction, DropReason, Flow, NetworkInfo, PublishedEntry, PublishedKey, Tuple, zone,
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

use crate::{
    container::{Sender, tunnel},
    encap::Inner,
    fast, flow, fragment, icmp_error,
    maps::{ENDPOINTS, GATEWAYS, HOST_ADDRS, NETWORKS, PUBLISHED, UNDERLAY, UPLINKS, lookup},
    packet::redirect_ingress,
    parse::{self, Kind, Routed},
    translate::{self, Hook, Macs, translate},
    verdict::hand_back,
    way,
    work::Work,
};

const DIRECTION: Direction = Direction::FromContainer;
/// `AF_INET` of linux/socket.h.
const AF_INET: u8 = 2;

/// Routes a frame whose destination MAC is the gateway's. Each step is a function of
/// its own that works on `work`, one after the other, for the sake of the stack.
#[inline(always)]
pub(crate) fn from_container(
    sender: &Sender<'_>,
    inner: &Inner,
    work: &mut Work,
) -> Result<Action, DropReason> {
    let &Sender { ctx, ep, net, .. } = sender;
    work.error = None;
    if inner.eth.ethertype() != ETH_P_IP {
        return Err(DropReason::Unroutable);
    }
    let mut reason = DropReason::HelperFailed;
    if parse::parse(ctx, ep.vni, &mut work.routed, &mut reason) != 0 {
        return Err(reason);
    }
    let mut step = Step::Host;
    if decide(sender, work, &mut step, &mut reason) != 0 {
        return Err(reason);
    }
    if matches!(step, Step::Leave | Step::Masquerade)
        && find_way(sender, inner.segment_len, work, &mut step, &mut reason) != 0
    {
        return Err(reason);
    }
    if matches!(step, Step::Masquerade | Step::Publish) {
        match flow::begin(ctx, work, DIRECTION) {
            Err(DropReason::TtlExceeded) => return Err(ttl_exceeded(net, work)),
            other => other?,
        }
    }
    match step {
        Step::Host => {
            redirect_ingress(net.gateway_ifindex);
            Ok(Action::ToHost)
        }
        Step::Hold => fragment::hold(ctx, DIRECTION, work, sender.port),
        Step::Deliver | Step::Publish => match translate::deliver(ctx, work, Hook::Ingress) {
            Err(DropReason::TtlExceeded) => Err(ttl_exceeded(net, work)),
            other => other,
        },
        Step::Tunnel => {
            if work.routed.ip.ttl() <= 1 {
                return Err(ttl_exceeded(net, work));
            }
            let macs = Macs { dst: inner.eth.dst, src: inner.eth.src };
            if translate(ctx.skb.skb, &work.routed, &work.target.to, &macs, 1) != 0 {
                return Err(DropReason::HelperFailed);
            }
            tunnel(sender, inner, work.target.ifindex.to_ne_bytes())
        }
        Step::Leave | Step::Masquerade => {
            if translate(ctx.skb.skb, &work.routed, &work.target.to, &Macs::NONE, 1) != 0 {
                return Err(DropReason::HelperFailed);
            }
            redirect_to_next_hop(&work.way);
            Ok(Action::NatOut)
        }
    }
}

/// What a routed packet calls for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is the host's.
    Host,
    /// It is a fragment to be kept.
    Hold,
    /// It is of a flow that ends at this host.
    Deliver,
    /// It begins one, to a published port.
    Publish,
    /// It is of a flow that leaves the host.
    Leave,
    /// It begins one.
    Masquerade,
    /// It is of a flow that another host of the cluster began itself.
    Tunnel,
}

/// Finds the flow of a packet, or what it begins. A function of its own for the sake
/// of the stack.
#[inline(never)]
fn decide(sender: &Sender<'_>, work: &mut Work, step: &mut Step, reason: &mut DropReason) -> u32 {
    hand_back(try_decide(sender, work), step, reason)
}

#[inline(always)]
fn try_decide(sender: &Sender<'_>, work: &mut Work) -> Result<Step, DropReason> {
    let &Sender { ctx, ep, net, .. } = sender;
    if net.flags & NetworkInfo::INTERNAL != 0 && work.routed.ip.dst != net.gateway_ip {
        return Err(DropReason::InternalNetwork);
    }
    match work.routed.kind {
        Kind::Flow => {
            if !flow::find(DIRECTION, work, ep.generation, ctx.len()) {
                return begin(sender, work);
            }
        }
        Kind::Error => {
            if icmp_error::translate(ctx.skb.skb, ep.generation, work) != 0 {
                return if is_local(work) { to_host(net) } else { Err(DropReason::NoFlow) };
            }
        }
        Kind::LateFragment | Kind::FirstOfHeld => return Ok(Step::Hold),
        Kind::HostFragment => return to_host(net),
        Kind::Unsupported if is_local(work) => return to_host(net),
        Kind::Unsupported => return Err(DropReason::ProtocolUnsupported),
    }
    Ok(match work.target.zone {
        zone::OUTSIDE => Step::Leave,
        zone::TUNNEL => Step::Tunnel,
        _ => Step::Deliver,
    })
}

/// The destination is an address of the host.
#[inline(always)]
fn is_local(work: &Work) -> bool {
    lookup!(HOST_ADDRS, work.routed.ip.dst).is_some()
}

/// The container that a published port leads to, if the packet may begin a flow: of
/// TCP a SYN only, as anybody may send anything.
#[inline(always)]
pub(crate) fn published(routed: &Routed) -> Option<&'static PublishedEntry> {
    const OPENING: u8 = tcp::SYN | tcp::ACK | tcp::RST;
    if routed.key.protocol == PROTO_TCP && routed.tcp_flags & OPENING != tcp::SYN {
        return None;
    }
    let tuple = &routed.key.tuple;
    let mut key = PublishedKey {
        addr: tuple.dst,
        port: tuple.dst_port,
        protocol: routed.key.protocol,
        pad: 0,
    };
    if let Some(entry) = lookup!(PUBLISHED, key) {
        return Some(entry);
    }
    key.addr = [0; 4];
    lookup!(PUBLISHED, key)
}

/// What a packet begins that is of no flow yet.
#[inline(always)]
fn begin(sender: &Sender<'_>, work: &mut Work) -> Result<Step, DropReason> {
    let &Sender { port, ep, net, .. } = sender;
    let dst = work.routed.ip.dst;
    let gateway = dst == net.gateway_ip;
    if gateway && net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    if gateway || is_local(work) {
        let Some(entry) = published(&work.routed) else {
            fragment::is_host(&work.routed);
            return to_host(net);
        };
        // An internal network leads to no other one.
        if net.flags & NetworkInfo::INTERNAL != 0 && entry.vni != ep.vni {
            return Err(DropReason::InternalNetwork);
        }
        return match to_published(work, entry, port, ep.generation) {
            0 => Ok(Step::Publish),
            _ => Err(DropReason::UnknownEndpoint),
        };
    }
    if !ipv4::is_host(&dst) {
        return Err(DropReason::Unroutable);
    }
    let tuple = work.routed.key.tuple;
    if work.routed.key.protocol == PROTO_ICMP && tuple.dst_port != [0; 2] {
        // The reply to an echo that nobody has sent. It has no source port to choose.
        return Err(DropReason::NoFlow);
    }
    work.target.to = tuple;
    work.target.zone = zone::OUTSIDE;
    work.target.ifindex = 0;
    Ok(Step::Masquerade)
}

/// Puts a flow to a published port into `work.new`; `ifindex` and `generation` are
/// those of the container that begins it, 0 if none does. A client outside keeps
/// its address; any other is the gateway to the container, whose answer must come
/// this way. Returns 0, or 1 if the container is gone. A function of its own for the
/// sake of the stack.
#[inline(never)]
fn to_published(work: &mut Work, entry: &PublishedEntry, ifindex: u32, generation: u32) -> u32 {
    let ep = lookup!(ENDPOINTS, entry.ifindex).filter(|ep| ep.vni == entry.vni);
    let Some(ep) = ep else { return 1 };
    let Some(net) = lookup!(NETWORKS, entry.vni) else { return 1 };
    let key = &work.routed.key;
    let outside = key.zone == zone::OUTSIDE;
    let new = &mut work.new;
    new.key = *key;
    new.target.to = Tuple {
        src: if outside { key.tuple.src } else { net.gateway_ip },
        dst: entry.addr,
        src_port: key.tuple.src_port,
        dst_port: entry.port,
    };
    new.target.zone = entry.vni;
    new.target.ifindex = entry.ifindex;
    new.from_ifindex = ifindex;
    new.from_generation = generation;
    new.to_generation = ep.generation;
    new.flags = Flow::PUBLISHED;
    new.of_host = !outside;
    0
}

/// Begins a flow to a published port that no container has begun.
#[inline(always)]
pub(crate) fn begin_published(
    ctx: &TcContext,
    work: &mut Work,
    direction: Direction,
    entry: &PublishedEntry,
) -> Result<(), DropReason> {
    match to_published(work, entry, 0, 0) {
        0 => flow::begin(ctx, work, direction),
        _ => Err(DropReason::UnknownEndpoint),
    }
}

/// The packet is the host's, if containers of the network may talk to it.
#[inline(always)]
fn to_host(net: &NetworkInfo) -> Result<Step, DropReason> {
    if net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    Ok(Step::Host)
}

/// Whether the way back to the source of `work.routed` leads out of an uplink, as seen
/// from a gateway device: else a neighbour could speak for a container or the host
/// (RFC 3704 §2.2). A function of its own for the sake of the stack.
#[inline(never)]
pub(crate) fn comes_from_outside(ctx: &TcContext, gateway_ifindex: u32, work: &mut Work) -> u32 {
    let tuple = &work.routed.key.tuple;
    let src = tuple.src;
    if !ipv4::is_host(&src) || lookup!(HOST_ADDRS, src).is_some() {
        return 0;
    }
    work.target.to = tuple.reversed();
    match ask_routes(ctx, gateway_ifindex, 0, work) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            lookup!(UPLINKS, work.way.ifindex).is_some().into()
        }
        _ => 0,
    }
}

/// The container is to be told what the way out takes.
#[inline(always)]
fn too_big(net: &NetworkInfo, work: &mut Work) -> DropReason {
    // SAFETY: every bit pattern is valid for the members of the union.
    let mtu = unsafe { work.way.__bindgen_anon_1.mtu_result };
    let (kind, code) = (V4_UNREACHABLE, V4_FRAG_NEEDED);
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

/// Finds the way of a packet out of the host. Leaves it in `work.way`, and in
/// `work.new` the flow that it begins. A function of its own for the sake of the stack.
#[inline(never)]
fn find_way(
    sender: &Sender<'_>,
    segment_len: u32,
    work: &mut Work,
    step: &mut Step,
    reason: &mut DropReason,
) -> u32 {
    let begins = *step == Step::Masquerade;
    hand_back(try_find_way(sender, segment_len, work, begins), step, reason)
}

#[inline(always)]
fn try_find_way(
    sender: &Sender<'_>,
    segment_len: u32,
    work: &mut Work,
    begins: bool,
) -> Result<Step, DropReason> {
    let &Sender { ctx, net, .. } = sender;
    let tuple = &work.routed.key.tuple;
    // It would leave from our VTEP address.
    if work.routed.key.protocol == PROTO_UDP
        && lookup!(UNDERLAY, tuple.dst)
            .is_some_and(|path| path.port.to_be_bytes() == tuple.dst_port)
    {
        return Err(DropReason::VxlanFromContainer);
    }
    let generation = fast::generation();
    if way::find(work, net.gateway_ifindex, segment_len) {
        return leave(sender, work, begins);
    }
    match ask_routes(ctx, net.gateway_ifindex, segment_len, work) {
        BPF_FIB_LKUP_RET_SUCCESS => {}
        BPF_FIB_LKUP_RET_FRAG_NEEDED => return Err(too_big(net, work)),
        // No unicast route: an address of the host's that the agent has not
        // told us of yet, or none. The host's stack knows what to say.
        BPF_FIB_LKUP_RET_NOT_FWDED => return to_host(net),
        answer => return Err(no_route(net, work, answer)),
    }
    let ifindex = work.way.ifindex;
    if lookup!(GATEWAYS, ifindex).is_some() {
        return Err(DropReason::Isolated);
    }
    lookup!(UPLINKS, ifindex).ok_or(DropReason::NotAnUplink)?;
    if !begins {
        way::remember(work, net.gateway_ifindex, generation);
    }
    leave(sender, work, begins)
}

/// The packet takes the way in `work.way`.
#[inline(always)]
fn leave(sender: &Sender<'_>, work: &mut Work, begins: bool) -> Result<Step, DropReason> {
    let &Sender { port, ep, net, .. } = sender;
    if work.routed.ip.ttl() <= 1 {
        return Err(ttl_exceeded(net, work));
    }
    if begins {
        masquerade(work, port, ep.generation);
        return Ok(Step::Masquerade);
    }
    Ok(Step::Leave)
}

/// Puts a flow that leaves with the source address of the route into `work.new`.
#[inline(always)]
fn masquerade(work: &mut Work, ifindex: u32, generation: u32) {
    let new = &mut work.new;
    new.key = work.routed.key;
    new.target = work.target;
    // SAFETY: every bit pattern is valid for the members of the union.
    new.target.to.src = unsafe { work.way.__bindgen_anon_3.ipv4_src }.to_ne_bytes();
    new.from_ifindex = ifindex;
    new.from_generation = generation;
    new.to_generation = 0;
    new.flags = Flow::MASQUERADE;
    new.of_host = true;
}

/// Sends the frame to the next hop of the way out when the program returns. A
/// function of its own for the sake of the stack.
#[inline(never)]
fn redirect_to_next_hop(way: &bpf_fib_lookup) -> u32 {
    // SAFETY: every bit pattern is valid for the members of the union; an IPv4 next
    // hop is the first word.
    let next_hop = unsafe { way.__bindgen_anon_4.ipv6_dst };
    let mut neighbour = bpf_redir_neigh {
        nh_family: way.family.into(),
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: next_hop },
    };
    let len = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the parameters are on our stack and as long as stated.
    unsafe { helpers::bpf_redirect_neigh(way.ifindex, &raw mut neighbour, len, 0) as u32 }
}

/// Asks the kernel's routes for a packet of `len` bytes, which is compared with the MTU
/// of the route and with what the host has learnt of the path (RFC 1191); 0: with the
/// device's. Returns its answer, one of `BPF_FIB_LKUP_RET_*`.
#[inline(always)]
fn ask_routes(ctx: &TcContext, gateway_ifindex: u32, len: u32, work: &mut Work) -> u32 {
    let to = &work.target.to;
    let params = &mut work.way;
    params.family = AF_INET;
    params.l4_protocol = work.routed.key.protocol;
    params.sport = u16::from_ne_bytes(to.src_port);
    params.dport = u16::from_ne_bytes(to.dst_port);
    params.__bindgen_anon_1.tot_len = len.min(u16::MAX.into()) as u16;
    params.ifindex = gateway_ifindex;
    params.__bindgen_anon_2.flowinfo = 0;
    params.__bindgen_anon_2.tos = work.routed.ip.tos();
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(to.src);
    params.__bindgen_anon_4.ipv6_dst = [u32::from_ne_bytes(to.dst), 0, 0, 0];
    let params_len = size_of::<bpf_fib_lookup>() as i32;
    let flags = BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC;
    // SAFETY: the context is the program's own; the parameters are as long as stated.
    unsafe {
        helpers::bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut *params, params_len, flags) as u32
    }
}

/// The container is to be told why its packet cannot leave.
#[inline(always)]
fn no_route(net: &NetworkInfo, work: &mut Work, answer: u32) -> DropReason {
    let code =
        if answer == BPF_FIB_LKUP_RET_PROHIBIT { V4_PROHIBITED } else { V4_HOST_UNREACHABLE };
    let from = net.gateway_ip;
    work.error = Some(Error { from, kind: V4_UNREACHABLE, code, mtu: 0 });
    DropReason::NoRoute
}
