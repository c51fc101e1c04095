//! The conntrack maps: the agent reads `FLOWS` a slice at a time, and writes `RESERVED_PORTS` for
//! the programs.

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError},
    sys::SyscallError,
};
use culvert_common::abi::{Flow, FlowKey, FlowShare, Sealed as _, names};

use super::{
    batch,
    error::DatapathError,
    raw::{Bytes, failed, if_there, second_handle, take_map},
};

/// Beginning of a [`Slice`]: the number of a hash bucket. It stays valid when entries are added
/// or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(pub u32);

/// Part of the table; each entry is in it once.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    /// Entries, in no order.
    pub entries: Vec<(FlowKey, Flow)>,
    /// Beginning of the next slice; `None`: this was the last one.
    pub next: Option<Cursor>,
}

/// The table of flows, or a stand-in for it in a test.
pub trait FlowTable: Send + Sync {
    /// Number of flows that the table has room for.
    fn capacity(&self) -> u32;

    /// End of the range of [`Cursor`]. The entries are spread over it evenly, so that the
    /// position of a cursor is the share of the table that has been read.
    fn range(&self) -> u32;

    /// A slice from `from` on: at most `most` entries, or those of one hash bucket if it has
    /// more. The slices of a pass together have every entry that is in the table from the
    /// beginning of the pass to its end.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    fn slice(&self, from: Cursor, most: u32) -> Result<Slice, DatapathError>;

    /// Reads the entry of one direction of a flow.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    fn lookup(&self, key: &FlowKey) -> Result<Option<Flow>, DatapathError>;

    /// Removes the entry of one direction of a flow. It is no error if there is none.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    fn remove(&self, key: &FlowKey) -> Result<(), DatapathError>;

    /// Replaces the entry of one direction of a flow, with its seal. If there is no such entry, no
    /// entry is made and no error is returned.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    fn replace(&self, key: &FlowKey, flow: &Flow) -> Result<(), DatapathError>;

    /// Reads `FLOW_SHARES`: the flows of each container, by its incarnation.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    fn shares(&self) -> Result<BTreeMap<u32, FlowShare>, DatapathError>;

    /// Reads the entry of `FLOW_SHARES` of the container with the incarnation `owner`.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    fn share(&self, owner: u32) -> Result<Option<FlowShare>, DatapathError>;

    /// Writes the entry of `FLOW_SHARES` of the container with the incarnation `owner`; `None`
    /// removes it. The programs write the map, too: an update that they make meanwhile is lost.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    fn set_share(&self, owner: u32, share: Option<FlowShare>) -> Result<(), DatapathError>;

    /// Reads `RESERVED_PORTS`, the ports that masquerading never takes: all words, see
    /// [`reserved_bit`](culvert_common::abi::reserved_bit).
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    fn reserved(&self) -> Result<Vec<u64>, DatapathError>;

    /// Writes a word of `RESERVED_PORTS`.
    ///
    /// # Errors
    ///
    /// If there is no such word, or the map cannot be written.
    fn reserve(&self, word: u32, bits: u64) -> Result<(), DatapathError>;
}

/// The maps of the loaded data plane.
pub struct Flows {
    /// Capacity of `FLOWS` in entries; a flow has two.
    max_entries: u32,
    flows: Mutex<HashMap<MapData, Bytes<FlowKey>, Bytes<Flow>>>,
    /// A second handle of `FLOWS`: aya's map type does not lend its file descriptor.
    fd: MapData,
    shares: Mutex<HashMap<MapData, u32, Bytes<FlowShare>>>,
    reserved: Mutex<Array<MapData, u64>>,
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").field("max_entries", &self.max_entries).finish_non_exhaustive()
    }
}

impl Flows {
    /// Takes the maps out of the loaded object, except for `FLOWS`, which stays in it.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let failed = |source| failed(names::FLOWS, source);
        let (map, fd) = (second_handle(ebpf, names::FLOWS)?, second_handle(ebpf, names::FLOWS)?);
        Ok(Self {
            max_entries: fd.info().map_err(failed)?.max_entries(),
            flows: Mutex::new(HashMap::try_from(Map::HashMap(map)).map_err(failed)?),
            fd,
            shares: Mutex::new(take_map(ebpf, names::FLOW_SHARES)?),
            reserved: Mutex::new(take_map(ebpf, names::RESERVED_PORTS)?),
        })
    }
}

