//! `from_loopback`: tcx ingress on the host's loopback device: the host's own
//! connections to its published ports.

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, DropReason, zone},
    wire::{EthHdr, Ipv4Hdr, ethernet::ETH_P_IP, ipv4},
};

use crate::{
    flow, icmp_error,
    packet::{ETH_LEN, Packet as _, ensure, ifindex},
    parse::{self, Kind},
    route,
    translate::{self, Hook},
    verdict,
    work::{Work, work},
};

const DIRECTION: Direction = Direction::FromLoopback;

/// A frame on the loopback device.
#[classifier]
pub(crate) fn from_loopback(ctx: TcContext) -> i32 {
    let (port, bytes) = (ifindex(&ctx), ctx.len());
    let outcome = handle(&ctx);
    verdict::tc(&ctx, DIRECTION, port, bytes, outcome)
}

#[inline(always)]
fn handle(ctx: &TcContext) -> Result<Action, DropReason> {
    // No more than that: frames here can be 64 KB of page fragments.
    ensure(ctx, (ETH_LEN + Ipv4Hdr::LEN + 14) as u32);
    let Some(eth) = ctx.read::<EthHdr>(0) else { return Ok(Action::Pass) };
    if eth.ethertype() != ETH_P_IP {
        return Ok(Action::Pass);
    }
    let work = work().ok_or(DropReason::HelperFailed)?;
    let mut reason = DropReason::HelperFailed;
    if parse::parse(ctx, zone::LOOPBACK, &mut work.routed, &mut reason) != 0 {
        return Ok(Action::Pass);
    }
    match work.routed.kind {
        Kind::Flow => {
            if !flow::find(DIRECTION, work, 0, ctx.len()) && !begin_published(ctx, work)? {
                return Ok(Action::Pass);
            }
        }
        Kind::Error => {
            if icmp_error::translate(ctx.skb.skb, 0, work) != 0 {
                return Ok(Action::Pass);
            }
        }
        Kind::LateFragment | Kind::FirstOfHeld | Kind::HostFragment | Kind::Unsupported => {
            return Ok(Action::Pass);
        }
    }
    translate::deliver(ctx, work, Hook::Loopback)
}

/// Begins a flow if the packet is for a published port. Whatever is not a group
/// address here is the host's own.
#[inline(always)]
fn begin_published(ctx: &TcContext, work: &mut Work) -> Result<bool, DropReason> {
    if ipv4::is_multicast(&work.routed.ip.dst) {
        return Ok(false);
    }
    let Some(entry) = route::published(&work.routed) else { return Ok(false) };
    route::begin_published(ctx, work, DIRECTION, entry).map(|()| true)
}
