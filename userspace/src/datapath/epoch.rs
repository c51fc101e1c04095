//! The epoch of the maps: entries of the programs' caches are valid in one epoch only.

use std::{
    fmt, io,
    num::NonZeroUsize,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{Ebpf, maps::Map};
use culvert_common::abi::names;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{error::DatapathError, raw::missing};

/// Length of the mapping in bytes. The kernel rounds it up to a page.
const LENGTH: NonZeroUsize = NonZeroUsize::MIN;

/// The map [`names::EPOCH`], mapped into memory: an agent that changes 100,000 entries advances
/// the epoch 100,000 times, without a system call.
pub(super) struct Epoch(NonNull<AtomicU64>);

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Epoch").field(&self.word().load(Ordering::Relaxed)).finish()
    }
}

// SAFETY: the pointer leads to an atomic, which stays mapped until the value is dropped.
unsafe impl Send for Epoch {}
// SAFETY: all threads access the word through the atomic only, which stays mapped.
unsafe impl Sync for Epoch {}

impl Epoch {
    /// Maps `EPOCH` of a loaded object into memory.
    pub(super) fn take(ebpf: &Ebpf) -> Result<Self, DatapathError> {
        let failed =
            |what, source: io::Error| DatapathError::Io { path: names::EPOCH.into(), what, source };
        let Some(Map::Array(map)) = ebpf.map(names::EPOCH) else {
            return Err(missing(names::EPOCH));
        };
        let fd = map.fd().as_fd();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address of the new mapping, so no other memory is
        // replaced. The kernel keeps the map as long as it is mapped.
        let start = unsafe { mmap(None, LENGTH, access, MapFlags::MAP_SHARED, fd, 0) }
            .map_err(|errno| failed("mmap", errno.into()))?;
        Ok(Self(start.cast()))
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the mapping holds the array's first entry, a `u64` at the beginning of a
        // page, which programs and agents only access atomically.
        unsafe { self.0.as_ref() }
    }

    /// Begins a new epoch: the programs no longer use cache entries of earlier epochs.
    pub(super) fn advance(&self) {
        self.word().fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        // SAFETY: `take` made this mapping with this length, and no reference outlives the value.
        let _ = unsafe { munmap(self.0.cast(), LENGTH.get()) };
    }
}
