//! The pinned maps, seen from outside of the agent.

use std::{fs, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use culvert_common::abi::{FdbEntry, FdbKey, NeighEntry, NeighKey, names};

/// Key and value as bytes: aya moves these, whatever they mean.
type Bytes<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;

/// The maps of one agent.
pub(super) struct Maps {
    fdb: Bytes<{ size_of::<FdbKey>() }, { size_of::<FdbEntry>() }>,
    neighbours: Bytes<{ size_of::<NeighKey>() }, { size_of::<NeighEntry>() }>,
    all: Vec<MapData>,
}

impl Maps {
    /// Opens what is pinned below an agent's BPF file system.
    pub(super) fn open(bpffs: &Path) -> anyhow::Result<Self> {
        let version = format!("v{}", culvert_common::abi::ABI_VERSION);
        let dir = bpffs.join(version).join("maps");
        let map = |name: &str| {
            MapData::from_pin(dir.join(name)).with_context(|| format!("pinned map {name}"))
        };
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

    /// Entries of the FDB and of the neighbours.
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

    /// What all maps take of the kernel's memory.
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

fn count<const K: usize, const V: usize>(map: &Bytes<K, V>) -> Result<usize, MapError> {
    map.keys().try_fold(0, |count, key| key.map(|_| count + 1))
}
