//! An agent in memory: what the API and CLI tests talk to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
};

use crate::flows;
use async_trait::async_trait;
use culvert::{
    api::{
        self, Backend,
        types::{
            AddressChange, AgentStatus, Allowed, ApiConnections, ApiError, Connect, ConntrackShare,
            ConntrackStatus, ContainerCreate, ContainerNetwork, ContainerRow, ContainerState,
            Counts, Created, DatapathStatus, ErrorKind, FdbRow, InspectContainer, InspectIpam,
            InspectPeer, InspectSubnet, NatPage, NatQuery, NatRow, NeighRow, NetworkCreate,
            NetworkInspect, NetworkRow, NodeRow, PathMtuStatus, PublishedPorts, PublishedRow,
            RepairRow, Sources, StatsRow, Status, StoreCertificate, StoreRead, StoreStatus,
            VtepChange, VtepRow,
        },
    },
    choice::{Uplink, XdpSupport},
    model::{Driver, Isolation, Name, Privileges, RestartPolicy},
};
use tokio_util::sync::CancellationToken;

/// The agent. It starts with the overlay network `overlaynet1` and no container.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    state_dir: PathBuf,
    networks: BTreeMap<String, NetworkRow>,
    containers: BTreeMap<String, ContainerRow>,
    vteps: Vec<(String, String)>,
    denied: Vec<String>,
    unserved: Vec<String>,
    forgets_from: bool,
    calls: Vec<String>,
    away: usize,
    hangs: bool,
    problems: Vec<String>,
    warnings: Vec<String>,
    forgetful: bool,
    /// Text of somebody else, which every answer has.
    forged: Option<String>,
    certificates: Vec<StoreCertificate>,
    shutdown: Option<CancellationToken>,
}

fn refuse<T>(kind: ErrorKind, message: &str) -> Result<T, ApiError> {
    Err(ApiError::new(kind, message))
}

fn network_row(name: &str, vni: u32, driver: &str, subnets: &[&str]) -> NetworkRow {
    NetworkRow {
        id: format!("{:064x}", 0xfeed_0000_0000_0000_0000_0000_0000_0000_u128 + u128::from(vni)),
        name: name.to_owned(),
        driver: driver.to_owned(),
        scope: if driver == "overlay" { "global" } else { "local" }.to_owned(),
        subnets: subnets.iter().map(ToString::to_string).collect(),
        vni,
        mtu: 1450,
        endpoints: 0,
    }
}

/// A container all of whose other texts are `text`.
fn forged_container(name: &str, text: &str) -> ContainerRow {
    let text = || text.to_owned();
    ContainerRow {
        name: name.to_owned(),
        id: Some(text()),
        mode: text(),
        state: text(),
        pid: None,
        start_time: None,
        exit_code: None,
        restart: RestartPolicy::No,
        restarts: 0,
        netns: text(),
        log: Some(text()),
        networks: vec![ContainerNetwork {
            name: text(),
            ip: text(),
            ip6: Some(text()),
            additional: vec![text()],
            mac: text(),
            ifname: text(),
            ports: vec![text()],
            from: vec![text()],
            unserved: vec![text()],
        }],
        shares: Some(text()),
        command: vec![text()],
        hostname: Some(text()),
        etc: Some(text()),
        privileges: Privileges::default(),
        isolation: Isolation::default(),
        warnings: Vec::new(),
    }
}

/// The inspection of a network all of whose texts are `text`.
fn forged_inspection(text: &str) -> NetworkInspect {
    let text = || text.to_owned();
    NetworkInspect {
        name: text(),
        id: text(),
        scope: text(),
        driver: text(),
        enable_ipv6: false,
        ipam: InspectIpam {
            driver: text(),
            config: vec![InspectSubnet { subnet: text(), gateway: text() }],
        },
        internal: false,
        containers: BTreeMap::from([(
            text(),
            InspectContainer {
                name: text(),
                node: text(),
                endpoint_id: text(),
                mac_address: text(),
                ipv4_address: text(),
                ipv6_address: text(),
                additional_addresses: vec![text()],
            },
        )]),
        options: BTreeMap::from([(text(), text())]),
        labels: BTreeMap::from([(text(), text())]),
        vni: 256,
        mtu: 1450,
        peers: vec![InspectPeer { name: text(), ip: text() }],
    }
}

