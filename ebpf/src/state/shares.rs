//! Shares: how many flows of the table a container may have.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key or a value that is passed by value is copied to the stack, which is short"
)]

use aya_ebpf::bindings::BPF_NOEXIST;
use culvert_common::abi::FlowShare;

use crate::maps::FLOW_SHARES;

/// Counts a flow of the container with the incarnation `owner` that has begun. A BPF function of its
/// own, for a stack frame of its own.
#[inline(never)]
pub(super) fn join(owner: u32) {
    if owner == 0 {
        return;
    }
    let Some(share) = FLOW_SHARES.get_ptr_mut(&owner) else {
        let share = FlowShare { flows: 1, without_port: 0, begun: 1, refused: 0 };
        // If the map is full, the number of the container's flows is not limited.
        let _ = FLOW_SHARES.insert(&owner, &share, BPF_NOEXIST.into());
        return;
    };
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
    unsafe {
        (*share).flows = (*share).flows.saturating_add(1);
        (*share).begun += 1;
    }
}

/// Why a container could not begin a flow.
pub(super) mod why {
    /// It has its share of the table.
    pub(in super::super) const SHARE: u32 = 0;
    /// No port was free for it.
    pub(in super::super) const PORT: u32 = 1;
}

/// Counts a flow that the container with the incarnation `owner` could not begin, for a reason of
/// [`why`]. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn refuse(owner: u32, reason: u32) {
    if let Some(share) = FLOW_SHARES.get_ptr_mut(&owner) {
        // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
        unsafe {
            (*share).refused += 1;
            if reason == why::PORT {
                (*share).without_port = (*share).without_port.saturating_add(1);
            }
        }
    }
}

/// Counts a flow of the container with the incarnation `owner` that was removed. A BPF function of
/// its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn leave(owner: u32) {
    if let Some(share) = FLOW_SHARES.get_ptr_mut(&owner) {
        // SAFETY: the memory of a map's value stays mapped until the program ends (RCU).
        unsafe { (*share).flows = (*share).flows.saturating_sub(1) };
    }
}
