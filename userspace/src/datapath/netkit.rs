//! Links of netkit devices, by bpf(2): aya 0.14 has no type for them.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use nix::libc;

use super::syscall::{attributes, bpf, number};

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
    let link = owned(unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }?)?;
    with_path(pin, |pathname| {
        let mut attr = attributes();
        attr.__bindgen_anon_4.pathname = pathname;
        attr.__bindgen_anon_4.bpf_fd = number(link.as_fd());
        // SAFETY: `with_path` lends a string that ends with a NUL byte and outlives the call.
        unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
    })
}

/// Replaces the program of the link that is pinned at `pin`.
///
/// # Errors
/// `ENOLINK` if the device is gone.
pub(super) fn update(program: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let link = with_path(pin, |pathname| {
        let mut attr = attributes();
        attr.__bindgen_anon_4.pathname = pathname;
        // SAFETY: `with_path` lends a string that ends with a NUL byte and outlives the call.
        owned(unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?)
    })?;
    let mut attr = attributes();
    attr.link_update.link_fd = number(link.as_fd());
    attr.link_update.__bindgen_anon_1.new_prog_fd = number(program);
    // SAFETY: `attr` leads to no memory.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// The file descriptor that bpf(2) has returned.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the caller has it from the kernel, as the result of a command that makes a new
    // descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls `f` with the address of the path as a string that ends with a NUL byte.
fn with_path<T>(path: &Path, f: impl FnOnce(u64) -> io::Result<T>) -> io::Result<T> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    f(path.as_ptr() as u64)
}
