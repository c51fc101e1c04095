//! Conntrack: flows found, begun and removed.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key or a value that is passed by value is copied to the stack, which is short"
)]

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_NOEXIST, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    },
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use culvert_common::{
    abi::{Direction, DropReason, Flow, FlowKey, Note, Tuple, reserved_bit, zone},
    datapath::nat,
    wire::{
        ipv4::{PROTO_TCP, PROTO_UDP},
        tcp,
    },
};

use crate::{
    maps::{ENDPOINTS, EVICTABLE, FLOWS, NAT_PORT_MAX, NAT_PORT_MIN, RESERVED_PORTS, lookup},
    parse::Routed,
    verdict::note,
    work::Work,
};

/// `EEXIST` of errno.h.
const EEXIST: i32 = 17;
/// `BPF_F_CURRENT_NETNS` of linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;
/// How many candidates are looked at to make room for one flow.
const EVICT_TRIES: u32 = 8;

/// What a packet becomes and where it goes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Target {
    /// Addresses and ports.
    pub(crate) to: Tuple,
    /// As [`Flow::zone`].
    pub(crate) zone: u32,
    /// As [`Flow::ifindex`].
    pub(crate) ifindex: u32,
    /// As [`Flow::flags`], without what has been seen.
    pub(crate) kind: u32,
}

/// What [`refresh`] returns.
mod found {
    /// There is a flow.
    pub(super) const YES: u32 = 0;
    /// There is none, or it has ended and this packet begins another.
    pub(super) const NO: u32 = 1;
    /// There was one of a container that is gone; it has been removed.
    pub(super) const STALE: u32 = 2;
}

/// Finds the flow of the packet `work.routed`, leaves what it becomes in
/// `work.target`, and notes that it passed. `generation` is that of the container
/// that sent it, 0 if none did. `false`: there is no such flow.
#[inline(always)]
pub(crate) fn find(direction: Direction, work: &mut Work, generation: u32, bytes: u32) -> bool {
    match refresh(&work.routed, generation, bytes, &mut work.target) {
        found::YES => true,
        found::STALE => {
            note(direction, Note::FlowStale, bytes);
            false
        }
        _ => false,
    }
}

/// The same as a function of its own, for the sake of the stack.
#[inline(never)]
fn refresh(routed: &Routed, generation: u32, bytes: u32, target: &mut Target) -> u32 {
    let key = &routed.key;
    let Some(flow) = FLOWS.get_ptr_mut(key) else { return found::NO };
    // SAFETY: the entry's memory outlives the program run; what another CPU
    // writes to it meanwhile is as in `Flow`.
    let flow = unsafe { &mut *flow };
    if !is_current(flow, generation) {
        remove(key, flow);
        return found::STALE;
    }
    let mut tcp_flags = routed.tcp_flags;
    let orig = flow.flags & Flow::ORIG != 0;
    // Nobody opens a connection against the direction of a published port: its server
    // would reach whatever has its client's port next.
    if !orig && flow.flags & Flow::PUBLISHED != 0 && tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        return found::NO;
    }
    // A connection on the ports of one that has ended is another: what is checked when a
    // flow begins may have changed, such as whose the masqueraded port is.
    if tcp_flags & tcp::SYN != 0 && orig && begins_anew(key, flow, tcp_flags) {
        remove(key, flow);
        return found::NO;
    }
    if tcp_flags & (tcp::RST | tcp::FIN) != 0 {
        tcp_flags = nat::believed(tcp_flags, routed.tcp_seq, acknowledged(key, flow));
    }
    if tcp_flags & (tcp::ACK | tcp::RST) == tcp::ACK {
        flow.last_ack = routed.tcp_ack;
    }
    // What leads to the host's loopback device lives by the host's own packets only.
    if orig || flow.zone != zone::LOOPBACK {
        // SAFETY: the helper has no preconditions.
        flow.last_seen_ns = unsafe { bpf_ktime_get_coarse_ns() };
    }
    flow.packets += 1;
    flow.bytes += u64::from(bytes);
    let seen = nat::seen(flow.flags, key.protocol, tcp_flags);
    if seen != flow.flags {
        flow.flags = seen;
    }
    let kind = flow.flags & KIND;
    *target = Target { to: flow.to, zone: flow.zone, ifindex: flow.ifindex, kind };
    found::YES
}

