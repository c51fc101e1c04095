//! The TCP numbers and states of flows.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key or a value that is passed by value is copied to the stack, which is short"
)]

use culvert_common::{
    abi::{Flow, seen},
    datapath::segment::change,
};

use super::flow_table::{COPIES, FlowCopies};
use crate::{
    facts::routed::Routed,
    kernel::memory::own,
    maps::{FLOWS, read_to},
};

/// Changes the flow of a TCP segment for which both directions must be read: the segment begins or
/// ends a connection, or its numbers are not the next ones. `entry` is the entry of the segment's
/// direction, of which this CPU has the copy. Returns 1 if the segment keeps the flow alive, else
/// 0. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn follow(routed: &Routed, entry: *mut Flow) -> u32 {
    let (key, segment) = (&routed.key, &routed.tcp);
    let Some(FlowCopies { flow, other, other_key }) = own(&COPIES, 0) else { return 1 };
    *other_key = key.other(flow);
    if !read_to(&FLOWS, other_key, other) {
        // Without the other direction nothing can be compared. The agent removes such an entry.
        return 1;
    }
    let followed = segment.follow(flow, other);
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU). Only fields
    // after `Flow::seal` are written.
    unsafe {
        if followed.changes & change::ACK != 0 {
            (*entry).last_ack = segment.ack;
        }
        if followed.changes & change::FIRST != 0 {
            (*entry).first_seq = segment.first();
        }
        if followed.changes & change::AHEAD != 0 {
            (*entry).first_seq = segment.ahead(flow);
        }
        if followed.changes & change::NEXT != 0 {
            (*entry).next_seq = segment.end;
        }
        if followed.seen != flow.seen {
            (*entry).seen = followed.seen;
        }
    }
    if followed.changes & (change::RESET | change::RESTART) != 0
        && let Some(opposite) = FLOWS.get_ptr_mut(&*other_key)
    {
        // SAFETY: as above. The memory may be another flow's by now, as in `flows::find`.
        unsafe {
            if followed.changes & change::RESET != 0 {
                (*opposite).seen = other.seen | seen::RST;
            } else {
                (*opposite).first_seq = segment.ack;
                (*opposite).next_seq = segment.ack;
                (*opposite).seen = seen::PACKET | seen::SYN;
            }
        }
    }
    followed.changes & change::TIME
}
