//! Fragments, which follow the first one of their datagram: only that one has ports.
//!
//! One that comes before it is kept in a map. When the first one comes, it is kept
//! too, and all of them come in again where they came in before, the first one first.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM},
    helpers::{
        bpf_clone_redirect, bpf_ktime_get_coarse_ns, bpf_loop, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
use culvert_common::{
    abi::{
        Action, Direction, DropReason, FragmentInfo, FragmentKey, HELD_FRAME_LEN, HeldFragment,
        MAX_HELD, Note,
    },
    wire::Ipv4Hdr,
};

use crate::{
    maps::{FRAGMENTS, HELD_FRAGMENTS, lookup},
    packet::resize,
    parse::{Kind, Routed},
    verdict::note,
    work::Work,
};

/// How long the fragments of a datagram are waited for: Linux's `ipfrag_time`.
const LIFETIME_NS: u64 = 30_000_000_000;
/// [`FragmentInfo::known`]: of a flow, or one that begins it.
const OF_FLOW: u16 = 1;
/// [`FragmentInfo::known`]: the host's own.
const OF_HOST: u16 = 2;

/// Where a fragment is put together before it goes into the map.
#[map]
static HELD_SCRATCH: PerCpuArray<HeldFragment> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn key(zone: u32, ip: &Ipv4Hdr) -> FragmentKey {
    FragmentKey {
        zone,
        src: ip.src,
        dst: ip.dst,
        id: ip.id().to_be_bytes(),
        protocol: ip.protocol(),
        slot: 0,
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// What is known of the datagram that a fragment other than the first belongs to.
#[inline(always)]
pub(crate) fn later(zone: u32, ip: &Ipv4Hdr) -> (Kind, ([u8; 2], [u8; 2])) {
    match lookup!(FRAGMENTS, key(zone, ip)) {
        Some(info) if info.known != 0 && now() < info.expires_ns => {
            let kind = if info.known == OF_HOST { Kind::HostFragment } else { Kind::Flow };
            (kind, (info.src_port, info.dst_port))
        }
        _ => (Kind::LateFragment, ([0; 2], [0; 2])),
    }
}

/// Notes the ports of a datagram whose first fragment this is, and how many others
/// of it have been waiting.
#[inline(always)]
pub(crate) fn first(routed: &mut Routed) {
    let (key, now) = (key(routed.key.zone, &routed.ip), now());
    let waiting = lookup!(FRAGMENTS, key).filter(|info| info.known == 0 && now < info.expires_ns);
    let held = waiting.map_or(0, |info| info.held);
    let info = FragmentInfo {
        expires_ns: now + LIFETIME_NS,
        src_port: routed.key.tuple.src_port,
        dst_port: routed.key.tuple.dst_port,
        known: OF_FLOW,
        held: 0,
    };
    // Full: its later fragments will be dropped, and counted.
    let _ = FRAGMENTS.insert(key, info, 0);
    if held != 0 {
        routed.kind = Kind::FirstOfHeld;
        routed.held = held;
    }
}

/// Notes that a datagram is the host's own, if this is its first fragment.
#[inline(always)]
pub(crate) fn is_host(routed: &Routed) {
    if !routed.has_header || !routed.ip.more_fragments() {
        return;
    }
    if let Some(info) = FRAGMENTS.get_ptr_mut(key(routed.key.zone, &routed.ip)) {
        // SAFETY: the entry's memory outlives the program run; another CPU that
        // writes to it writes the same.
        unsafe { (*info).known = OF_HOST };
    }
}

/// Keeps a fragment until the first one of its datagram has come, and lets all of
/// them come in again on `ifindex` when this is the first.
#[inline(always)]
pub(crate) fn hold(
    ctx: &TcContext,
    direction: Direction,
    work: &Work,
    ifindex: u32,
) -> Result<Action, DropReason> {
    let skb = ctx.skb.skb;
    let routed = &work.routed;
    if routed.kind != Kind::FirstOfHeld {
        return match keep(skb, routed) {
            0 => Ok(Action::Hold),
            _ => Err(DropReason::FragmentUnknown),
        };
    }
    let mut key = key(routed.key.zone, &routed.ip);
    key.slot = routed.held as u8;
    if put(skb, &key) != 0 {
        return Err(DropReason::FragmentUnknown);
    }
    let mut release = Release { skb, key, first: routed.held, ifindex, direction };
    let count = u32::from(routed.held.min(MAX_HELD)) + 1;
    // SAFETY: the body has the signature that the helper calls, and the context
    // outlives the loop.
    unsafe { bpf_loop(count, release_one as *mut c_void, (&raw mut release).cast(), 0) };
    Ok(Action::Hold)
}

/// Keeps a fragment that is not the first. Returns 0, or 1 if there is no room. A
/// function of its own for the sake of the stack.
#[inline(never)]
fn keep(skb: *mut __sk_buff, routed: &Routed) -> u32 {
    let mut key = key(routed.key.zone, &routed.ip);
    let now = now();
    let mut info = FragmentInfo { expires_ns: now + LIFETIME_NS, ..FragmentInfo::default() };
    if let Some(known) = lookup!(FRAGMENTS, key)
        && now < known.expires_ns
    {
        info = *known;
    }
    if info.held >= MAX_HELD {
        return 1;
    }
    let slot = info.held;
    info.held += 1;
    key.slot = slot as u8;
    if put(skb, &key) != 0 {
        return 1;
    }
    key.slot = 0;
    FRAGMENTS.insert(key, info, 0).is_err().into()
}

/// A length that is neither 0 nor more than what is held. In two steps, between which
/// the compiler loses sight of the value: it would make one comparison of them, of
/// another register, and the verifier would not see that the length is bounded.
#[inline(always)]
fn held_len(len: u32) -> Option<u32> {
    if len as usize > HELD_FRAME_LEN {
        return None;
    }
    let len = core::hint::black_box(u64::from(len));
    if len == 0 { None } else { Some(len as u32) }
}

/// Puts the frame into the map. Returns 0, or 1 if it is too long. A function of its
/// own for the sake of the stack.
#[inline(never)]
fn put(skb: *mut __sk_buff, key: &FragmentKey) -> u32 {
    let len = TcContext::new(skb).len();
    let Some(len) = held_len(len) else { return 1 };
    let Some(scratch) = HELD_SCRATCH.get_ptr_mut(0) else { return 1 };
    // SAFETY: the entry is this CPU's own, and no other program of this CPU runs until
    // this one returns; it has room for `len` bytes, as checked above.
    let held = unsafe {
        let bytes = (&raw mut (*scratch).bytes).cast();
        if bpf_skb_load_bytes(skb.cast(), 0, bytes, len) != 0 {
            return 1;
        }
        (*scratch).len = len;
        &*scratch
    };
    HELD_FRAGMENTS.insert(key, held, 0).is_err().into()
}

/// What [`release_one`] needs.
struct Release {
    skb: *mut __sk_buff,
    key: FragmentKey,
    /// Slot of the first fragment.
    first: u16,
    ifindex: u32,
    direction: Direction,
}

/// Loop body of [`hold`].
unsafe extern "C" fn release_one(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `hold` passes its own `Release`.
    let release = unsafe { &mut *context.cast::<Release>() };
    let slot = if index == 0 { u64::from(release.first) } else { index - 1 };
    release.key.slot = slot as u8;
    let Some(held) = HELD_FRAGMENTS.get_ptr_mut(release.key) else { return 0 };
    // SAFETY: the entry's memory outlives the program run.
    let len = unsafe { (*held).len };
    let Some(len) = held_len(len) else { return 0 };
    let skb = release.skb;
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH);
    // SAFETY: the pointer is the program's own context; the entry has `len` bytes, as
    // checked above.
    let sent = resize(&TcContext::new(skb), len).is_ok()
        && unsafe {
            let bytes = (&raw const (*held).bytes).cast();
            bpf_skb_store_bytes(skb, 0, bytes, len, flags) == 0
                && bpf_clone_redirect(skb, release.ifindex, BPF_F_INGRESS.into()) == 0
        };
    if sent {
        note(release.direction, Note::FragmentReleased, len);
    }
    let _ = HELD_FRAGMENTS.remove(release.key);
    0
}