impl Fake {
    /// With its state directory at `state_dir`.
    pub(crate) fn new(state_dir: &Path) -> Arc<Self> {
        let fake = Self::default();
        let row = network_row("overlaynet1", 256, "overlay", &["10.0.0.0/24"]);
        let mut state = fake.state();
        state.state_dir = state_dir.to_owned();
        state.networks.insert(row.name.clone(), row);
        drop(state);
        Arc::new(fake)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What was asked, in order, since the last time.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Refuses the next `requests` about containers' states as an agent without its store does.
    pub(crate) fn away_for(&self, requests: usize) {
        self.state().away = requests;
    }

    /// From now on lists of containers are never finished.
    pub(crate) fn hang(&self) {
        self.state().hangs = true;
    }

    /// Adds a problem to the status, and makes the store unhealthy.
    pub(crate) fn trouble(&self, problem: &str) {
        self.state().problems.push(problem.to_owned());
    }

    /// Has a text of somebody else in everything that may come from the store or the host: in every
    /// list, in the inspection of `overlaynet1`, in the status, and in the refusal to remove a
    /// node. The path of the log of the container `victim` is that text as well.
    pub(crate) fn forge(&self, text: &str) {
        let row = NetworkRow { id: text.to_owned(), ..network_row(text, 300, text, &[text]) };
        // An MTU that is too large for every interface is a finding of `doctor`, with the name.
        let name = format!("{text}2");
        let wide = NetworkRow { mtu: u16::MAX, ..network_row(&name, 301, "overlay", &[text]) };
        let mut state = self.state();
        for row in [row, wide] {
            state.networks.insert(row.name.clone(), row);
        }
        for row in [text, "victim"].map(|name| forged_container(name, text)) {
            state.containers.insert(row.name.clone(), row);
        }
        state.problems.push(text.to_owned());
        state.unserved.push(text.to_owned());
        state.forged = Some(text.to_owned());
    }

    /// The text of [`Self::forge`].
    fn forged(&self) -> Option<String> {
        self.state().forged.clone()
    }

    /// Adds a file of certificates to the status.
    pub(crate) fn certify(&self, option: &str, file: &str) {
        let (option, file) = (option.to_owned(), file.to_owned());
        self.state().certificates.push(StoreCertificate { option, file });
    }

    /// Gives the host an interface through which published ports are not reached.
    pub(crate) fn tunnel(&self, name: &str) {
        self.state().unserved.push(name.to_owned());
    }

    /// Ignores `--from`, as an earlier version does.
    pub(crate) fn forget_from(&self) {
        self.state().forgets_from = true;
    }

    /// Gives every new container and network a warning.
    pub(crate) fn warn(&self, warning: &str) {
        self.state().warnings.push(warning.to_owned());
    }

    /// Answers as an agent that does not know `--restart`.
    pub(crate) fn forget_policies(&self) {
        self.state().forgetful = true;
    }

    fn note(&self, call: impl Into<String>) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.calls.push(call.into());
        state
    }
}

#[async_trait]
impl Backend for Fake {
    async fn network_create(&self, request: NetworkCreate) -> Result<Created, ApiError> {
        let mut state = self.note(format!("create {}", serde_json::to_string(&request).unwrap()));
        let name = request.name.to_string();
        if state.networks.contains_key(&name) {
            return refuse(
                ErrorKind::Conflict,
                &format!("network name {name} is taken: choose another"),
            );
        }
        let driver = match request.driver {
            Driver::Overlay => "overlay",
            Driver::Bridge => "bridge",
        };
        let subnets: Vec<_> = request.subnets.iter().map(ToString::to_string).collect();
        let subnets: Vec<_> = subnets.iter().map(String::as_str).collect();
        let row = network_row(&name, request.vni.unwrap_or(257), driver, &subnets);
        let id = row.id.clone();
        state.networks.insert(name, row);
        Ok(Created { id, warning: state.warnings.first().cloned() })
    }

    async fn networks(&self) -> Result<Vec<NetworkRow>, ApiError> {
        Ok(self.state().networks.values().cloned().collect())
    }

