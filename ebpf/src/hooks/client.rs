//! `from_client` and `from_client_l3`: tcx ingress on a client link. A client link is an interface
//! of the host that is neither an uplink nor Culvert's, such as `docker0` or a second network card.
//! Its clients may use published ports. `from_client_l3` is for the interfaces whose packets have no
//! Ethernet header (tun, WireGuard).

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, zone},
    wire::Ipv4Hdr,
};

use crate::{
    act::translate::Hook,
    kernel::skb::{ETH_LEN, IPV4_HEADERS, Packet as _, ensure, strip_priority_tag},
    maps::is_host_addr,
    routed::from_external,
    verdict::{Outcome, Seen, finish},
};

const DIRECTION: Direction = Direction::FromClient;

/// A frame that arrives on a client link.
#[classifier]
pub(crate) fn from_client(ctx: TcContext) -> i32 {
    let seen = Seen::of(&ctx, DIRECTION);
    let outcome = handle(&ctx, &seen);
    finish(&ctx, &seen, outcome)
}

#[inline(always)]
fn handle(ctx: &TcContext, seen: &Seen) -> Outcome {
    if !strip_priority_tag(ctx) {
        return Ok(Action::Pass);
    }
    ensure(ctx, IPV4_HEADERS);
    // Only the host's own addresses have published ports, and the host forwards most frames. If the
    // frame is not IPv4, these bytes are not an address: `receive` passes such a frame.
    let Some(ip) = ctx.read::<Ipv4Hdr>(ETH_LEN) else { return Ok(Action::Pass) };
    if !is_host_addr(ip.dst) {
        return Ok(Action::Pass);
    }
    from_external::receive(ctx, DIRECTION, zone::client(seen.ifindex), Hook::Queue)
}

/// A packet that arrives on a client link without an Ethernet header.
#[classifier]
pub(crate) fn from_client_l3(ctx: TcContext) -> i32 {
    let seen = Seen::of(&ctx, DIRECTION);
    let outcome =
        from_external::receive_bare(&ctx, DIRECTION, zone::client(seen.ifindex), Hook::Queue);
    finish(&ctx, &seen, outcome)
}
