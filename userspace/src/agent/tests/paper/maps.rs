//! Maps of a simulated host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use culvert_common::abi::{
    Code, Counter, Direction, EndpointInfo, FdbKey, HeardEntry, MappedAddr, NeighKey,
    PublishedEntry, PublishedKey,
};
use ipnetwork::Ipv4Network;

use super::{Paper, full};
use crate::{
    agent::platform::{Audit, Maps},
    datapath::{
        DatapathError, FlowTable,
        entry::{FdbEntry, LearnedEntry, NeighEntry, PathMtu, UnderlayPath},
    },
};

impl Maps for Paper {
    fn audit(&self) -> Audit {
        Audit { found: std::mem::take(&mut self.state().found), problems: Vec::new() }
    }

    fn fdb(&self) -> Result<BTreeMap<FdbKey, FdbEntry>, DatapathError> {
        self.state().shown += 1;
        Ok(self.read()?.fdb)
    }

    fn learned(&self) -> Result<Vec<(FdbKey, LearnedEntry)>, DatapathError> {
        Ok(self.state().learned.iter().map(|(key, entry)| (*key, *entry)).collect())
    }

    fn now_ns(&self) -> u64 {
        1_000_000_000_000
    }

    fn ageing(&self) -> Duration {
        Duration::from_secs(300)
    }

    fn forget(&self, key: &FdbKey) -> Result<(), DatapathError> {
        self.state().learned.remove(key);
        Ok(())
    }

    fn neighbours(&self) -> Result<BTreeMap<NeighKey, NeighEntry>, DatapathError> {
        self.state().shown += 1;
        Ok(self.read()?.neighbours)
    }

    fn heard(&self) -> Result<Vec<(NeighKey, HeardEntry)>, DatapathError> {
        Ok(self.state().heard.iter().map(|(key, entry)| (*key, *entry)).collect())
    }

    fn underlay(&self) -> Result<BTreeMap<[u8; 4], UnderlayPath>, DatapathError> {
        Ok(self.read()?.underlay)
    }

    fn take_path_hints(&self) -> Result<BTreeMap<[u8; 4], u32>, DatapathError> {
        Ok(std::mem::take(&mut self.state().path_hints))
    }

    fn path_mtus(&self) -> Result<BTreeMap<[u8; 4], PathMtu>, DatapathError> {
        Ok(self.state().path_mtus.clone())
    }

    fn set_path_mtus(&self, entries: &[([u8; 4], PathMtu)]) -> Result<(), DatapathError> {
        let mut state = self.state();
        if state.full {
            return Err(full());
        }
        state.path_mtu_writes += usize::from(!entries.is_empty());
        state.path_mtus.extend(entries.iter().copied());
        Ok(())
    }

    fn forget_path_mtu(&self, vtep: [u8; 4]) -> Result<(), DatapathError> {
        self.state().path_mtus.remove(&vtep);
        Ok(())
    }

    fn flows(&self) -> &dyn FlowTable {
        &self.flows
    }

    fn endpoints(&self) -> Result<BTreeMap<u32, EndpointInfo>, DatapathError> {
        Ok(self.read()?.endpoints)
    }

    fn host_addresses(&self) -> Result<BTreeSet<MappedAddr>, DatapathError> {
        let v4 = |ip: Ipv4Addr| MappedAddr::v4(ip.octets());
        // The flows of the tests are masqueraded as this one.
        let masquerade = Ipv4Addr::new(198, 51, 100, 1);
        Ok(self.state().facts.ips.iter().copied().chain([masquerade]).map(v4).collect())
    }

    fn published(&self) -> Result<BTreeMap<PublishedKey, PublishedEntry>, DatapathError> {
        Ok(self.read()?.published)
    }

    fn deny(&self, source: Ipv4Network) -> Result<(), DatapathError> {
        let mut state = self.state();
        if state.deny_nobody {
            return Err(full());
        }
        state.denied.insert(source);
        Ok(())
    }

    fn allow(&self, source: Ipv4Network) -> Result<(), DatapathError> {
        self.state().denied.remove(&source);
        Ok(())
    }

    fn packets(&self, code: Code) -> Result<u64, DatapathError> {
        let Code::Drop(reason) = code else { return Ok(0) };
        Ok(self.state().dropped.get(&reason).copied().unwrap_or_default())
    }

    fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError> {
        Ok(Vec::new())
    }
}
