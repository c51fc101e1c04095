//! Learned FDB entries.

use culvert_common::{
    abi::{Code, Direction, FdbEntry, FdbKey, LearnedEntry, Note, RateKey, Sealed as _, VtepId},
    datapath::learn::{self, Learn},
};

use super::rates;
use crate::{
    count::count,
    globals::AGEING_NS,
    kernel::time::now,
    maps::{FDB, FDB_LEARNED, read, read_updated},
};

/// Rate limit of moves of learned MACs in a VNI: `MOVE_BURST` at once, and one more every
/// `MOVE_INTERVAL_NS`.
const MOVE_BURST: u32 = 16;
const MOVE_INTERVAL_NS: u64 = 100_000_000;

/// Rate limit of new MACs in a VNI: `LEARN_BURST` at once, and one more every `LEARN_INTERVAL_NS`.
/// All networks share the map. Within the default ageing time (300 s) one network takes at most
/// half of the map.
const LEARN_BURST: u32 = 1024;
const LEARN_INTERVAL_NS: u64 = 10_000_000;

/// Notes where a source MAC was seen: behind `vtep`, or on the local interface `ifindex`.
#[inline(always)]
pub(crate) fn source(direction: Direction, key: FdbKey, vtep: VtepId, ifindex: u32, bytes: u32) {
    if let Some(note) = Note::from_code(write_learned(&raw const key, vtep.0, ifindex) as u8) {
        count(direction, Code::Note(note), bytes);
    }
}

/// Writes the learned FDB entry of a source MAC if it must be written. Returns the code of the note
/// to count, 0 for none. A global BPF function: the verifier checks it once.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_learned(key: *const FdbKey, vtep: u32, ifindex: u32) -> u32 {
    // SAFETY: the pointer is null or points to a `FdbKey`: the verifier checks this for every
    // caller.
    let Some(&key) = (unsafe { key.as_ref() }) else { return 0 };
    try_write_entry(key, VtepId(vtep), ifindex).map_or(0, |note| note.code().into())
}

#[inline(always)]
fn try_write_entry(key: FdbKey, vtep: VtepId, ifindex: u32) -> Option<Note> {
    if !learn::valid_source(&key.mac) {
        return None;
    }
    if let Some(known) = read(&FDB, &key) {
        // An entry from the store is never displaced.
        let elsewhere = known.vtep != vtep || known.ifindex != ifindex;
        return elsewhere.then_some(Note::LearnRefused);
    }
    let seen = LearnedEntry { last_seen_ns: now(), ifindex, vtep, seal: 0, pad: 0 };
    let note = match learn::learn(read(&FDB_LEARNED, &key).as_ref(), &seen, AGEING_NS.load()) {
        Learn::Current => return None,
        Learn::Refresh => None,
        Learn::Insert => {
            let limit = RateKey { kind: RateKey::LEARN, id: key.vni };
            if !rates::take(limit, LEARN_INTERVAL_NS, LEARN_BURST) {
                return Some(Note::LearnLimited);
            }
            Some(Note::Learned)
        }
        Learn::Move => {
            let limit = RateKey { kind: RateKey::MAC_MOVE, id: key.vni };
            if !rates::take(limit, MOVE_INTERVAL_NS, MOVE_BURST) {
                return Some(Note::MacMoveLimited);
            }
            Some(Note::MacMove)
        }
    };
    FDB_LEARNED.insert(key, seen.sealed(&key), 0).ok().and(note)
}

/// Location of a MAC.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Interface index of the host side of a local endpoint; 0 if the MAC is behind a VTEP.
    pub(crate) ifindex: u32,
    /// The VTEP of a remote endpoint; [`VtepId::NONE`] if the MAC is local.
    pub(crate) vtep: VtepId,
}

impl Place {
    /// No location.
    pub(crate) const NONE: Self = Self { ifindex: 0, vtep: VtepId::NONE };
}

/// Result of [`locate`]: the agent's FDB has the MAC.
pub(crate) const STATIC: u32 = 1;
/// Result of [`locate`]: the programs have learned the MAC.
pub(crate) const LEARNED: u32 = 2;

/// Finds a MAC in the FDB, and if `learning` is not 0, among the learned entries that have not
/// aged. Returns [`STATIC`], [`LEARNED`], or 0 if the MAC is unknown. A BPF function of its own,
/// for a stack frame of its own.
#[inline(never)]
pub(crate) fn locate(key: &FdbKey, learning: u32, place: &mut Place) -> u32 {
    let mut entry = FdbEntry::default();
    if read_updated(&FDB, key, &mut entry) {
        *place = Place { ifindex: entry.ifindex, vtep: entry.vtep };
        return STATIC;
    }
    if learning == 0 {
        return 0;
    }
    let Some(entry) = read(&FDB_LEARNED, key) else { return 0 };
    if !learn::is_fresh(&entry, now(), AGEING_NS.load()) {
        return 0;
    }
    *place = Place { ifindex: entry.ifindex, vtep: entry.vtep };
    LEARNED
}
