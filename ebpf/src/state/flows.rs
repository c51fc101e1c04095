//! Conntrack: how flows are found, begun and removed.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key or a value that is passed by value is copied to the stack, which is short"
)]

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    programs::TcContext,
};
use culvert_common::{
    abi::{
        Direction, DropReason, Flow, FlowKey, Note, Sealed as _, Tuple, kind, reserved_bit, seen,
        zone,
    },
    datapath::nat,
    wire::{ipv4::PROTO_TCP, tcp},
};

use super::{
    flow_table::{
        COPIES, FlowCopies, entry, expire, has_expired, may_have_expired, other_half, remove,
    },
    refusals::{note_refusal, was_refused},
    segments::follow,
    shares::{join, refuse, why},
    slots::{admit, admitted, evict, find_slot, take_slot},
};
use crate::{
    count::note,
    facts::{checksum::is_damaged, routed::Routed},
    globals::{NAT_PORT_MAX, NAT_PORT_MIN, NAT_PORT_SHARE},
    kernel::{
        memory::{own, repeat},
        socket,
        time::{now_coarse, random},
    },
    maps::{ENDPOINTS, FLOWS, RESERVED_PORTS, copy, endpoint},
};

/// `EEXIST` of errno.h.
const EEXIST: i32 = 17;
/// Largest number of flows that are evicted for a new one. Another CPU may take the free entry
/// first.
const EVICTIONS: u32 = 4;

/// Addresses and ports of a packet after translation, and its destination.
#[derive(Clone, Copy, Default)]
pub(crate) struct Target {
    /// Addresses and ports.
    pub(crate) to: Tuple,
    /// See [`Flow::zone`].
    pub(crate) zone: u32,
    /// See [`Flow::dest`].
    pub(crate) dest: u32,
    /// See [`Flow::kind`].
    pub(crate) kind: u32,
}

impl Target {
    /// The target of the packets of `flow`.
    #[inline(always)]
    fn of(flow: &Flow) -> Self {
        Self { to: flow.to, zone: flow.zone, dest: flow.dest, kind: flow.kind }
    }
}

/// Results of [`refresh`].
mod found {
    /// There is a flow.
    pub(super) const YES: u32 = 0;
    /// There is no flow, or it has ended and this packet begins a new one.
    pub(super) const NO: u32 = 1;
    /// The flow was of a container that is gone. It has been removed.
    pub(super) const STALE: u32 = 2;
    /// There is a flow that may have expired.
    pub(super) const IDLE: u32 = 3;
    /// There is a flow, but its client was denied after it began.
    pub(super) const DENIED: u32 = 4;
}

