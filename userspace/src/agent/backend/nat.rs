//! Flows as rows of `nat ls` and `stats`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use culvert_common::{
    abi::{DropReason, Flow, FlowKey, kind, zone},
    datapath::conntrack::FlowState,
    wire::ipv4::{PROTO_TCP, PROTO_UDP},
};

use super::{Agent, internal};
use crate::{
    agent::{
        conntrack::{REFUSALS, are_one_flow},
        containers::Origin,
    },
    api::types::{
        ApiError, ConntrackShare, ConntrackStatus, FlowProtocol, NatPage, NatQuery, NatRow,
        StatsRow,
    },
    datapath::{
        DatapathError,
        flows::{Cursor, FlowTable, Slice},
        ports_of, share_of,
    },
    model::Name,
};

/// `direction` of the rows of `stats` that count flows by state.
const DIRECTION: &str = "conntrack";

/// Entries of the table that a page of `nat ls` is made from: two for each flow.
const PAGE: u32 = 8192;

/// Number of containers that `status` names.
const NAMED: usize = 20;

/// Names for the numbers and addresses of flows.
struct Names {
    /// Networks by VNI.
    networks: BTreeMap<u32, String>,
    /// Containers of this host by VNI and address.
    containers: BTreeMap<(u32, [u8; 4]), String>,
    /// Nodes by VTEP address.
    nodes: BTreeMap<[u8; 4], String>,
}

impl Names {
    fn container(&self, vni: u32, address: [u8; 4]) -> String {
        self.containers.get(&(vni, address)).cloned().unwrap_or_default()
    }

    /// Name of the sender of a packet that comes from `zone` with the source `address`.
    fn from(&self, zone: u32, address: [u8; 4]) -> String {
        match zone {
            zone::EXTERNAL => "external".to_owned(),
            other if zone::client_link(other).is_some() => "external".to_owned(),
            zone::LOOPBACK => "host".to_owned(),
            // Another host sends from its VTEP address.
            zone::TUNNEL => match self.nodes.get(&address) {
                Some(node) => node.clone(),
                None => Ipv4Addr::from(address).to_string(),
            },
            vni => match self.container(vni, address) {
                // The host itself, over a gateway device.
                name if name.is_empty() => "host".to_owned(),
                name => name,
            },
        }
    }
}

