//! Rows of the commands that show maps, and the status.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use crate::datapath::entry::UnderlayPath;
use culvert_common::abi::{ABI_VERSION, Code, NeighKey, Note};

use super::{Agent, internal};
use crate::{
    agent::{
        state::{MOST, Repair},
        store_address,
    },
    api::types::{
        AgentStatus, ApiConnections, ApiError, Counts, DatapathStatus, FdbRow, NeighRow,
        PathMtuStatus, RepairRow, StatsRow, Status, StoreCertificate, StoreStatus, VtepRow,
    },
    choice, doctor,
    model::{MacAddr, Name},
    reconcile,
    store::Kind,
};

impl Agent {
    /// Names of the networks by VNI.
    pub(super) fn names(&self) -> BTreeMap<u32, String> {
        let view = self.shared.view();
        view.networks.values().map(|net| (net.vni.get(), net.name.to_string())).collect()
    }

    pub(super) fn show_fdb(&self) -> Result<Vec<FdbRow>, ApiError> {
        let platform = &self.shared.platform;
        let names = self.names();
        let name = |vni: u32| names.get(&vni).cloned().unwrap_or_default();
        let underlay = platform.underlay().map_err(|error| internal(&error))?;
        let place = |ifindex: u32, vtep: [u8; 4]| -> (String, String) {
            if ifindex != 0 {
                return (String::new(), platform.ifname(ifindex));
            }
            let via = underlay.get(&vtep).map(|path| platform.ifname(path.ifindex));
            (Ipv4Addr::from(vtep).to_string(), via.unwrap_or_default())
        };
        let mut rows = Vec::new();
        let mut known = BTreeSet::new();
        for (key, entry) in platform.fdb().map_err(|error| internal(&error))? {
            let (dst, ifname) = place(entry.ifindex, entry.vtep);
            known.insert(key);
            rows.push(FdbRow {
                network: name(key.vni),
                vni: key.vni,
                mac: MacAddr(key.mac).to_string(),
                kind: if entry.ifindex == 0 { "static" } else { "local" }.to_owned(),
                dst,
                ifname,
                age_s: None,
            });
        }
        let (now, ageing) = (platform.now_ns(), platform.ageing().as_secs());
        for (key, entry) in platform.learned().map_err(|error| internal(&error))? {
            let age_s = now.saturating_sub(entry.last_seen_ns) / 1_000_000_000;
            // The programs do not use an entry that is too old, or whose MAC is in `FDB`.
            if age_s >= ageing || known.contains(&key) {
                continue;
            }
            let (dst, ifname) = place(entry.ifindex, entry.vtep);
            rows.push(FdbRow {
                network: name(key.vni),
                vni: key.vni,
                mac: MacAddr(key.mac).to_string(),
                kind: "learned".to_owned(),
                dst,
                ifname,
                age_s: Some(age_s),
            });
        }
        rows.sort_by(|a, b| (a.vni, &a.mac).cmp(&(b.vni, &b.mac)));
        Ok(rows)
    }

