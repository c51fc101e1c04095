//! Learning of source addresses (RFC 7348 §4.1).

use crate::abi::LearnedEntry;
use crate::wire::ethernet;

/// Age in ns of an entry from which on a frame writes it again: one map write per second and
/// address, not one per packet.
pub const TOUCH_AFTER_NS: u64 = 1_000_000_000;

/// Effect of a frame on the learned FDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// No write: the entry is right and less than [`TOUCH_AFTER_NS`] old.
    Current,
    /// Writes the entry: the location is the same, the time is newer.
    Refresh,
    /// Writes the entry: the address is new, or its entry has aged.
    Insert,
    /// Writes the entry if the rate limit of moves allows it: the address has moved.
    Move,
}

/// Whether `mac` may be learned: neither zero nor a group address (IEEE 802.1D §7.8; RFC 7348
/// does not mention group addresses as sources).
#[inline(always)]
pub const fn valid_source(mac: &[u8; 6]) -> bool {
    !ethernet::is_multicast(mac) && !ethernet::is_zero(mac)
}

/// Whether `entry` is still valid at `now_ns`.
#[inline(always)]
pub const fn is_fresh(entry: &LearnedEntry, now_ns: u64, ageing_ns: u64) -> bool {
    now_ns.saturating_sub(entry.last_seen_ns) < ageing_ns
}

/// The effect of a frame on the entry of its source address. `seen` is the location and the
/// present time, `existing` the entry in the map. The caller has checked that the address has
/// neither a local nor a static entry.
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
