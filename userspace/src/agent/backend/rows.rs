//! Rows of `ps`.

use super::network::driver_name;
use crate::{
    agent::{
        containers::{Origin, Record},
        shared::Shared,
    },
    api::types::{ContainerNetwork, ContainerRow},
    model::{Endpoint, Name, View},
};

/// The row of a container.
pub(super) fn container(shared: &Shared, record: &Record) -> ContainerRow {
    let view = shared.view();
    let own = &shared.node.name;
    // A container that shares a namespace has the networks of the other container.
    let holder = match &record.origin {
        Origin::Shares(other) => other,
        Origin::Owned | Origin::Attached | Origin::Host => &record.name,
    };
    let mut endpoints: Vec<Endpoint> =
        view.endpoints_on(own).filter(|ep| ep.container == *holder).map(|ep| ep.record).collect();
    endpoints.sort_by(|a, b| (&a.ifname, &a.network).cmp(&(&b.ifname, &b.network)));
    ContainerRow {
        name: record.name.to_string(),
        mode: mode(&view, record, endpoints.first().map(|ep| &ep.network)).to_owned(),
        pid: record.running(),
        exit_code: record.exit_code,
        netns: record.netns.display().to_string(),
        log: record.log.as_ref().map(|path| path.display().to_string()),
        networks: endpoints.iter().map(network).collect(),
        command: record.command.clone(),
    }
}

fn mode(view: &View, record: &Record, first: Option<&Name>) -> &'static str {
    match &record.origin {
        Origin::Host => "host",
        Origin::Shares(_) => "container",
        Origin::Attached => "attached",
        Origin::Owned => match first {
            None => "none",
            Some(name) => {
                view.networks.get(name).map_or("overlay", |network| driver_name(network.driver))
            }
        },
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
        mac: endpoint.mac.to_string(),
        ifname: endpoint.ifname.clone(),
        ports: endpoint.ports.iter().map(ToString::to_string).collect(),
    }
}
