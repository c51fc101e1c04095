//! Links through bpf(2): aya has no type for netkit links, and does not lend the file descriptor of
//! a link.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd};

use super::{
    pins,
    syscall::{attributes, bpf, number},
};

/// Attaches a program to a hook of an interface, behind the programs that are there. `ifindex` is
/// the interface's index in the calling thread's namespace; for `BPF_NETKIT_PEER` (since Linux 6.7)
/// that of the host side. The program is attached as long as the link is open or pinned.
///
/// # Errors
/// The kernel refuses.
pub(super) fn create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    hook: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.link_create.__bindgen_anon_1.prog_fd = number(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = hook as u32;
    attr.link_create.flags = flags;
    // SAFETY: `attr` leads to no memory.
    pins::owned(unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?)
}

/// Replaces the program of a link, in one step.
///
/// # Errors
/// `ENOLINK` if the program is detached or the interface is gone.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attributes();
    attr.link_update.link_fd = number(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = number(program);
    // SAFETY: `attr` leads to no memory.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches the program of a link, also if the link is pinned or open elsewhere. It is no error if
/// the program is detached already.
///
/// # Errors
/// The kernel refuses.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attributes();
    attr.link_detach.link_fd = number(link);
    // SAFETY: `attr` leads to no memory.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}
