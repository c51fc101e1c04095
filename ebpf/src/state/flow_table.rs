//! The entries of the table of flows: how they are copied, expire, and are removed.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key or a value that is passed by value is copied to the stack, which is short"
)]

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_common::{
    abi::{Flow, FlowKey, kind},
    datapath::conntrack,
};

use super::shares::leave;
use crate::{
    globals::flow_timeout,
    kernel::memory::own,
    maps::{FLOWS, read_to},
};

/// This CPU's copies of entries. They are not on the BPF stack, which has only 512 bytes.
pub(super) struct FlowCopies {
    pub(super) flow: Flow,
    pub(super) other: Flow,
    /// The key of the other direction.
    pub(super) other_key: FlowKey,
}

#[map]
pub(super) static COPIES: PerCpuArray<FlowCopies> = PerCpuArray::with_max_entries(1, 0);

/// The entry of the other direction of a flow: a copy that is valid until the next call of this
/// function on this CPU.
#[inline(always)]
pub(super) fn other_half(key: &FlowKey, flow: &Flow) -> Option<&'static Flow> {
    let FlowCopies { other, other_key, .. } = own(&COPIES, 0)?;
    *other_key = key.other(flow);
    read_to(&FLOWS, other_key, other).then_some(&*other)
}

/// One entry of the table: a copy that is valid until the next packet or call on this CPU.
#[inline(always)]
pub(super) fn entry(key: &FlowKey) -> Option<&'static Flow> {
    let FlowCopies { flow, .. } = own(&COPIES, 0)?;
    read_to(&FLOWS, key, flow).then_some(&*flow)
}

/// Whether the flow that has the entry `flow` may have expired.
#[inline(always)]
pub(super) fn may_have_expired(flow: &Flow, now: u64) -> bool {
    conntrack::may_have_expired(flow.last_seen_ns, now, flow_timeout)
}

/// Whether the flow that has the entry `flow` under `key` has expired. An expired flow is removed.
#[inline(always)]
pub(super) fn has_expired(key: &FlowKey, flow: &Flow, now: u64) -> bool {
    may_have_expired(flow, now) && expire(key, now) != 0
}

/// Removes the flow under `key` if it has expired. Returns 1 if it was removed, else 0. An entry
/// without its other direction is left to the agent. A BPF function of its own, for a stack frame
/// of its own.
#[inline(never)]
pub(super) fn expire(key: &FlowKey, now: u64) -> u32 {
    let Some(flow) = entry(key) else { return 0 };
    let Some(other) = other_half(key, flow) else { return 0 };
    if !conntrack::has_expired(key.protocol, flow, other, now, flow_timeout) {
        return 0;
    }
    remove(key, flow);
    1
}

/// Removes the flow under `key`, if there is one. A BPF function of its own, for a stack frame of
/// its own.
#[inline(never)]
pub(crate) fn forget(key: &FlowKey) {
    if let Some(flow) = entry(key) {
        remove(key, flow);
    }
}

/// Removes both directions of a flow.
#[inline(always)]
pub(super) fn remove(key: &FlowKey, flow: &Flow) {
    let Some(FlowCopies { other_key, .. }) = own(&COPIES, 0) else { return };
    *other_key = key.other(flow);
    // Another CPU may have removed an entry already, and has then counted it.
    let (other, this) = (FLOWS.remove(&*other_key), FLOWS.remove(key));
    if (if flow.kind & kind::ORIG != 0 { this } else { other }).is_ok() {
        leave(flow.owner());
    }
}