/// The flags that do not change while a flow lives.
const KIND: u32 = Flow::SEEN - 1;

/// What the other direction of a flow has acknowledged last.
#[inline(always)]
fn acknowledged(key: &FlowKey, flow: &Flow) -> Option<u32> {
    let other = lookup!(FLOWS, key.other(flow))?;
    (other.flags & Flow::ACK != 0).then_some(other.last_ack)
}

/// Whether the answer to a masqueraded flow is the host's own by now: it has opened a
/// connection with the same ports since the flow began. The host comes first.
#[inline(always)]
pub(crate) fn is_hosts(ctx: &TcContext, work: &Work) -> bool {
    let key = &work.routed.key;
    work.target.kind == Flow::MASQUERADE
        && work.routed.has_header
        && has_socket(ctx.skb.skb, key.protocol, &key.tuple) == socket::CONNECTED
}

/// Whether both containers of a flow are still those that it began with.
#[inline(always)]
pub(crate) fn is_current(flow: &Flow, generation: u32) -> bool {
    if flow.from_generation != generation {
        return false;
    }
    if flow.ifindex == 0 || flow.zone == zone::TUNNEL {
        return true;
    }
    lookup!(ENDPOINTS, flow.ifindex).is_some_and(|ep| ep.generation == flow.to_generation)
}

/// Whether the segment of the `ORIG` direction begins a connection on the ports of one
/// that has ended.
#[inline(always)]
fn begins_anew(key: &FlowKey, flow: &Flow, tcp_flags: u8) -> bool {
    lookup!(FLOWS, key.other(flow))
        .is_some_and(|reply| nat::begins_anew(tcp_flags, flow.flags, reply.flags))
}

/// Removes both directions of a flow.
#[inline(always)]
fn remove(key: &FlowKey, flow: &Flow) {
    // Either may be gone already.
    let _ = FLOWS.remove(key.other(flow));
    let _ = FLOWS.remove(key);
}

/// A flow to be.
#[derive(Clone, Copy)]
pub(crate) struct NewFlow {
    /// Key of the packet that begins it.
    pub(crate) key: FlowKey,
    /// What the packet becomes; its source port is the first to be tried.
    pub(crate) target: Target,
    /// Interface index of the container that it comes from; 0 if from none.
    pub(crate) from_ifindex: u32,
    /// Generation of that container; 0 if there is none.
    pub(crate) from_generation: u32,
    /// Generation of the container that it goes to; 0 if to none.
    pub(crate) to_generation: u32,
    /// [`Flow::MASQUERADE`] or [`Flow::PUBLISHED`].
    pub(crate) flags: u32,
    /// The source becomes an address of the host: its port must not be one that
    /// the host uses itself.
    pub(crate) of_host: bool,
    bytes: u32,
    random: u32,
    now: u64,
    outcome: u32,
    /// The entry that is being inserted, and its key.
    entry: Flow,
    entry_key: FlowKey,
}

/// [`NewFlow::outcome`].
mod outcome {
    /// No candidate was free.
    pub(super) const EXHAUSTED: u32 = 0;
    /// The `reply` entry is there.
    pub(super) const DONE: u32 = 1;
    /// The map took no entry.
    pub(super) const FULL: u32 = 2;
}

/// Begins the flow `work.new`, of the packet `work.routed`: the `reply` entry first,
/// which holds the port, then the `orig` one. Leaves what the packet becomes in
/// `work.target`.
#[inline(always)]
pub(crate) fn begin(
    ctx: &TcContext,
    work: &mut Work,
    direction: Direction,
) -> Result<(), DropReason> {
    let (skb, bytes) = (ctx.skb.skb, ctx.len());
    if is_hop(work.new.key.zone, work.new.target.zone) && work.routed.ip.ttl() <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let outcome = insert(skb, work);
    match outcome & 0xff {
        0 => {}
        FAILED_FULL => return Err(DropReason::ConntrackFull),
        _ => return Err(DropReason::NatPortsExhausted),
    }
    if outcome & EVICTED != 0 {
        note(direction, Note::FlowEvicted, bytes);
    }
    note(direction, Note::FlowCreated, bytes);
    if outcome & PORT_CHANGED != 0 {
        note(direction, Note::PortChanged, bytes);
    }
    Ok(())
}

