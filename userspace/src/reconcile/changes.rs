//! Entries of the maps that another program has changed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use culvert_common::{
    abi::{FdbKey, FloodKey, NeighKey, PublishedKey, names},
    wire::ipv4::{PROTO_TCP, PROTO_UDP},
};

use super::{held::Held, tables::Tables};
use crate::{
    datapath::{
        Found,
        entry::{UnderlayPath, VtepKey},
        ip_of,
    },
    model::MacAddr,
};

/// The differences between the contents that the agent has written to the maps, by VNI, and the
/// contents that were read from them.
pub(super) fn changes(
    written: &BTreeMap<u32, Held>,
    read: &BTreeMap<u32, Tables>,
    paths_written: &BTreeMap<[u8; 4], UnderlayPath>,
    paths_read: &BTreeMap<[u8; 4], UnderlayPath>,
) -> Found {
    let none = Tables::default();
    let mut differing = Differing::default();
    let vnis: BTreeSet<&u32> = written.keys().chain(read.keys()).collect();
    for vni in vnis {
        let before = written.get(vni).map_or(&none, Held::tables);
        let now = read.get(vni).unwrap_or(&none);
        // Most networks are equal, which costs less to find than the differences.
        if before != now {
            differing.written.push(before);
            differing.read.push(now);
        }
    }
    differing.compare(names::ENDPOINTS, |tables| &tables.endpoints, u32::to_string);
    differing.compare(names::NETWORKS, |tables| &tables.networks, u32::to_string);
    differing.compare(names::FDB, |tables| &tables.fdb, fdb);
    differing.compare(names::NEIGHBOURS, |tables| &tables.neighbours, neighbour);
    differing.compare(names::VTEPS, |tables| &tables.vteps, vtep);
    differing.compare(names::FLOOD_LOCAL, |tables| &tables.flood_local, slot);
    differing.compare(names::FLOOD_REMOTE, |tables| &tables.flood_remote, slot);
    differing.compare(names::GATEWAYS, |tables| &tables.gateways, u32::to_string);
    differing.compare(names::PUBLISHED, |tables| &tables.published, port);
    differing.compare(names::SOURCES, |tables| &tables.sources, ToString::to_string);
    let path = |ip: &[u8; 4]| Ipv4Addr::from(*ip).to_string();
    differing.found.compare(names::UNDERLAY, paths_written, paths_read, path);
    differing.found
}

/// The tables of the VNIs that differ.
#[derive(Default)]
struct Differing<'a> {
    written: Vec<&'a Tables>,
    read: Vec<&'a Tables>,
    found: Found,
}

impl<'a> Differing<'a> {
    /// Notes the differences of one table. All VNIs are compared at once: the VNI of an entry may
    /// be in its value.
    fn compare<K: Ord + 'a, V: PartialEq + 'a>(
        &mut self,
        map: &'static str,
        of: fn(&Tables) -> &BTreeMap<K, V>,
        spell: impl Fn(&K) -> String,
    ) {
        let written = all(&self.written, of);
        let read = all(&self.read, of);
        self.found.compare(map, &written, &read, |&key| spell(key));
    }
}

/// The entries of one table, of all VNIs.
fn all<'a, K: Ord + 'a, V: 'a>(
    tables: &[&'a Tables],
    of: fn(&Tables) -> &BTreeMap<K, V>,
) -> BTreeMap<&'a K, &'a V> {
    tables.iter().copied().flat_map(of).collect()
}

// Keys in words.

fn fdb(key: &FdbKey) -> String {
    format!("{} {}", key.vni, MacAddr(key.mac))
}

fn neighbour(key: &NeighKey) -> String {
    format!("{} {}", key.vni, ip_of(&key.ip))
}

fn vtep(key: &VtepKey) -> String {
    format!("{} {}", key.vni, Ipv4Addr::from(key.ip))
}

fn slot(key: &FloodKey) -> String {
    format!("{} slot {}", key.vni, key.index)
}

fn port(key: &PublishedKey) -> String {
    let protocol = match key.protocol {
        PROTO_TCP => "tcp".to_owned(),
        PROTO_UDP => "udp".to_owned(),
        other => format!("protocol {other}"),
    };
    format!("{protocol} {}:{}", ip_of(&key.addr), u16::from_be_bytes(key.port))
}

#[cfg(test)]
mod tests {
    use culvert_common::abi::MappedAddr;

    use super::*;

    #[test]
    fn keys_are_written_as_people_write_them() {
        assert_eq!(fdb(&FdbKey::new(256, [2, 0x42, 10, 0, 1, 2])), "256 02:42:0a:00:01:02");
        assert_eq!(neighbour(&NeighKey::v4(256, [10, 0, 1, 2])), "256 10.0.1.2");
        assert_eq!(vtep(&VtepKey { vni: 256, ip: [192, 0, 2, 1] }), "256 192.0.2.1");
        assert_eq!(slot(&FloodKey { vni: 256, index: 3 }), "256 slot 3");
        let key = PublishedKey {
            addr: MappedAddr::v4([0; 4]),
            port: 8080_u16.to_be_bytes(),
            protocol: PROTO_TCP,
            pad: 0,
        };
        assert_eq!(port(&key), "tcp 0.0.0.0:8080");
        assert_eq!(port(&PublishedKey { protocol: 132, ..key }), "protocol 132 0.0.0.0:8080");
    }
}
