//! Packets that another host of the cluster itself sends through the tunnel to a container of this
//! host. Their source MAC is the gateway MAC of the network, and their source IP is the VTEP
//! address of the other host.
//!
//! The container answers to that VTEP address. Without a flow, the answer would leave by an uplink
//! with this host's source address. So the program tracks the flow, and its answers go back through
//! the tunnel. The source port of the flow is translated only if it is taken.

use aya_ebpf::programs::TcContext;
use culvert_common::abi::{Action, Direction, DropReason, NetworkInfo, VtepId, kind, zone};

use super::{
    icmp_error,
    parse::parse,
    work::{Work, work},
};
use crate::{
    act::{
        decap::hand_over,
        translate::{self, Hook},
    },
    facts::routed::Kind,
    maps::endpoint,
    state::flows,
};

const DIRECTION: Direction = Direction::FromUnderlay;

/// Hands the decapsulated frame, which the host `vtep` sent itself, to the container behind
/// `ifindex`. The caller has checked that it is an IPv4 packet from the address of that VTEP
/// ([`tunnel_source`](crate::facts::tunnel_source)).
#[inline(always)]
pub(crate) fn deliver(
    ctx: &TcContext,
    net: &NetworkInfo,
    vtep: VtepId,
    ifindex: u32,
) -> Result<Action, DropReason> {
    // Where another network may have the same addresses, hosts and containers do not
    // reach each other.
    if net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    let work = work()?;
    parse(ctx, zone::TUNNEL, &mut work.routed)?;
    match work.routed.kind {
        Kind::Flow => {
            let Work { routed, target, .. } = &mut *work;
            if !flows::find(DIRECTION, routed, 0, ctx.len(), target)? {
                prepare(work, vtep, ifindex)?;
                let Work { routed, new, target, .. } = &mut *work;
                flows::begin(ctx, routed, new, target, DIRECTION)?;
            }
        }
        Kind::Error => {
            let Work { routed, target, .. } = &mut *work;
            icmp_error::translate(ctx.skb.skb, 0, routed, target)
                .map_err(|_| DropReason::NoFlow)?;
        }
        // The other host's own stack made the fragments, in order.
        Kind::LateFragment | Kind::FirstOfHeld => return Err(DropReason::FragmentUnknown),
        Kind::HostFragment | Kind::Unsupported => return hand_over(ctx, ifindex),
    }
    translate::deliver(ctx, &work.routed, &work.target, Hook::Ingress)
}

/// Puts the flow that the packet begins into `work.new`.
#[inline(always)]
fn prepare(work: &mut Work, vtep: VtepId, ifindex: u32) -> Result<(), DropReason> {
    let ep = endpoint(ifindex).ok_or(DropReason::UnknownEndpoint)?;
    let new = &mut work.new;
    new.key = work.routed.key;
    new.target.to = work.routed.key.tuple;
    new.target.zone = ep.vni;
    new.target.dest = ifindex;
    new.target.kind = kind::PUBLISHED;
    new.from = vtep.0;
    new.from_incarnation = 0;
    new.to_incarnation = ep.incarnation;
    new.of_host = false;
    Ok(())
}
