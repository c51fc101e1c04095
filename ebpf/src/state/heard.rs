//! MACs of IPv4 addresses that no endpoint has, heard from ARP. The host sends to them.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{Code, Direction, NeighKey, Note, RateKey, Sealed as _},
    datapath::learn::{self, Learn},
    wire::ArpIpv4,
};

use super::rates;
use crate::{
    count::count,
    globals::AGEING_NS,
    kernel::{skb::load, time::now},
    maps::{NEIGHBOURS, NEIGHBOURS_HEARD, has, read},
};

/// Addresses that a VNI may have heard of for the first time or with another MAC: this many at once,
/// and one more every interval. All networks share the map: within the default ageing time (300 s)
/// one of them takes at most about half of it.
const BURST: u32 = 1024;
const INTERVAL_NS: u64 = 40_000_000;

/// Result of [`write_entry`]: the map has the sender. The lowest byte is the code of the note to
/// count, 0 for none.
const HEARD: u32 = 1 << 8;

/// Notes the sender of the ARP packet at `offset` of the frame, unless an endpoint of the network
/// has its address. Returns whether the sender is noted.
#[inline(always)]
pub(crate) fn listen(direction: Direction, ctx: &TcContext, vni: u32, offset: usize) -> bool {
    let written = write_entry(ctx, vni, offset);
    if let Some(note) = Note::from_code(written as u8) {
        count(direction, Code::Note(note), ctx.len());
    }
    written & HEARD != 0
}

/// Writes the entry that the packet calls for. Returns the code of a note, with [`HEARD`] if the map
/// has the sender. A BPF function of its own, for its stack.
#[inline(never)]
fn write_entry(ctx: &TcContext, vni: u32, offset: usize) -> u32 {
    try_write_entry(ctx, vni, offset).unwrap_or(0)
}

#[inline(always)]
fn try_write_entry(ctx: &TcContext, vni: u32, offset: usize) -> Option<u32> {
    let packet: ArpIpv4 = load(ctx, offset).ok()?;
    let (ip, heard) = learn::heard(&packet, now())?;
    let key = NeighKey::v4(vni, ip);
    if has(&NEIGHBOURS, &key) {
        // An entry from the store is never displaced.
        return None;
    }
    let before = read(&NEIGHBOURS_HEARD, &key);
    let note = match learn::hear(before.as_ref(), &heard, AGEING_NS.load()) {
        Learn::Current => return Some(HEARD),
        Learn::Refresh => 0,
        Learn::Insert | Learn::Move => {
            let limit = RateKey { kind: RateKey::HEAR, id: vni };
            if !rates::take(limit, INTERVAL_NS, BURST) {
                return Some(Note::NeighbourLimited.code().into());
            }
            u32::from(Note::NeighbourHeard.code())
        }
    };
    NEIGHBOURS_HEARD.insert(key, heard.sealed(&key), 0).ok()?;
    Some(HEARD | note)
}

/// The MAC of an address that no endpoint has, if it was heard of recently.
#[inline(always)]
pub(crate) fn mac_of(key: &NeighKey) -> Option<[u8; 6]> {
    let entry = read(&NEIGHBOURS_HEARD, key)?;
    learn::is_audible(&entry, now(), AGEING_NS.load()).then_some(entry.mac)
}
