//! The system call bpf(2), for commands that aya has no call for. The attributes are those of
//! aya-obj's bindings of the kernel's `linux/bpf.h`.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};
use nix::libc;

/// Attributes, all 0: the kernel refuses other values in fields that a command does not use.
pub(super) fn attributes() -> bpf_attr {
    // SAFETY: a union of structures of integers, for which all bytes 0 is a value.
    unsafe { std::mem::zeroed() }
}

/// Makes the system call. Returns its result: 0, or a new file descriptor.
///
/// # Errors
/// The kernel refuses.
///
/// # Safety
/// Every address in `attr` leads to memory that is valid for what `command` reads or writes there.
pub(super) unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    let command = command as libc::c_long;
    // SAFETY: `attr` has the stated length, and `attributes` has initialised all of it. The caller
    // guarantees that the addresses in it are valid.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The number of a file descriptor, for an attribute.
pub(super) fn number(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is not negative.
    fd.as_raw_fd().cast_unsigned()
}
