//! Learned FDB entries and rate limits.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use culvert_common::{
    abi::{Direction, FdbKey, LearnedEntry, Note, RateKey},
    datapath::{
        learn::{self, Learn},
        rate,
    },
};

use crate::{
    maps::{AGEING_NS, FDB, FDB_LEARNED, RATES, lookup},
    verdict,
};

/// Moves of learned MACs that a VNI may have: this many at once, and one more
/// every interval.
const MOVE_BURST: u32 = 16;
const MOVE_INTERVAL_NS: u64 = 100_000_000;

/// Notes where a source MAC was seen: behind `vtep`, or on the local port `ifindex`.
#[inline(always)]
pub(crate) fn source(direction: Direction, key: FdbKey, vtep: [u8; 4], ifindex: u32, bytes: u32) {
    let what = take_note(&key, u32::from_ne_bytes(vtep), ifindex);
    if what != 0 {
        verdict::count_code(direction, what, bytes);
    }
}

/// Writes the entry that a source MAC calls for. Returns the number of the note
/// to count, 0 for none. A function of its own for the sake of the stack.
#[inline(never)]
fn take_note(&key: &FdbKey, vtep: u32, ifindex: u32) -> u32 {
    match try_take_note(key, vtep.to_ne_bytes(), ifindex) {
        Some(note) => note.code().into(),
        None => 0,
    }
}

#[inline(always)]
fn try_take_note(key: FdbKey, vtep: [u8; 4], ifindex: u32) -> Option<Note> {
    if !learn::valid_source(&key.mac) {
        return None;
    }
    if let Some(known) = lookup!(FDB, key) {
        // What the store says is never displaced.
        let elsewhere = known.vtep != vtep || known.ifindex != ifindex;
        return elsewhere.then_some(Note::LearnRefused);
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let seen = LearnedEntry { last_seen_ns: now, vtep, ifindex };
    let what = match learn::learn(lookup!(FDB_LEARNED, key), &seen, AGEING_NS.load()) {
        Learn::Current => return None,
        Learn::Refresh => None,
        Learn::Insert => Some(Note::Learned),
        Learn::Move => {
            let limit = RateKey { kind: RateKey::MAC_MOVE, id: key.vni };
            if !take_one(limit, MOVE_INTERVAL_NS, MOVE_BURST) {
                return Some(Note::MacMoveLimited);
            }
            Some(Note::MacMove)
        }
    };
    FDB_LEARNED.insert(key, seen, 0).ok().and(what)
}

/// Where a MAC was learned to be, unless that was too long ago.
#[inline(always)]
pub(crate) fn find(key: FdbKey) -> Option<LearnedEntry> {
    let entry = lookup!(FDB_LEARNED, key)?;
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    learn::is_fresh(entry, now, AGEING_NS.load()).then_some(*entry)
}

/// Takes one from a rate limit of one every `interval_ns`, `burst` at once.
///
/// Two CPUs that take at the same instant may count once: the limit is off by
/// at most one for each CPU.
#[inline(always)]
pub(crate) fn allow(limit: RateKey, interval_ns: u64, burst: u32) -> bool {
    allowed(limit.kind, limit.id, interval_ns, burst) != 0
}

/// [`allow`], as a function of its own for the sake of the stack.
#[inline(never)]
fn allowed(kind: u32, id: u32, interval_ns: u64, burst: u32) -> u32 {
    take_one(RateKey { kind, id }, interval_ns, burst).into()
}

#[inline(always)]
fn take_one(limit: RateKey, interval_ns: u64, burst: u32) -> bool {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    match RATES.get_ptr_mut(limit) {
        Some(arrival) => {
            // SAFETY: the entry outlives the program run; it is one aligned word.
            let tat = unsafe { arrival.read() };
            let Some(next) = rate::gcra(tat, now, interval_ns, burst) else { return false };
            // SAFETY: as above.
            unsafe { arrival.write(next) };
            true
        }
        None => match rate::gcra(0, now, interval_ns, burst) {
            Some(next) => RATES.insert(limit, next, 0).is_ok(),
            None => false,
        },
    }
}
