//! The pinned maps, read by another process than the agent.

use std::{
    fs,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use culvert_common::abi::{FdbEntry, FdbKey, NeighEntry, NeighKey, names};

/// A map with keys and values as bytes, which aya does not interpret.
pub(super) type Bytes<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;

/// Directory of the maps that are pinned below an agent's BPF file system.
fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{}", culvert_common::abi::ABI_VERSION)).join("maps")
}

/// A map that is pinned below an agent's BPF file system.
pub(super) fn pinned(bpffs: &Path, name: &str) -> anyhow::Result<MapData> {
    MapData::from_pin(directory(bpffs).join(name)).with_context(|| format!("pinned map {name}"))
}

/// The maps of one agent.
pub(crate) struct Maps {
    fdb: Bytes<{ size_of::<FdbKey>() }, { size_of::<FdbEntry>() }>,
    neighbours: Bytes<{ size_of::<NeighKey>() }, { size_of::<NeighEntry>() }>,
    all: Vec<MapData>,
}

impl Maps {
    /// Opens the maps that are pinned below an agent's BPF file system.
    pub(super) fn open(bpffs: &Path) -> anyhow::Result<Self> {
        let dir = directory(bpffs);
        let map = |name: &str| pinned(bpffs, name);
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            all.push(map(&entry?.file_name().to_string_lossy())?);
        }
        Ok(Self {
            fdb: HashMap::try_from(Map::HashMap(map(names::FDB)?))?,
            neighbours: HashMap::try_from(Map::HashMap(map(names::NEIGHBOURS)?))?,
            all,
        })
    }

    /// Number of entries of the FDB and of the neighbours.
    pub(super) fn entries(&self) -> anyhow::Result<(usize, usize)> {
        Ok((count(&self.fdb)?, count(&self.neighbours)?))
    }

    /// Whether the FDB has a key.
    pub(super) fn fdb_has(&self, key: &FdbKey) -> anyhow::Result<bool> {
        let mut bytes = [0; size_of::<FdbKey>()];
        bytes.copy_from_slice(bytemuck::bytes_of(key));
        match self.fdb.get(&bytes, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Kernel memory of all maps, in bytes.
    pub(super) fn memory(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for map in &self.all {
            let fd = std::os::fd::AsFd::as_fd(map.fd()).as_raw_fd();
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            let Some(number) = line else { bail!("a map tells no memlock: {text}") };
            sum += number.trim().parse::<u64>()?;
        }
        Ok(sum)
    }
}

/// The FDB of one agent, to be filled with entries that are not in the store: the agent removes
/// them at its next comparison.
pub(crate) struct Fdb(Bytes<{ size_of::<FdbKey>() }, { size_of::<FdbEntry>() }>);

impl Fdb {
    /// Opens the FDB that is pinned below an agent's BPF file system.
    pub(crate) fn open(bpffs: &Path) -> anyhow::Result<Self> {
        Ok(Self(Maps::open(bpffs)?.fdb))
    }

    /// Writes an entry.
    pub(crate) fn insert(&mut self, key: &FdbKey, entry: &FdbEntry) -> anyhow::Result<()> {
        Ok(self.0.insert(bytes(key)?, bytes(entry)?, 0)?)
    }

    /// Removes an entry. It is no error if the agent has removed the entry already.
    pub(crate) fn remove(&mut self, key: &FdbKey) -> anyhow::Result<()> {
        Ok(if_there(self.0.remove(&bytes(key)?))?)
    }
}

/// The result of the removal of an entry: it is no error if there is none.
pub(super) fn if_there(done: Result<(), MapError>) -> Result<(), MapError> {
    match done {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        done => done,
    }
}

/// The bytes of a key or a value.
pub(super) fn bytes<T: bytemuck::Pod, const N: usize>(value: &T) -> anyhow::Result<[u8; N]> {
    Ok(bytemuck::bytes_of(value).try_into()?)
}

fn count<const K: usize, const V: usize>(map: &Bytes<K, V>) -> Result<usize, MapError> {
    map.keys().try_fold(0, |count, key| key.map(|_| count + 1))
}
