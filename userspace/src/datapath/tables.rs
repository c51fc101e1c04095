//! The maps as typed tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    sys::SyscallError,
};
use culvert_common::abi::{
    EndpointInfo, Flow, FlowKey, HeardEntry, MappedAddr, NeighKey, NetworkInfo, PublishedEntry,
    PublishedKey, SourceKey, UplinkInfo, names,
};

use super::{
    DatapathError, batch,
    epoch::Epoch,
    layout::{
        Fdb, FdbLearned, FloodRemote, MapLayout, Neighbours, Number, PathHints, PathMtus, Plain,
        Underlay, Vteps, WithSeal,
    },
    prefixes::PrefixTable,
    raw::{Bytes, failed, if_there, second_handle, take_map},
    table::Table,
    vtep_ids::VtepIds,
};

/// Most entries that are written in one system call.
const BATCH: usize = 4096;

/// aya's map, with the raw keys and values of a [`MapLayout`].
type RawMap<L> =
    HashMap<MapData, Bytes<<L as MapLayout>::RawKey>, Bytes<<L as MapLayout>::RawValue>>;

/// Key and value in the agent.
type Entry<L> = (<L as MapLayout>::Key, <L as MapLayout>::Value);

/// A BPF hash map whose entries a [`MapLayout`] converts.
pub struct KernelTable<L: MapLayout> {
    name: &'static str,
    map: Mutex<RawMap<L>>,
    /// A second handle of the map: aya's map type does not lend its file descriptor.
    fd: MapData,
    ids: Arc<VtepIds>,
    /// Advanced after a change, if the flow cache depends on the map.
    epoch: Option<Arc<Epoch>>,
}

impl<L: MapLayout> fmt::Debug for KernelTable<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KernelTable").field(&self.name).finish()
    }
}

impl<L: MapLayout> KernelTable<L> {
    /// Takes the map out of the loaded object.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        name: &'static str,
        ids: &Arc<VtepIds>,
    ) -> Result<Self, DatapathError> {
        let fd = second_handle(ebpf, name)?;
        let map = Mutex::new(take_map(ebpf, name)?);
        Ok(Self { name, map, fd, ids: Arc::clone(ids), epoch: None })
    }

    /// Takes a map that the flow cache or the route cache depends on out of the loaded object.
    fn take_cached(
        ebpf: &mut Ebpf,
        name: &'static str,
        ids: &Arc<VtepIds>,
        epoch: &Arc<Epoch>,
    ) -> Result<Self, DatapathError> {
        let table = Self::take(ebpf, name, ids)?;
        Ok(Self { epoch: Some(Arc::clone(epoch)), ..table })
    }

    /// Writes a prefix of the entries, in order, whether or not their keys exist. Returns how
    /// many were written, and the error that stopped it.
    pub(crate) fn insert_all(
        &self,
        entries: &[(L::Key, L::Value)],
    ) -> (usize, Option<DatapathError>) {
        let mut written = 0;
        for part in entries.chunks(BATCH) {
            let raw: Result<Vec<_>, _> =
                part.iter().map(|(key, value)| self.raw(key, value)).collect();
            let raw = match raw {
                Ok(raw) => raw,
                Err(error) => return (written, Some(error)),
            };
            let (count, outcome) = batch::update(self.fd.fd().as_fd(), &raw);
            self.changed();
            written += count;
            if let Err(io_error) = outcome {
                let call = "bpf_map_update_batch";
                let source = SyscallError { call, io_error }.into();
                return (written, Some(self.failed(source)));
            }
        }
        (written, None)
    }

    /// The raw key and value of an entry.
    fn raw(
        &self,
        key: &L::Key,
        value: &L::Value,
    ) -> Result<(L::RawKey, L::RawValue), DatapathError> {
        let raw_key = L::key(&self.ids, key)?;
        let raw_value = L::value(&self.ids, &raw_key, value)?;
        Ok((raw_key, raw_value))
    }

    /// Writes an entry. It is an error if the key exists.
    pub(super) fn insert_new(&self, key: &L::Key, value: &L::Value) -> Result<(), DatapathError> {
        const BPF_NOEXIST: u64 = 1;
        let (key, value) = self.raw(key, value)?;
        let inserted = self.lock().insert(Bytes(key), Bytes(value), BPF_NOEXIST);
        self.changed();
        match inserted {
            Ok(()) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            Err(source) => Err(self.failed(source)),
        }
    }

    fn changed(&self) {
        if let Some(epoch) = &self.epoch {
            epoch.advance();
        }
    }

    /// All entries, in no order.
    pub(super) fn entries(&self) -> Result<Vec<Entry<L>>, DatapathError> {
        let info = self.fd.info().map_err(|source| self.failed(source))?;
        let raw = batch::all::<L::RawKey, L::RawValue>(self.fd.fd().as_fd(), info.max_entries());
        let raw = raw.map_err(|io_error| {
            let call = "bpf_map_lookup_batch";
            self.failed(SyscallError { call, io_error }.into())
        })?;
        Ok(raw.iter().map(|(key, value)| L::entry(&self.ids, key, value)).collect())
    }

    fn lock(&self) -> MutexGuard<'_, RawMap<L>> {
        // A thread that panicked with the lock held left a usable file descriptor.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, source: MapError) -> DatapathError {
        failed(self.name, source)
    }

    /// Removes an entry. It is no error if there is none.
    pub(super) fn remove(&self, key: &L::Key) -> Result<(), DatapathError> {
        let raw_key = L::key(&self.ids, key)?;
        let removed = self.lock().remove(&Bytes(raw_key));
        self.changed();
        if_there(removed).map_err(|source| self.failed(source))
    }
}

