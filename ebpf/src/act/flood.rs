//! BUM frames: local replicas and head-end replication.

use core::ffi::c_void;

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use culvert_common::abi::{Action, Direction, DropReason, FloodKey, NetworkInfo, Note, VtepId};

use super::{encap, tunnel::Tunnel};
use crate::{
    count::note,
    facts::inner::{Inner, entropy_port},
    kernel::{memory::repeat, redirect::copy_out},
    maps::{FLOOD_LOCAL, FLOOD_REMOTE, read, underlay},
    state::{path_mtu, queriers::is_querier},
    verdict::hand_back,
};

/// Largest number of slots of a flood list that one frame visits.
const MAX_SLOTS: u32 = 16_384;

/// State of the loop over the local endpoints.
struct Replicas {
    skb: *mut __sk_buff,
    direction: Direction,
    vni: u32,
    /// Ifindex that the frame came from, and that gets no copy; 0 for none.
    from: u32,
    bytes: u32,
    sent: u32,
    /// Only queriers get a copy. The loop over VTEPs does not read this field.
    only_queriers: bool,
}

/// Sends a copy to every local endpoint of the VNI, except the one at the ifindex `from`. If
/// `only_queriers`, only queriers get a copy. Returns the number of copies.
#[inline(always)]
pub(crate) fn local(
    ctx: &TcContext,
    direction: Direction,
    vni: u32,
    net: &NetworkInfo,
    from: u32,
    only_queriers: bool,
) -> u32 {
    let (skb, bytes) = (ctx.skb.skb, ctx.len());
    let mut replicas = Replicas { skb, direction, vni, from, bytes, sent: 0, only_queriers };
    repeat(net.local_endpoints.min(MAX_SLOTS), local_replica, &mut replicas);
    replicas.sent
}

/// Loop body of [`local`].
unsafe extern "C" fn local_replica(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `local` passes its own `Replicas`.
    let replicas = unsafe { &mut *context.cast::<Replicas>() };
    let key = FloodKey { vni: replicas.vni, index: index as u32 };
    let Some(entry) = read(&FLOOD_LOCAL, &key) else { return 0 };
    if entry.value == replicas.from {
        return 0;
    }
    if replicas.only_queriers && is_querier(replicas.vni, entry.value, 0) == 0 {
        return 0;
    }
    let what = if copy_out(replicas.skb, entry.value) {
        replicas.sent += 1;
        Note::FloodLocalCopy
    } else {
        Note::FloodCopyFailed
    };
    note(replicas.direction, what, replicas.bytes);
    0
}

/// State of the loop over the VTEPs (head-end replication).
struct RemoteReplicas<'a> {
    common: Replicas,
    flags: u32,
    inner: &'a Inner,
    src_port: u16,
}

/// The direction with the code `DIRECTION`. The code is a constant, not an argument: the calls from
/// `from_container` to here use the whole stack.
#[inline(always)]
const fn direction<const DIRECTION: u8>() -> Direction {
    match Direction::from_code(DIRECTION) {
        Some(direction) => direction,
        None => Direction::FromContainer,
    }
}

/// Floods a frame of a local endpoint or of the host; `DIRECTION` is the code of its direction. The
/// frame goes to the local endpoints of the network, except the one at the ifindex `from`, and to
/// every VTEP on the network's flood list. `from` is 0 if the host sends. If `only_queriers`, only
/// queriers get a copy.
#[inline(always)]
pub(crate) fn everywhere<const DIRECTION: u8>(
    tunnel: &Tunnel<'_>,
    net: &NetworkInfo,
    from: u32,
    inner: &Inner,
    only_queriers: bool,
) -> Result<Action, DropReason> {
    // The local copies are made first, because they have no outer header.
    let mut sent =
        local(tunnel.ctx, direction::<DIRECTION>(), tunnel.vni, net, from, only_queriers);
    if net.remote_vteps > 0 {
        let mut copies = 0;
        if only_queriers {
            remote::<DIRECTION, true>(tunnel, inner, net.remote_vteps, &mut copies)?;
        } else {
            remote::<DIRECTION, false>(tunnel, inner, net.remote_vteps, &mut copies)?;
        }
        sent += copies;
    }
    outcome(sent, only_queriers)
}