impl FlowTable for Flows {
    fn capacity(&self) -> u32 {
        self.max_entries / 2
    }

    fn range(&self) -> u32 {
        // The kernel's `htab_map_alloc` rounds the number of buckets up to a power of two.
        self.max_entries.checked_next_power_of_two().unwrap_or(u32::MAX)
    }

    fn slice(&self, from: Cursor, most: u32) -> Result<Slice, DatapathError> {
        let part = batch::read_some(self.fd.fd().as_fd(), from.0, most, self.max_entries);
        let part = part.map_err(|io_error| {
            let call = "bpf_map_lookup_batch";
            failed(names::FLOWS, SyscallError { call, io_error }.into())
        })?;
        Ok(Slice { entries: part.entries, next: part.next.map(Cursor) })
    }

    fn lookup(&self, key: &FlowKey) -> Result<Option<Flow>, DatapathError> {
        match lock(&self.flows).get(&Bytes(*key), 0) {
            Ok(Bytes(flow)) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed(names::FLOWS, source)),
        }
    }

    fn remove(&self, key: &FlowKey) -> Result<(), DatapathError> {
        let removed = if_there(lock(&self.flows).remove(&Bytes(*key)));
        removed.map_err(|source| failed(names::FLOWS, source))
    }

    fn replace(&self, key: &FlowKey, flow: &Flow) -> Result<(), DatapathError> {
        let flow = Bytes(flow.sealed(key));
        let replaced = if_there(lock(&self.flows).insert(Bytes(*key), flow, BPF_EXIST));
        replaced.map_err(|source| failed(names::FLOWS, source))
    }

    fn shares(&self) -> Result<BTreeMap<u32, FlowShare>, DatapathError> {
        let shares = lock(&self.shares);
        let mut read = BTreeMap::new();
        for item in shares.iter() {
            match item {
                Ok((owner, Bytes(share))) => {
                    read.insert(owner, share);
                }
                // It was removed between two system calls.
                Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(failed(names::FLOW_SHARES, source)),
            }
        }
        Ok(read)
    }

    fn share(&self, owner: u32) -> Result<Option<FlowShare>, DatapathError> {
        match lock(&self.shares).get(&owner, 0) {
            Ok(Bytes(share)) => Ok(Some(share)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed(names::FLOW_SHARES, source)),
        }
    }

    fn set_share(&self, owner: u32, share: Option<FlowShare>) -> Result<(), DatapathError> {
        let mut shares = lock(&self.shares);
        let written = match share {
            Some(share) => shares.insert(owner, Bytes(share), 0),
            None => if_there(shares.remove(&owner)),
        };
        written.map_err(|source| failed(names::FLOW_SHARES, source))
    }

    fn reserved(&self) -> Result<Vec<u64>, DatapathError> {
        let words = lock(&self.reserved);
        let words = words.iter().collect::<Result<_, _>>();
        words.map_err(|source| failed(names::RESERVED_PORTS, source))
    }

    fn reserve(&self, word: u32, bits: u64) -> Result<(), DatapathError> {
        let mut words = lock(&self.reserved);
        words.set(word, bits, 0).map_err(|source| failed(names::RESERVED_PORTS, source))
    }
}