impl<L: MapLayout> Table<L::Key, L::Value> for KernelTable<L> {
    fn dump(&self) -> Result<BTreeMap<L::Key, L::Value>, DatapathError> {
        Ok(self.entries()?.into_iter().collect())
    }

    fn insert(&self, key: &L::Key, value: &L::Value) -> Result<(), DatapathError> {
        let (key, value) = self.raw(key, value)?;
        let inserted = self.lock().insert(Bytes(key), Bytes(value), 0);
        self.changed();
        inserted.map_err(|source| self.failed(source))
    }

    fn remove(&self, key: &L::Key) -> Result<(), DatapathError> {
        Self::remove(self, key)
    }
}

/// The maps that the agent reads and writes.
#[derive(Debug)]
pub struct KernelTables {
    /// Interface index of a host side → endpoint.
    pub endpoints: KernelTable<WithSeal<u32, EndpointInfo>>,
    /// VNI → network.
    pub networks: KernelTable<WithSeal<u32, NetworkInfo>>,
    /// (VNI, MAC) → local interface or VTEP.
    pub fdb: KernelTable<Fdb>,
    /// (VNI, MAC) → local interface or VTEP, learned by the programs.
    pub learned: KernelTable<FdbLearned>,
    /// (VNI, IP) → MAC.
    pub neighbours: KernelTable<Neighbours>,
    /// (VNI, IP) → MAC, learned from ARP by the programs.
    pub heard: KernelTable<WithSeal<NeighKey, HeardEntry>>,
    /// Set of (VNI, VTEP): the VTEPs that may send frames of a VNI.
    pub vteps: KernelTable<Vteps>,
    /// VTEP address → path.
    pub underlay: KernelTable<Underlay>,
    /// VTEP address → MTU of the path, smaller than the route's.
    pub path_mtu: KernelTable<PathMtus>,
    /// VTEP address → largest inner L3 packet in bytes, as an ICMP error says that may be forged.
    pub path_hints: KernelTable<PathHints>,
    /// Flood list slot → interface index of a host side.
    pub flood_local: KernelTable<Number<culvert_common::abi::FloodKey>>,
    /// Flood list slot → VTEP address.
    pub flood_remote: KernelTable<FloodRemote>,
    /// Interface index of a gateway device → VNI.
    pub gateways: KernelTable<Number<u32>>,
    /// Published port → container.
    pub published: KernelTable<WithSeal<PublishedKey, PublishedEntry>>,
    /// Destinations to which containers begin no flow → the reason.
    pub blocked: KernelTable<Number<PublishedKey>>,
    /// The host's own addresses.
    pub host_addrs: KernelTable<Plain<MappedAddr, u32>>,
    /// Interface index of an uplink → MTU and link header.
    pub uplinks: KernelTable<Plain<u32, UplinkInfo>>,
    /// Set of the interface indices of the client links.
    pub client_links: KernelTable<Plain<u32, u32>>,
    /// Conntrack.
    pub flows: KernelTable<Plain<FlowKey, Flow>>,
    /// Clients of restricted ports → VNI of the container's network.
    pub sources: PrefixTable<SourceKey>,
    /// Set of the clients that may not use published ports.
    pub denied: PrefixTable<MappedAddr>,
    /// Set of the addresses of services.
    pub services: PrefixTable<[u8; 4]>,
    ids: Arc<VtepIds>,
}

