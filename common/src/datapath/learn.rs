//! Learning of source addresses (RFC 7348 §4.1).

use crate::abi::LearnedEntry;
use crate::wire::ethernet;

/// How old an entry may grow before a frame writes it anew: a map write per
/// second and address rather than one per packet.
pub const TOUCH_AFTER_NS: u64 = 1_000_000_000;

/// What a frame does to the learned FDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// Nothing: the entry is right and less than [`TOUCH_AFTER_NS`] old.
    Current,
    /// Writes the entry: same place, newer time.
    Refresh,
    /// Writes the entry: the address is new, or its entry has aged.
    Insert,
    /// Writes the entry if the rate limit of moves allows: the address was
    /// elsewhere.
    Move,
}

/// Whether `mac` may be learned: no group address (RFC 7348 says nothing of
/// them as sources; IEEE 802.1D §7.8 does) and not zero.
#[inline(always)]
pub const fn valid_source(mac: &[u8; 6]) -> bool {
    !ethernet::is_multicast(mac) && !ethernet::is_zero(mac)
}

/// Whether `entry` is still to be used at `now_ns`.
#[inline(always)]
pub const fn is_fresh(entry: &LearnedEntry, now_ns: u64, ageing_ns: u64) -> bool {
    now_ns.saturating_sub(entry.last_seen_ns) < ageing_ns
}

/// What to do about an address seen as `seen` (whose time is now) with the entry
/// `existing` in the map. The caller has made sure that neither a local nor a
/// static entry holds the address.
#[inline(always)]
pub fn learn(existing: Option<&LearnedEntry>, seen: &LearnedEntry, ageing_ns: u64) -> Learn {
    let Some(entry) = existing else {
        return Learn::Insert;
    };
    if !is_fresh(entry, seen.last_seen_ns, ageing_ns) {
        return Learn::Insert;
    }
    if entry.vtep != seen.vtep || entry.ifindex != seen.ifindex {
        return Learn::Move;
    }
    if seen.last_seen_ns.saturating_sub(entry.last_seen_ns) < TOUCH_AFTER_NS {
        Learn::Current
    } else {
        Learn::Refresh
    }
}