    async fn network_inspect(&self, name: &Name) -> Result<NetworkInspect, ApiError> {
        let state = self.state();
        let Some(row) = state.networks.get(name.as_str()) else {
            return refuse(
                ErrorKind::NotFound,
                &format!("network {name} does not exist: see 'culvert network ls'"),
            );
        };
        if let Some(text) = &state.forged {
            return Ok(forged_inspection(text));
        }
        Ok(NetworkInspect {
            name: row.name.clone(),
            id: row.id.clone(),
            scope: row.scope.clone(),
            driver: row.driver.clone(),
            enable_ipv6: false,
            ipam: InspectIpam {
                driver: "default".to_owned(),
                config: vec![InspectSubnet {
                    subnet: "10.0.0.0/24".to_owned(),
                    gateway: "10.0.0.1".to_owned(),
                }],
            },
            internal: false,
            containers: BTreeMap::from([(
                "e".repeat(64),
                InspectContainer {
                    name: "over1".to_owned(),
                    node: "host1".to_owned(),
                    endpoint_id: "e".repeat(64),
                    mac_address: "02:42:0a:00:00:02".to_owned(),
                    ipv4_address: "10.0.0.2/24".to_owned(),
                    ipv6_address: String::new(),
                    additional_addresses: vec!["10.0.0.54/24".to_owned()],
                },
            )]),
            options: BTreeMap::from([("dscp".to_owned(), "copy".to_owned())]),
            labels: BTreeMap::new(),
            vni: row.vni,
            mtu: row.mtu,
            peers: vec![InspectPeer { name: "host1".to_owned(), ip: "192.168.0.1".to_owned() }],
        })
    }

    async fn network_remove(&self, name: &Name) -> Result<(), ApiError> {
        let mut state = self.note(format!("remove network {name}"));
        match state.networks.remove(name.as_str()) {
            Some(_) => Ok(()),
            None => refuse(ErrorKind::NotFound, &format!("network {name} does not exist")),
        }
    }

    async fn connect(&self, network: &Name, request: Connect) -> Result<ContainerRow, ApiError> {
        let mut state =
            self.note(format!("connect {network} {}", serde_json::to_string(&request).unwrap()));
        let ip = request.ip.map_or("10.0.0.3".to_owned(), |ip| ip.to_string());
        let Some(row) = state.containers.get_mut(request.container.as_str()) else {
            return refuse(
                ErrorKind::NotFound,
                &format!("container {} does not exist", request.container),
            );
        };
        row.networks.push(ContainerNetwork {
            name: network.to_string(),
            ip,
            ip6: Some("fd00::3".to_owned()),
            additional: request.more_ips.iter().map(ToString::to_string).collect(),
            mac: "02:42:0a:00:00:03".to_owned(),
            ifname: "eth1".to_owned(),
            ports: Vec::new(),
            from: Vec::new(),
            unserved: Vec::new(),
        });
        Ok(row.clone())
    }

    async fn disconnect(&self, network: &Name, container: &Name) -> Result<(), ApiError> {
        drop(self.note(format!("disconnect {network} {container}")));
        Ok(())
    }

    async fn address_add(&self, network: &Name, request: AddressChange) -> Result<(), ApiError> {
        let AddressChange { container, ip } = request;
        let mut state = self.note(format!("add {ip} to {container} in {network}"));
        let Some(row) = state.containers.get_mut(container.as_str()) else {
            return refuse(ErrorKind::NotFound, &format!("container {container} does not exist"));
        };
        if let Some(found) = row.networks.iter_mut().find(|row| row.name == network.as_str()) {
            found.additional.push(ip.to_string());
        }
        Ok(())
    }

    async fn address_remove(&self, network: &Name, request: AddressChange) -> Result<(), ApiError> {
        let AddressChange { container, ip } = request;
        let mut state = self.note(format!("remove {ip} from {container} in {network}"));
        let rows = state.containers.get_mut(container.as_str()).map(|row| &mut row.networks);
        let found = rows.and_then(|rows| rows.iter_mut().find(|row| row.name == network.as_str()));
        let before = found.as_ref().map_or(0, |row| row.additional.len());
        let after = found.map_or(0, |row| {
            row.additional.retain(|own| *own != ip.to_string());
            row.additional.len()
        });
        if before == after {
            return refuse(ErrorKind::Conflict, &format!("address {ip} is not one of {container}"));
        }
        Ok(())
    }

