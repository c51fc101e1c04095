//! Frames sent to one VTEP.

use aya_ebpf::programs::TcContext;
use culvert_common::abi::{Action, DropReason, UnderlayPath, VtepId};

use super::encap;
use crate::{
    facts::inner::{Inner, entropy_port},
    maps::underlay,
    state::path_mtu,
};

/// A frame that is to be sent through the tunnel of a network. It is passed by reference, because a
/// BPF function has five argument registers.
pub(crate) struct Tunnel<'a> {
    /// The frame.
    pub(crate) ctx: &'a TcContext,
    /// VNI of the network.
    pub(crate) vni: u32,
    /// Flags of the network.
    pub(crate) flags: u32,
}

/// Why a frame was not sent to a VTEP.
pub(crate) enum Unsent {
    /// The frame is larger than the path MTU. The number is the largest L3 packet in bytes.
    TooBig(u32),
    /// The frame is dropped for another reason.
    Dropped(DropReason),
}

impl Tunnel<'_> {
    /// Sends the frame to a VTEP.
    #[inline(always)]
    pub(crate) fn send(&self, inner: &Inner, vtep: VtepId) -> Result<Action, Unsent> {
        let path = underlay(vtep).ok_or(Unsent::Dropped(DropReason::NoUnderlayPath))?;
        let mtu = path_mtu::for_packet(inner, vtep, path);
        if inner.segment_len > mtu {
            return Err(Unsent::TooBig(mtu));
        }
        match encapsulate(self, inner, path) {
            Ok(()) => Ok(Action::Encap),
            Err(reason) => Err(Unsent::Dropped(reason)),
        }
    }
}

/// Encapsulates the frame and sends it along a path. A BPF function of its own, for a stack frame
/// of its own.
#[inline(never)]
fn encapsulate(tunnel: &Tunnel<'_>, inner: &Inner, path: &UnderlayPath) -> Result<(), DropReason> {
    let encap = encap::scratch().ok_or(DropReason::HelperFailed)?;
    encap.set((tunnel.vni, tunnel.flags), &inner.eth, path);
    let src_port = entropy_port(tunnel.ctx, inner);
    encap.send(tunnel.ctx, inner.tos, inner.l3_len, src_port)
}
