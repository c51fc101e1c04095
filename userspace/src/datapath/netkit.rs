//! Links of netkit devices, by bpf(2): aya 0.14 has no type for them.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd};

use super::{
    pins,
    syscall::{attributes, bpf, number},
};

/// Attaches a program to the frames that the container's side of a netkit pair sends
/// (`BPF_NETKIT_PEER`, since Linux 6.7), and pins the link. `ifindex` is the index of the host
/// side, in the calling thread's namespace.
///
/// # Errors
/// The kernel refuses.
pub(super) fn attach(program: BorrowedFd<'_>, ifindex: u32, pin: &Path) -> io::Result<()> {
    let mut attr = attributes();
    attr.link_create.__bindgen_anon_1.prog_fd = number(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_NETKIT_PEER as u32;
    // SAFETY: `attr` leads to no memory.
    let link = pins::owned(unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?)?;
    pins::pin(link.as_fd(), pin)
}

/// Replaces the program of the link that is pinned at `pin`.
///
/// # Errors
/// `ENOLINK` if the device is gone.
pub(super) fn update(program: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let link = pins::open(pin)?;
    let mut attr = attributes();
    attr.link_update.link_fd = number(link.as_fd());
    attr.link_update.__bindgen_anon_1.new_prog_fd = number(program);
    // SAFETY: `attr` leads to no memory.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}