    pub(super) fn show_neighbours(&self) -> Result<Vec<NeighRow>, ApiError> {
        let names = self.names();
        let platform = &self.shared.platform;
        let row = |key: &NeighKey, mac, age_s: Option<u64>| {
            let ip = Ipv6Addr::from(key.ip.0);
            NeighRow {
                network: names.get(&key.vni).cloned().unwrap_or_default(),
                vni: key.vni,
                ip: ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4).to_string(),
                mac: MacAddr(mac).to_string(),
                kind: if age_s.is_some() { "learned" } else { "static" }.to_owned(),
                age_s,
            }
        };
        let known = platform.neighbours().map_err(|error| internal(&error))?;
        let mut rows: BTreeMap<NeighKey, NeighRow> =
            known.iter().map(|(key, entry)| (*key, row(key, entry.mac, None))).collect();
        let (now, ageing) = (platform.now_ns(), platform.ageing().as_secs());
        for (key, entry) in platform.heard().map_err(|error| internal(&error))? {
            let age_s = now.saturating_sub(entry.last_seen_ns) / 1_000_000_000;
            // The programs use neither an entry that is too old, nor one of a network that this
            // host has left or whose address the store has.
            if age_s < ageing && names.contains_key(&key.vni) {
                rows.entry(key).or_insert_with(|| row(&key, entry.mac, Some(age_s)));
            }
        }
        Ok(rows.into_values().collect())
    }

    pub(super) fn show_vteps(&self) -> Result<Vec<VtepRow>, ApiError> {
        let underlay = self.shared.paths().clone();
        let view = self.shared.view();
        let own = &self.shared.node;
        let mut networks: BTreeMap<&Name, BTreeSet<String>> = BTreeMap::new();
        // Networks of one node do not use a VTEP.
        for network in view.endpoints.networks().filter(|network| network.node().is_none()) {
            let nodes: BTreeSet<&Name> =
                view.endpoints.briefs(network).map(|endpoint| endpoint.node).collect();
            for node in nodes {
                networks.entry(node).or_default().insert(network.to_string());
            }
        }
        let mut rows = Vec::new();
        // Before the store has been read, only this node is known.
        let own_entry = (!view.nodes.contains_key(&own.name)).then_some(own);
        for node in view.nodes.values().map(|node| &node.record).chain(own_entry) {
            let is_self = node.name == own.name;
            let path = underlay.get(&node.vtep.octets());
            rows.push(VtepRow {
                ip: node.vtep.to_string(),
                port: node.port,
                node: node.name.to_string(),
                kind: if is_self { "self" } else { "node" }.to_owned(),
                alive: Some(view.is_alive(&node.name)),
                networks: networks
                    .get(&node.name)
                    .map(|names| names.iter().cloned().collect())
                    .unwrap_or_default(),
                via: self.via(node.vtep, path),
                inner_mtu: path.map_or(0, |path| path.inner_mtu),
            });
        }
        let mut foreign: BTreeMap<(Ipv4Addr, u16), Vec<String>> = BTreeMap::new();
        for vtep in view.vteps.values().flat_map(BTreeMap::values) {
            foreign.entry((vtep.ip, vtep.port)).or_default().push(vtep.network.to_string());
        }
        for ((ip, port), networks) in foreign {
            let path = underlay.get(&ip.octets());
            rows.push(VtepRow {
                ip: ip.to_string(),
                port,
                node: String::new(),
                kind: "foreign".to_owned(),
                alive: None,
                networks,
                via: self.via(ip, path),
                inner_mtu: path.map_or(0, |path| path.inner_mtu),
            });
        }
        Ok(rows)
    }

    /// `up0`, or `up0 via 192.0.2.1` behind a router.
    fn via(&self, vtep: Ipv4Addr, path: Option<&UnderlayPath>) -> String {
        let Some(path) = path else { return String::new() };
        let ifname = self.shared.platform.ifname(path.ifindex);
        if path.next_hop == vtep.octets() {
            ifname
        } else {
            format!("{ifname} via {}", Ipv4Addr::from(path.next_hop))
        }
    }

    pub(super) fn show_stats(&self) -> Result<Vec<StatsRow>, ApiError> {
        let stats = self.shared.platform.stats().map_err(|error| internal(&error))?;
        let counted = stats.into_iter().filter(|(_, _, counter)| counter.packets > 0);
        let rows = counted.map(|(direction, code, counter)| StatsRow {
            direction: direction.name().to_owned(),
            verdict: code.verdict().to_owned(),
            reason: code.name().to_owned(),
            code: code.code(),
            packets: counter.packets,
            bytes: counter.bytes,
        });
        Ok(rows.chain(self.flow_stats()).collect())
    }

    /// Counts the entries that an earlier agent left in the maps, while the engine has not read
    /// them yet. A map that cannot be read counts as empty.
    fn read_counts(&self) -> reconcile::EntryCounts {
        let platform = &self.shared.platform;
        reconcile::EntryCounts {
            fdb: platform.fdb().map_or(0, |fdb| fdb.len()),
            neighbours: platform.neighbours().map_or(0, |map| map.len()),
        }
    }

    /// Counters that cannot be read count as 0.
    fn path_mtu_status(&self) -> PathMtuStatus {
        let platform = &self.shared.platform;
        let count = |note| platform.packets(Code::Note(note)).unwrap_or_default();
        let counts = &self.shared.shown.path_mtus;
        PathMtuStatus {
            smaller: counts.smaller(),
            hints: count(Note::PathMtuHint),
            refused: count(Note::PathMtuRefused),
            verified: counts.verified(),
            unverified: counts.unverified(),
        }
    }

    pub(super) fn show_status(&self, clock_offset_ms: Option<i64>) -> Status {
        let shared = &self.shared;
        let health = shared.store.health();
        let mut problems = shared.shown.problems.lines();
        let (lines, more) = shared.view_mut().first_complaints(MOST);
        problems.extend(lines);
        if more > 0 {
            problems.push(format!(
                "{more} more records of the store are skipped or contradict others, and are not named"
            ));
        }
        let (vteps, networks, local_endpoints, endpoints, revision) = {
            let view = shared.view();
            let foreign: BTreeSet<_> =
                view.vteps.values().flat_map(|vteps| vteps.keys().copied()).collect();
            (
                view.nodes.len() + foreign.len(),
                view.networks_on(&shared.node.name).count(),
                view.endpoints_on(&shared.node.name).count(),
                view.endpoints.count(),
                view.revision,
            )
        };
        let kind = match shared.store.opened().map(|store| store.kind()) {
            Some(kind) => kind.to_string(),
            None if shared.options.store.starts_with("file:") => Kind::File.to_string(),
            None => Kind::Etcd.to_string(),
        };
        let counts = shared.shown.map_counts.get_or_read(|| self.read_counts());
        let restarts = shared.containers().iter().map(|record| u64::from(record.restarts)).sum();
        let (uplinks, price) = shared.platform.uplinks();
        let device = shared.platform.device();
        let client_links = shared.platform.client_links();
        let (mode, reason) = choice::choose(shared.options.datapath, &uplinks, price);
        Status {
            node: shared.node.name.to_string(),
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_s: shared.started.elapsed().as_secs(),
                vtep_ip: shared.node.vtep.to_string(),
                vxlan_port: shared.node.port,
                uplinks: shared.uplinks.clone(),
                state_dir: shared.options.state_dir.display().to_string(),
                services: shared.options.services.clone(),
            },
            store: StoreStatus {
                kind,
                healthy: health.healthy,
                revision,
                error: health.error,
                replaced: health.replaced.is_some(),
                clock_offset_ms,
                alarms: shared.store.alarms(),
                certificates: doctor::certificate_files(&shared.options.store_access)
                    .into_iter()
                    .map(|(role, path)| StoreCertificate {
                        option: role.option().to_owned(),
                        file: path.display().to_string(),
                    })
                    .collect(),
                open: store_address::is_exposed(&shared.options),
                last_read: shared.store.last_read(),
            },
            datapath: DatapathStatus {
                mode: mode.to_owned(),
                reason,
                uplinks,
                shared_port: shared.platform.shares_port(),
                client_links: client_links.served,
                unserved_links: client_links.unserved,
                device: device.kind.to_string(),
                device_reason: device.reason,
                abi: ABI_VERSION,
                pins: pins(&shared.options.bpffs),
            },
            vteps,
            conntrack: self.conntrack_status(),
            path_mtu: self.path_mtu_status(),
            counts: Counts {
                networks,
                local_endpoints,
                endpoints,
                fdb: counts.fdb,
                neighbours: counts.neighbours,
                restarts,
            },
            problems,
            repairs: shared.shown.repairs.all().into_iter().map(repair_row).collect(),
            // The server of the API has them.
            connections: ApiConnections::default(),
        }
    }
}

fn repair_row((kind, Repair { count, last, at }): (&str, Repair)) -> RepairRow {
    RepairRow { kind: kind.to_owned(), count, last, last_s: at.elapsed().as_secs() }
}

fn pins(bpffs: &Path) -> String {
    bpffs.join(format!("v{ABI_VERSION}")).display().to_string()
}
