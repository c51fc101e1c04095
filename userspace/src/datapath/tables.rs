//! Maps as typed tables.

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
    sys::SyscallError,
};
use bytemuck::Pod;
use culvert_common::abi::{
    EndpointInfo, FdbEntry, FdbKey, FloodKey, Flow, FlowKey, NeighEntry, NeighKey, NetworkInfo,
    PublishedEntry, PublishedKey, UnderlayPath, VtepInfo, VtepKey, names,
};

use super::{DatapathError, batch, generation::Generation};

/// Lets aya move any [`bytemuck::Pod`] in and out of a map.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Bytes<T>(pub(super) T);

// SAFETY: `repr(transparent)` over a type without padding and without invalid
// bit patterns, which is what `bytemuck::Pod` asserts.
unsafe impl<T: Pod> aya::Pod for Bytes<T> {}

/// A table of the data plane: a BPF map, or a stand-in for it in a test.
pub trait Table<K, V>: Send + Sync {
    /// All entries.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    fn dump(&self) -> Result<BTreeMap<K, V>, DatapathError>;

    /// Writes an entry, whether or not there is one.
    ///
    /// # Errors
    ///
    /// If the map is full or cannot be written.
    fn insert(&self, key: &K, value: &V) -> Result<(), DatapathError>;

    /// Removes an entry. It is no error if there is none.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    fn remove(&self, key: &K) -> Result<(), DatapathError>;
}

/// Entries that are written in one system call.
const BATCH: usize = 4096;

/// A BPF hash map.
pub struct KernelTable<K, V> {
    name: &'static str,
    map: Mutex<HashMap<MapData, Bytes<K>, Bytes<V>>>,
    /// The same map: aya's type does not lend the file descriptor.
    fd: MapData,
    /// To be raised after a change, if the programs remember what follows from the map.
    generation: Option<Arc<Generation>>,
}

impl<K, V> fmt::Debug for KernelTable<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KernelTable").field(&self.name).finish()
    }
}

