//! Maps of prefixes, with longest match.

use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{
        MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};
use bytemuck::Pod;
use culvert_common::abi::{MappedAddr, SourceKey, names};
use ipnetwork::Ipv4Network;

use super::{
    DatapathError, Table,
    found::ip_of,
    raw::{Bytes, failed, if_there, missing, take_map},
};

/// A key of a map of prefixes: the first `bits` bits of `key`; the others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix<K> {
    /// Bytes of the key.
    pub key: K,
    /// Length in bits.
    pub bits: u32,
}

impl Prefix<MappedAddr> {
    /// A prefix of IPv4 addresses.
    pub fn of_v4(prefix: Ipv4Network) -> Self {
        Self {
            key: MappedAddr::v4(prefix.network().octets()),
            bits: MappedAddr::V4_PREFIX + u32::from(prefix.prefix()),
        }
    }
}

impl Prefix<SourceKey> {
    /// Clients of the container whose host side has the index `ifindex`.
    pub fn of_clients(ifindex: u32, clients: Ipv4Network) -> Self {
        let Prefix { key: addr, bits } = Prefix::of_v4(clients);
        Self { key: SourceKey { ifindex, addr }, bits: u32::BITS + bits }
    }
}

impl Prefix<[u8; 4]> {
    /// A prefix of addresses of services.
    pub fn of_services(prefix: Ipv4Network) -> Self {
        Self { key: prefix.network().octets(), bits: prefix.prefix().into() }
    }
}

impl fmt::Display for Prefix<MappedAddr> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = ip_of(&self.key);
        let fixed = if ip.is_ipv4() { MappedAddr::V4_PREFIX } else { 0 };
        write!(f, "{ip}/{}", self.bits.saturating_sub(fixed))
    }
}

impl fmt::Display for Prefix<SourceKey> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SourceKey { ifindex, addr } = self.key;
        let clients = Prefix { key: addr, bits: self.bits.saturating_sub(u32::BITS) };
        write!(f, "{ifindex} {clients}")
    }
}

impl fmt::Display for Prefix<[u8; 4]> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.key), self.bits)
    }
}

impl<K: Pod> Prefix<K> {
    fn raw(&self) -> Key<Bytes<K>> {
        Key::new(self.bits, Bytes(self.key))
    }
}

/// A BPF map of prefixes. Values are numbers.
pub struct PrefixTable<K: Pod> {
    name: &'static str,
    map: Mutex<LpmTrie<MapData, Bytes<K>, u32>>,
}

impl<K: Pod> fmt::Debug for PrefixTable<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PrefixTable").field(&self.name).finish()
    }
}

impl<K: Pod> PrefixTable<K> {
    /// Takes the map out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, DatapathError> {
        Ok(Self { name, map: Mutex::new(take_map(ebpf, name)?) })
    }

    fn lock(&self) -> MutexGuard<'_, LpmTrie<MapData, Bytes<K>, u32>> {
        // A thread that panicked with the lock held left a usable file descriptor.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, source: MapError) -> DatapathError {
        failed(self.name, source)
    }
}

impl<K: Pod + Ord + Send> Table<Prefix<K>, u32> for PrefixTable<K> {
    fn dump(&self) -> Result<BTreeMap<Prefix<K>, u32>, DatapathError> {
        let map = self.lock();
        let entries = map.iter().map(|entry| {
            let (key, value) = entry.map_err(|source| self.failed(source))?;
            let Bytes(bytes) = key.data();
            Ok((Prefix { key: bytes, bits: key.prefix_len() }, value))
        });
        entries.collect()
    }

    fn insert(&self, key: &Prefix<K>, value: &u32) -> Result<(), DatapathError> {
        self.lock().insert(&key.raw(), value, 0).map_err(|source| self.failed(source))
    }

    fn remove(&self, key: &Prefix<K>) -> Result<(), DatapathError> {
        if_there(self.lock().remove(&key.raw())).map_err(|source| self.failed(source))
    }
}

/// Writes the maps of prefixes that are not pinned, before the programs are loaded: they belong to
/// these programs.
pub(super) fn write(
    ebpf: &mut Ebpf,
    services: &[Ipv4Network],
    denied: &[Ipv4Network],
) -> Result<(), DatapathError> {
    fill(ebpf, names::SERVICES, services.iter().map(|range| Prefix::of_services(*range).raw()))?;
    fill(ebpf, names::DENIED, denied.iter().map(|source| Prefix::of_v4(*source).raw()))
}

fn fill<K: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    keys: impl Iterator<Item = Key<K>>,
) -> Result<(), DatapathError> {
    // The map is borrowed: a map that is taken out is closed before the programs are loaded.
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let map = LpmTrie::<&mut MapData, K, u32>::try_from(map);
    let mut map = map.map_err(|source| failed(name, source))?;
    for key in keys {
        map.insert(&key, 0, 0).map_err(|source| failed(name, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{Options, load_object};

    fn prefix(text: &str) -> Prefix<MappedAddr> {
        Prefix::of_v4(text.parse().unwrap())
    }

    #[test]
    fn an_ipv4_prefix_is_one_of_mapped_addresses() {
        let MappedAddr(bytes) = prefix("192.0.2.0/24").key;
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 0]);
        assert_eq!(prefix("192.0.2.0/24").bits, 120);
        assert_eq!(prefix("0.0.0.0/0").bits, 96);
        // Bits beyond the prefix are left out.
        assert_eq!(prefix("192.0.2.7/24"), prefix("192.0.2.0/24"));
    }

    #[test]
    fn a_prefix_is_written_as_it_was_given() {
        for text in ["192.0.2.0/24", "0.0.0.0/0", "192.0.2.7/32"] {
            assert_eq!(prefix(text).to_string(), text);
            assert_eq!(Prefix::of_services(text.parse().unwrap()).to_string(), text);
            let clients = Prefix::of_clients(7, text.parse().unwrap());
            assert_eq!(clients.to_string(), format!("7 {text}"));
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn entries_are_written_read_and_removed() {
        let denied: Vec<Ipv4Network> = vec!["192.0.2.7/32".parse().unwrap()];
        let options = Options { denied, ..Options::of_a_test() };
        let mut ebpf = load_object(&options, None).unwrap();
        let table = PrefixTable::<MappedAddr>::take(&mut ebpf, names::DENIED).unwrap();
        for text in ["192.0.2.0/24", "0.0.0.0/0", "192.0.2.0/24"] {
            table.insert(&prefix(text), &0).unwrap();
        }
        let mut there: Vec<_> = table.dump().unwrap().into_keys().collect();
        there.sort_unstable();
        assert_eq!(there, ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.7/32"].map(prefix));
        for _ in 0..2 {
            table.remove(&prefix("192.0.2.0/24")).unwrap();
        }
        assert_eq!(table.dump().unwrap().len(), 2);
    }
}
