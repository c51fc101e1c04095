//! Fragments. Only the first fragment of a datagram has ports. The other fragments get the same
//! ports.
//!
//! A fragment that comes before the first one is held in a map. When the first fragment comes, it
//! is held, too. Then all held fragments are redirected to the ingress of the same interface, the
//! first fragment first.
//!
//! A fragment from an external host may belong to the host's own traffic, and nothing but the first
//! fragment can tell. So only a copy of it is held, and the fragment itself passes to the host's
//! stack: whatever happens to the copies, the host has all fragments of its datagrams. If the
//! datagram is a flow's, the host's stack discards the fragments that it has, because it never gets
//! the first one.
//!
//! Each source has a share of the slots, and all external hosts together have another one, so that
//! no source takes the slots of all others.
//!
//! Two CPUs may have fragments of one datagram at the same time. The CPU with the first fragment
//! writes the ports and then looks for held fragments. The CPU with another fragment claims a slot
//! and then looks for the ports. So at least one of them sees the other's entry. The CPU that
//! removes the slot sends the fragment.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
use culvert_common::{
    abi::{
        Action, Direction, DropReason, FragmentInfo, FragmentKey, HELD_FRAME_LEN, HeldFragment,
        MAX_HELD, MAX_HELD_FRAGMENTS, Note, RateKey, Sealed as _, zone,
    },
    wire::Ipv4Hdr,
};

use super::rates;
use crate::{
    count::note,
    facts::routed::{Kind, Routed},
    kernel::{
        memory::{own, repeat},
        redirect::copy_ingress,
        skb::{load_to, replace},
        time::now_coarse,
    },
    maps::{FRAGMENTS, HELD_FRAGMENTS, read},
};

/// Time in ns for which fragments wait for the others of their datagram: Linux's `ipfrag_time`.
const LIFETIME_NS: u64 = 30_000_000_000;
/// Slot of the first fragment in `HELD_FRAGMENTS`.
const FIRST: u8 = 0xff;
/// Most fragments of one source that are held: those of two datagrams.
const SOURCE_SHARE: u32 = 2 * MAX_HELD as u32;
/// Most fragments of all external hosts together that are held.
const EXTERNAL_SHARE: u32 = 192;
/// Bits of the hash of a source: a sender that forges its addresses does not fill the map of limits.
const SOURCE_BITS: u32 = 8;

// A share is refilled in the time for which a fragment is held. So at most twice a share is held.
const _: () = assert!(2 * EXTERNAL_SHARE + SOURCE_SHARE <= MAX_HELD_FRAGMENTS);

/// This CPU's memory for a fragment before it is inserted into `HELD_FRAGMENTS`.
#[map]
static HELD_SCRATCH: PerCpuArray<HeldFragment> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn key(zone: u32, ip: &Ipv4Hdr) -> FragmentKey {
    let [a, b] = ip.id().to_be_bytes();
    FragmentKey {
        zone,
        src: ip.src,
        dst: ip.dst,
        id: [0, 0, a, b],
        protocol: ip.protocol(),
        slot: 0,
        pad: [0; 2],
    }
}

/// The ports of a datagram. `None` if its first fragment has not come.
#[inline(always)]
fn ports_of(key: &FragmentKey) -> Option<FragmentInfo> {
    read(&FRAGMENTS, key).filter(|info| now_coarse() < info.expires_ns)
}

/// The kind and the ports of a fragment that is not the first one. The ports are 0 if the first
/// fragment has not come.
#[inline(always)]
pub(crate) fn later(zone: u32, ip: &Ipv4Hdr) -> (Kind, ([u8; 2], [u8; 2])) {
    match ports_of(&key(zone, ip)) {
        Some(info) => {
            let of_host = info.owner == FragmentInfo::OF_HOST;
            let kind = if of_host { Kind::HostFragment } else { Kind::Flow };
            (kind, (info.src_port, info.dst_port))
        }
        None => (Kind::LateFragment, ([0; 2], [0; 2])),
    }
}