    async fn container_create(&self, request: ContainerCreate) -> Result<ContainerRow, ApiError> {
        let mut state =
            self.note(format!("container {}", serde_json::to_string(&request).unwrap()));
        let name = request.name.to_string();
        if state.containers.contains_key(&name) {
            return refuse(ErrorKind::Conflict, &format!("container name {name} is taken"));
        }
        let (mode, networks) = match request.network.as_str() {
            "host" => ("host", Vec::new()),
            "none" => ("none", Vec::new()),
            network if network.starts_with("container:") => ("container", Vec::new()),
            network if !state.networks.contains_key(network) => {
                return refuse(
                    ErrorKind::NotFound,
                    &format!("network {network} does not exist:\nsee 'culvert network ls'"),
                );
            }
            network => (
                if request.netns.is_some() || request.pid.is_some() {
                    "attached"
                } else {
                    "overlay"
                },
                vec![ContainerNetwork {
                    name: network.to_owned(),
                    ip: request.ip.map_or("10.0.0.2".to_owned(), |ip| ip.to_string()),
                    ip6: None,
                    additional: request.more_ips.iter().map(ToString::to_string).collect(),
                    mac: "02:42:0a:00:00:02".to_owned(),
                    ifname: request.ifname.unwrap_or("eth0".to_owned()),
                    from: match state.forgets_from {
                        true => Vec::new(),
                        false => request.from.iter().map(ToString::to_string).collect(),
                    },
                    ports: request.ports,
                    unserved: state.unserved.clone(),
                }],
            ),
        };
        let row = ContainerRow {
            name: name.clone(),
            id: None,
            mode: mode.to_owned(),
            state: if mode == "attached" { mode } else { "created" }.to_owned(),
            pid: None,
            start_time: None,
            exit_code: None,
            restart: match &request.rerun {
                Some(rerun) if !state.forgetful => rerun.restart,
                _ => RestartPolicy::No,
            },
            restarts: 0,
            netns: format!("/run/netns/{name}"),
            log: None,
            networks,
            shares: request.network.strip_prefix("container:").map(str::to_owned),
            command: request.command,
            hostname: None,
            etc: None,
            privileges: match state.forgetful {
                true => Privileges::default(),
                false => request.privileges,
            },
            isolation: match state.forgetful {
                true => Isolation::default(),
                false => request.isolation,
            },
            warnings: Vec::new(),
        };
        state.containers.insert(name, row.clone());
        let warnings = state.warnings.clone();
        Ok(ContainerRow { warnings, ..row })
    }

