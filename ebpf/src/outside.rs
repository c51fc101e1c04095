//! Packets from outside that are not VXLAN: answers to masqueraded flows, and
//! clients of published ports.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{Action, Direction, DropReason, HELD_FRAME_LEN, zone},
    wire::{EthHdr, ethernet::ETH_P_IP},
};

use crate::{
    flow, fragment, icmp_error,
    maps::{HOST_ADDRS, NETWORKS, lookup},
    packet::{Packet as _, ifindex, is_for_host},
    parse::{self, Kind},
    route,
    translate::{self, Hook},
    work::{Work, work},
};

const DIRECTION: Direction = Direction::FromUnderlay;

/// A packet that is not VXLAN: of a translated flow, to a published port, or the
/// host's own.
#[inline(always)]
pub(crate) fn from_uplink(ctx: &TcContext) -> Result<Action, DropReason> {
    let Some(eth) = ctx.read::<EthHdr>(0) else { return Ok(Action::Pass) };
    if eth.ethertype() != ETH_P_IP || !is_for_host(ctx) {
        return Ok(Action::Pass);
    }
    let work = work().ok_or(DropReason::HelperFailed)?;
    let mut reason = DropReason::HelperFailed;
    if parse::parse(ctx, zone::OUTSIDE, &mut work.routed, &mut reason) != 0 {
        return Ok(Action::Pass);
    }
    match work.routed.kind {
        Kind::Flow => {
            if flow::find(DIRECTION, work, 0, ctx.len()) {
                if flow::is_hosts(ctx, work) {
                    return Ok(Action::Pass);
                }
            } else if !begin_published(ctx, work)? {
                fragment::is_host(&work.routed);
                return Ok(Action::Pass);
            }
        }
        Kind::Error => {
            if icmp_error::translate(ctx.skb.skb, 0, work) != 0 {
                return Ok(Action::Pass);
            }
        }
        Kind::LateFragment | Kind::FirstOfHeld => {
            // One that is too long to be kept, on a link with jumbo frames, may well be
            // the host's.
            if ctx.len() as usize > HELD_FRAME_LEN
                || lookup!(HOST_ADDRS, work.routed.ip.dst).is_none()
            {
                return Ok(Action::Pass);
            }
            return fragment::hold(ctx, DIRECTION, work, ifindex(ctx));
        }
        Kind::HostFragment | Kind::Unsupported => return Ok(Action::Pass),
    }
    translate::deliver(ctx, work, Hook::Ingress)
}

/// Begins a flow if the packet is for a published port.
#[inline(always)]
fn begin_published(ctx: &TcContext, work: &mut Work) -> Result<bool, DropReason> {
    let Some(entry) = route::published(&work.routed) else { return Ok(false) };
    // A port of 127.0.0.1 is not for the outside, nor is one of an address that
    // is not the host's: that would be a packet to be forwarded.
    let dst = work.routed.ip.dst;
    if dst[0] == 127 || lookup!(HOST_ADDRS, dst).is_none() {
        return Ok(false);
    }
    let net = lookup!(NETWORKS, entry.vni).ok_or(DropReason::UnknownNetwork)?;
    if route::comes_from_outside(ctx, net.gateway_ifindex, work) == 0 {
        return Ok(false);
    }
    route::begin_published(ctx, work, DIRECTION, entry).map(|()| true)
}
