//! From a `Result<Action, DropReason>` to the kernel's verdict, and the counters.

use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
};
use aya_log_ebpf::trace;
use culvert_common::abi::{Action, Code, Direction, DropReason, Note, stats_index};

use crate::maps::STATS;

/// Counts one frame of `bytes`.
#[inline(always)]
pub(crate) fn count(direction: Direction, code: Code, bytes: u32) {
    count_at(stats_index(direction, code), bytes);
}

/// Counts under the number of a code, as a BPF function hands it back.
#[inline(always)]
pub(crate) fn count_code(direction: Direction, code: u32, bytes: u32) {
    count_at((u32::from(direction.code()) << 8) | (code & 0xff), bytes);
}

#[inline(always)]
fn count_at(index: u32, bytes: u32) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's own; programs of one CPU do not
        // interrupt each other at these hooks.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// Counts a note about a frame of `bytes`.
#[inline(always)]
pub(crate) fn note(direction: Direction, note: Note, bytes: u32) {
    count(direction, Code::Note(note), bytes);
}

/// How a BPF function that is not inlined hands a result back: through memory,
/// and 0 or 1 for success or failure. It returns no more than one register, and
/// one without a return value would leave a stale pointer in that register,
/// which the verifier refuses.
#[inline(always)]
pub(crate) fn hand_back<T>(
    result: Result<T, DropReason>,
    value: &mut T,
    reason: &mut DropReason,
) -> u32 {
    match result {
        Ok(result) => {
            *value = result;
            0
        }
        Err(result) => {
            *reason = result;
            1
        }
    }
}

/// The one place where an outcome becomes a verdict of TC.
#[inline(always)]
pub(crate) fn untraced(
    direction: Direction,
    bytes: u32,
    outcome: Result<Action, DropReason>,
) -> i32 {
    match outcome {
        Ok(action) => {
            count(direction, Code::Action(action), bytes);
            match action {
                Action::Pass => TC_ACT_UNSPEC,
                Action::Deliver
                | Action::Encap
                | Action::ArpReply
                | Action::NdReply
                | Action::ToHost
                | Action::NatOut
                | Action::NatDeliver => TC_ACT_REDIRECT,
                // The copies are on their way; nobody needs the original.
                Action::Flood | Action::Absorb | Action::Hold => TC_ACT_SHOT,
            }
        }
        Err(reason) => {
            count(direction, Code::Drop(reason), bytes);
            TC_ACT_SHOT
        }
    }
}

/// The same, told to whoever traces.
#[inline(always)]
pub(crate) fn tc<C: EbpfContext>(
    ctx: &C,
    direction: Direction,
    ifindex: u32,
    bytes: u32,
    outcome: Result<Action, DropReason>,
) -> i32 {
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
    untraced(direction, bytes, outcome)
}

/// The one place where an outcome becomes a verdict of XDP. Only drops are
/// counted here: what passes is counted at tcx.
#[inline(always)]
pub(crate) fn xdp(bytes: u32, outcome: Result<(), DropReason>) -> u32 {
    match outcome {
        Ok(()) => xdp_action::XDP_PASS,
        Err(reason) => {
            count(Direction::FromUnderlayXdp, Code::Drop(reason), bytes);
            xdp_action::XDP_DROP
        }
    }
}