impl KernelTables {
    /// Takes the maps out of a loaded object of a host with the VTEP address `own`.
    ///
    /// # Errors
    ///
    /// If the object lacks one, or it has another shape.
    pub fn take(ebpf: &mut Ebpf, own: Ipv4Addr) -> Result<Self, DatapathError> {
        let epoch = Arc::new(Epoch::take(ebpf)?);
        // The maps may have changed before this agent started: no flow cache entry from then is
        // valid.
        epoch.advance();
        let ids = Arc::new(VtepIds::take(ebpf, own, Arc::clone(&epoch))?);
        let tables = Self {
            endpoints: KernelTable::take_cached(ebpf, names::ENDPOINTS, &ids, &epoch)?,
            networks: KernelTable::take_cached(ebpf, names::NETWORKS, &ids, &epoch)?,
            fdb: KernelTable::take_cached(ebpf, names::FDB, &ids, &epoch)?,
            learned: KernelTable::take(ebpf, names::FDB_LEARNED, &ids)?,
            neighbours: KernelTable::take_cached(ebpf, names::NEIGHBOURS, &ids, &epoch)?,
            heard: KernelTable::take(ebpf, names::NEIGHBOURS_HEARD, &ids)?,
            vteps: KernelTable::take_cached(ebpf, names::VTEPS, &ids, &epoch)?,
            underlay: KernelTable::take_cached(ebpf, names::UNDERLAY, &ids, &epoch)?,
            path_mtu: KernelTable::take_cached(ebpf, names::PATH_MTU, &ids, &epoch)?,
            path_hints: KernelTable::take(ebpf, names::PATH_HINTS, &ids)?,
            flood_local: KernelTable::take(ebpf, names::FLOOD_LOCAL, &ids)?,
            flood_remote: KernelTable::take(ebpf, names::FLOOD_REMOTE, &ids)?,
            gateways: KernelTable::take_cached(ebpf, names::GATEWAYS, &ids, &epoch)?,
            published: KernelTable::take(ebpf, names::PUBLISHED, &ids)?,
            blocked: KernelTable::take(ebpf, names::BLOCKED, &ids)?,
            host_addrs: KernelTable::take_cached(ebpf, names::HOST_ADDRS, &ids, &epoch)?,
            uplinks: KernelTable::take_cached(ebpf, names::UPLINKS, &ids, &epoch)?,
            client_links: KernelTable::take_cached(ebpf, names::CLIENT_LINKS, &ids, &epoch)?,
            flows: KernelTable::take(ebpf, names::FLOWS, &ids)?,
            sources: PrefixTable::take(ebpf, names::SOURCES)?,
            denied: PrefixTable::take(ebpf, names::DENIED)?,
            services: PrefixTable::take(ebpf, names::SERVICES)?,
            ids,
        };
        tables.forget_unused_vteps()?;
        Ok(tables)
    }

    /// The numbers of the VTEPs.
    pub fn vtep_ids(&self) -> &VtepIds {
        &self.ids
    }

    /// Removes the numbers of VTEPs that no map entry refers to.
    fn forget_unused_vteps(&self) -> Result<(), DatapathError> {
        let mut used: BTreeSet<[u8; 4]> = BTreeSet::new();
        used.extend(self.vteps.entries()?.iter().map(|(key, _)| key.ip));
        used.extend(self.underlay.entries()?.iter().map(|(ip, _)| *ip));
        used.extend(self.flood_remote.entries()?.iter().map(|(_, ip)| *ip));
        used.extend(self.learned.entries()?.iter().map(|(_, entry)| entry.vtep));
        used.extend(self.fdb.entries()?.iter().map(|(_, entry)| entry.vtep));
        self.ids.retain(|address| used.contains(&address))
    }
}
