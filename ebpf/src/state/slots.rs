//! The slots of flows: how a new flow gets a slot, and how flows are evicted for it.

use core::ffi::c_void;

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_common::{
    abi::{Flow, FlowKey, kind},
    datapath::conntrack::{self, FlowState},
};

use super::{
    flow_table::{entry, forget, has_expired, other_half},
    refusals::{note_refusal, was_refused},
    shares::{refuse, why},
};
use crate::{
    globals::{FLOW_SHARE, FLOW_SLOTS_LEN, flow_timeout},
    kernel::{
        memory::{Body, own, repeat},
        time::random,
    },
    maps::{FLOW_SHARES, FLOW_SLOTS, copy},
};

/// Largest number of slots that are examined to find a free one.
const SLOT_TRIES: u32 = 16;
/// Largest number of slots that are examined to find flows that may be evicted.
const EVICT_TRIES: u32 = 32;
/// The same for a container that was refused a flow a moment ago.
const BRIEF_EVICT_TRIES: u32 = 8;
/// Number of flows that may be evicted and are compared. The best of them is evicted.
const CANDIDATES: u32 = 4;

/// A search through slots that are chosen at random: no order in which flows begin can make every
/// search fail.
struct Search {
    /// The present time in ns.
    now: u64,
    /// Number of the slot that was found, plus 1; 0 if none was found.
    slot: u32,
    /// Number of flows that may be evicted, so far.
    candidates: u32,
    /// Rank of the best of these flows, see [`FlowState::eviction_rank`].
    rank: u8,
    /// Time of the best flow's last packet, in ns.
    last_seen_ns: u64,
    /// Key of the best flow.
    best: FlowKey,
    /// Key in the slot that is examined.
    key: FlowKey,
    /// Incarnation of the container whose flows are searched, see [`evict_of`].
    owner: u32,
    /// Number of that container's flows, so far.
    own: u32,
}

/// This CPU's search. It is not on the BPF stack, which has only 512 bytes.
#[map]
static SEARCH: PerCpuArray<Search> = PerCpuArray::with_max_entries(1, 0);

/// Makes a search: calls `body` up to `tries` times. Returns the result.
#[inline(always)]
fn search(now: u64, tries: u32, body: Body) -> Option<&'static Search> {
    let search = own(&SEARCH, 0)?;
    (search.now, search.slot, search.candidates) = (now, 0, 0);
    repeat(tries, body, &mut ());
    Some(search)
}

/// Examines a random slot. Stores its key in `search`. Returns its number plus 1, and its flow;
/// `None` instead of the flow if the slot is free.
#[inline(always)]
fn look(search: &mut Search) -> Option<(u32, Option<&'static Flow>)> {
    let index = (u64::from(random()) * u64::from(FLOW_SLOTS_LEN.load())) >> 32;
    copy(FLOW_SLOTS.get_ptr(index as u32)?, &mut search.key);
    let number = index as u32 + 1;
    // If another CPU was writing the key, the copy is mixed, and no flow has this key.
    Some((number, entry(&search.key).filter(|flow| flow.slot == number)))
}

/// Finds a slot for a new flow: a free slot, or a slot whose flow has expired. The expired flow is
/// removed. So expired flows are removed as fast as flows begin, also while no agent runs. Returns
/// the number of the slot plus 1, or 0 if none was found: the new flow then has no slot, and only
/// the agent removes it. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn find_slot(now: u64) -> u32 {
    search(now, SLOT_TRIES, try_slot).map_or(0, |search| search.slot)
}

/// Loop body of [`find_slot`].
unsafe extern "C" fn try_slot(_: u64, _: *mut c_void) -> i64 {
    let Some(search) = own(&SEARCH, 0) else { return 1 };
    let Some((number, flow)) = look(search) else { return 0 };
    if let Some(flow) = flow
        && !has_expired(&search.key, flow, search.now)
    {
        return 0;
    }
    search.slot = number;
    1
}

/// Puts the flow with the `ORIG` entry under `key` into the slot `number` less 1.
#[inline(always)]
pub(super) fn take_slot(number: u32, key: &FlowKey) {
    if let Some(slot) = FLOW_SLOTS.get_ptr_mut(number.wrapping_sub(1)) {
        // Another CPU may have found the same slot: then one of the two flows has no slot.
        copy(key, slot);
    }
}

/// Number of slots that are examined to evict a flow for the container with the incarnation `owner`.
#[inline(always)]
fn evict_tries(owner: u32, now: u64) -> u32 {
    if was_refused(owner, now) == 0 { EVICT_TRIES } else { BRIEF_EVICT_TRIES }
}

