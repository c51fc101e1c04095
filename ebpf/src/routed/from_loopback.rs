//! The host's own connections to its published ports.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{Action, Direction, DropReason, zone},
    wire::{EthHdr, ethernet::ETH_P_IP, ipv4},
};

use super::{
    icmp_error,
    parse::parse,
    publish::{self, is_published},
    work::{Work, work},
};
use crate::{
    act::translate::{self, Hook},
    facts::routed::Kind,
    kernel::skb::{IPV4_HEADERS, Packet as _, ensure},
    state::flows,
};

const DIRECTION: Direction = Direction::FromLoopback;

/// Delivers a packet to the container that it is for, or lets it pass to the host.
#[inline(always)]
pub(crate) fn receive(ctx: &TcContext) -> Result<Action, DropReason> {
    // Only the headers are made readable: a frame of the loopback device can be 64 KB of page
    // fragments.
    ensure(ctx, IPV4_HEADERS);
    let Some(eth) = ctx.read::<EthHdr>(0) else { return Ok(Action::Pass) };
    if eth.ethertype() != ETH_P_IP {
        return Ok(Action::Pass);
    }
    let work = work()?;
    if parse(ctx, zone::LOOPBACK, &mut work.routed).is_err() {
        return Ok(Action::Pass);
    }
    match work.routed.kind {
        Kind::Flow => {
            let Work { routed, target, .. } = work;
            if !flows::find(DIRECTION, routed, 0, ctx.len(), target)? && !begin(ctx, work)? {
                return Ok(Action::Pass);
            }
        }
        Kind::Error => {
            let Work { routed, target, .. } = work;
            if icmp_error::translate(ctx.skb.skb, 0, routed, target).is_err() {
                return Ok(Action::Pass);
            }
        }
        Kind::LateFragment | Kind::FirstOfHeld | Kind::HostFragment | Kind::Unsupported => {
            return Ok(Action::Pass);
        }
    }
    translate::deliver(ctx, &work.routed, &work.target, Hook::Queue)
}

/// Begins a flow if the packet is for a published port. Returns `false` if it is not. On the
/// loopback device every destination that is not a group address is the host's own.
#[inline(always)]
fn begin(ctx: &TcContext, work: &mut Work) -> Result<bool, DropReason> {
    if ipv4::is_multicast(&work.routed.ip.dst) {
        return Ok(false);
    }
    if !is_published(work) {
        return Ok(false);
    }
    publish::begin(ctx, work, DIRECTION).map(|()| true)
}