/// Stores the ports of the datagram whose first fragment is `routed`. Sets the kind to
/// [`Kind::FirstOfHeld`] if another fragment of it is held.
#[inline(always)]
pub(crate) fn first(routed: &mut Routed) {
    let mut key = key(routed.key.zone, &routed.ip);
    // If the map refuses the entry, the later fragments are dropped and counted.
    write(&key, routed, FragmentInfo::OF_FLOW);
    key.slot = 0;
    if is_waiting(&key) {
        routed.kind = Kind::FirstOfHeld;
    }
}

/// Whether a fragment is held under this key that has not expired.
#[inline(always)]
fn is_waiting(key: &FragmentKey) -> bool {
    let Some(held) = HELD_FRAGMENTS.get_ptr(key) else { return false };
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU). If the memory
    // belongs to another fragment by now, the worst effect is one needless search of the slots, or
    // one lost fragment.
    now_coarse() < unsafe { (&raw const (*held).expires_ns).read_volatile() }
}

/// Writes the ports of a datagram. An entry is never changed in place, because the kernel may reuse
/// its memory at any time.
#[inline(always)]
fn write(key: &FragmentKey, routed: &Routed, owner: u32) {
    let info = FragmentInfo {
        expires_ns: now_coarse() + LIFETIME_NS,
        src_port: routed.key.tuple.src_port,
        dst_port: routed.key.tuple.dst_port,
        owner,
        seal: 0,
        pad: 0,
    };
    let _ = FRAGMENTS.insert(key, info.sealed(key), 0);
}

/// If `routed` is a first fragment, notes that its datagram belongs to the host's own traffic.
#[inline(always)]
pub(crate) fn note_host_datagram(routed: &Routed) {
    if routed.has_header && routed.ip.more_fragments() {
        write(&key(routed.key.zone, &routed.ip), routed, FragmentInfo::OF_HOST);
    }
}

/// Time in ns in which a share of `fragments` gets room for one more. A held fragment that expires
/// gives its room back in this way.
const fn interval_ns(fragments: u32) -> u32 {
    (LIFETIME_NS / fragments as u64) as u32
}

/// The share of the source of a fragment. Two sources may have the same.
#[inline(always)]
fn source_share(key: &FragmentKey) -> RateKey {
    let source = u32::from_ne_bytes(key.src) ^ key.zone;
    let id = source.wrapping_mul(0x9e37_79b1) >> (u32::BITS - SOURCE_BITS);
    RateKey { kind: RateKey::HOLD, id }
}

/// The share of all external hosts.
const ALL_EXTERNAL: RateKey = RateKey { kind: RateKey::HOLD, id: 1 << SOURCE_BITS };

/// Whether the fragment comes from an external host.
#[inline(always)]
fn is_external(key: &FragmentKey) -> bool {
    key.zone == zone::EXTERNAL || zone::client_link(key.zone).is_some()
}

/// Takes room for one fragment. Returns 1, or 0 if its source has no more. A BPF function of its own,
/// for a stack frame of its own.
#[inline(never)]
fn take_share(key: &FragmentKey) -> u32 {
    let source = source_share(key);
    if !rates::allow(source, interval_ns(SOURCE_SHARE), SOURCE_SHARE) {
        return 0;
    }
    if !is_external(key) || rates::allow(ALL_EXTERNAL, interval_ns(EXTERNAL_SHARE), EXTERNAL_SHARE)
    {
        return 1;
    }
    rates::give_back(source, interval_ns(SOURCE_SHARE));
    0
}

/// Gives back what [`take_share`] took: the fragment is not held any more. A BPF function of its own:
/// it is called from several places.
#[inline(never)]
fn give_share_back(key: &FragmentKey) {
    rates::give_back(source_share(key), interval_ns(SOURCE_SHARE));
    if is_external(key) {
        rates::give_back(ALL_EXTERNAL, interval_ns(EXTERNAL_SHARE));
    }
}

