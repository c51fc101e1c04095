//! The maps of the loaded programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::datapath::entry::{FdbEntry, LearnedEntry, NeighEntry, PathMtu, UnderlayPath};
use culvert_common::abi::{
    Code, Counter, Direction, EndpointInfo, FdbKey, HeardEntry, MappedAddr, NeighKey,
    PublishedEntry, PublishedKey,
};
use ipnetwork::Ipv4Network;

use super::Host;
use crate::{
    agent::platform::{Audit, Maps},
    datapath::{self, DatapathError, FlowTable, Prefix, Table as _},
    reconcile::{Kernel, Op, Tables},
};

impl Kernel for Host {
    type Error = DatapathError;

    fn dump(&self) -> Result<Tables, DatapathError> {
        self.datapath.dump()
    }

    fn apply(&self, op: &Op) -> Result<(), DatapathError> {
        self.datapath.apply(op)
    }

    fn put_all(&self, ops: &[Op]) -> (usize, Option<DatapathError>) {
        self.datapath.put_all(ops)
    }
}

impl Maps for Host {
    fn audit(&self) -> Audit {
        let mut audit = Audit::default();
        // Without the lock of a purge, for which the engine would wait: the maps that this process
        // holds outlive their pins.
        let tables = self.datapath.tables();
        let numbers = tables.vtep_ids().restore(&mut audit.found);
        let mut errors = self.kept.restore(tables, &mut audit.found);
        errors.extend(numbers.err());
        audit.problems = errors.iter().map(ToString::to_string).collect();
        audit
    }

    fn fdb(&self) -> Result<BTreeMap<FdbKey, FdbEntry>, DatapathError> {
        self.datapath.tables().fdb.dump()
    }

    fn learned(&self) -> Result<Vec<(FdbKey, LearnedEntry)>, DatapathError> {
        self.datapath.learned()
    }

    fn now_ns(&self) -> u64 {
        datapath::now_ns()
    }

    fn ageing(&self) -> Duration {
        self.ageing
    }

    fn forget(&self, key: &FdbKey) -> Result<(), DatapathError> {
        self.datapath.forget(key)
    }

    fn neighbours(&self) -> Result<BTreeMap<NeighKey, NeighEntry>, DatapathError> {
        self.datapath.tables().neighbours.dump()
    }

    fn heard(&self) -> Result<Vec<(NeighKey, HeardEntry)>, DatapathError> {
        self.datapath.heard()
    }

    fn underlay(&self) -> Result<BTreeMap<[u8; 4], UnderlayPath>, DatapathError> {
        self.datapath.tables().underlay.dump()
    }

    fn take_path_hints(&self) -> Result<BTreeMap<[u8; 4], u32>, DatapathError> {
        let table = &self.datapath.tables().path_hints;
        let hints = table.dump()?;
        for vtep in hints.keys() {
            table.remove(vtep)?;
        }
        Ok(hints)
    }

    fn path_mtus(&self) -> Result<BTreeMap<[u8; 4], PathMtu>, DatapathError> {
        self.datapath.tables().path_mtu.dump()
    }

    fn set_path_mtus(&self, entries: &[([u8; 4], PathMtu)]) -> Result<(), DatapathError> {
        self.datapath.tables().path_mtu.insert_all(entries).1.map_or(Ok(()), Err)
    }

    fn forget_path_mtu(&self, vtep: [u8; 4]) -> Result<(), DatapathError> {
        self.datapath.tables().path_mtu.remove(&vtep)
    }

    fn flows(&self) -> &dyn FlowTable {
        self.datapath.flows()
    }

    fn endpoints(&self) -> Result<BTreeMap<u32, EndpointInfo>, DatapathError> {
        self.datapath.tables().endpoints.dump()
    }

    fn host_addresses(&self) -> Result<BTreeSet<MappedAddr>, DatapathError> {
        Ok(self.datapath.tables().host_addrs.dump()?.into_keys().collect())
    }

    fn published(&self) -> Result<BTreeMap<PublishedKey, PublishedEntry>, DatapathError> {
        self.datapath.tables().published.dump()
    }

    fn deny(&self, source: Ipv4Network) -> Result<(), DatapathError> {
        let table = &self.datapath.tables().denied;
        self.kept.denied.set(table, Prefix::of_v4(source), Some(0))
    }

    fn allow(&self, source: Ipv4Network) -> Result<(), DatapathError> {
        self.kept.denied.set(&self.datapath.tables().denied, Prefix::of_v4(source), None)
    }

    fn packets(&self, code: Code) -> Result<u64, DatapathError> {
        self.datapath.packets(code)
    }

    fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError> {
        self.datapath.stats()
    }
}
