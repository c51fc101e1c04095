//! Links of netkit devices, by the system calls themselves: aya has none for them.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};
use nix::libc;

/// `bpf_cmd` of the kernel's `linux/bpf.h`.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
/// `bpf_attach_type` of `linux/bpf.h`, since Linux 6.7: what the other end of the device sends.
const BPF_NETKIT_PEER: u32 = 55;

/// The `link_create` member of `union bpf_attr`, with that of netkit.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// The `link_update` member.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The members of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Attaches a program to what the container's side of the netkit device `ifindex` sends, and
/// pins the link. `ifindex` is the host's side, in the calling thread's namespace.
pub(super) fn attach(program: BorrowedFd<'_>, ifindex: u32, pin: &Path) -> io::Result<()> {
    let attr = LinkCreate {
        prog_fd: number(program.as_raw_fd())?,
        target_ifindex: ifindex,
        attach_type: BPF_NETKIT_PEER,
        ..LinkCreate::zeroed()
    };
    // SAFETY: `attr` leads to no memory.
    let link = owned(unsafe { call(BPF_LINK_CREATE, &attr) }?)?;
    with_path(pin, |pathname| {
        let bpf_fd = number(link.as_raw_fd())?;
        let attr = Object { pathname, bpf_fd, file_flags: 0 };
        // SAFETY: `with_path` lends a string that ends with a NUL byte and outlives the call.
        unsafe { call(BPF_OBJ_PIN, &attr) }.map(drop)
    })
}

/// Puts a program under the link that is pinned at `pin`, in place of the one there.
///
/// # Errors
/// `ENOLINK` if the device is gone.
pub(super) fn update(program: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let link = with_path(pin, |pathname| {
        let attr = Object { pathname, bpf_fd: 0, file_flags: 0 };
        // SAFETY: `with_path` lends a string that ends with a NUL byte and outlives the call.
        owned(unsafe { call(BPF_OBJ_GET, &attr) }?)
    })?;
    let attr = LinkUpdate {
        link_fd: number(link.as_raw_fd())?,
        new_prog_fd: number(program.as_raw_fd())?,
        ..LinkUpdate::zeroed()
    };
    // SAFETY: `attr` leads to no memory.
    unsafe { call(BPF_LINK_UPDATE, &attr) }.map(drop)
}

/// Makes the system call. Returns what it returns.
///
/// # Safety
/// Every address in `attr` leads to memory of what `command` reads there.
unsafe fn call<T: Pod>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as long as stated and has no padding, as it is `Pod`; the caller
    // answers for what it leads to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The descriptor that a call has made.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the caller has it from the kernel, as the result of a command that makes a new
    // descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}

/// Lends the address of a path as the kernel reads it.
fn with_path<T>(path: &Path, f: impl FnOnce(u64) -> io::Result<T>) -> io::Result<T> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    f(path.as_ptr() as u64)
}
