//! What another host of the cluster itself sends to a container here, through the
//! tunnel, from the network's gateway MAC and its VTEP address.
//!
//! The container's answer is for that address, and would go out of an uplink with this
//! host's source address. So the flow is tracked, untranslated unless its client's port
//! is taken, and its answers go back through the tunnel.

use aya_ebpf::programs::TcContext;
use culvert_common::abi::{Action, Direction, DropReason, Flow, NetworkInfo, zone};

use crate::{
    flow, icmp_error,
    maps::{ENDPOINTS, lookup},
    packet::redirect_peer,
    parse::{self, Kind},
    translate::{self, Hook},
    work::{Work, work},
};

const DIRECTION: Direction = Direction::FromUnderlay;

/// Hands the decapsulated frame, which the host at `vtep` sent itself, to the container
/// at `port`.
#[inline(always)]
pub(crate) fn deliver(
    ctx: &TcContext,
    net: &NetworkInfo,
    vtep: [u8; 4],
    port: u32,
) -> Result<Action, DropReason> {
    // Where another network may have the same addresses, hosts and containers do not
    // reach each other.
    if net.flags & NetworkInfo::HOST_ACCESS == 0 {
        return Err(DropReason::Isolated);
    }
    let work = work().ok_or(DropReason::HelperFailed)?;
    let mut reason = DropReason::HelperFailed;
    if parse::parse(ctx, zone::TUNNEL, &mut work.routed, &mut reason) != 0 {
        return Err(reason);
    }
    if work.routed.ip.src != vtep {
        return Err(DropReason::SpoofedIp);
    }
    match work.routed.kind {
        Kind::Flow => {
            if !flow::find(DIRECTION, work, 0, ctx.len()) {
                begin(work, vtep, port)?;
                flow::begin(ctx, work, DIRECTION)?;
            }
        }
        Kind::Error => {
            if icmp_error::translate(ctx.skb.skb, 0, work) != 0 {
                return Err(DropReason::NoFlow);
            }
        }
        // The host's own stack made the fragments, in order.
        Kind::LateFragment | Kind::FirstOfHeld => return Err(DropReason::FragmentUnknown),
        Kind::HostFragment | Kind::Unsupported => {
            return redirect_peer(ctx, port).map(|()| Action::Deliver);
        }
    }
    translate::deliver(ctx, work, Hook::Ingress)
}

/// Puts the flow into `work.new`.
#[inline(always)]
fn begin(work: &mut Work, vtep: [u8; 4], port: u32) -> Result<(), DropReason> {
    let ep = lookup!(ENDPOINTS, port).ok_or(DropReason::UnknownEndpoint)?;
    let new = &mut work.new;
    new.key = work.routed.key;
    new.target.to = work.routed.key.tuple;
    new.target.zone = ep.vni;
    new.target.ifindex = port;
    new.from_ifindex = u32::from_ne_bytes(vtep);
    new.from_generation = 0;
    new.to_generation = ep.generation;
    new.flags = Flow::PUBLISHED;
    new.of_host = false;
    Ok(())
}