    async fn container_state(&self, name: &Name, change: ContainerState) -> Result<(), ApiError> {
        let mut state = self.state();
        if state.away > 0 {
            state.away -= 1;
            return refuse(ErrorKind::Unavailable, "store: no answer");
        }
        state.calls.push(match &change {
            ContainerState::Running { .. } => format!("{name} runs"),
            ContainerState::Restarting { code, .. } => format!("{name} waits after {code}"),
            ContainerState::Exited { code, .. } => format!("{name} ended with {code}"),
        });
        let Some(row) = state.containers.get_mut(name.as_str()) else {
            // As the agent: it was removed while its command was ending.
            if let ContainerState::Exited { .. } = change {
                return Ok(());
            }
            return refuse(ErrorKind::NotFound, "no such container");
        };
        match change {
            ContainerState::Running { pid, log, supervisor, .. } => {
                row.state = "running".to_owned();
                row.pid = Some(pid);
                row.exit_code = None;
                row.log = log.map(|log| log.display().to_string());
                row.restarts = supervisor.map_or(0, |supervisor| supervisor.restarts);
            }
            ContainerState::Restarting { code, supervisor, .. } => {
                row.state = "restarting".to_owned();
                row.pid = None;
                row.exit_code = Some(code);
                row.restarts = supervisor.restarts;
            }
            ContainerState::Exited { code, .. } => {
                row.state = "exited".to_owned();
                row.pid = None;
                row.exit_code = Some(code);
            }
        }
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<ContainerRow>, ApiError> {
        if self.state().hangs {
            std::future::pending::<()>().await;
        }
        Ok(self.state().containers.values().cloned().collect())
    }

    async fn container_remove(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        let mut state = self.note(format!("remove container {name} force={force}"));
        let Some(row) = state.containers.get(name.as_str()) else {
            return refuse(ErrorKind::NotFound, &format!("container {name} does not exist"));
        };
        if row.pid.is_some() && !force {
            return refuse(
                ErrorKind::Conflict,
                &format!("container {name} runs: stop its command or give -f"),
            );
        }
        state.containers.remove(name.as_str());
        Ok(())
    }

    async fn fdb(&self) -> Result<Vec<FdbRow>, ApiError> {
        let row = |mac: &str, kind: &str, dst: &str, ifname: &str, age_s| FdbRow {
            network: "overlaynet1".to_owned(),
            vni: 256,
            mac: mac.to_owned(),
            kind: kind.to_owned(),
            dst: dst.to_owned(),
            ifname: ifname.to_owned(),
            age_s,
        };
        let mut rows = vec![
            row("02:42:0a:00:00:02", "local", "", "cv0123456789ab", None),
            row("02:42:0a:00:00:03", "static", "192.168.0.2", "eth0", None),
            row("aa:bb:cc:dd:ee:ff", "learned", "192.168.0.9", "eth0", Some(75)),
        ];
        let forged = self.forged();
        rows.extend(
            forged.map(|text| FdbRow {
                network: text.clone(),
                ..row(&text, &text, &text, &text, None)
            }),
        );
        Ok(rows)
    }

    async fn neighbours(&self) -> Result<Vec<NeighRow>, ApiError> {
        let row = |last: u8, kind: &str, age_s| NeighRow {
            network: "overlaynet1".to_owned(),
            vni: 256,
            ip: format!("10.0.0.{last}"),
            mac: "02:42:0a:00:00:03".to_owned(),
            kind: kind.to_owned(),
            age_s,
        };
        let mut rows = vec![row(3, "static", None), row(100, "learned", Some(75))];
        rows.extend(self.forged().map(|text| NeighRow {
            network: text.clone(),
            ip: text.clone(),
            mac: text.clone(),
            ..row(4, &text, None)
        }));
        Ok(rows)
    }

    async fn nat(&self, query: NatQuery) -> Result<Vec<NatRow>, ApiError> {
        drop(self.note(format!("nat {}", serde_json::to_string(&query).unwrap())));
        if let Some(name) = query.container.as_ref().filter(|name| name.as_str() == "nobody") {
            return refuse(
                ErrorKind::NotFound,
                &format!("container '{name}' is unknown: 'culvert ps' lists those of this host"),
            );
        }
        let mut rows = flows::rows();
        if let (Some(text), Some(row)) = (self.forged(), rows.first().cloned()) {
            rows.push(NatRow {
                state: text.clone(),
                kind: text.clone(),
                network: text.clone(),
                container: text.clone(),
                from: text,
                ..row
            });
        }
        Ok(rows
            .into_iter()
            .filter(|row| query.protocol.is_none_or(|protocol| protocol == row.protocol))
            .collect())
    }

    async fn nat_page(&self, query: NatQuery) -> Result<NatPage, ApiError> {
        Ok(NatPage { rows: self.nat(query).await?, next: None })
    }

    async fn vteps(&self) -> Result<Vec<VtepRow>, ApiError> {
        let mut rows = vec![
            VtepRow {
                ip: "192.168.0.1".to_owned(),
                port: 4789,
                node: "host1".to_owned(),
                kind: "self".to_owned(),
                alive: Some(true),
                networks: vec!["overlaynet1".to_owned()],
                via: String::new(),
                inner_mtu: 1450,
            },
            VtepRow {
                ip: "192.168.0.2".to_owned(),
                port: 4789,
                node: "host2".to_owned(),
                kind: "node".to_owned(),
                alive: Some(false),
                networks: Vec::new(),
                via: "eth0".to_owned(),
                inner_mtu: 1450,
            },
        ];
        rows.extend(self.state().vteps.iter().map(|(ip, network)| VtepRow {
            ip: ip.clone(),
            port: 4789,
            node: String::new(),
            kind: "foreign".to_owned(),
            alive: None,
            networks: vec![network.clone()],
            via: "eth0 via 192.168.0.254".to_owned(),
            inner_mtu: 1450,
        }));
        rows.extend(self.forged().map(|text| VtepRow {
            ip: text.clone(),
            port: 4789,
            node: text.clone(),
            kind: text.clone(),
            alive: None,
            networks: vec![text.clone()],
            via: text,
            inner_mtu: 1450,
        }));
        Ok(rows)
    }

    async fn vtep_add(&self, request: VtepChange) -> Result<(), ApiError> {
        self.state().vteps.push((request.ip.to_string(), request.network.to_string()));
        Ok(())
    }

    async fn vtep_remove(&self, request: VtepChange) -> Result<(), ApiError> {
        let mut state = self.state();
        let before = state.vteps.len();
        state.vteps.retain(|(ip, _)| *ip != request.ip.to_string());
        if state.vteps.len() == before {
            return refuse(
                ErrorKind::NotFound,
                &format!("VTEP {} was not added to network {}", request.ip, request.network),
            );
        }
        Ok(())
    }

    async fn ports(&self) -> Result<PublishedPorts, ApiError> {
        let state = self.state();
        let published = state.containers.values().flat_map(|row| {
            row.networks.iter().flat_map(|network| {
                network.ports.iter().map(|port| PublishedRow {
                    container: row.name.clone(),
                    network: network.name.clone(),
                    port: port.clone(),
                    from: network.from.clone(),
                })
            })
        });
        Ok(PublishedPorts {
            published: published.collect(),
            denied: state.denied.clone(),
            dropped: 12,
            unserved: state.unserved.clone(),
        })
    }

    async fn ports_deny(&self, Sources { sources }: Sources) -> Result<(), ApiError> {
        let mut state = self.note(format!("deny {sources:?}"));
        for source in sources {
            if source.is_ipv6() {
                return refuse(
                    ErrorKind::Invalid,
                    &format!("source {source} is IPv6: IPv4 is valid"),
                );
            }
            state.denied.push(source.to_string());
        }
        Ok(())
    }

    async fn ports_allow(&self, Sources { sources }: Sources) -> Result<Allowed, ApiError> {
        let mut state = self.note(format!("allow {sources:?}"));
        let gone: Vec<_> = sources.iter().map(ToString::to_string).collect();
        state.denied.retain(|source| !gone.contains(source));
        let still =
            state.denied.iter().map(|source| format!("source {source}: it is still denied"));
        Ok(Allowed { still: still.collect() })
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, ApiError> {
        let row = |last: u8, gone_s, endpoints| NodeRow {
            name: format!("host{last}"),
            id: format!("{last:02x}").repeat(32),
            ip: format!("192.168.0.{last}"),
            port: 4789,
            alive: last < 3,
            gone_s,
            endpoints,
            here: last == 1,
        };
        let mut rows =
            vec![row(1, None, 2), row(2, None, 0), row(3, Some(7_300), 1), row(4, None, 0)];
        rows.extend(self.forged().map(|text| NodeRow {
            name: text.clone(),
            id: text.clone(),
            ip: text,
            ..row(5, None, 0)
        }));
        Ok(rows)
    }

    async fn node_remove(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        drop(self.note(format!("remove node {name} force={force}")));
        if let Some(message) = self.forged() {
            return Err(ApiError { kind: ErrorKind::NotFound, message });
        }
        match name.as_str() {
            "host3" => Ok(()),
            "host2" if force => Ok(()),
            "host2" => refuse(ErrorKind::Conflict, "node 'host2' is alive: stop its agent"),
            _ => refuse(ErrorKind::NotFound, &format!("node '{name}' is unknown")),
        }
    }

    async fn stats(&self) -> Result<Vec<StatsRow>, ApiError> {
        let row = |verdict: &str, reason: &str, code, packets, bytes| StatsRow {
            direction: "from_container".to_owned(),
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
            code,
            packets,
            bytes,
        };
        let mut rows = vec![
            row("forward", "encap", 2, 1_000_000, 1_450_000_000),
            row("drop", "spoofed_mac", 70, 3, 294),
            StatsRow {
                direction: "conntrack".to_owned(),
                ..row("flows", "tcp_established", 2, 17, 3_400_000)
            },
        ];
        let forged = self.forged();
        rows.extend(
            forged.map(|text| StatsRow { direction: text.clone(), ..row(&text, &text, 3, 1, 60) }),
        );
        Ok(rows)
    }

    async fn status(&self) -> Result<Status, ApiError> {
        let state = self.state();
        let problems = state.problems.clone();
        let mut status = Status {
            node: "host1".to_owned(),
            agent: AgentStatus {
                version: "0.1.0".to_owned(),
                pid: 4711,
                uptime_s: 3_725,
                vtep_ip: "192.168.0.1".to_owned(),
                vxlan_port: 4789,
                uplinks: vec!["eth0".to_owned()],
                state_dir: state.state_dir.display().to_string(),
                services: Vec::new(),
            },
            store: StoreStatus {
                kind: "etcd".to_owned(),
                healthy: problems.is_empty(),
                revision: 42,
                error: problems.first().cloned(),
                replaced: false,
                clock_offset_ms: Some(0),
                alarms: Vec::new(),
                certificates: state.certificates.clone(),
                open: false,
                last_read: Some(StoreRead { keys: 9, read_ms: 3, maps_ms: 5 }),
            },
            datapath: DatapathStatus {
                mode: "tc".to_owned(),
                reason: "veth gains nothing from XDP".to_owned(),
                uplinks: vec![Uplink {
                    name: "eth0".to_owned(),
                    driver: "veth".to_owned(),
                    xdp: XdpSupport::Native,
                    gro: true,
                    merges_vxlan: true,
                }],
                shared_port: false,
                client_links: vec!["docker0".to_owned()],
                unserved_links: state.unserved.clone(),
                device: "netkit".to_owned(),
                device_reason: "chosen: the kernel has netkit".to_owned(),
                abi: 1,
                pins: "/run/culvert/bpf/1".to_owned(),
            },
            vteps: 2,
            path_mtu: PathMtuStatus {
                smaller: 1,
                hints: 5,
                refused: 4,
                verified: 2,
                unverified: 3,
            },
            conntrack: ConntrackStatus {
                flows: 17,
                max: 262_144,
                refused: 3,
                share: 131_072,
                port_share: 32_256,
                ..ConntrackStatus::default()
            },
            counts: Counts {
                networks: state.networks.len(),
                local_endpoints: 1,
                endpoints: 2,
                fdb: 3,
                neighbours: 1,
                restarts: 0,
            },
            problems,
            repairs: Vec::new(),
            connections: ApiConnections::default(),
        };
        if let Some(text) = &state.forged {
            let text = || text.clone();
            status.node = text();
            status.agent.uplinks = vec![text()];
            status.agent.state_dir = text();
            status.store.alarms = vec![text()];
            status.datapath.reason = text();
            status.datapath.client_links = vec![text()];
            status.datapath.device_reason = text();
            let share = ConntrackShare { container: text(), flows: 1, refused: 1, without_port: 0 };
            status.conntrack.containers = vec![share];
            status.repairs = vec![RepairRow { kind: text(), count: 1, last: text(), last_s: 1 }];
        }
        Ok(status)
    }

    async fn store_accept(&self) -> Result<(), ApiError> {
        drop(self.note("store accept"));
        Ok(())
    }

    async fn purge(&self) -> Result<(), ApiError> {
        let state = self.note("purge");
        if let Some(shutdown) = &state.shutdown {
            shutdown.cancel();
        }
        Ok(())
    }
}

/// A server with its [`Fake`] in a directory of its own; both go when dropped.
pub(crate) struct Agent {
    pub(crate) fake: Arc<Fake>,
    pub(crate) dir: tempfile::TempDir,
    shutdown: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new(dir.path());
        let shutdown = CancellationToken::new();
        fake.state().shutdown = Some(shutdown.clone());
        let listener = api::bind(&dir.path().join("culvert.sock")).unwrap();
        let server = std::thread::spawn({
            let (fake, shutdown) = (fake.clone(), shutdown.clone());
            move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let stop = shutdown.cancelled_owned();
                runtime.block_on(api::serve(listener, fake, stop)).unwrap();
            }
        });
        Self { fake, dir, shutdown, server: Some(server) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("culvert.sock")
    }

    /// Stops the server and waits until it is gone.
    pub(crate) fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}