impl Agent {
    /// All flows that match the query.
    pub(super) async fn show_nat(&self, query: NatQuery) -> Result<Vec<NatRow>, ApiError> {
        let mut rows = Vec::new();
        let mut from = None;
        loop {
            let page = self.show_nat_page(NatQuery { from, ..query.clone() }).await?;
            rows.extend(page.rows);
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        rows.sort_by_cached_key(sort_key);
        Ok(rows)
    }

    /// The flows that match the query in a part of the table.
    pub(super) async fn show_nat_page(&self, query: NatQuery) -> Result<NatPage, ApiError> {
        let wanted = match &query.container {
            Some(name) => Some(self.holder(name)?),
            None => None,
        };
        let platform = Arc::clone(&self.shared.platform);
        let from = Cursor(query.from.unwrap_or_default());
        let read = tokio::task::spawn_blocking(move || pairs(platform.flows(), from));
        let read = read.await.map_err(|error| internal(&error))?;
        let (pairs, next) = read.map_err(|error| internal(&error))?;
        let names = self.flow_names();
        let now_ns = self.shared.platform.now_ns();
        let rows =
            pairs.iter().map(|(key, orig, reply)| self.nat_row(&names, now_ns, key, orig, reply));
        let mut rows: Vec<_> = rows.filter(|row| fits(row, &query, wanted.as_ref())).collect();
        rows.sort_by_cached_key(sort_key);
        Ok(NatPage { rows, next: next.map(|Cursor(at)| at) })
    }

    /// The container that owns the network namespace of `name`: itself, or the container whose
    /// namespace it shares.
    fn holder(&self, name: &Name) -> Result<Name, ApiError> {
        let record = self.record_of(name).ok_or_else(|| self.unknown_container(name))?;
        Ok(match record.origin {
            Origin::Shares(other) => other,
            Origin::Owned | Origin::Attached | Origin::Host => record.name,
        })
    }

    fn flow_names(&self) -> Names {
        let networks = self.names();
        let view = self.shared.view();
        let mut containers = Vec::new();
        for endpoint in view.endpoints_on(&self.shared.node.name) {
            let Some(network) = view.networks.get(&endpoint.network) else { continue };
            for ip in endpoint.addresses() {
                if let IpAddr::V4(ip) = ip {
                    let key = (network.vni.get(), ip.octets());
                    containers.push((key, endpoint.container.to_string()));
                }
            }
        }
        let nodes = view.nodes.values().map(|node| (node.vtep.octets(), node.name.to_string()));
        Names { containers: containers.into_iter().collect(), nodes: nodes.collect(), networks }
    }

    fn nat_row(
        &self,
        names: &Names,
        now_ns: u64,
        key: &FlowKey,
        orig: &Flow,
        reply: &Flow,
    ) -> NatRow {
        let published = orig.kind & kind::PUBLISHED != 0;
        let (vni, address) =
            if published { (orig.zone, orig.to.dst) } else { (key.zone, key.tuple.src) };
        let state = FlowState::of_flow(key.protocol, orig, reply);
        let idle_ns = now_ns.saturating_sub(orig.last_seen_ns.max(reply.last_seen_ns));
        let timeout = self.shared.options.conntrack.timeouts.get(state);
        NatRow {
            protocol: match key.protocol {
                PROTO_TCP => FlowProtocol::Tcp,
                PROTO_UDP => FlowProtocol::Udp,
                _ => FlowProtocol::Icmp,
            },
            state: match orig.kind & kind::DENIED {
                0 => state.name().to_owned(),
                _ => DropReason::Denied.name().to_owned(),
            },
            kind: match orig.kind & (kind::PUBLISHED | kind::HOST) {
                kind::PUBLISHED => "published",
                kind::HOST => "host",
                _ => "masquerade",
            }
            .to_owned(),
            network: names.networks.get(&vni).cloned().unwrap_or_default(),
            vni,
            container: names.container(vni, address),
            from: names.from(key.zone, key.tuple.src),
            src: Ipv4Addr::from(key.tuple.src),
            src_port: u16::from_be_bytes(key.tuple.src_port),
            dst: Ipv4Addr::from(key.tuple.dst),
            dst_port: u16::from_be_bytes(key.tuple.dst_port),
            nat_src: Ipv4Addr::from(orig.to.src),
            nat_src_port: u16::from_be_bytes(orig.to.src_port),
            nat_dst: Ipv4Addr::from(orig.to.dst),
            nat_dst_port: u16::from_be_bytes(orig.to.dst_port),
            timeout_s: timeout.as_secs().saturating_sub(idle_ns / 1_000_000_000),
            orig_packets: orig.packets,
            orig_bytes: orig.bytes,
            reply_packets: reply.packets,
            reply_bytes: reply.bytes,
        }
    }

    /// Rows of `stats` that count flows by state.
    pub(super) fn flow_stats(&self) -> Vec<StatsRow> {
        let summary = self.shared.flows();
        let rows = summary.states.iter().map(|(state, tally)| StatsRow {
            direction: DIRECTION.to_owned(),
            verdict: "flows".to_owned(),
            reason: state.name().to_owned(),
            code: state.code(),
            packets: tally.flows,
            bytes: tally.bytes,
        });
        rows.collect()
    }

    pub(super) fn conntrack_status(&self) -> ConntrackStatus {
        let platform = &self.shared.platform;
        let dropped = |(reason, _): &(_, _)| platform.dropped(*reason).unwrap_or_default();
        let refused = REFUSALS.iter().map(dropped).sum();
        let max = platform.flows().capacity();
        let options = &self.shared.options.conntrack;
        let share = share_of(max, options.share);
        let port_share = ports_of(options.nat_ports, options.port_share);
        let mut containers = self.crowded(share);
        let crowded = containers.len() as u64;
        containers.truncate(NAMED);
        let summary = self.shared.flows();
        let (flows, estimated) = (summary.flows, summary.estimated);
        ConntrackStatus { flows, estimated, max, refused, share, port_share, crowded, containers }
    }

    /// The containers with at least half of the `share` of a container in the table, or with
    /// refused flows, in the order of [`ConntrackStatus::containers`].
    fn crowded(&self, share: u32) -> Vec<ConntrackShare> {
        let platform = &self.shared.platform;
        let mut shares = platform.flows().shares().unwrap_or_default();
        shares.retain(|_, of| of.refused > 0 || of.flows >= share.div_ceil(2));
        if shares.is_empty() {
            return Vec::new();
        }
        let names = self.flow_names();
        let endpoints = platform.endpoints().unwrap_or_default();
        let containers: BTreeMap<u32, String> = endpoints
            .values()
            .map(|ep| (ep.incarnation, names.container(ep.vni, ep.ipv4)))
            .collect();
        let mut rows: Vec<_> = shares
            .iter()
            .map(|(owner, of)| ConntrackShare {
                container: containers.get(owner).cloned().unwrap_or_default(),
                flows: of.flows.into(),
                refused: of.refused,
                without_port: of.without_port,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.refused, row.flows)));
        rows
    }
}

/// Entries of a flow's two directions with the key of the first one.
type Pair = (FlowKey, Flow, Flow);

/// The flows whose `ORIG` entry is in the part of the table from `from` on, in no order, and the
/// beginning of the next part.
fn pairs(
    table: &dyn FlowTable,
    from: Cursor,
) -> Result<(Vec<Pair>, Option<Cursor>), DatapathError> {
    let Slice { entries, next } = table.slice(from, PAGE)?;
    let mut pairs = Vec::new();
    for (key, orig) in entries {
        if orig.kind & kind::ORIG == 0 {
            continue;
        }
        // One direction without the other: the flow is being made or removed.
        let reply = table.lookup(&key.other(&orig))?;
        if let Some(reply) = reply.filter(|reply| are_one_flow(&key, &orig, reply)) {
            pairs.push((key, orig, reply));
        }
    }
    Ok((pairs, next))
}

/// Whether a row matches the query.
fn fits(row: &NatRow, query: &NatQuery, container: Option<&Name>) -> bool {
    let addresses = [row.src, row.dst, row.nat_src, row.nat_dst];
    container.is_none_or(|name| name.as_str() == row.container || name.as_str() == row.from)
        && query.protocol.is_none_or(|protocol| protocol == row.protocol)
        && query.address.is_none_or(|address| addresses.contains(&address))
}

fn sort_key(row: &NatRow) -> impl Ord + use<> {
    let NatRow { container, protocol, src, src_port, dst, dst_port, vni, .. } = row;
    (container.clone(), *protocol, *src, *src_port, *dst, *dst_port, *vni)
}
