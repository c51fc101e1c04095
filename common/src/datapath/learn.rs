//! Learning of source addresses (RFC 7348 §4.1).

use crate::abi::{HeardEntry, LearnedEntry};
use crate::wire::{ARP_REPLY, ARP_REQUEST, ArpIpv4, ethernet};

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
    /// Writes the entry if the rate limit of new ones allows it: the address is new, or its entry
    /// has aged.
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

/// The IPv4 address of an ARP packet's sender, and the entry to write for it at `now_ns`. `None` if
/// the packet is not a request or reply for IPv4 over Ethernet, or has no sender (a probe, RFC 5227
/// §1.1).
#[inline(always)]
pub fn heard(arp: &ArpIpv4, now_ns: u64) -> Option<([u8; 4], HeardEntry)> {
    let known = arp.is_ethernet_ipv4() && matches!(arp.oper(), ARP_REQUEST | ARP_REPLY);
    if !known || arp.sender_ip == [0; 4] || !valid_source(&arp.sender_mac) {
        return None;
    }
    let entry = HeardEntry { last_seen_ns: now_ns, mac: arp.sender_mac, ..HeardEntry::default() };
    Some((arp.sender_ip, entry))
}

/// The effect of [`heard`] on the entry of the address. A changed MAC is accepted at once: every
/// host that receives ARP does so (RFC 826).
#[inline(always)]
pub fn hear(existing: Option<&HeardEntry>, heard: &HeardEntry, ageing_ns: u64) -> Learn {
    let Some(entry) = existing else {
        return Learn::Insert;
    };
    if !is_audible(entry, heard.last_seen_ns, ageing_ns) {
        return Learn::Insert;
    }
    if entry.mac != heard.mac {
        return Learn::Move;
    }
    if heard.last_seen_ns.saturating_sub(entry.last_seen_ns) < TOUCH_AFTER_NS {
        Learn::Current
    } else {
        Learn::Refresh
    }
}

/// Whether `entry` is still valid at `now_ns`.
#[inline(always)]
pub const fn is_audible(entry: &HeardEntry, now_ns: u64, ageing_ns: u64) -> bool {
    now_ns.saturating_sub(entry.last_seen_ns) < ageing_ns
}
