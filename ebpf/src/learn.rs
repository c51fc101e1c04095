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
    verdict::note,
};

/// Moves of learned MACs that a VNI may have: this many at once, and one more
/// every interval.
const MOVE_BURST: u32 = 16;
const MOVE_INTERVAL_NS: u64 = 100_000_000;

/// Notes where a source MAC was seen: behind `vtep`, or on the local port `ifindex`.
#[inline(always)]
pub(crate) fn source(direction: Direction, key: FdbKey, vtep: [u8; 4], ifindex: u32, bytes: u32) {
    if !learn::valid_source(&key.mac) {
        return;
    }
    if let Some(known) = lookup!(FDB, key) {
        // What the store says is never displaced.
        if known.vtep != vtep || known.ifindex != ifindex {
            note(direction, Note::LearnRefused, bytes);
        }
        return;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let seen = LearnedEntry { last_seen_ns: now, vtep, ifindex };
    let what = match learn::learn(lookup!(FDB_LEARNED, key), &seen, AGEING_NS.load()) {
        Learn::Current => return,
        Learn::Refresh => None,
        Learn::Insert => Some(Note::Learned),
        Learn::Move => {
            let limit = RateKey { kind: RateKey::MAC_MOVE, id: key.vni };
            if !take_one(limit, MOVE_INTERVAL_NS, MOVE_BURST) {
                note(direction, Note::MacMoveLimited, bytes);
                return;
            }
            Some(Note::MacMove)
        }
    };
    if FDB_LEARNED.insert(key, seen, 0).is_ok()
        && let Some(what) = what
    {
        note(direction, what, bytes);
    }
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
