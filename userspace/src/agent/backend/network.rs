//! Networks.

use std::collections::{BTreeMap, BTreeSet};

use super::{Agent, conflict, in_doubt, invalid, not_found};
use crate::{
    api::{
        deadline::{self, Wait},
        types::{
            ApiError, Created, InspectContainer, InspectIpam, InspectPeer, InspectSubnet,
            NetworkCreate, NetworkInspect, NetworkRow,
        },
    },
    model::{
        Driver, Endpoint, Invalid, Key, Name, Network, View,
        ops::{self, NetworkSpec, PREDEFINED_BRIDGE, Refusal},
        validate,
    },
};

/// Names of the predefined networks. `bridge` is made when a container first needs it; `host`
/// and `none` are modes.
pub(super) const PREDEFINED: [&str; 3] = [PREDEFINED_BRIDGE, "host", "none"];

/// Refuses to change a predefined network.
fn not_predefined(name: &Name, what: &str) -> Result<(), ApiError> {
    if PREDEFINED.contains(&name.as_str()) {
        return Err(conflict(format!(
            "network '{name}' is predefined and cannot be {what}: choose another name"
        )));
    }
    Ok(())
}

/// The meaning of a value of `--network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NetworkOf {
    /// A network of the store.
    Stored(Name),
    /// No network: a sandbox with only the loopback device.
    None,
    /// The network namespace of the host.
    Host,
    /// The network namespace of another container.
    Container(Name),
}

impl Agent {
    /// Parses the value of `--network`.
    ///
    /// # Errors
    ///
    /// A name is malformed, or the record of the network is unreadable.
    pub(super) fn network_of(&self, text: &str) -> Result<NetworkOf, ApiError> {
        if let Some(name) = text.strip_prefix("container:") {
            let name = name.parse().map_err(|error: Invalid| invalid(error.0))?;
            return Ok(NetworkOf::Container(name));
        }
        match text {
            "none" => return Ok(NetworkOf::None),
            "host" => return Ok(NetworkOf::Host),
            _ => {}
        }
        let name: Name = text.parse().map_err(|error: Invalid| invalid(error.0))?;
        if text == PREDEFINED_BRIDGE {
            // A missing `bridge` is made when a container first needs it.
            return Ok(NetworkOf::Stored(name.on(&self.shared.node.name)));
        }
        let view = self.shared.view();
        let name = view.resolve(&name, &self.shared.node.name);
        if view.networks.contains_key(&name) {
            Ok(NetworkOf::Stored(name))
        } else {
            // Another host may have made the network, and the update may not have arrived yet: the
            // plan reads the store.
            match view.problem_at(&Key::network(&name)) {
                Some(_) => Err(unknown(&view, &name)),
                None => Ok(NetworkOf::Stored(name)),
            }
        }
    }

    pub(super) async fn create_network(&self, request: NetworkCreate) -> Result<Created, ApiError> {
        not_predefined(&request.name, "created")?;
        self.shared.usable_store().await?;
        let network = self.make_network(request).await?;
        let mut subnets = network.subnets.iter().map(|subnet| subnet.subnet);
        let warning = subnets.find(|subnet| validate::is_public(*subnet)).map(|subnet| {
            format!(
                "network '{}': subnet {subnet} is public address space: hosts with containers in the network cannot reach those Internet addresses",
                network.name
            )
        });
        Ok(Created { id: network.id, warning })
    }

    async fn make_network(&self, request: NetworkCreate) -> Result<Network, ApiError> {
        let own = request.name.on(&self.shared.node.name);
        let routes = self.shared.platform.routes().await?;
        let spec = NetworkSpec {
            name: match request.driver {
                Driver::Overlay => request.name,
                Driver::Bridge => own.clone(),
            },
            driver: request.driver,
            subnets: request.subnets,
            gateway: request.gateway,
            vni: request.vni,
            mtu: request.mtu,
            max_mtu: self.shared.platform.max_mtu(request.driver).await?,
            internal: request.internal,
            learning: request.learning,
            options: request.options,
            labels: request.labels,
            routes,
            pools: self.shared.options.pools.clone(),
            store: self.shared.store_addresses(),
        };
        let plan = |view: &View| {
            if spec.driver == Driver::Overlay
                && view.resolve(&spec.name, &self.shared.node.name) == own
            {
                return Err(Refusal::Conflict(format!(
                    "network '{own}' exists already, as a bridge network of this host: choose another name, or remove it first"
                )));
            }
            ops::create_network(view, &spec)
        };
        let what = format!("network '{}'", spec.name);
        let executed = self.shared.execute(plan).await;
        let (network, revision) =
            executed.map_err(|error| in_doubt(error, &what, "culvert network ls"))?;
        self.shared.settled(revision, &what, || Some(())).await?;
        Ok(network)
    }

