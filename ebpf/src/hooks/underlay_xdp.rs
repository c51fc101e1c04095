//! `from_underlay_xdp`: XDP on an uplink whose driver supports it.
//!
//! Drops VXLAN that tcx would drop for its outer header or its sender, before the kernel allocates
//! an skb for it. Every other frame goes on to `from_underlay`, which makes the same checks again:
//! XDP only saves time.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use culvert_common::abi::DropReason;

use crate::{
    facts::outer::{Outer, authorise, classify},
    maps::shares_port,
    verdict::finish_xdp,
};

/// A frame that arrives on an uplink, before there is an skb.
#[xdp]
pub(crate) fn from_underlay_xdp(ctx: XdpContext) -> u32 {
    let bytes = (ctx.data_end() - ctx.data()) as u32;
    let outcome = match check(&ctx, bytes) {
        // The frame may be for the other socket: `from_underlay` decides that, and counts the
        // frame.
        Err(_) if shares_port(ctx.ingress_ifindex() as u32) => Ok(()),
        outcome => outcome,
    };
    finish_xdp(&ctx, bytes, outcome)
}

#[inline(always)]
fn check(ctx: &XdpContext, bytes: u32) -> Result<(), DropReason> {
    match classify(ctx, bytes)? {
        Outer::Other | Outer::Icmp => Ok(()),
        Outer::Vxlan(tunnelled) => authorise(&tunnelled).map(drop),
    }
}