/// The outcome for a frame of which `sent` copies were sent. The only querier may be the sender.
#[inline(always)]
pub(crate) fn outcome(sent: u32, only_queriers: bool) -> Result<Action, DropReason> {
    match sent {
        0 if only_queriers => Ok(Action::Absorb),
        0 => Err(DropReason::NoReceiver),
        _ => Ok(Action::Flood),
    }
}

/// Sends an encapsulated copy to every VTEP in the first `slots` slots of the flood list. Stores
/// the number of copies in `sent`. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
fn remote<const DIRECTION: u8, const ONLY_QUERIERS: bool>(
    tunnel: &Tunnel<'_>,
    inner: &Inner,
    slots: u32,
    sent: &mut u32,
) -> Result<(), DropReason> {
    let copies = try_remote::<ONLY_QUERIERS>(tunnel, direction::<DIRECTION>(), inner, slots);
    hand_back(copies, sent)
}

#[inline(always)]
fn try_remote<const ONLY_QUERIERS: bool>(
    &Tunnel { ctx, vni, flags }: &Tunnel<'_>,
    direction: Direction,
    inner: &Inner,
    slots: u32,
) -> Result<u32, DropReason> {
    let (skb, bytes) = (ctx.skb.skb, ctx.len());
    let mut replicas = RemoteReplicas {
        common: Replicas { skb, direction, vni, from: 0, bytes, sent: 0, only_queriers: false },
        flags,
        inner,
        src_port: entropy_port(ctx, inner),
    };
    encap::make_room(ctx, inner.tos.is_some())?;
    repeat(slots.min(MAX_SLOTS), remote_replica::<ONLY_QUERIERS>, &mut replicas);
    Ok(replicas.common.sent)
}

/// Loop body of [`remote`].
unsafe extern "C" fn remote_replica<const ONLY_QUERIERS: bool>(
    index: u64,
    context: *mut c_void,
) -> i64 {
    // SAFETY: `remote` passes its own `RemoteReplicas`.
    let replicas = unsafe { &mut *context.cast::<RemoteReplicas<'_>>() };
    let key = FloodKey { vni: replicas.common.vni, index: index as u32 };
    let Some(entry) = read(&FLOOD_REMOTE, &key) else { return 0 };
    if ONLY_QUERIERS && is_querier(replicas.common.vni, 0, entry.value) == 0 {
        return 0;
    }
    let what = match send_replica(replicas, VtepId(entry.value)) {
        Ok(()) => {
            replicas.common.sent += 1;
            Note::FloodRemoteCopy
        }
        Err(_) => Note::FloodCopyFailed,
    };
    note(replicas.common.direction, what, replicas.common.bytes);
    0
}

/// Writes the headers for `vtep` into the frame, and sends a copy.
#[inline(always)]
fn send_replica(replicas: &RemoteReplicas<'_>, vtep: VtepId) -> Result<(), DropReason> {
    let (skb, inner) = (replicas.common.skb, replicas.inner);
    let path = underlay(vtep).ok_or(DropReason::NoUnderlayPath)?;
    if inner.segment_len > path_mtu::for_packet(inner, vtep, path) {
        return Err(DropReason::PacketTooBig);
    }
    let encap = encap::scratch().ok_or(DropReason::HelperFailed)?;
    encap.set((replicas.common.vni, replicas.flags), &inner.eth, path);
    if !encap.is_resolved() {
        return Err(DropReason::NoUnderlayNeighbour);
    }
    encap.write(&TcContext::new(skb), inner.tos, inner.l3_len, replicas.src_port)?;
    if copy_out(skb, encap.uplink()) { Ok(()) } else { Err(DropReason::HelperFailed) }
}