const FAILED_EXHAUSTED: u32 = 1;
const FAILED_FULL: u32 = 2;
const EVICTED: u32 = 0x100;
const PORT_CHANGED: u32 = 0x200;

/// Inserts both entries. Returns 0 or why not, and [`EVICTED`] and its sibling. A
/// function of its own for the sake of the stack.
#[inline(never)]
fn insert(skb: *mut __sk_buff, work: &mut Work) -> u32 {
    let new = &mut work.new;
    let tcp_flags = work.routed.tcp_flags;
    // SAFETY: neither helper has preconditions.
    (new.random, new.now) = unsafe { (bpf_get_prandom_u32(), bpf_ktime_get_coarse_ns()) };
    new.bytes = TcContext::new(skb).len();
    let own = new.target.to.src_port;
    let mut told = 0;
    choose_port(skb, new);
    if new.outcome == outcome::FULL && evict() != 0 {
        told |= EVICTED;
        choose_port(skb, new);
    }
    match new.outcome {
        outcome::DONE => {}
        outcome::FULL => return FAILED_FULL,
        _ => return FAILED_EXHAUSTED,
    }
    if own != new.target.to.src_port {
        told |= PORT_CHANGED;
    }
    work.target = new.target;
    let entry = &mut new.entry;
    entry.last_seen_ns = new.now;
    entry.packets = 1;
    entry.bytes = u64::from(new.bytes);
    entry.to = new.target.to;
    entry.zone = new.target.zone;
    entry.ifindex = new.target.ifindex;
    entry.from_generation = new.from_generation;
    entry.to_generation = new.to_generation;
    entry.flags = nat::seen(new.flags | Flow::ORIG, new.key.protocol, tcp_flags);
    entry.last_ack = work.routed.tcp_ack;
    let mut inserted = FLOWS.insert(&new.key, &new.entry, BPF_NOEXIST.into());
    if inserted.is_err_and(|error| error != -EEXIST) && evict() != 0 {
        told |= EVICTED;
        inserted = FLOWS.insert(&new.key, &new.entry, BPF_NOEXIST.into());
    }
    let Err(error) = inserted else { return told };
    // Rolled back. Where another CPU was faster with a packet of the same flow,
    // its choice holds.
    let _ = FLOWS.remove(&new.entry_key);
    if error != -EEXIST {
        return FAILED_FULL;
    }
    match FLOWS.get_ptr_mut(&new.key) {
        Some(flow) => {
            // SAFETY: as in `refresh`.
            let flow = unsafe { &*flow };
            let kind = flow.flags & KIND;
            work.target = Target { to: flow.to, zone: flow.zone, ifindex: flow.ifindex, kind };
            told
        }
        None => FAILED_FULL,
    }
}

/// What [`try_port`] is handed: the context cannot be kept in a map.
struct Attempt {
    skb: *mut __sk_buff,
    new: *mut NewFlow,
}

/// Inserts the `reply` entry, with the first port that is free.
#[inline(always)]
fn choose_port(skb: *mut __sk_buff, new: &mut NewFlow) {
    new.outcome = outcome::EXHAUSTED;
    let entry = &mut new.entry;
    entry.last_seen_ns = new.now;
    entry.packets = 0;
    entry.bytes = 0;
    entry.to = new.key.tuple.reversed();
    entry.zone = new.key.zone;
    entry.ifindex = new.from_ifindex;
    entry.from_generation = new.to_generation;
    entry.to_generation = new.from_generation;
    entry.flags = new.flags;
    entry.last_ack = 0;
    entry.pad = 0;
    let to = new.target.to.reversed();
    new.entry_key = FlowKey::new(new.target.zone, new.key.protocol, to);
    let mut attempt = Attempt { skb, new };
    let context = (&raw mut attempt).cast();
    // SAFETY: the body has the signature that the helper calls, and the
    // context outlives the loop.
    unsafe { bpf_loop(nat::PORT_TRIES, try_port as *mut c_void, context, 0) };
}

