//! BUM frames: local replicas and head-end replication.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_clone_redirect, bpf_loop},
    programs::TcContext,
};
use culvert_common::abi::{Action, Direction, DropReason, FloodKey, NetworkInfo, Note};

use crate::{
    container::Sender,
    encap::{self, Inner},
    maps::{FLOOD_LOCAL, FLOOD_REMOTE, UNDERLAY, lookup},
    verdict::{hand_back, note},
};

/// Most slots of a flood list that one frame visits.
const MAX_SLOTS: u32 = 16_384;

/// What a replica needs, handed to the loop body.
struct Replicas {
    skb: *mut __sk_buff,
    direction: Direction,
    vni: u32,
    /// Port that the frame came from, and does not go back to; 0 for none.
    from: u32,
    bytes: u32,
    sent: u32,
}

/// Sends a copy to every local endpoint of the VNI but `from`. Returns how many.
#[inline(always)]
pub(crate) fn local(
    ctx: &TcContext,
    direction: Direction,
    vni: u32,
    net: &NetworkInfo,
    from: u32,
) -> u32 {
    let mut replicas =
        Replicas { skb: ctx.skb.skb, direction, vni, from, bytes: ctx.len(), sent: 0 };
    // SAFETY: the body has the signature that the helper calls, and the
    // context outlives the loop.
    unsafe {
        bpf_loop(
            net.local_ports.min(MAX_SLOTS),
            local_replica as *mut c_void,
            (&raw mut replicas).cast(),
            0,
        )
    };
    replicas.sent
}

/// Loop body of [`local`].
unsafe extern "C" fn local_replica(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `local` passes its own `Replicas`.
    let replicas = unsafe { &mut *context.cast::<Replicas>() };
    let key = FloodKey { vni: replicas.vni, index: index as u32 };
    let Some(&port) = lookup!(FLOOD_LOCAL, key) else { return 0 };
    if port == replicas.from {
        return 0;
    }
    // SAFETY: the pointer is the program's own context.
    let refused = unsafe { bpf_clone_redirect(replicas.skb, port, 0) };
    let what = if refused == 0 {
        replicas.sent += 1;
        Note::FloodLocalCopy
    } else {
        Note::FloodCopyFailed
    };
    note(replicas.direction, what, replicas.bytes);
    0
}

/// What head-end replication needs besides.
struct RemoteReplicas {
    common: Replicas,
    net: NetworkInfo,
    inner: Inner,
    src_port: u16,
}

/// Floods a frame of a container: to the other local endpoints of its network
/// and to every VTEP on the network's flood list.
#[inline(always)]
pub(crate) fn from_container(sender: &Sender<'_>, inner: &Inner) -> Result<Action, DropReason> {
    let &Sender { ctx, port, ep, net } = sender;
    // The outer header goes on after the local copies are made.
    let mut sent = local(ctx, Direction::FromContainer, ep.vni, net, port);
    if net.remote_vteps > 0 {
        let (mut copies, mut reason) = (0, DropReason::HelperFailed);
        if remote(sender, inner, &mut copies, &mut reason) != 0 {
            return Err(reason);
        }
        sent += copies;
    }
    if sent == 0 { Err(DropReason::NoReceiver) } else { Ok(Action::Flood) }
}

/// Sends an encapsulated copy to every VTEP of the VNI, and tells how many. A
/// function of its own for the sake of the stack.
#[inline(never)]
fn remote(sender: &Sender<'_>, inner: &Inner, sent: &mut u32, reason: &mut DropReason) -> u32 {
    hand_back(try_remote(sender, inner), sent, reason)
}

#[inline(always)]
fn try_remote(sender: &Sender<'_>, inner: &Inner) -> Result<u32, DropReason> {
    let &Sender { ctx, ep, net, .. } = sender;
    let mut replicas = RemoteReplicas {
        common: Replicas {
            skb: ctx.skb.skb,
            direction: Direction::FromContainer,
            vni: ep.vni,
            from: 0,
            bytes: ctx.len(),
            sent: 0,
        },
        net: *net,
        inner: *inner,
        src_port: encap::entropy_port(ctx, inner),
    };
    encap::make_room(ctx, inner.tos.is_some())?;
    // SAFETY: the body has the signature that the helper calls, and the
    // context outlives the loop.
    unsafe {
        bpf_loop(
            net.remote_vteps.min(MAX_SLOTS),
            remote_replica as *mut c_void,
            (&raw mut replicas).cast(),
            0,
        )
    };
    Ok(replicas.common.sent)
}

/// Loop body of [`remote`].
unsafe extern "C" fn remote_replica(index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `remote` passes its own `RemoteReplicas`.
    let replicas = unsafe { &mut *context.cast::<RemoteReplicas>() };
    let key = FloodKey { vni: replicas.common.vni, index: index as u32 };
    let Some(&vtep) = lookup!(FLOOD_REMOTE, key) else { return 0 };
    let what = match send_replica(replicas, vtep) {
        Ok(()) => {
            replicas.common.sent += 1;
            Note::FloodRemoteCopy
        }
        Err(_) => Note::FloodCopyFailed,
    };
    note(replicas.common.direction, what, replicas.common.bytes);
    0
}

/// Addresses the frame to `vtep` and sends a copy.
#[inline(always)]
fn send_replica(replicas: &RemoteReplicas, vtep: [u8; 4]) -> Result<(), DropReason> {
    let ctx = TcContext::new(replicas.common.skb);
    let path = lookup!(UNDERLAY, vtep).ok_or(DropReason::NoUnderlayPath)?;
    if replicas.inner.segment_len > encap::path_mtu(&vtep, path) {
        return Err(DropReason::PacketTooBig);
    }
    let inner = &replicas.inner;
    let way = encap::prepared().ok_or(DropReason::HelperFailed)?;
    way.set((replicas.common.vni, replicas.net.flags), &inner.eth, vtep, path);
    if !way.is_resolved() {
        return Err(DropReason::NoUnderlayNeighbour);
    }
    way.write(&ctx, inner.tos, inner.l3_len, replicas.src_port)?;
    // SAFETY: the pointer is the program's own context.
    match unsafe { bpf_clone_redirect(ctx.as_ptr().cast(), path.ifindex, 0) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}
