//! Fragments: only the first one of a datagram has ports, and the others follow it.
//!
//! One that comes before the first is held in a map. When the first one comes, it is held
//! too, and all of them come in again on the same interface, the first one first.
//!
//! Two CPUs may have fragments of one datagram at the same time. Whoever has the first one
//! writes its ports and then looks for held fragments; whoever holds one claims a slot and
//! then looks for ports. So at least one of them sees the other's entry, and removing a slot
//! decides who sends the fragment.

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
        MAX_HELD, Note, Sealed as _,
    },
    wire::Ipv4Hdr,
};

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

/// How long the fragments of a datagram are waited for: Linux's `ipfrag_time`.
const LIFETIME_NS: u64 = 30_000_000_000;
/// Slot of the first fragment among the held ones.
const FIRST: u8 = 0xff;

/// Where a fragment is put together before it goes into the map.
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

/// The ports of a datagram, if its first fragment has come.
#[inline(always)]
fn ports_of(key: &FragmentKey) -> Option<FragmentInfo> {
    read(&FRAGMENTS, key).filter(|info| now_coarse() < info.expires_ns)
}

/// What is known of the datagram that a fragment other than the first belongs to, and its
/// ports.
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

/// Notes the ports of a datagram whose first fragment this is, and whether others have been
/// waiting for it.
#[inline(always)]
pub(crate) fn first(routed: &mut Routed) {
    let mut key = key(routed.key.zone, &routed.ip);
    // Full: the later fragments will be dropped, and counted.
    write(&key, routed, FragmentInfo::OF_FLOW);
    key.slot = 0;
    if is_waiting(&key) {
        routed.kind = Kind::FirstOfHeld;
    }
}

/// A fragment is held under this key, and not for too long.
#[inline(always)]
fn is_waiting(key: &FragmentKey) -> bool {
    let Some(held) = HELD_FRAGMENTS.get_ptr(key) else { return false };
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU). A time
    // of another fragment costs at worst one look at the slots, or one fragment.
    now_coarse() < unsafe { (&raw const (*held).expires_ns).read_volatile() }
}

/// Writes the ports of a datagram. Never in place: the map may recycle an entry at any time.
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

/// Notes that a datagram is the host's own, if this is its first fragment.
#[inline(always)]
pub(crate) fn is_host(routed: &Routed) {
    if routed.has_header && routed.ip.more_fragments() {
        write(&key(routed.key.zone, &routed.ip), routed, FragmentInfo::OF_HOST);
    }
}

/// Holds a fragment until the first one of its datagram has come, and lets all of
/// them come in again on `ifindex` when this is the first.
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
        return match keep(skb, &key) {
            kept::HELD => Ok(Action::Hold),
            kept::KNOWN if copy_ingress(skb, ifindex) => {
                note(direction, Note::FragmentReleased, ctx.len());
                Ok(Action::Hold)
            }
            _ => Err(DropReason::FragmentUnknown),
        };
    }
    key.slot = FIRST;
    if copy_to_scratch(skb) == 0 || insert(&key, 0) == 0 {
        return Err(DropReason::FragmentUnknown);
    }
    let mut release = Release { skb, key, ifindex, direction };
    repeat(u32::from(MAX_HELD) + 1, release_one, &mut release);
    Ok(Action::Hold)
}

/// What [`keep`] returns.
mod kept {
    /// The fragment is held, or another CPU has sent it on.
    pub(super) const HELD: u32 = 0;
    /// The first fragment has come meanwhile: its ports are known, and this fragment is sent to
    /// the ingress again.
    pub(super) const KNOWN: u32 = 1;
    /// There is no room.
    pub(super) const REFUSED: u32 = 2;
}

/// Holds a fragment that is not the first. A BPF function of its own, for its stack.
#[inline(never)]
fn keep(skb: *mut __sk_buff, key: &FragmentKey) -> u32 {
    let mut slot = Slot { key: *key, claimed: 0 };
    if copy_to_scratch(skb) == 0 {
        return kept::REFUSED;
    }
    repeat(MAX_HELD.into(), claim_slot, &mut slot);
    if slot.claimed == 0 {
        return kept::REFUSED;
    }
    // The claim first, then the ports; see the module.
    if ports_of(key).is_none() {
        return kept::HELD;
    }
    match HELD_FRAGMENTS.remove(slot.key) {
        Ok(()) => kept::KNOWN,
        Err(_) => kept::HELD,
    }
}

/// What [`claim_slot`] needs.
struct Slot {
    key: FragmentKey,
    claimed: u32,
}

/// Loop body of [`keep`]: puts the fragment into the first slot that is free.
unsafe extern "C" fn claim_slot(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `keep` passes its own `Slot`.
    let slot = unsafe { &mut *context.cast::<Slot>() };
    slot.key.slot = index as u8;
    // A refused insertion into an LRU map may evict another entry: look first.
    let flags = match HELD_FRAGMENTS.get_ptr(slot.key) {
        Some(_) if is_waiting(&slot.key) => return 0,
        // Of an earlier datagram with the same identification.
        Some(_) => 0,
        None => BPF_NOEXIST.into(),
    };
    slot.claimed = insert(&slot.key, flags);
    slot.claimed.into()
}

/// A length that is neither 0 nor more than what is held. In two steps, between which
/// the compiler does not know the value: else it makes one comparison of them, on another
/// register, and the verifier does not see that the length is bounded.
#[inline(always)]
fn held_len(len: u32) -> Option<u32> {
    if len as usize > HELD_FRAME_LEN {
        return None;
    }
    let len = core::hint::black_box(u64::from(len));
    if len == 0 { None } else { Some(len as u32) }
}

/// Copies the frame to this CPU's scratch memory. Returns 1, or 0 if it is too long. A BPF
/// function of its own, for its stack.
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

/// What [`release_one`] needs.
struct Release {
    skb: *mut __sk_buff,
    key: FragmentKey,
    ifindex: u32,
    direction: Direction,
}

/// Loop body of [`hold`].
unsafe extern "C" fn release_one(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `hold` passes its own `Release`.
    let release = unsafe { &mut *context.cast::<Release>() };
    release.key.slot = if index == 0 { FIRST } else { index as u8 - 1 };
    let Some(held) = HELD_FRAGMENTS.get_ptr(release.key) else { return 0 };
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
    let len = unsafe { (&raw const (*held).len).read_volatile() };
    let Some(len) = held_len(len) else { return 0 };
    // SAFETY: as above; the value has `len` bytes, as checked.
    let bytes = unsafe { &raw const (*held).bytes };
    if !replace(release.skb, bytes, len) {
        return 0;
    }
    // The bytes are this fragment's only if its entry is still where it was.
    let same = HELD_FRAGMENTS.get_ptr(release.key).is_some_and(|now| now == held);
    if HELD_FRAGMENTS.remove(release.key).is_err() || !same {
        return 0;
    }
    if copy_ingress(release.skb, release.ifindex) {
        note(release.direction, Note::FragmentReleased, len);
    }
    0
}
