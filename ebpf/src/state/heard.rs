//! MACs of IPv4 addresses that no endpoint has, learned from ARP. The host uses them to send to
//! such addresses.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
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

/// Rate limit of new and changed entries of a VNI: `BURST` at once, and one more every
/// `INTERVAL_NS`. All networks share the map. Within the default ageing time (300 s) one network
/// takes at most about half of the map.
const BURST: u32 = 1024;
const INTERVAL_NS: u64 = 40_000_000;

/// Bit in the result of [`write_heard`]: the map has an entry of the sender. The lowest byte of the
/// result is the code of the note to count, 0 for none.
const HEARD: u32 = 1 << 8;

/// Notes the sender of the ARP packet at the byte `offset` of the frame, unless an endpoint of the
/// network has its address. Returns whether the sender is noted.
#[inline(always)]
pub(crate) fn listen(direction: Direction, ctx: &TcContext, vni: u32, offset: usize) -> bool {
    let written = write_heard(ctx.skb.skb, vni, offset as u32);
    if let Some(note) = Note::from_code(written as u8) {
        count(direction, Code::Note(note), ctx.len());
    }
    written & HEARD != 0
}

/// Writes the entry of the ARP packet's sender if it must be written. Returns the code of the note
/// to count, 0 for none, with the bit [`HEARD`] if the map has an entry of the sender. A global BPF
/// function: the verifier checks it once.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_heard(skb: *mut __sk_buff, vni: u32, offset: u32) -> u32 {
    try_write_entry(&TcContext::new(skb), vni, offset as usize).unwrap_or(0)
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

/// The MAC of an address that no endpoint has. `None` if no ARP packet from the address came within
/// the ageing time.
#[inline(always)]
pub(crate) fn mac_of(key: &NeighKey) -> Option<[u8; 6]> {
    let entry = read(&NEIGHBOURS_HEARD, key)?;
    learn::is_audible(&entry, now(), AGEING_NS.load()).then_some(entry.mac)
}
