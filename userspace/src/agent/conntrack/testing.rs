//! A table of flows in memory. Like the kernel's map, the table is read slice by slice.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Mutex,
};

use culvert_common::abi::{Flow, FlowKey, FlowShare, RESERVED_ENTRIES, Tuple, kind, seen, zone};

use crate::datapath::{
    DatapathError,
    flows::{Cursor, FlowTable, Slice},
};

/// One second, in ns.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A table of flows in memory.
pub(crate) struct MemoryFlows {
    pub(crate) state: Mutex<State>,
    capacity: u32,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) flows: BTreeMap<FlowKey, Flow>,
    /// Entries of each slice that was read.
    pub(crate) slices: Vec<Vec<FlowKey>>,
    pub(crate) shares: BTreeMap<u32, FlowShare>,
    pub(crate) reserved: BTreeMap<u32, u64>,
    pub(crate) writes: usize,
    /// Whether reads of a slice fail.
    pub(crate) unreadable: bool,
}

impl MemoryFlows {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { state: Mutex::default(), capacity }
    }

    pub(crate) fn put(&self, flow: impl IntoIterator<Item = (FlowKey, Flow)>) {
        self.state.lock().unwrap().flows.extend(flow);
    }

    fn bucket(&self, key: &FlowKey) -> u32 {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        (hasher.finish() % u64::from(self.range())) as u32
    }
}

impl FlowTable for MemoryFlows {
    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn range(&self) -> u32 {
        (2 * self.capacity).next_power_of_two()
    }

    fn slice(&self, from: Cursor, most: u32) -> Result<Slice, DatapathError> {
        let mut state = self.state.lock().unwrap();
        if state.unreadable {
            return Err(DatapathError::Io {
                path: "/paper/flows".into(),
                what: "read",
                source: std::io::Error::other("broken"),
            });
        }
        let mut buckets: BTreeMap<u32, Vec<(FlowKey, Flow)>> = BTreeMap::new();
        for (key, flow) in &state.flows {
            buckets.entry(self.bucket(key)).or_default().push((*key, *flow));
        }
        let mut slice = Slice::default();
        for (bucket, entries) in buckets.range(from.0..) {
            let full = slice.entries.len() + entries.len() > most as usize;
            if full && !slice.entries.is_empty() {
                slice.next = Some(Cursor(*bucket));
                break;
            }
            slice.entries.extend(entries);
        }
        state.slices.push(slice.entries.iter().map(|(key, _)| *key).collect());
        Ok(slice)
    }

    fn lookup(&self, key: &FlowKey) -> Result<Option<Flow>, DatapathError> {
        Ok(self.state.lock().unwrap().flows.get(key).copied())
    }

    fn remove(&self, key: &FlowKey) -> Result<(), DatapathError> {
        self.state.lock().unwrap().flows.remove(key);
        Ok(())
    }

    fn replace(&self, key: &FlowKey, flow: &Flow) -> Result<(), DatapathError> {
        if let Some(entry) = self.state.lock().unwrap().flows.get_mut(key) {
            *entry = *flow;
        }
        Ok(())
    }

    fn shares(&self) -> Result<BTreeMap<u32, FlowShare>, DatapathError> {
        Ok(self.state.lock().unwrap().shares.clone())
    }

    fn share(&self, owner: u32) -> Result<Option<FlowShare>, DatapathError> {
        Ok(self.state.lock().unwrap().shares.get(&owner).copied())
    }

    fn set_share(&self, owner: u32, share: Option<FlowShare>) -> Result<(), DatapathError> {
        let shares = &mut self.state.lock().unwrap().shares;
        match share {
            Some(share) => shares.insert(owner, share),
            None => shares.remove(&owner),
        };
        Ok(())
    }

    fn reserved(&self) -> Result<Vec<u64>, DatapathError> {
        let state = self.state.lock().unwrap();
        let word = |word| state.reserved.get(&word).copied().unwrap_or_default();
        Ok((0..RESERVED_ENTRIES).map(word).collect())
    }

    fn reserve(&self, word: u32, bits: u64) -> Result<(), DatapathError> {
        assert!(word < RESERVED_ENTRIES);
        let mut state = self.state.lock().unwrap();
        state.reserved.insert(word, bits);
        state.writes += 1;
        Ok(())
    }
}

/// Both directions of an answered UDP flow that the container 10.0.0.2 in VNI 256 began.
/// Each `number` gives another address or port. The time of the last packet is `last_ns`, in ns.
pub(crate) fn masqueraded(number: u32, last_ns: u64) -> [(FlowKey, Flow); 2] {
    let [.., high, low] = number.to_be_bytes();
    let to = [192, 0, 2, (number >> 16) as u8];
    let tuple = |src, dst| Tuple { src, dst, src_port: [high, low], dst_port: [0, 53] };
    let key = FlowKey::new(256, 17, tuple([10, 0, 0, 2], to));
    let orig = Flow {
        last_seen_ns: last_ns,
        packets: 2,
        bytes: 200,
        to: tuple([198, 51, 100, 1], to),
        zone: zone::EXTERNAL,
        kind: kind::ORIG | kind::MASQUERADE,
        seen: seen::PACKET,
        from_incarnation: 1,
        ..Flow::default()
    };
    let reply = Flow {
        last_seen_ns: last_ns,
        packets: 1,
        bytes: 100,
        to: key.tuple.reversed(),
        zone: key.zone,
        kind: kind::MASQUERADE,
        seen: seen::PACKET,
        to_incarnation: 1,
        ..Flow::default()
    };
    [(key, orig), (key.other(&orig), reply)]
}