/// Loop body of [`choose_port`].
unsafe extern "C" fn try_port(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `choose_port` passes its own `Attempt`, and in it its `NewFlow`.
    let (skb, new) = unsafe {
        let attempt = &*context.cast::<Attempt>();
        (attempt.skb, &mut *attempt.new)
    };
    let (min, max) = if new.of_host {
        (NAT_PORT_MIN.load(), NAT_PORT_MAX.load())
    } else {
        // A client's port as its container sees it: any is as good.
        (1024, u16::MAX)
    };
    let own = u16::from_be_bytes(new.target.to.src_port);
    let Some(port) = nat::candidate(index as u32, own, new.random, min, max) else { return 0 };
    new.entry_key.tuple.dst_port = port.to_be_bytes();
    if new.of_host && used_by_host(skb, new.key.protocol, &new.entry_key.tuple) != 0 {
        return 0;
    }
    match FLOWS.insert(&new.entry_key, &new.entry, BPF_NOEXIST.into()) {
        Ok(()) => {
            new.target.to.src_port = port.to_be_bytes();
            new.outcome = outcome::DONE;
            1
        }
        Err(error) if error == -EEXIST => 0,
        Err(_) => {
            new.outcome = outcome::FULL;
            1
        }
    }
}

/// Whether the host itself uses the destination port of the packet `answer`, or
/// may: it is reserved, or a socket would get it. A function of its own for the
/// sake of the stack.
#[inline(never)]
fn used_by_host(skb: *mut __sk_buff, protocol: u8, answer: &Tuple) -> u32 {
    if let Some((word, bit)) = reserved_bit(protocol, u16::from_be_bytes(answer.dst_port))
        && RESERVED_PORTS.get(word).is_some_and(|ports| ports & bit != 0)
    {
        return 1;
    }
    has_socket(skb, protocol, answer)
}

/// What [`has_socket`] returns.
mod socket {
    /// No socket would get the packet.
    pub(super) const NONE: u32 = 0;
    /// A TCP socket that listens.
    pub(super) const LISTENING: u32 = 1;
    /// Any other.
    pub(super) const CONNECTED: u32 = 2;
}

/// `BPF_TCP_LISTEN` of linux/bpf.h.
const TCP_LISTEN: u32 = 10;

/// Whether a socket of the host would get the packet `answer`. A function of its own
/// for the sake of the stack.
#[inline(never)]
fn has_socket(skb: *mut __sk_buff, protocol: u8, answer: &Tuple) -> u32 {
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
            ipv4: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: u32::from_ne_bytes(answer.src),
                daddr: u32::from_ne_bytes(answer.dst),
                sport: u16::from_ne_bytes(answer.src_port),
                dport: u16::from_ne_bytes(answer.dst_port),
            },
        },
    };
    let len = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
    // SAFETY: the pointer is the program's own context; the tuple is on our stack
    // and as long as stated; a socket found is released.
    unsafe {
        let found = match protocol {
            PROTO_TCP => bpf_skc_lookup_tcp(skb.cast(), &raw mut tuple, len, CURRENT_NETNS, 0),
            PROTO_UDP => bpf_sk_lookup_udp(skb.cast(), &raw mut tuple, len, CURRENT_NETNS, 0),
            _ => return socket::NONE,
        };
        if found.is_null() {
            return socket::NONE;
        }
        let listens = protocol == PROTO_TCP && (*found).state == TCP_LISTEN;
        bpf_sk_release(found.cast());
        if listens { socket::LISTENING } else { socket::CONNECTED }
    }
}

/// Removes one flow that the agent has found to be idle, if there is one that still
/// is. Returns 1 if so.
#[inline(never)]
fn evict() -> u32 {
    for _ in 0..EVICT_TRIES {
        let Ok(Some(candidate)) = EVICTABLE.pop() else { return 0 };
        let Some(orig) = lookup!(FLOWS, candidate.key) else { continue };
        let other = candidate.key.other(orig);
        let replied = lookup!(FLOWS, other).map_or(0, |reply| reply.last_seen_ns);
        if orig.last_seen_ns <= candidate.last_seen_ns && replied <= candidate.last_seen_ns {
            let _ = FLOWS.remove(other);
            let _ = FLOWS.remove(candidate.key);
            return 1;
        }
    }
    0
}

/// Whether a flow leads to or comes from the host's own loopback device, where
/// nothing is a hop.
#[inline(always)]
pub(crate) fn is_hop(from: u32, to: u32) -> bool {
    from != zone::LOOPBACK && to != zone::LOOPBACK
}