/// Holds a fragment until the first fragment of its datagram has come. A fragment from an external
/// host passes to the host as well. If `routed` is the first fragment, redirects all held fragments
/// to the ingress of `ifindex`.
#[inline(always)]
pub(crate) fn hold(
    ctx: &TcContext,
    direction: Direction,
    routed: &Routed,
    ifindex: u32,
) -> Result<Action, DropReason> {
    let skb = ctx.skb.skb;
    let mut key = key(routed.key.zone, &routed.ip);
    if routed.kind != Kind::FirstOfHeld {
        let of_container = matches!(direction, Direction::FromContainer);
        let (event, action) = match keep(skb, &key) {
            kept::HELD if of_container => return Ok(Action::Hold),
            kept::HELD => (Note::FragmentCopied, Action::Pass),
            kept::KNOWN if copy_ingress(skb, ifindex) => (Note::FragmentReleased, Action::Hold),
            _ if of_container => return Err(DropReason::FragmentUnknown),
            _ => (Note::FragmentLimited, Action::Pass),
        };
        note(direction, event, ctx.len());
        return Ok(action);
    }
    key.slot = FIRST;
    if copy_to_scratch(skb) == 0 || insert(&key, 0) == 0 {
        return Err(DropReason::FragmentUnknown);
    }
    let mut release = Release { skb, key, ifindex, direction };
    repeat(u32::from(MAX_HELD) + 1, release_one, &mut release);
    Ok(Action::Hold)
}

/// Results of [`keep`].
mod kept {
    /// The fragment is held, or another CPU has sent it on.
    pub(super) const HELD: u32 = 0;
    /// The first fragment has come meanwhile: its ports are known, and this fragment is sent to
    /// the ingress again.
    pub(super) const KNOWN: u32 = 1;
    /// There is no free slot, the source has used its share, or the frame is too long.
    pub(super) const REFUSED: u32 = 2;
}

/// Holds a fragment that is not the first. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
fn keep(skb: *mut __sk_buff, key: &FragmentKey) -> u32 {
    let mut slot = Slot { key: *key, claimed: 0 };
    if copy_to_scratch(skb) == 0 || take_share(key) == 0 {
        return kept::REFUSED;
    }
    repeat(MAX_HELD.into(), claim_slot, &mut slot);
    if slot.claimed == 0 {
        give_share_back(key);
        return kept::REFUSED;
    }
    // The slot is claimed before the ports are read; see the documentation of this module.
    if ports_of(key).is_none() {
        return kept::HELD;
    }
    match HELD_FRAGMENTS.remove(slot.key) {
        Ok(()) => {
            give_share_back(key);
            kept::KNOWN
        }
        Err(_) => kept::HELD,
    }
}

/// State of the loop [`claim_slot`].
struct Slot {
    key: FragmentKey,
    claimed: u32,
}

/// Loop body of [`keep`]: puts the fragment into the first slot that is free.
unsafe extern "C" fn claim_slot(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `keep` passes its own `Slot`.
    let slot = unsafe { &mut *context.cast::<Slot>() };
    slot.key.slot = index as u8;
    // A refused insertion into an LRU map may evict another entry, so the map is read first.
    let flags = match HELD_FRAGMENTS.get_ptr(slot.key) {
        Some(_) if is_waiting(&slot.key) => return 0,
        // The slot has an expired fragment of an earlier datagram with the same identification.
        Some(_) => 0,
        None => BPF_NOEXIST.into(),
    };
    slot.claimed = insert(&slot.key, flags);
    slot.claimed.into()
}

/// Returns `len` if it is from 1 to [`HELD_FRAME_LEN`], else `None`. The two limits are checked in
/// two steps, between which `black_box` hides the value from the compiler. Otherwise the compiler
/// makes one comparison of another register, and the verifier does not see that the length is
/// bounded.
#[inline(always)]
fn held_len(len: u32) -> Option<u32> {
    if len as usize > HELD_FRAME_LEN {
        return None;
    }
    let len = core::hint::black_box(u64::from(len));
    if len == 0 { None } else { Some(len as u32) }
}

