//! Networks.

use std::collections::{BTreeMap, BTreeSet};

use super::{Agent, conflict, invalid, not_found};
use crate::{
    api::types::{
        ApiError, Created, InspectContainer, InspectIpam, InspectPeer, InspectSubnet,
        NetworkCreate, NetworkInspect, NetworkRow,
    },
    model::{
        Driver, Endpoint, Name, Network, View,
        ops::{self, NetworkSpec},
    },
};

/// The networks that exist from the start, with the driver of each. `bridge` is
/// local to a host and comes with the bridge driver; `host` and `none` are modes.
pub(super) const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// Refuses to change a predefined network.
fn not_predefined(name: &Name, what: &str) -> Result<(), ApiError> {
    if PREDEFINED.contains(&name.as_str()) {
        return Err(conflict(format!(
            "network '{name}' is predefined and cannot be {what}: choose another name"
        )));
    }
    Ok(())
}

impl Agent {
    pub(super) async fn create_network(&self, request: NetworkCreate) -> Result<Created, ApiError> {
        not_predefined(&request.name, "created")?;
        if request.driver == Driver::Bridge {
            return Err(invalid(format!(
                "network '{}': driver bridge is not available yet: '-d overlay' works, on one host too",
                request.name
            )));
        }
        self.shared.store().await?;
        let mut avoid = self.shared.platform.routes().await?;
        // A default route covers everything.
        avoid.retain(|route| route.prefix() > 0);
        let spec = NetworkSpec {
            name: request.name,
            driver: request.driver,
            subnets: request.subnets,
            gateway: request.gateway,
            vni: request.vni,
            mtu: request.mtu,
            max_mtu: self.shared.platform.max_mtu().await?,
            internal: request.internal,
            learning: request.learning,
            options: request.options,
            labels: request.labels,
            avoid,
        };
        let (network, revision) =
            self.shared.execute(|view| ops::create_network(view, &spec)).await?;
        let what = format!("network '{}'", network.name);
        self.shared.settled(revision, &what, || Some(())).await?;
        Ok(Created { id: network.id })
    }

    pub(super) async fn remove_network(&self, name: &Name) -> Result<(), ApiError> {
        not_predefined(name, "removed")?;
        self.shared.store().await?;
        let plan = |view: &View| Ok(((), ops::remove_network(view, name)?));
        let ((), revision) = self.shared.execute(plan).await?;
        self.shared.settled(revision, &format!("network '{name}'"), || Some(())).await
    }

    pub(super) async fn list_networks(&self) -> Result<Vec<NetworkRow>, ApiError> {
        self.shared.store().await?;
        let view = self.shared.view();
        let predefined = PREDEFINED.iter().map(|name| NetworkRow {
            id: predefined_id(name),
            name: (*name).to_owned(),
            driver: predefined_driver(name).to_owned(),
            scope: "local".to_owned(),
            subnets: Vec::new(),
            vni: 0,
            mtu: 0,
            endpoints: 0,
        });
        let stored = view.networks.values().map(|network| NetworkRow {
            id: network.id.clone(),
            name: network.name.to_string(),
            driver: driver_name(network.driver).to_owned(),
            scope: scope(network.driver).to_owned(),
            subnets: network.subnets.iter().map(|subnet| subnet.subnet.to_string()).collect(),
            vni: network.vni.get(),
            mtu: network.mtu,
            endpoints: view.endpoints_in(&network.name).count(),
        });
        let mut rows: Vec<_> = predefined.chain(stored).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    pub(super) async fn inspect_network(&self, name: &Name) -> Result<NetworkInspect, ApiError> {
        self.shared.store().await?;
        if PREDEFINED.contains(&name.as_str()) {
            return Ok(inspect_predefined(name));
        }
        let view = self.shared.view();
        let network = view.networks.get(name).ok_or_else(|| unknown(&view, name))?;
        let containers = view
            .endpoints_in(name)
            .map(|endpoint| (endpoint.id.clone(), container(network, endpoint)));
        let nodes: BTreeSet<&Name> = view.endpoints_in(name).map(|ep| &ep.node).collect();
        let nodes = nodes.into_iter().filter_map(|node| view.nodes.get(node));
        let peers = nodes
            .map(|node| InspectPeer { name: node.name.to_string(), ip: node.vtep.to_string() })
            .chain(
                view.vteps
                    .get(name)
                    .into_iter()
                    .flat_map(BTreeMap::keys)
                    .map(|ip| InspectPeer { name: String::new(), ip: ip.to_string() }),
            );
        Ok(NetworkInspect {
            name: network.name.to_string(),
            id: network.id.clone(),
            scope: scope(network.driver).to_owned(),
            driver: driver_name(network.driver).to_owned(),
            enable_ipv6: network.subnets.iter().any(|subnet| subnet.subnet.is_ipv6()),
            ipam: InspectIpam {
                driver: "default".to_owned(),
                config: network
                    .subnets
                    .iter()
                    .map(|subnet| InspectSubnet {
                        subnet: subnet.subnet.to_string(),
                        gateway: subnet.gateway.to_string(),
                    })
                    .collect(),
            },
            internal: network.internal,
            containers: containers.collect(),
            options: network.options.clone(),
            labels: network.labels.clone(),
            vni: network.vni.get(),
            mtu: network.mtu,
            peers: peers.collect(),
        })
    }
}

/// The refusal of a name that no network has.
pub(super) fn unknown(view: &View, name: &Name) -> ApiError {
    match view.problem_at(&crate::model::Key::network(name)) {
        Some(why) => conflict(format!("network '{name}': its record in the store is {why}")),
        None => not_found(format!(
            "network '{name}' is unknown: 'culvert network ls' lists those there are"
        )),
    }
}

/// Name of a driver, as Docker writes it.
pub(super) const fn driver_name(driver: Driver) -> &'static str {
    match driver {
        Driver::Overlay => "overlay",
        Driver::Bridge => "bridge",
    }
}

const fn scope(driver: Driver) -> &'static str {
    match driver {
        Driver::Overlay => "global",
        Driver::Bridge => "local",
    }
}

fn predefined_driver(name: &str) -> &'static str {
    match name {
        "bridge" => "bridge",
        "host" => "host",
        _ => "null",
    }
}

/// An identifier that is the same on every host: the name in hexadecimal.
fn predefined_id(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<64}")
}

fn inspect_predefined(name: &Name) -> NetworkInspect {
    NetworkInspect {
        name: name.to_string(),
        id: predefined_id(name.as_str()),
        scope: "local".to_owned(),
        driver: predefined_driver(name.as_str()).to_owned(),
        enable_ipv6: false,
        ipam: InspectIpam { driver: "default".to_owned(), config: Vec::new() },
        internal: false,
        containers: BTreeMap::new(),
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        vni: 0,
        mtu: 0,
        peers: Vec::new(),
    }
}

fn container(network: &Network, endpoint: &Endpoint) -> InspectContainer {
    let cidr = |ip: Option<std::net::IpAddr>| {
        let ip = ip?;
        let subnet = network.subnets.iter().find(|subnet| subnet.subnet.contains(ip))?;
        Some(format!("{ip}/{}", subnet.subnet.prefix()))
    };
    InspectContainer {
        name: endpoint.container.to_string(),
        node: endpoint.node.to_string(),
        endpoint_id: endpoint.id.clone(),
        mac_address: endpoint.mac.to_string(),
        ipv4_address: cidr(endpoint.ipv4.map(Into::into)).unwrap_or_default(),
        ipv6_address: cidr(endpoint.ipv6.map(Into::into)).unwrap_or_default(),
    }
}