impl<K: Pod, V: Pod> KernelTable<K, V> {
    /// Takes the map out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::Map { map: name, source: Box::new(source) };
        let fd = match ebpf.map(name) {
            Some(Map::HashMap(data) | Map::LruHashMap(data)) => {
                let fd = data.fd().as_fd().try_clone_to_owned();
                MapData::from_fd(fd.map_err(|error| failed(error.into()))?).map_err(failed)?
            }
            _ => return Err(failed(MapError::InvalidName { name: name.to_owned() })),
        };
        Ok(Self { name, map: Mutex::new(take_map(ebpf, name)?), fd, generation: None })
    }

    /// Writes entries, in order, whether or not they are there. Returns how many were
    /// written, and what kept it from the next one.
    pub(crate) fn insert_all(&self, entries: &[(K, V)]) -> (usize, Option<DatapathError>) {
        let mut written = 0;
        for part in entries.chunks(BATCH) {
            let (count, outcome) = batch::update(self.fd.fd().as_fd(), part);
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

    /// The same of a map from which the programs remember what follows.
    fn take_remembered(
        ebpf: &mut Ebpf,
        name: &'static str,
        generation: &Arc<Generation>,
    ) -> Result<Self, DatapathError> {
        let table = Self::take(ebpf, name)?;
        Ok(Self { generation: Some(Arc::clone(generation)), ..table })
    }

    fn changed(&self) {
        if let Some(generation) = &self.generation {
            generation.raise();
        }
    }

    /// All entries, in no order.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let info = self.fd.info().map_err(|source| self.failed(source))?;
        batch::all(self.fd.fd().as_fd(), info.max_entries()).map_err(|io_error| {
            let call = "bpf_map_lookup_batch";
            self.failed(SyscallError { call, io_error }.into())
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MapData, Bytes<K>, Bytes<V>>> {
        // A panic elsewhere leaves the file descriptor as usable as before.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, source: MapError) -> DatapathError {
        DatapathError::Map { map: self.name, source: Box::new(source) }
    }

    /// Removes an entry. It is no error if there is none.
    pub(super) fn remove(&self, key: &K) -> Result<(), DatapathError> {
        let removed = self.lock().remove(&Bytes(*key));
        self.changed();
        match removed {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(source) => Err(self.failed(source)),
        }
    }
}

impl<K: Pod + Ord + Send, V: Pod + Send> Table<K, V> for KernelTable<K, V> {
    fn dump(&self) -> Result<BTreeMap<K, V>, DatapathError> {
        Ok(self.entries()?.into_iter().collect())
    }

    fn insert(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        let inserted = self.lock().insert(Bytes(*key), Bytes(*value), 0);
        self.changed();
        inserted.map_err(|source| self.failed(source))
    }

    fn remove(&self, key: &K) -> Result<(), DatapathError> {
        Self::remove(self, key)
    }
}

/// The maps that the agent reads and writes.
#[derive(Debug)]
pub struct Tables {
    /// Host-side interface index → endpoint.
    pub endpoints: KernelTable<u32, EndpointInfo>,
    /// VNI → network.
    pub networks: KernelTable<u32, NetworkInfo>,
    /// (VNI, MAC) → local port or VTEP.
    pub fdb: KernelTable<FdbKey, FdbEntry>,
    /// (VNI, IP) → MAC.
    pub neighbours: KernelTable<NeighKey, NeighEntry>,
    /// Who may send frames of a VNI.
    pub vteps: KernelTable<VtepKey, VtepInfo>,
    /// VTEP address → how to reach it.
    pub underlay: KernelTable<[u8; 4], UnderlayPath>,
    /// Flood list slot → host-side interface index.
    pub flood_local: KernelTable<FloodKey, u32>,
    /// Flood list slot → VTEP address.
    pub flood_remote: KernelTable<FloodKey, [u8; 4]>,
    /// Index of a gateway device → VNI.
    pub gateways: KernelTable<u32, u32>,
    /// Published port → container.
    pub published: KernelTable<PublishedKey, PublishedEntry>,
    /// The host's own addresses.
    pub host_addrs: KernelTable<[u8; 4], u32>,
    /// Indices of the uplinks.
    pub uplinks: KernelTable<u32, u32>,
    /// Conntrack.
    pub flows: KernelTable<FlowKey, Flow>,
}

impl Tables {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    ///
    /// If the object lacks one, or it has another shape.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let generation = Arc::new(Generation::take(ebpf)?);
        // What programs remember from before this agent came may be of maps that it has not
        // seen change.
        generation.raise();
        Ok(Self {
            endpoints: KernelTable::take_remembered(ebpf, names::ENDPOINTS, &generation)?,
            networks: KernelTable::take_remembered(ebpf, names::NETWORKS, &generation)?,
            fdb: KernelTable::take_remembered(ebpf, names::FDB, &generation)?,
            neighbours: KernelTable::take(ebpf, names::NEIGHBOURS)?,
            vteps: KernelTable::take_remembered(ebpf, names::VTEPS, &generation)?,
            underlay: KernelTable::take_remembered(ebpf, names::UNDERLAY, &generation)?,
            flood_local: KernelTable::take(ebpf, names::FLOOD_LOCAL)?,
            flood_remote: KernelTable::take(ebpf, names::FLOOD_REMOTE)?,
            gateways: KernelTable::take_remembered(ebpf, names::GATEWAYS, &generation)?,
            published: KernelTable::take(ebpf, names::PUBLISHED)?,
            host_addrs: KernelTable::take(ebpf, names::HOST_ADDRS)?,
            uplinks: KernelTable::take_remembered(ebpf, names::UPLINKS, &generation)?,
            flows: KernelTable::take(ebpf, names::FLOWS)?,
        })
    }
}

/// Takes a map out of the loaded object, as the type it must have.
pub(super) fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| DatapathError::Map {
        map: name,
        source: Box::new(MapError::InvalidName { name: name.to_owned() }),
    })?;
    M::try_from(map).map_err(|source| DatapathError::Map { map: name, source: Box::new(source) })
}
