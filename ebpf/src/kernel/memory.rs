//! Memory of the programs: per-CPU arrays, and loops whose state lies on the stack.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_loop, maps::PerCpuArray};

/// This CPU's entry of a per-CPU array that only the programs write: the array is not pinned, and
/// the agent never writes it. `T` must be valid as zeroes, which the entry holds at first. A caller
/// must not ask for an entry while an earlier reference to it is in use.
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the map is a name for the kernel, not the memory")]
pub(crate) fn own<T>(map: &'static PerCpuArray<T>, index: u32) -> Option<&'static mut T> {
    let entry = map.get_ptr_mut(index)?;
    // SAFETY: the entry is this CPU's own, and no other program of this CPU runs until
    // this one returns. It holds zeroes or what the programs have put there.
    Some(unsafe { &mut *entry })
}

/// The body of a loop. Its arguments are the index, and the state that [`repeat`] was given. It
/// returns 0 to continue and 1 to stop.
pub(crate) type Body = unsafe extern "C" fn(u64, *mut c_void) -> i64;

/// Calls `body` up to `count` times, with the index (from 0 on) and a pointer to `state`.
///
/// `body` must cast its pointer to a pointer to `T`.
#[inline(always)]
pub(crate) fn repeat<T>(count: u32, body: Body, state: &mut T) {
    // SAFETY: the body has the signature that the helper calls, and the state outlives the
    // loop.
    unsafe { bpf_loop(count, body as *mut c_void, (&raw mut *state).cast(), 0) };
}