/// Copies the frame to this CPU's scratch memory. Returns 1, or 0 if it is too long. A BPF function
/// of its own, for a stack frame of its own.
#[inline(never)]
fn copy_to_scratch(skb: *mut __sk_buff) -> u32 {
    let Some(len) = held_len(TcContext::new(skb).len()) else { return 0 };
    let Some(scratch) = own(&HELD_SCRATCH, 0) else { return 0 };
    scratch.len = len;
    scratch.expires_ns = now_coarse() + LIFETIME_NS;
    load_to(skb, 0, &raw mut scratch.bytes, len).into()
}

/// Puts the frame in this CPU's scratch memory into the map; `flags` are those of the
/// update. Returns 1, or 0 if the map refused.
#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a value that is passed by value is copied to the stack, which is short"
)]
fn insert(key: &FragmentKey, flags: u64) -> u32 {
    let Some(scratch) = own(&HELD_SCRATCH, 0) else { return 0 };
    HELD_FRAGMENTS.insert(key, &*scratch, flags).is_ok().into()
}

/// Removes the copies of the other fragments of the datagram whose first fragment is `routed`: the
/// host has them. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn discard(routed: &Routed) {
    let mut key = key(routed.key.zone, &routed.ip);
    repeat(MAX_HELD.into(), discard_one, &mut key);
}

/// Loop body of [`discard`]: removes the fragment in one slot. Ends the loop at the first free slot:
/// later slots are taken only while all of these are.
unsafe extern "C" fn discard_one(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `discard` passes its own key.
    let key = unsafe { &mut *context.cast::<FragmentKey>() };
    key.slot = index as u8;
    if HELD_FRAGMENTS.remove(*key).is_err() {
        return 1;
    }
    give_share_back(key);
    0
}

/// State of the loop [`release_one`].
struct Release {
    skb: *mut __sk_buff,
    key: FragmentKey,
    ifindex: u32,
    direction: Direction,
}

/// Loop body of [`hold`]: redirects one held fragment to the ingress.
unsafe extern "C" fn release_one(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `hold` passes its own `Release`.
    let release = unsafe { &mut *context.cast::<Release>() };
    release.key.slot = if index == 0 { FIRST } else { index as u8 - 1 };
    let Some(held) = HELD_FRAGMENTS.get_ptr(release.key) else { return 0 };
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
    let len = unsafe { (&raw const (*held).len).read_volatile() };
    let Some(len) = held_len(len) else { return 0 };
    // SAFETY: as above. Only the address is taken; `held_len` has checked that `bytes` has `len`
    // bytes.
    let bytes = unsafe { &raw const (*held).bytes };
    if !replace(release.skb, bytes, len) {
        return 0;
    }
    // The copied bytes belong to this fragment only if its entry still has the same address. There
    // is one exception: during the copy the entry was removed, and its key was inserted again at
    // the same address. The later bytes are then of a fragment with the same zone, addresses,
    // protocol and identification. They are of another datagram only if another key had the memory
    // in between, which takes four updates of the map during one copy. In both cases the effect is
    // one wrong frame: at the ingress the program checks its headers like those of each frame, and
    // the receiver drops the datagram because of its transport checksum, if it has one.
    let same = HELD_FRAGMENTS.get_ptr(release.key).is_some_and(|now| now == held);
    if HELD_FRAGMENTS.remove(release.key).is_err() {
        return 0;
    }
    if release.key.slot != FIRST {
        give_share_back(&release.key);
    }
    if !same {
        return 0;
    }
    if copy_ingress(release.skb, release.ifindex) {
        note(release.direction, Note::FragmentReleased, len);
    }
    0
}