    /// The full name of the network that `name` stands for on this host.
    pub(super) fn resolve(&self, name: &Name) -> Name {
        self.shared.view().resolve(name, &self.shared.node.name)
    }

    /// Makes the network `bridge` of this host, if `network` is its name and it is missing.
    pub(super) async fn ensure_bridge(&self, network: &Name) -> Result<(), ApiError> {
        let there = || self.shared.view().networks.contains_key(network);
        if network.node().is_none() || network.local() != PREDEFINED_BRIDGE || there() {
            return Ok(());
        }
        // Only one of several requests makes the network. The lock cannot be a container's: no
        // container has such a name.
        let wait = Wait::Turn(format!("network '{network}'"));
        let _turn = deadline::waiting(wait, self.shared.requests.turns.wait(network)).await;
        deadline::check()?;
        if there() {
            return Ok(());
        }
        let name = network.local().parse().map_err(|error: Invalid| invalid(error.0))?;
        let request = NetworkCreate {
            name,
            driver: Driver::Bridge,
            subnets: Vec::new(),
            gateway: None,
            vni: None,
            mtu: None,
            internal: false,
            learning: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        self.make_network(request).await.map(drop)
    }

    pub(super) async fn remove_network(&self, name: &Name) -> Result<(), ApiError> {
        not_predefined(name, "removed")?;
        self.shared.usable_store().await?;
        let own = &self.shared.node.name;
        let plan = |view: &View| Ok(((), ops::remove_network(view, &view.resolve(name, own))?));
        let what = format!("network '{name}'");
        let executed = self.shared.execute(plan).await;
        let ((), revision) =
            executed.map_err(|error| in_doubt(error, &what, "culvert network ls"))?;
        self.shared.settled(revision, &what, || Some(())).await
    }

    pub(super) async fn list_networks(&self) -> Result<Vec<NetworkRow>, ApiError> {
        self.shared.read_store().await?;
        let view = self.shared.view();
        let own = &self.shared.node.name;
        let stored: Vec<_> = view.networks_on(own).collect();
        let made = |name: &str| stored.iter().any(|network| network.name.local() == name);
        let predefined = PREDEFINED.iter().filter(|name| !made(name)).map(|name| NetworkRow {
            id: predefined_id(name),
            name: (*name).to_owned(),
            driver: predefined_driver(name).to_owned(),
            scope: "local".to_owned(),
            subnets: Vec::new(),
            vni: 0,
            mtu: 0,
            endpoints: 0,
        });
        let stored = stored.iter().map(|network| NetworkRow {
            id: network.id.clone(),
            name: network.name.to_string(),
            driver: driver_name(network.driver).to_owned(),
            scope: scope(network.driver).to_owned(),
            subnets: network.subnets.iter().map(|subnet| subnet.subnet.to_string()).collect(),
            vni: network.vni.get(),
            mtu: network.mtu,
            endpoints: view.endpoints.count_in(&network.name),
        });
        let mut rows: Vec<_> = predefined.chain(stored).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    pub(super) async fn inspect_network(&self, name: &Name) -> Result<NetworkInspect, ApiError> {
        self.shared.read_store().await?;
        let view = self.shared.view();
        let name = &view.resolve(name, &self.shared.node.name);
        if PREDEFINED.contains(&name.as_str()) {
            return Ok(inspect_predefined(name));
        }
        let network = view.networks.get(name).ok_or_else(|| unknown(&view, name))?;
        let containers = view
            .endpoints_in(name)
            .map(|endpoint| (endpoint.id.clone(), container(network, &endpoint)));
        // A network of one node has no peers.
        let overlay = name.node().is_none();
        let endpoints = view.endpoints.briefs(name).filter(|_| overlay);
        let nodes: BTreeSet<&Name> = endpoints.map(|ep| ep.node).collect();
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

/// The error for a name that no network has.
pub(super) fn unknown(view: &View, name: &Name) -> ApiError {
    match view.problem_at(&Key::network(name)) {
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
        let subnet = network.subnet_with(ip)?;
        Some(format!("{ip}/{}", subnet.subnet.prefix()))
    };
    InspectContainer {
        name: endpoint.container.to_string(),
        node: endpoint.node.to_string(),
        endpoint_id: endpoint.id.clone(),
        mac_address: endpoint.mac.to_string(),
        ipv4_address: cidr(endpoint.ipv4.map(Into::into)).unwrap_or_default(),
        ipv6_address: cidr(endpoint.ipv6.map(Into::into)).unwrap_or_default(),
        additional_addresses: endpoint.additional.iter().filter_map(|ip| cidr(Some(*ip))).collect(),
    }
}