/// Makes room for a flow of the container with the incarnation `owner` in a full table: examines
/// random slots, and removes the best flow that may be evicted. Returns 1 if a flow was removed,
/// else 0. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn evict(owner: u32, now: u64) -> u32 {
    let Some(search) = search(now, evict_tries(owner, now), try_evict) else { return 0 };
    if search.candidates == 0 {
        return 0;
    }
    forget(&search.best);
    1
}

/// Loop body of [`evict`].
unsafe extern "C" fn try_evict(_: u64, _: *mut c_void) -> i64 {
    let Some(search) = own(&SEARCH, 0) else { return 1 };
    let Some((_, Some(flow))) = look(search) else { return 0 };
    consider(search, flow)
}

/// Results of [`admit`].
pub(super) mod admitted {
    /// The container may begin a flow.
    pub(in super::super) const YES: u32 = 0;
    /// The container may begin a flow, because one of its flows was evicted.
    pub(in super::super) const EVICTED: u32 = 1;
    /// The container may not begin a flow.
    pub(in super::super) const NO: u32 = 2;
}

/// Part of the share by which it may be exceeded while no flow of the container is found: the
/// number of its flows may be wrong, see [`FlowShare`](culvert_common::abi::FlowShare).
const TOLERANCE: u32 = 8;

/// Whether the container with the incarnation `owner` may begin a flow. If it has its share, one of
/// its own flows is evicted first, if one may be. Returns a value of [`admitted`]. A BPF function of
/// its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn admit(owner: u32, now: u64) -> u32 {
    let Some(share) = FLOW_SHARES.get_ptr(owner) else { return admitted::YES };
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
    let flows = unsafe { (*share).flows };
    let limit = FLOW_SHARE.load();
    if flows < limit {
        return admitted::YES;
    }
    match evict_of(owner, now) {
        evicted::ONE => admitted::EVICTED,
        evicted::NONE_FOUND if flows - limit < limit / TOLERANCE => admitted::YES,
        _ => {
            refuse(owner, why::SHARE);
            note_refusal(owner, now);
            admitted::NO
        }
    }
}

/// Results of [`evict_of`].
mod evicted {
    /// No flow of the container was found.
    pub(super) const NONE_FOUND: u32 = 0;
    /// A flow of the container was removed.
    pub(super) const ONE: u32 = 1;
    /// Flows of the container were found, but none that may be evicted.
    pub(super) const IN_USE: u32 = 2;
}

/// As [`evict`], for the flows of the container with the incarnation `owner` alone. Returns a value
/// of [`evicted`]. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn evict_of(owner: u32, now: u64) -> u32 {
    let tries = evict_tries(owner, now);
    let Some(of_owner) = own(&SEARCH, 0) else { return evicted::NONE_FOUND };
    (of_owner.owner, of_owner.own) = (owner, 0);
    let Some(search) = search(now, tries, try_evict_of) else {
        return evicted::NONE_FOUND;
    };
    if search.candidates != 0 {
        forget(&search.best);
        return evicted::ONE;
    }
    if search.own == 0 { evicted::NONE_FOUND } else { evicted::IN_USE }
}

/// Loop body of [`evict_of`].
unsafe extern "C" fn try_evict_of(_: u64, _: *mut c_void) -> i64 {
    let Some(search) = own(&SEARCH, 0) else { return 1 };
    let Some((_, Some(flow))) = look(search) else { return 0 };
    if flow.owner() != search.owner {
        return 0;
    }
    search.own += 1;
    consider(search, flow)
}

/// Compares the flow whose `ORIG` entry is `flow` under `search.key` with the best flow so far.
/// Returns 1 if enough flows were compared, else 0.
#[inline(always)]
fn consider(search: &mut Search, flow: &Flow) -> i64 {
    let Some(other) = other_half(&search.key, flow) else { return 0 };
    let protocol = search.key.protocol;
    let expired = conntrack::has_expired(protocol, flow, other, search.now, flow_timeout);
    // Without the entries of a denied client's flow, the container's packets would begin a
    // masqueraded flow, and the client's packets would be delivered as answers of that flow.
    let is_denied = (flow.kind | other.kind) & kind::DENIED != 0;
    let rank = match FlowState::of_flow(protocol, flow, other).eviction_rank() {
        _ if expired => 0,
        Some(rank) if !is_denied => rank,
        Some(_) | None => return 0,
    };
    let last_seen_ns = flow.last_seen_ns.max(other.last_seen_ns);
    if search.candidates == 0 || (rank, last_seen_ns) < (search.rank, search.last_seen_ns) {
        (search.rank, search.last_seen_ns, search.best) = (rank, last_seen_ns, search.key);
    }
    search.candidates += 1;
    (search.candidates >= CANDIDATES).into()
}