/// Locks a map. A thread that panicked with the lock held left a usable file descriptor.
fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `BPF_EXIST` of the kernel's `linux/bpf.h`.
const BPF_EXIST: u64 = 2;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use culvert_common::abi::{RESERVED_ENTRIES, Tuple};

    use super::*;
    use crate::datapath::{Options, load_object};

    /// The maps with room for `max_flows`.
    fn kernel(max_flows: u32) -> (Ebpf, Flows) {
        let options = Options { max_flows, ..Options::of_a_test() };
        let mut ebpf = load_object(&options, None).unwrap();
        let flows = Flows::take(&mut ebpf).unwrap();
        (ebpf, flows)
    }

    /// All entries of `table`, in no order.
    fn all(table: &dyn FlowTable) -> Result<Vec<(FlowKey, Flow)>, DatapathError> {
        const SLICE: u32 = 16_384;
        let (mut entries, mut from) = (Vec::new(), Some(Cursor::default()));
        while let Some(cursor) = from {
            let slice = table.slice(cursor, SLICE)?;
            entries.extend(slice.entries);
            from = slice.next;
        }
        Ok(entries)
    }

    fn key(number: u32) -> FlowKey {
        FlowKey::new(256, 17, Tuple { src: number.to_be_bytes(), ..Tuple::default() })
    }

    fn fill(flows: &Flows, numbers: u32) {
        for number in 0..numbers {
            let flow = Flow { packets: number.into(), ..Flow::default() };
            lock(&flows.flows).insert(Bytes(key(number)), Bytes(flow), 0).unwrap();
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn slices_have_every_entry_once_and_are_bounded() {
        let (_ebpf, flows) = kernel(1000);
        assert_eq!((flows.capacity(), flows.range()), (1000, 2048));
        assert!(all(&flows).unwrap().is_empty());
        fill(&flows, 1500);
        for most in [1, 7, 100, 1499, 1500, 5000] {
            let (mut seen, mut from) = (BTreeSet::new(), Some(Cursor::default()));
            while let Some(cursor) = from {
                let slice = flows.slice(cursor, most).unwrap();
                // A slice has whole buckets. With 1500 entries in 2048 buckets none has over 16.
                assert!(slice.entries.len() <= most.max(16) as usize);
                for (key, flow) in slice.entries {
                    assert_eq!(u64::from(u32::from_be_bytes(key.tuple.src)), flow.packets);
                    assert!(seen.insert(key), "seen twice");
                }
                assert!(slice.next.is_none_or(|next| next > cursor && next.0 < flows.range()));
                from = slice.next;
            }
            assert_eq!(seen.len(), 1500, "in slices of {most}");
        }
        assert_eq!(all(&flows).unwrap().len(), 1500);
    }

    #[test]
    #[ignore = "needs root"]
    fn what_is_removed_meanwhile_does_not_turn_a_walk_back() {
        let (_ebpf, flows) = kernel(1000);
        fill(&flows, 1500);
        let (mut seen, mut from) = (0, Some(Cursor::default()));
        while let Some(cursor) = from {
            let slice = flows.slice(cursor, 64).unwrap();
            for (key, _) in slice.entries {
                flows.remove(&key).unwrap();
                flows.remove(&key).unwrap();
                assert!(flows.lookup(&key).unwrap().is_none());
                seen += 1;
            }
            from = slice.next;
        }
        assert_eq!(seen, 1500);
        assert!(all(&flows).unwrap().is_empty());
    }

    #[test]
    #[ignore = "needs root"]
    fn an_entry_is_replaced_and_none_is_made() {
        let (_ebpf, flows) = kernel(64);
        fill(&flows, 1);
        let flow = Flow { packets: 7, ..Flow::default() };
        flows.replace(&key(0), &flow).unwrap();
        flows.replace(&key(1), &flow).unwrap();
        assert_eq!(flows.lookup(&key(0)).unwrap(), Some(flow.sealed(&key(0))));
        assert_eq!(flows.lookup(&key(1)).unwrap(), None);
    }

    #[test]
    #[ignore = "needs root"]
    fn reserved_words_are_written_one_by_one() {
        let (_ebpf, flows) = kernel(64);
        flows.reserve(0, 5).unwrap();
        flows.reserve(RESERVED_ENTRIES - 1, 7).unwrap();
        let words = flows.reserved().unwrap();
        assert_eq!(words.len(), RESERVED_ENTRIES as usize);
        assert_eq!((words[0], words[1], words[words.len() - 1]), (5, 0, 7));
        assert!(flows.reserve(RESERVED_ENTRIES, 1).is_err());
    }
}
