//! `from_loopback`: tcx ingress on the host's loopback device: the host's own
//! connections to its published ports.

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::abi::Direction;

use crate::{
    routed::from_loopback as routed,
    verdict::{Seen, finish},
};

/// A frame on the loopback device.
#[classifier]
pub(crate) fn from_loopback(ctx: TcContext) -> i32 {
    let seen = Seen::of(&ctx, Direction::FromLoopback);
    let outcome = routed::receive(&ctx);
    finish(&ctx, &seen, outcome)
}
