//! Pins of BPF objects through bpf(2), also of kinds for which aya has no type.

use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_cmd, bpf_link_info, bpf_link_type};
use nix::libc;

use super::{
    bpffs,
    error::DatapathError,
    syscall::{attributes, bpf, number},
};
use crate::limits::name_limit;

/// Pins an object at a path.
///
/// # Errors
/// The kernel refuses (`BPF_OBJ_PIN`).
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    with_path(path, |pathname| {
        let mut attr = attributes();
        attr.__bindgen_anon_4.pathname = pathname;
        attr.__bindgen_anon_4.bpf_fd = number(object);
        // SAFETY: `with_path` lends a string that ends with a NUL byte and outlives the call.
        unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
    })
}

/// Opens the object that is pinned at a path.
///
/// # Errors
/// The kernel refuses (`BPF_OBJ_GET`): `ENOENT` if nothing is pinned there.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    with_path(path, |pathname| {
        let mut attr = attributes();
        attr.__bindgen_anon_4.pathname = pathname;
        // SAFETY: `with_path` lends a string that ends with a NUL byte and outlives the call.
        owned(unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?)
    })
}

/// Opens all objects that are pinned in a directory. Returns them by name.
///
/// # Errors
/// The directory cannot be read, or the kernel refuses.
pub(super) fn open_all(dir: &Path) -> Result<Vec<(OsString, OwnedFd)>, DatapathError> {
    let mut objects = Vec::new();
    for path in bpffs::list(dir)? {
        let Some(name) = path.file_name().map(OsStr::to_owned) else { continue };
        objects.push((name, open(&path).map_err(|source| cannot_open(&path, source))?));
    }
    Ok(objects)
}

/// The error of a pin that cannot be opened.
pub(super) fn cannot_open(path: &Path, source: io::Error) -> DatapathError {
    // The kernel's answer for a directory.
    let what = match source.raw_os_error() {
        Some(libc::EACCES) => "no BPF object is pinned here, remove it",
        _ => "open pin",
    };
    DatapathError::Io { path: path.to_owned(), what, source: name_limit(source) }
}

/// Whether an object is pinned at a path, and not another one.
///
/// # Errors
/// What is pinned there cannot be opened.
pub(super) fn leads_to(path: &Path, object: BorrowedFd<'_>) -> io::Result<bool> {
    match open(path) {
        Ok(pinned) => Ok(identity(pinned.as_fd())? == identity(object)?),
        // A symbolic link that leads nowhere.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first words of the kernel's information about a link, a map or a program: the type, the
/// number, and two by which objects of unlike kinds differ. The last word is 0 for a link, the size
/// of the values for a map, and part of the tag for a program.
fn identity(object: BorrowedFd<'_>) -> io::Result<[u32; 4]> {
    let mut words = [0_u32; 4];
    let mut attr = attributes();
    attr.info.bpf_fd = number(object);
    attr.info.info_len = size_of_val(&words) as u32;
    attr.info.info = (&raw mut words) as u64;
    // SAFETY: the command writes at most the stated length to `words`, which outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(words)
}

/// Whether the link that is pinned at a path still attaches its program to a device. The kernel
/// keeps a link without a device if the link was detached or the device was removed.
///
/// # Errors
/// The kernel refuses, or the object is no link to a device.
pub(super) fn is_attached(path: &Path) -> io::Result<bool> {
    let ifindex = ifindex_of(&link_info(open(path)?.as_fd())?);
    Ok(ifindex.ok_or_else(|| io::Error::other("no link to a device"))? != 0)
}

/// The kernel's information about a link.
///
/// # Errors
/// The kernel refuses.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: a structure of integers, for which all bytes 0 is a value.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = attributes();
    attr.info.bpf_fd = number(link);
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    // SAFETY: the command writes at most the stated length to `info`, which outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// The index of the interface that a link attaches a program to, in the interface's network
/// namespace; 0 if the interface is gone. `None`: the link attaches to no device.
pub(super) fn ifindex_of(info: &bpf_link_info) -> Option<u32> {
    const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
    const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;
    const NETKIT: u32 = bpf_link_type::BPF_LINK_TYPE_NETKIT as u32;
    // SAFETY: the kernel has filled in the part of the union that belongs to the type of the link;
    // where it has not, the bytes are 0, which is a value of each part.
    unsafe {
        match info.type_ {
            XDP => Some(info.__bindgen_anon_1.xdp.ifindex),
            TCX => Some(info.__bindgen_anon_1.tcx.ifindex),
            NETKIT => Some(info.__bindgen_anon_1.netkit.ifindex),
            _ => None,
        }
    }
}

/// The hook that a tcx or netkit link attaches a program to, as a `bpf_attach_type`. `None` for
/// links of other types.
pub(super) fn hook_of(info: &bpf_link_info) -> Option<u32> {
    const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;
    const NETKIT: u32 = bpf_link_type::BPF_LINK_TYPE_NETKIT as u32;
    // SAFETY: as in `ifindex_of`.
    unsafe {
        match info.type_ {
            TCX => Some(info.__bindgen_anon_1.tcx.attach_type),
            NETKIT => Some(info.__bindgen_anon_1.netkit.attach_type),
            _ => None,
        }
    }
}

/// The file descriptor that bpf(2) has returned.
pub(super) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the caller has the number from the kernel, as the result of a command that makes a
    // new descriptor, and no other value owns that descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls `f` with the address of the path as a string that ends with a NUL byte.
fn with_path<T>(path: &Path, f: impl FnOnce(u64) -> io::Result<T>) -> io::Result<T> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    f(path.as_ptr() as u64)
}
