//! Packets on an uplink that are not VXLAN, and packets on a client link. They belong to a
//! translated flow, go to a published port, or belong to the host's own traffic.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{Action, Direction, DropReason, HELD_FRAME_LEN},
    wire::{EthHdr, ethernet::ETH_P_IP},
};

use super::{
    icmp_error,
    parse::parse,
    publish::{self, is_published, leads_back},
    work::{Work, work},
};
use crate::{
    act::translate::{self, Hook},
    facts::routed::Kind,
    kernel::skb::{IPV4_HEADERS, Packet as _, ensure, ifindex, is_for_host, is_ipv4},
    maps::{FLOWS, has, is_host_addr, network},
    state::{flows, fragments},
};

/// [`receive`] for a packet that begins with its IP header.
#[inline(always)]
pub(crate) fn receive_bare(
    ctx: &TcContext,
    direction: Direction,
    zone: u32,
    hook: Hook,
) -> Result<Action, DropReason> {
    // The host's own packets keep their form: further programs at this hook expect it.
    if !is_ipv4(ctx) || publish::frame(ctx.skb.skb) == 0 {
        return Ok(Action::Pass);
    }
    ensure(ctx, IPV4_HEADERS);
    receive(ctx, direction, zone, hook)
}

/// Delivers a packet that comes from `zone` to the container that it is for, or lets it pass to the
/// host.
#[inline(always)]
pub(crate) fn receive(
    ctx: &TcContext,
    direction: Direction,
    zone: u32,
    hook: Hook,
) -> Result<Action, DropReason> {
    let Some(eth) = ctx.read::<EthHdr>(0) else { return Ok(Action::Pass) };
    if eth.ethertype() != ETH_P_IP || !is_for_host(ctx) {
        return Ok(Action::Pass);
    }
    let work = work()?;
    if parse(ctx, zone, &mut work.routed).is_err() {
        return Ok(Action::Pass);
    }
    match work.routed.kind {
        Kind::Flow => {
            let Work { routed, target, .. } = work;
            if flows::find(direction, routed, 0, ctx.len(), target)? {
                if flows::has_host_socket(ctx, routed, target) {
                    return Ok(Action::Pass);
                }
            } else if !begin_published(ctx, direction, work)? {
                fragments::note_host_datagram(&work.routed);
                return Ok(Action::Pass);
            }
        }
        Kind::Error => {
            let Work { routed, target, .. } = work;
            if icmp_error::translate(ctx.skb.skb, 0, routed, target).is_err() {
                return Ok(Action::Pass);
            }
        }
        Kind::LateFragment | Kind::FirstOfHeld => {
            if ctx.len() as usize > HELD_FRAME_LEN || !is_host_addr(work.routed.ip.dst) {
                return Ok(Action::Pass);
            }
            // The host has the other fragments of its own datagram already.
            if work.routed.kind == Kind::FirstOfHeld && goes_to_host(work) != 0 {
                return Ok(Action::Pass);
            }
            return fragments::hold(ctx, direction, &work.routed, ifindex(ctx));
        }
        Kind::HostFragment | Kind::Unsupported => return Ok(Action::Pass),
    }
    translate::deliver(ctx, &work.routed, &work.target, hook)
}

/// Whether the first fragment of a datagram belongs to the host's own traffic: it belongs to no flow,
/// and begins none. Returns 1 or 0. If 1, it notes that for the later fragments, and removes the
/// copies of the others. If 0 although the host gets the datagram in the end, the host gets the held
/// fragments once more, and discards them. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
fn goes_to_host(work: &mut Work) -> u32 {
    if has(&FLOWS, &work.routed.key) || is_published(work) {
        return 0;
    }
    fragments::note_host_datagram(&work.routed);
    fragments::discard(&work.routed);
    1
}

/// Begins a flow if the packet is for a published port. Returns `false` if it is not.
#[inline(always)]
fn begin_published(
    ctx: &TcContext,
    direction: Direction,
    work: &mut Work,
) -> Result<bool, DropReason> {
    if !is_published(work) {
        return Ok(false);
    }
    // A port that is published at 127.0.0.1 does not serve other hosts. A packet to an address that
    // is not the host's is to be forwarded.
    let dst = work.routed.ip.dst;
    if dst[0] == 127 || !is_host_addr(dst) {
        return Ok(false);
    }
    let net = network(work.published.vni).ok_or(DropReason::UnknownNetwork)?;
    if leads_back(ctx, net.gateway_ifindex, work) == 0 {
        return Ok(false);
    }
    publish::begin(ctx, work, direction).map(|()| true)
}
