//! Rows of `ps`.

use super::network::driver_name;
use crate::{
    agent::{
        containers::{KnownNetworks, Origin, Record},
        etc,
        shared::Shared,
    },
    api::types::{ContainerNetwork, ContainerRow, may_have_clients},
    model::{Endpoint, Name, View, spell_source},
};

/// The row of a container.
pub(super) fn container(shared: &Shared, record: &Record) -> ContainerRow {
    let mut row = row(shared, record);
    mark_unserved(shared, std::slice::from_mut(&mut row));
    row
}

/// The rows of containers.
pub(super) fn containers(shared: &Shared, records: &[Record]) -> Vec<ContainerRow> {
    let mut rows: Vec<_> = records.iter().map(|record| row(shared, record)).collect();
    mark_unserved(shared, &mut rows);
    rows
}

/// The row of a container, as far as it does not depend on the interfaces of the host.
fn row(shared: &Shared, record: &Record) -> ContainerRow {
    let KnownNetworks { mode, networks } = present(shared, record);
    let pid = record.running();
    // It has its own files, or those of the other container.
    let state_dir = &shared.options.state_dir;
    let named = [&record.name, holder(record)]
        .into_iter()
        .find(|name| etc::directory(state_dir, name).is_dir());
    let hostname = named.map(|name| match shared.containers().get(name) {
        Some(other) if *name != record.name => other.hostname().to_owned(),
        _ => record.hostname().to_owned(),
    });
    ContainerRow {
        name: record.name.to_string(),
        id: record.id.clone(),
        mode,
        state: match shared.requests.unfinished.is_left(&record.name) {
            true => "unfinished".to_owned(),
            false => state(record, pid).to_owned(),
        },
        pid,
        start_time: record.process.filter(|_| pid.is_some()).map(|process| process.start_time),
        exit_code: record.exit_code,
        restart: record.restart,
        restarts: record.restarts,
        netns: record.netns.display().to_string(),
        log: record.log.as_ref().map(|path| path.display().to_string()),
        networks,
        shares: match &record.origin {
            Origin::Shares(other) => Some(other.to_string()),
            Origin::Owned | Origin::Attached | Origin::Host => None,
        },
        command: record.command.clone(),
        hostname,
        etc: named.map(|name| etc::directory(state_dir, name).display().to_string()),
        privileges: record.privileges.clone(),
        isolation: record.isolation.clone(),
        warnings: Vec::new(),
    }
}

/// Notes the interfaces through which clients do not reach published ports. The interfaces are read
/// once, and only if a container publishes a port.
fn mark_unserved(shared: &Shared, rows: &mut [ContainerRow]) {
    let networks = rows.iter_mut().flat_map(|row| row.networks.iter_mut());
    let mut published = networks.filter(|network| has_clients(network)).peekable();
    if published.peek().is_none() {
        return;
    }
    let unserved = shared.platform.client_links().unserved;
    for network in published {
        network.unserved.clone_from(&unserved);
    }
}

/// Whether other machines can be clients of a port that is published in a network.
fn has_clients(network: &ContainerNetwork) -> bool {
    network.ports.iter().any(|port| may_have_clients(port))
}

/// The warning of a new container whose ports are not reached through some interfaces, on one line.
pub(super) fn unserved(row: &ContainerRow) -> Option<String> {
    let mut unserved = row.networks.iter().map(|network| &network.unserved);
    let names = unserved.find(|names| !names.is_empty())?.join(", ");
    Some(format!(
        "container '{}': its published ports are not reached through {names}: only Ethernet, tun and WireGuard interfaces serve them",
        row.name
    ))
}

/// The state of a container's command, as in [`ContainerRow::state`]. `pid`: its process, if that
/// runs.
fn state(record: &Record, pid: Option<i32>) -> &'static str {
    match record.exit_code {
        _ if pid.is_some() => "running",
        _ if record.waiting && record.supervised() => "restarting",
        Some(_) => "exited",
        // Nobody has reported how it ended.
        None if record.begun || record.process.is_some() => "exited",
        None if record.origin == Origin::Attached => "attached",
        None => "created",
    }
}

/// The container whose namespace a container has: its own, or another's that it shares.
fn holder(record: &Record) -> &Name {
    match &record.origin {
        Origin::Shares(other) => other,
        Origin::Owned | Origin::Attached | Origin::Host => &record.name,
    }
}

/// Mode and networks of a container: as in the store or, until it has been read, as last known.
fn present(shared: &Shared, record: &Record) -> KnownNetworks {
    if shared.readiness.is_ready() {
        return in_store(&shared.view(), &shared.node.name, record);
    }
    let known = match &record.origin {
        Origin::Shares(other) => {
            shared.containers().get(other).and_then(|other| other.known.clone())
        }
        Origin::Owned | Origin::Attached | Origin::Host => record.known.clone(),
    };
    let networks = known.as_ref().map(|known| known.networks.clone()).unwrap_or_default();
    let mode = fixed_mode(record).map(str::to_owned).or(known.map(|known| known.mode));
    KnownNetworks { mode: mode.unwrap_or_else(|| "unknown".to_owned()), networks }
}

/// Mode and networks of a container of the node `own`, as in the store.
pub(super) fn in_store(view: &View, own: &Name, record: &Record) -> KnownNetworks {
    let holder = holder(record);
    let endpoints = view.endpoints_of(own, holder);
    with_endpoints(view, record, endpoints.map(|ep| ep.record).collect())
}

/// As above, for a container that has these endpoints.
fn with_endpoints(view: &View, record: &Record, mut endpoints: Vec<Endpoint>) -> KnownNetworks {
    endpoints.sort_by(|a, b| (&a.ifname, &a.network).cmp(&(&b.ifname, &b.network)));
    let mode = fixed_mode(record).unwrap_or_else(|| match endpoints.first() {
        None => "none",
        Some(first) => {
            view.networks.get(&first.network).map_or("overlay", |net| driver_name(net.driver))
        }
    });
    KnownNetworks { mode: mode.to_owned(), networks: endpoints.iter().map(network).collect() }
}

/// The mode of a container, if it does not depend on its networks.
fn fixed_mode(record: &Record) -> Option<&'static str> {
    match &record.origin {
        Origin::Host => Some("host"),
        Origin::Shares(_) => Some("container"),
        Origin::Attached => Some("attached"),
        Origin::Owned => None,
    }
}

fn network(endpoint: &Endpoint) -> ContainerNetwork {
    let ip6 = endpoint.ipv6.map(|ip| ip.to_string());
    ContainerNetwork {
        name: endpoint.network.to_string(),
        ip: match endpoint.ipv4 {
            Some(ip) => ip.to_string(),
            None => ip6.clone().unwrap_or_default(),
        },
        ip6,
        additional: endpoint.additional.iter().map(ToString::to_string).collect(),
        mac: endpoint.mac.to_string(),
        ifname: endpoint.ifname.clone(),
        ports: endpoint.ports.iter().map(ToString::to_string).collect(),
        from: endpoint.from.iter().map(|from| spell_source(*from)).collect(),
        // Of the host, and not of the endpoint: see `mark_unserved`.
        unserved: Vec::new(),
    }
}
