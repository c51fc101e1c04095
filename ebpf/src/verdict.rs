//! The end of every hook: turns a `Result<Action, DropReason>` into the kernel's verdict.

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::trace;
use culvert_common::abi::{Action, Code, Direction, DropReason};

use crate::{
    count::count,
    kernel::{
        redirect,
        skb::{ifindex, is_transmitted},
    },
};

/// The result of a program for a frame: the action, or the reason of the drop.
pub(crate) type Outcome = Result<Action, DropReason>;

/// A frame as the program received it. The program reads these values first: replies and the outer
/// header change the length.
pub(crate) struct Seen {
    /// The program that received the frame.
    pub(crate) direction: Direction,
    /// The device that the program is attached to.
    pub(crate) ifindex: u32,
    /// Bytes of the frame.
    pub(crate) bytes: u32,
}

impl Seen {
    /// The frame in `ctx`.
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext, direction: Direction) -> Self {
        Self { direction, ifindex: ifindex(ctx), bytes: ctx.len() }
    }
}

/// The one exit of the TC programs: counts the frame, traces it, and gives the verdict.
#[inline(always)]
pub(crate) fn finish(ctx: &TcContext, seen: &Seen, outcome: Outcome) -> i32 {
    let &Seen { direction, ifindex, bytes } = seen;
    let code = match outcome {
        Ok(action) => Code::Action(action),
        Err(reason) => Code::Drop(reason),
    };
    count(direction, code, bytes);
    match outcome {
        Ok(action) => trace!(
            ctx,
            "{} if {} len {}: action {}",
            direction.code(),
            ifindex,
            bytes,
            action.code()
        ),
        Err(reason) => trace!(
            ctx,
            "{} if {} len {}: dropped, reason {}",
            direction.code(),
            ifindex,
            bytes,
            reason.code()
        ),
    }
    match outcome {
        Ok(Action::Pass) => TC_ACT_UNSPEC,
        Ok(
            Action::Deliver
            | Action::Encap
            | Action::ArpReply
            | Action::NdReply
            | Action::ToHost
            | Action::NatOut
            | Action::NatDeliver,
        ) => TC_ACT_REDIRECT,
        // The program has made the copies that are needed, and nobody needs the original.
        Ok(Action::Flood | Action::Absorb | Action::Hold) => consume(ctx, direction),
        Err(_) => TC_ACT_SHOT,
    }
}

/// The verdict that frees a frame without an error to its sender.
#[inline(always)]
fn consume(ctx: &TcContext, direction: Direction) -> i32 {
    if matches!(direction, Direction::FromContainer) && is_transmitted(ctx) {
        // While a container transmits on netkit, TC_ACT_SHOT gives the sender ENOBUFS. No verdict
        // frees a frame without an error. But the kernel frees a frame without an error if it is
        // redirected to an interface that does not exist.
        redirect::out(0);
        return TC_ACT_REDIRECT;
    }
    TC_ACT_SHOT
}

/// The one exit of the XDP program. Only drops are counted and traced here: `from_underlay` counts
/// and traces the frames that pass.
#[inline(always)]
pub(crate) fn finish_xdp(ctx: &XdpContext, bytes: u32, outcome: Result<(), DropReason>) -> u32 {
    const DIRECTION: Direction = Direction::FromUnderlayXdp;
    match outcome {
        Ok(()) => xdp_action::XDP_PASS,
        Err(reason) => {
            count(DIRECTION, Code::Drop(reason), bytes);
            trace!(
                ctx,
                "{} if {} len {}: dropped, reason {}",
                DIRECTION.code(),
                ctx.ingress_ifindex() as u32,
                bytes,
                reason.code()
            );
            xdp_action::XDP_DROP
        }
    }
}

/// An outcome, or none, in one register. A BPF function cannot return more. The codes of actions
/// and drop reasons do not overlap.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Packed(u32);

/// The value of [`Packed`] that stands for no outcome.
const NONE: u32 = u32::MAX;

impl Packed {
    /// Packs an outcome.
    #[inline(always)]
    pub(crate) fn new(outcome: Option<Outcome>) -> Self {
        Self(match outcome {
            None => NONE,
            Some(Ok(action)) => action.code().into(),
            Some(Err(reason)) => reason.code().into(),
        })
    }

    /// Unpacks the outcome. A number that is neither the code of an action nor of a drop reason
    /// becomes [`DropReason::HelperFailed`].
    #[inline(always)]
    pub(crate) fn outcome(self) -> Option<Outcome> {
        if self.0 == NONE {
            return None;
        }
        let code = self.0 as u8;
        Some(match Action::from_code(code) {
            Some(action) => Ok(action),
            None => Err(DropReason::from_code(code).unwrap_or(DropReason::HelperFailed)),
        })
    }
}

/// Stores the value of a `Result` through `value`: a BPF function returns one register, which
/// holds `Result<(), DropReason>` but no more.
#[inline(always)]
pub(crate) fn hand_back<T>(result: Result<T, DropReason>, value: &mut T) -> Result<(), DropReason> {
    result.map(|result| *value = result)
}

const _: () = assert!(size_of::<Result<(), DropReason>>() == 1);
