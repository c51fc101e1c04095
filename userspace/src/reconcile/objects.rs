//! Devices that this host must have: a pair for each local endpoint, a gateway device for each
//! network with a gateway.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use crate::{
    model::{Driver, Endpoint, MacAddr, Name, Network, Node, SandboxRef},
    sandbox::GatewaySpec,
};

/// The device pair of a local endpoint, as the host must have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Endpoint identifier.
    pub id: String,
    /// Network.
    pub network: Name,
    /// Container.
    pub container: Name,
    /// Name of the interface in the sandbox.
    pub ifname: String,
    /// Sandbox.
    pub sandbox: SandboxRef,
    /// MAC address in the sandbox.
    pub mac: MacAddr,
    /// MTU of both ends.
    pub mtu: u16,
    /// Primary addresses with their prefix lengths.
    pub addresses: Vec<IpNetwork>,
    /// Additional addresses with their prefix lengths.
    pub additional: Vec<IpNetwork>,
    /// The host has routes to the subnets of the network.
    pub routed: bool,
    /// Routes besides those of the subnets: destination and gateway.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

/// The device pair that the host must have for `endpoint` of `network`.
pub fn local_endpoint(network: &Network, endpoint: &Endpoint) -> LocalEndpoint {
    let in_subnet = |ip: IpAddr| {
        let subnets = network.subnets.iter().map(|subnet| subnet.subnet);
        let subnet = subnets.into_iter().find(|net| net.is_ipv6() == ip.is_ipv6());
        subnet.and_then(|net| IpNetwork::new(ip, net.prefix()).ok()).unwrap_or(ip.into())
    };
    let v4 = endpoint.ipv4.map(IpAddr::V4).map(in_subnet);
    let v6 = endpoint.ipv6.map(IpAddr::V6).map(in_subnet);
    LocalEndpoint {
        id: endpoint.id.clone(),
        network: network.name.clone(),
        container: endpoint.container.clone(),
        ifname: endpoint.ifname.clone(),
        sandbox: endpoint.sandbox.clone(),
        mac: endpoint.mac,
        mtu: network.mtu,
        addresses: v4.into_iter().chain(v6).collect(),
        additional: endpoint.additional.iter().copied().map(in_subnet).collect(),
        routed: !network.may_overlap(),
        routes: default_route(network, endpoint).into_iter().collect(),
    }
}

/// The default route of an endpoint; `None` if its network has none.
fn default_route(network: &Network, endpoint: &Endpoint) -> Option<(IpNetwork, Option<IpAddr>)> {
    let gateway = network.gateway_v4().filter(|_| !network.internal)?;
    endpoint.ipv4?;
    let everywhere = IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0).ok()?;
    Some((everywhere, Some(gateway.into())))
}

/// The gateway device that the host `own` must have for `network`, if it has IPv4.
pub fn gateway_device(network: &Network, own: &Node) -> Option<GatewaySpec> {
    let subnet = network.subnets.iter().find(|subnet| subnet.subnet.is_ipv4())?;
    let gateway = network.gateway_v4()?;
    let address = IpNetwork::new(gateway.into(), subnet.subnet.prefix()).ok()?;
    Some(GatewaySpec {
        vni: network.vni.get(),
        mac: MacAddr::from_ipv4(gateway),
        mtu: network.mtu,
        address: (!network.may_overlap()).then_some(address),
        source: (network.driver == Driver::Overlay && !network.internal).then_some(own.vtep),
    })
}