/// Finds the flow of the packet `routed`, stores the flow's target in `target`, and counts the
/// packet in the flow. `incarnation` is that of the container that sent the packet, 0 if no
/// container sent it. Returns `false` if there is no such flow. Fails with [`DropReason::Denied`]
/// if the client of the flow was denied after the flow began.
#[inline(always)]
pub(crate) fn find(
    direction: Direction,
    routed: &Routed,
    incarnation: u32,
    bytes: u32,
    target: &mut Target,
) -> Result<bool, DropReason> {
    let mut found = refresh(routed, incarnation, bytes, target, false);
    if found == found::IDLE {
        if expire(&routed.key, now_coarse()) != 0 {
            return Ok(false);
        }
        found = refresh(routed, incarnation, bytes, target, true);
    }
    match found {
        found::YES => Ok(true),
        found::DENIED => Err(DropReason::Denied),
        found::STALE => {
            note(direction, Note::FlowStale, bytes);
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// [`find`] as a BPF function of its own, for a stack frame of its own. `unexpired`: the flow has
/// not expired.
#[inline(never)]
fn refresh(
    routed: &Routed,
    incarnation: u32,
    bytes: u32,
    target: &mut Target,
    unexpired: bool,
) -> u32 {
    let key = &routed.key;
    let Some(entry) = FLOWS.get_ptr_mut(key) else { return found::NO };
    let Some(FlowCopies { flow, .. }) = own(&COPIES, 0) else { return found::NO };
    copy(entry, flow);
    let flow = &*core::hint::black_box(flow);
    if !flow.is_of(key) {
        // The entry was removed while it was copied.
        return found::NO;
    }
    if !is_current(flow, incarnation) {
        remove(key, flow);
        return found::STALE;
    }
    let now = now_coarse();
    // Most flows have packets more often than the least timeout, so `expire` is seldom called.
    if !unexpired && may_have_expired(flow, now) {
        return found::IDLE;
    }
    let tcp_flags = routed.tcp.flags;
    let orig = flow.kind & kind::ORIG != 0;
    if flow.kind & kind::DENIED != 0 {
        // The entry stays as long as the container sends: without it, the container's packets would
        // begin a masqueraded flow, and the client's packets would be delivered as answers of that
        // flow.
        if !orig {
            // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
            unsafe { (*entry).last_seen_ns = now };
        }
        return found::DENIED;
    }
    // A SYN in the reply direction of a flow to a published port or to the host's stack does not
    // belong to the flow: the server could connect to a later owner of the client's port.
    if !orig
        && flow.kind & (kind::PUBLISHED | kind::HOST) != 0
        && tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    {
        return found::NO;
    }
    // A SYN on the ports of an ended connection begins a new flow, so that all checks of a new flow
    // are made again, such as whether the masqueraded port is free.
    if tcp_flags & tcp::SYN != 0 && orig && begins_anew(key, flow, tcp_flags) {
        remove(key, flow);
        return found::NO;
    }
    let is_alive = match key.protocol {
        PROTO_TCP if routed.tcp.is_plain(flow) => {
            // The memory may belong to another flow by now. So only the fields after `Flow::seal`
            // are written, each with a store of its own.
            // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
            unsafe {
                if routed.tcp.moves_ack(flow) {
                    (*entry).last_ack = routed.tcp.ack;
                }
                if routed.tcp.moves_seq(flow) {
                    (*entry).next_seq = routed.tcp.end;
                }
            }
            true
        }
        PROTO_TCP => follow(routed, entry) != 0,
        _ => {
            if flow.seen & seen::PACKET == 0 {
                // SAFETY: as above.
                unsafe { (*entry).seen = flow.seen | seen::PACKET };
            }
            true
        }
    };
    // SAFETY: as above.
    unsafe {
        // A flow to the host's loopback device is kept alive by the host's packets only.
        if is_alive && (orig || flow.zone != zone::LOOPBACK) {
            (*entry).last_seen_ns = now;
        }
        (*entry).packets = flow.packets + 1;
        (*entry).bytes = flow.bytes + u64::from(bytes);
    }
    *target = Target::of(flow);
    found::YES
}

/// Whether the host has a connected socket for this answer to a masqueraded flow: it has opened
/// a connection with the same ports since the flow began. The host then gets the packet, not the
/// container.
#[inline(always)]
pub(crate) fn has_host_socket(ctx: &TcContext, routed: &Routed, target: &Target) -> bool {
    let key = &routed.key;
    target.kind == kind::MASQUERADE
        && routed.has_header
        && socket::find(ctx.skb.skb, key.protocol, &key.tuple) == socket::CONNECTED
}

/// Stores the target of the flow under `key` in `target`. Returns `false` if there is no such flow,
/// if one of its containers is no longer the container that it began with, or if its client was
/// denied after it began. `incarnation` is that of the container that sent the packet, 0 if no
/// container sent it.
#[inline(always)]
pub(crate) fn current(key: &FlowKey, incarnation: u32, target: &mut Target) -> bool {
    let Some(flow) = entry(key) else { return false };
    if flow.kind & kind::DENIED != 0 || !is_current(flow, incarnation) {
        return false;
    }
    *target = Target::of(flow);
    true
}

/// Whether both containers of a flow are still those that it began with.
#[inline(always)]
fn is_current(flow: &Flow, incarnation: u32) -> bool {
    if flow.from_incarnation != incarnation {
        return false;
    }
    if flow.dest == 0 || flow.zone == zone::TUNNEL {
        return true;
    }
    let Some(ep) = ENDPOINTS.get_ptr(&flow.dest) else { return false };
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
    if unsafe { (&raw const (*ep).incarnation).read_volatile() } == flow.to_incarnation {
        return true;
    }
    // The entry is of another container, or the agent has just replaced it: the sealed copy
    // decides.
    endpoint(flow.dest).is_some_and(|ep| ep.incarnation == flow.to_incarnation)
}

/// Whether the segment of the `ORIG` direction begins a connection on the ports of one
/// that has ended.
#[inline(always)]
fn begins_anew(key: &FlowKey, flow: &Flow, tcp_flags: u8) -> bool {
    other_half(key, flow).is_some_and(|reply| nat::begins_anew(tcp_flags, flow.seen, reply.seen))
}

/// A flow that is to be inserted.
#[derive(Clone, Copy)]
pub(crate) struct NewFlow {
    /// Key of the packet that begins it.
    pub(crate) key: FlowKey,
    /// Target of the packet. Its source port is the first port to be tried. `kind` is
    /// [`kind::MASQUERADE`], [`kind::PUBLISHED`] or [`kind::HOST`].
    pub(crate) target: Target,
    /// Destination of the answers: the interface index of the container that begins the flow, or
    /// the number of the VTEP that the packet came from; 0 if neither.
    pub(crate) from: u32,
    /// Incarnation of the container that begins the flow; 0 if there is none.
    pub(crate) from_incarnation: u32,
    /// Incarnation of the container that the flow goes to; 0 if there is none.
    pub(crate) to_incarnation: u32,
    /// Whether the source becomes an address of the host. Its port must then not be one that the
    /// host uses itself.
    pub(crate) of_host: bool,
    bytes: u32,
    random: u32,
    now: u64,
    outcome: u32,
    /// Not 0 if a flow was evicted for this one.
    evicted: u32,
    /// Number of ports to try.
    tries: u32,
    /// See [`Flow::slot`].
    slot: u32,
    /// The entry that is being inserted, and its key.
    entry: Flow,
    entry_key: FlowKey,
}

impl NewFlow {
    /// See [`Flow::owner`].
    #[inline(always)]
    const fn owner(&self) -> u32 {
        if self.from_incarnation != 0 { self.from_incarnation } else { self.to_incarnation }
    }
}

/// Values of [`NewFlow::outcome`].
mod outcome {
    /// No candidate port was free.
    pub(super) const EXHAUSTED: u32 = 0;
    /// The entries were inserted.
    pub(super) const DONE: u32 = 1;
    /// The map has no room for an entry.
    pub(super) const FULL: u32 = 2;
    /// Another entry has the key of the `orig` entry.
    pub(super) const EXISTS: u32 = 3;
}

/// Results of [`insert`]: one of the first six values, and bits of the others.
mod inserted {
    /// The flow was inserted, by this CPU or by another one.
    pub(super) const YES: u32 = 0;
    /// No port was free.
    pub(super) const EXHAUSTED: u32 = 1;
    /// The map has no room for an entry.
    pub(super) const FULL: u32 = 2;
    /// The key is the other direction of another flow.
    pub(super) const CONFLICT: u32 = 3;
    /// The container has its share of the flows.
    pub(super) const SHARE: u32 = 4;
    /// The packet is damaged.
    pub(super) const DAMAGED: u32 = 5;
    /// Mask of the first six values.
    pub(super) const RESULT: u32 = 0xff;
    /// An idle flow was removed to make room.
    pub(super) const EVICTED: u32 = 0x100;
    /// The source port was changed.
    pub(super) const PORT_CHANGED: u32 = 0x200;
    /// Another CPU has inserted the flow.
    pub(super) const ADOPTED: u32 = 0x400;
}

/// Begins the flow `new` for the packet `routed`. Inserts the `reply` entry first, which reserves
/// the port, then the `orig` entry. Stores the target of the packet in `target`. This is the target
/// of `new`. But if another CPU has begun the same flow first, it is the target of that CPU's flow.
#[inline(always)]
pub(crate) fn begin(
    ctx: &TcContext,
    routed: &Routed,
    new: &mut NewFlow,
    target: &mut Target,
    direction: Direction,
) -> Result<(), DropReason> {
    let (skb, bytes) = (ctx.skb.skb, ctx.len());
    if is_hop(new.key.zone, new.target.zone) && routed.ip.ttl() <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let told = insert(skb, routed, new, target);
    if told & inserted::EVICTED != 0 {
        note(direction, Note::FlowEvicted, bytes);
    }
    match told & inserted::RESULT {
        inserted::YES => {}
        inserted::FULL => return Err(DropReason::ConntrackFull),
        inserted::CONFLICT => return Err(DropReason::FlowConflict),
        inserted::SHARE => return Err(DropReason::ShareExceeded),
        inserted::DAMAGED => return Err(DropReason::BadChecksum),
        _ => return Err(DropReason::NatPortsExhausted),
    }
    if told & inserted::ADOPTED != 0 {
        return Ok(());
    }
    note(direction, Note::FlowCreated, bytes);
    if told & inserted::PORT_CHANGED != 0 {
        note(direction, Note::PortChanged, bytes);
    }
    Ok(())
}

/// Inserts both entries. Returns values of [`inserted`]. A BPF function of its own, for a stack
/// frame of its own.
#[inline(never)]
fn insert(skb: *mut __sk_buff, routed: &Routed, new: &mut NewFlow, target: &mut Target) -> u32 {
    (new.random, new.now) = (random(), now_coarse());
    new.bytes = TcContext::new(skb).len();
    if is_damaged(skb, routed) != 0 {
        return inserted::DAMAGED;
    }
    new.evicted = may_begin(new);
    if new.evicted == admitted::NO {
        return inserted::SHARE;
    }
    let own = new.target.to.src_port;
    new.slot = find_slot(new.now);
    let mut attempt = Attempt { skb, routed, new };
    repeat(1 + EVICTIONS, try_insert, &mut attempt);
    *target = new.target;
    target.kind |= kind::ORIG;
    let mut told = match new.outcome {
        outcome::DONE => {
            join(new.owner());
            inserted::YES
        }
        outcome::EXISTS => adopt(&new.key, target),
        outcome::FULL => refused(new, inserted::FULL),
        _ => refused(new, inserted::EXHAUSTED),
    };
    if new.evicted != 0 {
        told |= inserted::EVICTED;
    }
    if own != new.target.to.src_port {
        told |= inserted::PORT_CHANGED;
    }
    told
}

/// Whether the container of a new flow may begin it: a value of [`admitted`]. Sets the number of
/// ports to try. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
fn may_begin(new: &mut NewFlow) -> u32 {
    let (owner, now) = (new.owner(), new.now);
    new.tries = if was_refused(owner, now) == 0 { nat::PORT_TRIES } else { nat::BRIEF_PORT_TRIES };
    admit(owner, now)
}

/// Counts a flow that its container could not begin. Returns `told`, the value of [`inserted`] that
/// tells why. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
fn refused(new: &NewFlow, told: u32) -> u32 {
    let owner = new.owner();
    if told == inserted::EXHAUSTED {
        refuse(owner, why::PORT);
    }
    note_refusal(owner, new.now);
    told
}

/// Loop body of [`insert`]: inserts both entries. If the map has no room, evicts a flow for the
/// next attempt.
unsafe extern "C" fn try_insert(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `insert` passes its own `Attempt`, whose pointers come from references that outlive
    // the loop.
    let (skb, routed, new) = unsafe {
        let attempt = &*context.cast::<Attempt>();
        (attempt.skb, &*attempt.routed, &mut *attempt.new)
    };
    choose_port(skb, routed, new);
    if new.outcome == outcome::DONE {
        insert_orig(routed, new);
    }
    if new.outcome != outcome::FULL
        || index >= u64::from(EVICTIONS)
        || evict(new.owner(), new.now) == 0
    {
        return 1;
    }
    new.evicted = 1;
    0
}

/// Inserts the `orig` entry. If this fails, removes the `reply` entry.
#[inline(always)]
fn insert_orig(routed: &Routed, new: &mut NewFlow) {
    let entry = &mut new.entry;
    entry.to = new.target.to;
    entry.zone = new.target.zone;
    entry.dest = new.target.dest;
    entry.from_incarnation = new.from_incarnation;
    entry.to_incarnation = new.to_incarnation;
    entry.kind = new.target.kind | kind::ORIG;
    entry.seen = routed.tcp.opening();
    entry.last_ack = routed.tcp.ack;
    entry.first_seq = routed.tcp.first();
    entry.next_seq = routed.tcp.end;
    entry.slot = new.slot;
    entry.last_seen_ns = new.now;
    entry.packets = 1;
    entry.bytes = u64::from(new.bytes);
    entry.seal = entry.seal_for(&new.key);
    match FLOWS.insert(&new.key, &new.entry, BPF_NOEXIST.into()) {
        Ok(()) => take_slot(new.slot, &new.key),
        Err(error) => {
            // The `reply` entry had reserved the port.
            let _ = FLOWS.remove(&new.entry_key);
            new.outcome = if error == -EEXIST { outcome::EXISTS } else { outcome::FULL };
        }
    }
}

/// Takes over the existing entry under `key`, instead of the entry that was to be inserted.
/// `target` is the target of the latter. The existing entry belongs to this packet's flow only if
/// another CPU has begun the same flow: it is the `ORIG` direction, of the same kind. Any other
/// entry is the reply direction of another flow, with another destination.
#[inline(always)]
fn adopt(key: &FlowKey, target: &mut Target) -> u32 {
    match entry(key) {
        Some(flow) if flow.kind == target.kind => {
            *target = Target::of(flow);
            inserted::YES | inserted::ADOPTED
        }
        Some(_) => inserted::CONFLICT,
        // The entry was removed meanwhile: the next packet begins the flow.
        None => inserted::FULL,
    }
}

/// State of the loops [`try_insert`] and [`try_port`]. It is on the stack, because a map cannot
/// hold a pointer to the context.
struct Attempt {
    skb: *mut __sk_buff,
    routed: *const Routed,
    new: *mut NewFlow,
}

/// Inserts the `reply` entry, with the first port that is free.
#[inline(always)]
fn choose_port(skb: *mut __sk_buff, routed: &Routed, new: &mut NewFlow) {
    new.outcome = outcome::EXHAUSTED;
    let entry = &mut new.entry;
    entry.to = new.key.tuple.reversed();
    entry.zone = new.key.zone;
    entry.dest = new.from;
    entry.from_incarnation = new.to_incarnation;
    entry.to_incarnation = new.from_incarnation;
    entry.kind = new.target.kind;
    entry.seen = routed.tcp.opposite();
    entry.last_ack = 0;
    entry.first_seq = 0;
    entry.next_seq = 0;
    entry.slot = 0;
    entry.last_seen_ns = new.now;
    entry.packets = 0;
    entry.bytes = 0;
    let to = new.target.to.reversed();
    new.entry_key = FlowKey::new(new.target.zone, new.key.protocol, to);
    let tries = new.tries;
    let mut attempt = Attempt { skb, routed, new };
    repeat(tries, try_port, &mut attempt);
}

/// Loop body of [`choose_port`].
unsafe extern "C" fn try_port(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `choose_port` passes its own `Attempt`, whose pointers outlive the loop.
    let (skb, new) = unsafe {
        let attempt = &*context.cast::<Attempt>();
        (attempt.skb, &mut *attempt.new)
    };
    if new.target.kind == kind::HOST && index > 0 {
        return 1;
    }
    let port = port_at(index as u32, new);
    if port == 0 {
        return 0;
    }
    let port = (port - 1) as u16;
    new.entry_key.tuple.dst_port = port.to_be_bytes();
    if entry(&new.entry_key).is_some_and(|flow| !has_expired(&new.entry_key, flow, new.now)) {
        return 0;
    }
    if new.of_host && used_by_host(skb, new.key.protocol, &new.entry_key.tuple) != 0 {
        return 0;
    }
    new.entry.seal = new.entry.seal_for(&new.entry_key);
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

/// The `index`-th port to try for a new flow, plus 1; 0 if there is none at this index. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
fn port_at(index: u32, new: &mut NewFlow) -> u32 {
    let own = u16::from_be_bytes(new.target.to.src_port);
    if new.target.kind == kind::HOST {
        // The host's own answers are not translated back, so the port must not change.
        return u32::from(own) + 1;
    }
    let (min, max) = if new.of_host {
        (NAT_PORT_MIN.load(), NAT_PORT_MAX.load())
    } else {
        // The container sees this port as its client's port, so the range of the host does not
        // apply.
        (1024, u16::MAX)
    };
    let Some(port) = nat::candidate(index, new.tries, own, new.random, min, max) else {
        return 0;
    };
    let owner = new.from_incarnation;
    let port = if owner == 0 || !new.of_host || !nat::has_shares(min, max) {
        port
    } else if index > 0 {
        let share = NAT_PORT_SHARE.load();
        let Some(port) = nat::in_share(port, owner, share, min, max) else { return 0 };
        port
    } else if nat::is_in_share(port, owner, NAT_PORT_SHARE.load()) || some_taken(new) == 0 {
        port
    } else {
        return 0;
    };
    u32::from(port) + 1
}

/// Whether one of [`nat::PROBES`] random ports towards the destination of a new flow is taken. A
/// container then takes no port outside of its share, see [`nat::is_in_share`]. Returns 1 or 0. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
fn some_taken(new: &mut NewFlow) -> u32 {
    let (min, max) = (NAT_PORT_MIN.load(), NAT_PORT_MAX.load());
    for index in 1..=nat::PROBES {
        let port = nat::probe(index, new.random, min, max);
        new.entry_key.tuple.dst_port = port.to_be_bytes();
        if FLOWS.get_ptr(&new.entry_key).is_some() {
            return 1;
        }
    }
    0
}

/// Whether the host itself uses or may use the destination port of the packet `answer`: the port is
/// reserved, or a socket would receive the packet. Returns 1 or 0. A BPF function of its own, for a
/// stack frame of its own.
#[inline(never)]
fn used_by_host(skb: *mut __sk_buff, protocol: u8, answer: &Tuple) -> u32 {
    if let Some((word, bit)) = reserved_bit(protocol, u16::from_be_bytes(answer.dst_port))
        && RESERVED_PORTS.get(word).is_some_and(|ports| ports & bit != 0)
    {
        return 1;
    }
    (socket::find(skb, protocol, answer) != socket::NONE).into()
}

/// Whether this host is a hop of a flow from the zone `from` to the zone `to`, so that the TTL is
/// decremented. The host is not a hop of a flow from or to its own loopback device. A flow from or
/// to the host's stack is not a hop here either, because the stack decrements the TTL itself.
#[inline(always)]
pub(crate) fn is_hop(from: u32, to: u32) -> bool {
    !matches!(from, zone::LOOPBACK | zone::HOST) && !matches!(to, zone::LOOPBACK | zone::HOST)
}
