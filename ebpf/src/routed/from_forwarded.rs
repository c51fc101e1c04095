//! Packets that the host forwards to a container: answers to packets that the container sent to the
//! host's stack. The host's netfilter sent these packets on, and translated the answers back.
//! Examples are a port that Docker publishes on this host, and a service of kube-proxy.
//!
//! Any other forwarded packet is refused: with ip_forward the host would forward packets of any
//! machine to any port of any container.

use aya_ebpf::programs::TcContext;
use culvert_common::abi::{Direction, DropReason, zone};

use super::{
    icmp_error,
    parse::parse,
    work::{Work, work},
};
use crate::{
    act::translate::{self, Hook},
    facts::routed::Kind,
    state::flows,
    verdict::{Outcome, Packed},
};

const DIRECTION: Direction = Direction::FromHost;

/// Delivers the packet to the container of the network `vni` to whose flow it belongs. A BPF
/// function of its own, to keep the stack frame of its caller small.
#[inline(never)]
pub(crate) fn receive(ctx: &TcContext, vni: u32) -> Packed {
    Packed::new(Some(try_receive(ctx, vni)))
}

#[inline(always)]
fn try_receive(ctx: &TcContext, vni: u32) -> Outcome {
    let work = work()?;
    parse(ctx, zone::HOST, &mut work.routed)?;
    let Work { routed, target, .. } = work;
    match routed.kind {
        Kind::Flow if flows::find(DIRECTION, routed, 0, ctx.len(), target)? => {}
        Kind::Error => icmp_error::translate(ctx.skb.skb, 0, routed, target)
            .map_err(|_| DropReason::Isolated)?,
        Kind::Flow | Kind::HostFragment | Kind::Unsupported => return Err(DropReason::Isolated),
        // The host's conntrack reassembles datagrams, and the host sends the fragments in order.
        Kind::LateFragment | Kind::FirstOfHeld => return Err(DropReason::FragmentUnknown),
    }
    if target.zone != vni {
        return Err(DropReason::Isolated);
    }
    translate::deliver(ctx, routed, target, Hook::Egress)
}
