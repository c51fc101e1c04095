//! Counters per CPU, direction and code.

use culvert_common::abi::{Code, Direction, Note, stats_index};

use crate::maps::STATS;

/// Counts one frame of `bytes`.
#[inline(always)]
pub(crate) fn count(direction: Direction, code: Code, bytes: u32) {
    let Some(counter) = STATS.get_ptr_mut(stats_index(direction, code)) else { return };
    // SAFETY: the entry is this CPU's own; programs of one CPU do not interrupt each other at
    // these hooks.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += u64::from(bytes);
    }
}

/// Counts a note about a frame of `bytes`.
#[inline(always)]
pub(crate) fn note(direction: Direction, note: Note, bytes: u32) {
    count(direction, Code::Note(note), bytes);
}
