//! Many entries of a map in one system call; aya has no call for it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use bytemuck::Pod;

/// `bpf_cmd` of the kernel's `linux/bpf.h`, since Linux 5.6.
const BPF_MAP_UPDATE_BATCH: nix::libc::c_long = 26;

/// The `batch` member of `union bpf_attr` in the kernel's `linux/bpf.h`. Of a hash map
/// the kernel copies whole buckets, and a batch is the number of the first one: unlike
/// a key for `BPF_MAP_GET_NEXT_KEY` it cannot be removed. ENOENT says that there are no
/// buckets behind those copied, ENOSPC that not even one fits.
#[repr(C, align(8))]
pub(super) struct BatchAttr {
    /// Address of the first bucket's number; 0: from the beginning.
    pub(super) in_batch: u64,
    /// Address for the number of the bucket behind the last one copied.
    pub(super) out_batch: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    /// Room, then what was copied.
    pub(super) count: u32,
    pub(super) map_fd: u32,
    pub(super) elem_flags: u64,
    pub(super) flags: u64,
}

const _: () = assert!(size_of::<BatchAttr>() == 56);

/// Hands a batch to the kernel.
///
/// # Safety
/// Every address in `attr` leads to memory of what `command` reads or writes there, `count`
/// keys and values of the map's sizes.
pub(super) unsafe fn call(command: nix::libc::c_long, attr: &mut BatchAttr) -> io::Result<()> {
    // SAFETY: `attr` is as long as stated; the caller answers for what it leads to.
    let result = unsafe {
        nix::libc::syscall(nix::libc::SYS_bpf, command, &raw mut *attr, size_of::<BatchAttr>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes entries whose sizes are those of the map behind `fd`, in order. Returns how
/// many were written, and what kept the kernel from the next one.
pub(super) fn update<K: Pod, V: Pod>(
    fd: BorrowedFd<'_>,
    entries: &[(K, V)],
) -> (usize, io::Result<()>) {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        map_fd: u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: both arrays are locals that outlive the call, and hold `count` keys and
    // values; their sizes are the map's, which the caller had aya check.
    let Err(error) = (unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attr) }) else {
        return (keys.len(), Ok(()));
    };
    // Where it refuses the call itself, it leaves the count as it was.
    let written = attr.count as usize;
    (if written < keys.len() { written } else { 0 }, Err(error))
}
