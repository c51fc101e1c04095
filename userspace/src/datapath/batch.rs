//! Many entries of a hash map in one system call, since Linux 5.6; aya has no call for it.

use std::{io, os::fd::BorrowedFd};

use aya_obj::generated::bpf_cmd;
use bytemuck::Pod;

use super::syscall::{attributes, bpf, number};

/// Number of entries that the first read of [`all`] has room for.
const ROOM: u32 = 4096;

/// Some entries of a map.
pub(super) struct Part<K, V> {
    /// Entries, in no order.
    pub(super) entries: Vec<(K, V)>,
    /// Number of the hash bucket after the last one read; `None` at the end of the map.
    pub(super) next: Option<u32>,
}

/// Reads whole hash buckets of the map `fd`, from the bucket `from` on, at most `room` entries.
/// Keys and values have the sizes of `K` and `V`.
///
/// The cursor of `BPF_MAP_LOOKUP_BATCH` is the number of a bucket
/// (`__htab_map_lookup_and_delete_batch` in `kernel/bpf/hashtab.c`). A bucket cannot be removed,
/// unlike the key of `BPF_MAP_GET_NEXT_KEY`, so that a walk never starts again at the beginning.
/// A bucket is read under its lock: an entry that stays in the map during the walk is read once.
///
/// # Errors
/// `ENOSPC` if the next bucket has more than `room` entries; otherwise the kernel's error.
pub(super) fn read<K: Pod, V: Pod>(
    fd: BorrowedFd<'_>,
    from: u32,
    room: u32,
) -> io::Result<Part<K, V>> {
    let mut keys = vec![K::zeroed(); room as usize];
    let mut values = vec![V::zeroed(); room as usize];
    let mut next = 0_u32;
    let mut attr = attributes();
    // The kernel takes a null pointer as the beginning of the map.
    attr.batch.in_batch = if from == 0 { 0 } else { &raw const from as u64 };
    attr.batch.out_batch = &raw mut next as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = room;
    attr.batch.map_fd = number(fd);
    // SAFETY: every pointer leads to a local that outlives the call, and the arrays have room for
    // `count` keys and values; their sizes are the map's, which the caller had aya check.
    let called = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
    let last = match called {
        Ok(_) => false,
        // The end of the map.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: `batch` is the member of the command; the kernel has written how many entries it
    // copied.
    let count = unsafe { attr.batch.count };
    let entries = keys.into_iter().zip(values).take(count as usize).collect();
    Ok(Part { entries, next: (!last).then_some(next) })
}

/// Like [`read`]. If the next bucket has more than `room` entries, the room grows up to `most`.
///
/// # Errors
/// The kernel refuses.
pub(super) fn read_some<K: Pod, V: Pod>(
    fd: BorrowedFd<'_>,
    from: u32,
    room: u32,
    most: u32,
) -> io::Result<Part<K, V>> {
    let mut room = room.clamp(1, most.max(1));
    loop {
        match read(fd, from, room) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) && room < most => {
                room = room.saturating_mul(2).min(most);
            }
            outcome => return outcome,
        }
    }
}

/// All entries of the map `fd`, in no order. The map has at most `capacity` entries. An entry
/// that is added or removed during the read may be missing.
///
/// # Errors
/// The kernel refuses.
pub(super) fn all<K: Pod, V: Pod>(fd: BorrowedFd<'_>, capacity: u32) -> io::Result<Vec<(K, V)>> {
    let (mut entries, mut from) = (Vec::new(), Some(0));
    while let Some(bucket) = from {
        let part = read_some(fd, bucket, ROOM, capacity)?;
        entries.extend(part.entries);
        from = part.next;
    }
    Ok(entries)
}

/// Writes a prefix of the entries to the map `fd`, in order. Keys and values have the map's
/// sizes. Returns how many were written, and the error that stopped the kernel.
pub(super) fn update<K: Pod, V: Pod>(
    fd: BorrowedFd<'_>,
    entries: &[(K, V)],
) -> (usize, io::Result<()>) {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let mut attr = attributes();
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    attr.batch.map_fd = number(fd);
    // SAFETY: both arrays are locals that outlive the call, and hold `count` keys and
    // values; their sizes are the map's, which the caller had aya check.
    let Err(error) = (unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }) else {
        return (keys.len(), Ok(()));
    };
    // SAFETY: `batch` is the member of the command. Where the kernel refuses the call itself, it
    // leaves the count as it was.
    let written = unsafe { attr.batch.count } as usize;
    (if written < keys.len() { written } else { 0 }, Err(error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use culvert_common::abi::{FdbKey, MappedAddr};

    use crate::datapath::{
        KernelTables, Options, Table as _,
        entry::{FdbEntry, LearnedEntry},
        load_object,
    };

    #[test]
    #[ignore = "needs root"]
    fn all_entries_of_a_map_are_read_whatever_their_size_and_number() {
        let options = Options::of_a_test();
        let mut ebpf = load_object(&options, None).unwrap();
        let tables = KernelTables::take(&mut ebpf, options.vtep_ip).unwrap();
        let key = |number: u32| {
            let [a, b, c, d] = number.to_be_bytes();
            FdbKey::new(256, [2, 0, a, b, c, d])
        };

        assert!(tables.fdb.dump().unwrap().is_empty());
        let entry = |number| FdbEntry { ifindex: number, ..FdbEntry::default() };
        let entries: Vec<_> = (1..=10_000).map(|number| (key(number), entry(number))).collect();
        assert_eq!(tables.fdb.insert_all(&entries).0, entries.len());
        assert_eq!(tables.fdb.dump().unwrap(), entries.into_iter().collect());

        // Values of 4 bytes: the batch has no padding to the kernel's 8 bytes.
        let addresses: BTreeMap<MappedAddr, u32> =
            (1..=7).map(|last| (MappedAddr::v4([192, 0, 2, last]), last.into())).collect();
        for (address, value) in &addresses {
            tables.host_addrs.insert(address, value).unwrap();
        }
        assert_eq!(tables.host_addrs.dump().unwrap(), addresses);

        // A map that the programs write, an LRU hash.
        let seen = |number: u32| LearnedEntry {
            last_seen_ns: number.into(),
            ifindex: number,
            ..LearnedEntry::default()
        };
        let entries: Vec<_> = (1..=100).map(|number| (key(number), seen(number))).collect();
        assert_eq!(tables.learned.insert_all(&entries).0, entries.len());
        assert_eq!(tables.learned.dump().unwrap(), entries.into_iter().collect());
    }
}
