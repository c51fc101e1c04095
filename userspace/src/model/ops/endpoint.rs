//! Plans for endpoints.

use std::net::IpAddr;

use ipnetwork::Ipv4Network;

use super::{
    Plan, Refusal,
    allocate::{Allocated, allocate, check_address, check_number},
    network, new_id, put,
};
use crate::{
    model::{
        Endpoint, IpOwner, Key, MacAddr, MacOwner, Name, Network, PublishedPort, SCHEMA,
        SandboxRef, Versioned, View, validate,
    },
    store::{Compare, Write},
};

/// Parameters of [`create_endpoint`].
#[derive(Clone, Debug)]
pub struct EndpointSpec {
    /// Network.
    pub network: Name,
    /// Name of the container.
    pub container: Name,
    /// Node on which the container runs.
    pub node: Name,
    /// Fixed addresses. The first of each subnet is the primary one, the others are additional
    /// addresses. Default: the lowest free address of each subnet.
    pub ips: Vec<IpAddr>,
    /// Fixed MAC. Default: `02:42:` and the address.
    pub mac: Option<MacAddr>,
    /// Interface name in the sandbox.
    pub ifname: String,
    /// Sandbox on the node.
    pub sandbox: SandboxRef,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Clients that may use the published ports. Empty: all clients.
    pub from: Vec<Ipv4Network>,
}

/// Plans the creation of an endpoint: its addresses, at least one of each subnet, the claims to
/// them and to its MAC, and the record.
///
/// # Errors
///
/// The network is unknown; the container is already in it; its ports cannot be published in it; the
/// address is refused or none is free; the MAC is refused; the interface name is malformed.
pub fn create_endpoint(view: &View, spec: &EndpointSpec) -> Result<(Endpoint, Plan), Refusal> {
    create_endpoint_as(view, spec, &new_id())
}

/// As [`create_endpoint`], with the identifier `id`, which no other attempt may have. If it is not
/// known whether the plan was committed, [`fence_endpoint`] makes sure that it is not later.
///
/// # Errors
///
/// As [`create_endpoint`].
pub fn create_endpoint_as(
    view: &View,
    spec: &EndpointSpec,
    id: &str,
) -> Result<(Endpoint, Plan), Refusal> {
    let name = &spec.network;
    let found = network(view, name)?;
    view.usable_network(name).map_err(Refusal::Conflict)?;
    validate::ifname(&spec.ifname)?;
    if view.endpoint_of(name, &spec.node, &spec.container).is_some() {
        return Err(Refusal::Conflict(format!(
            "container '{}' is in network '{name}' already: disconnect it first",
            spec.container
        )));
    }
    if !spec.ports.is_empty() {
        may_publish(found, &spec.container)?;
    }
    let Allocated { primary, additional } = allocate(view, found, &spec.ips)?;
    let (mut ipv4, mut ipv6) = (None, None);
    for ip in &primary {
        match ip {
            IpAddr::V4(ip) => ipv4 = Some(*ip),
            IpAddr::V6(ip) => ipv6 = Some(*ip),
        }
    }
    let own_mac = match (ipv4, ipv6) {
        (Some(ip), _) => MacAddr::from_ipv4(ip),
        (None, Some(ip)) => MacAddr::from_ipv6(ip),
        (None, None) => {
            return Err(Refusal::Conflict(format!("network '{name}' has no subnet")));
        }
    };
    let mac = spec.mac.unwrap_or(own_mac);
    check_mac(view, found, mac, own_mac)?;
    let endpoint = Endpoint {
        schema: SCHEMA,
        id: id.to_owned(),
        network: name.clone(),
        vni: found.vni,
        container: spec.container.clone(),
        node: spec.node.clone(),
        mac,
        ipv4,
        ipv6,
        additional,
        ifname: spec.ifname.clone(),
        sandbox: spec.sandbox.clone(),
        ports: spec.ports.clone(),
        from: spec.from.clone(),
    };
    let key = Key::endpoint(name, &endpoint.id);
    let mut plan = Plan {
        compares: vec![
            Compare::Unchanged(Key::network(name), found.revision),
            Compare::Absent(key.clone()),
        ],
        writes: vec![put(key, &endpoint)?],
    };
    // `fence_endpoint` writes that key, as does the registration of the node.
    let node = Key::node(&spec.node);
    plan.compares.push(match view.nodes.get(&spec.node) {
        Some(known) => Compare::Unchanged(node, known.revision),
        None => Compare::Absent(node),
    });
    if !endpoint.has_derived_mac() {
        claim_mac_of(view, &endpoint, &mut plan)?;
    }
    let owner = IpOwner { schema: SCHEMA, endpoint: endpoint.id.clone() };
    for ip in endpoint.addresses() {
        let key = Key::ipam(name, ip);
        plan.compares.push(Compare::Absent(key.clone()));
        plan.writes.push(put(key, &owner)?);
    }
    Ok((endpoint, plan))
}

/// Adds the claim to the MAC of an endpoint to the plan. It replaces the claim of an endpoint that
/// is gone, if the store has that one no more either.
fn claim_mac_of(view: &View, endpoint: &Endpoint, plan: &mut Plan) -> Result<(), Refusal> {
    let Endpoint { network, mac, .. } = endpoint;
    let key = Key::mac(network, *mac);
    let owner = MacOwner { schema: SCHEMA, endpoint: endpoint.id.clone() };
    if let Some((claim, gone)) = view.orphaned_mac(network, *mac) {
        plan.compares.push(Compare::Unchanged(key.clone(), claim.revision));
        plan.compares.push(Compare::Absent(Key::endpoint(network, gone)));
    } else {
        plan.compares.push(Compare::Absent(key.clone()));
    }
    plan.writes.push(put(key, &owner)?);
    Ok(())
}

/// Plans the claim to the MAC of an endpoint that an earlier version has made without one. The plan
/// has no writes if the endpoint needs no claim, or if an endpoint that is there has claimed the MAC.
///
/// # Errors
///
/// The endpoint is unknown.
pub fn claim_mac(view: &View, network: &Name, id: &str) -> Result<Plan, Refusal> {
    let found = view.endpoint(network, id).ok_or_else(|| {
        Refusal::NotFound(format!("endpoint {id} of network '{network}' is unknown"))
    })?;
    let unchanged = Compare::Unchanged(Key::endpoint(network, id), found.revision);
    let mut plan = Plan { compares: vec![unchanged], writes: Vec::new() };
    if !found.has_derived_mac() && view.standing_mac_claim(network, found.mac).is_none() {
        claim_mac_of(view, &found, &mut plan)?;
    }
    Ok(plan)
}

/// Checks that a container may publish ports in a network.
///
/// # Errors
///
/// The network is internal, or has no IPv4 subnet.
pub fn may_publish(network: &Network, container: &Name) -> Result<(), Refusal> {
    let name = &network.name;
    let why = if network.internal {
        "which is internal: leave it out, or choose a network created without --internal"
    } else if network.gateway_v4().is_none() {
        "which has no IPv4 subnet: leave it out, or choose a network with one"
    } else {
        return Ok(());
    };
    Err(Refusal::Invalid(format!(
        "container '{container}': -p does not go with network '{name}', {why}"
    )))
}

fn check_mac(view: &View, network: &Network, mac: MacAddr, own: MacAddr) -> Result<(), Refusal> {
    let name = &network.name;
    if !mac.is_unicast() {
        return Err(Refusal::Invalid(format!(
            "MAC {mac} is not that of one interface: an even first octet, such as {own}, is valid"
        )));
    }
    if let Some(holder) = view.endpoint_at(name, mac) {
        return Err(Refusal::Conflict(format!(
            "MAC {mac} is taken by container '{}' on '{}' in network '{name}': choose another, or leave out --mac",
            holder.container, holder.node
        )));
    }
    // The endpoint that has it has another MAC in its record, or one of the two records cannot be
    // read. The claim of an endpoint that is gone is replaced.
    if let Some(claim) = view.standing_mac_claim(name, mac) {
        let owner = match &claim.owner {
            Some(owner) => format!("endpoint {}", owner.endpoint),
            None => "an unreadable record".to_owned(),
        };
        return Err(Refusal::Conflict(format!(
            "MAC {mac} is claimed by {owner} in network '{name}', key {}: choose another, or leave out --mac",
            Key::mac(name, mac)
        )));
    }
    // The MAC that Culvert derives from another address of the network.
    if let Some(ip) = network.address_of(mac).filter(|_| mac != own) {
        return Err(Refusal::Conflict(format!(
            "MAC {mac} belongs to address {ip} of network '{name}': ask for that address, or choose another MAC"
        )));
    }
    Ok(())
}

/// Plans that the endpoint `id` of `node` does not exist from now on. It is removed if it exists.
/// Otherwise the node's record is written again as it is: an earlier plan of
/// [`create_endpoint_as`], of which it is not known whether it was committed, cannot be committed
/// after that.
///
/// # Errors
///
/// The record of the endpoint cannot be read, or the endpoint is another node's.
pub fn fence_endpoint(view: &View, network: &Name, id: &str, node: &Name) -> Result<Plan, Refusal> {
    let holder = view.endpoint(network, id).map(|ep| ep.node.clone());
    if let Some(other) = holder.filter(|holder| holder != node) {
        return Err(Refusal::Conflict(format!(
            "endpoint {id} of network '{network}' is on node '{other}', not on '{node}': that node removes it"
        )));
    }
    match remove_endpoint(view, network, id) {
        Err(Refusal::NotFound(_)) => {}
        removal => return removal,
    }
    let mut plan =
        Plan { compares: vec![Compare::Absent(Key::endpoint(network, id))], writes: Vec::new() };
    // Without the node's record an earlier plan that requires it as it was cannot be committed. One
    // that was made without the record cannot be committed once the node is registered; an agent
    // makes endpoints only after that.
    if let Some(known) = view.nodes.get(node) {
        let key = Key::node(node);
        plan.compares.push(Compare::Unchanged(key.clone(), known.revision));
        plan.writes.push(put(key, &known.record)?);
    }
    Ok(plan)
}

/// Plans the removal of an endpoint and of its claims.
///
/// # Errors
///
/// The endpoint is unknown, or its record cannot be read.
pub fn remove_endpoint(view: &View, network: &Name, id: &str) -> Result<Plan, Refusal> {
    let key = Key::endpoint(network, id);
    if let Some(why) = view.problem_at(&key) {
        return Err(Refusal::Conflict(format!("{key}: {why}: delete that key first")));
    }
    let found = view.endpoint(network, id).ok_or_else(|| {
        Refusal::NotFound(format!("endpoint {id} of network '{network}' is unknown"))
    })?;
    let mut plan = Plan {
        compares: vec![Compare::Unchanged(key.clone(), found.revision)],
        writes: vec![Write::Delete(key)],
    };
    for ip in found.addresses() {
        plan.writes.extend(freed(view, network, id, ip));
    }
    let claim = view.mac_claim(network, found.mac).and_then(|claim| claim.owner.as_ref());
    if claim.is_some_and(|owner| owner.endpoint == id) {
        plan.writes.push(Write::Delete(Key::mac(network, found.mac)));
    }
    Ok(plan)
}

/// The write that frees an address of an endpoint. `None`: another endpoint owns it.
fn freed(view: &View, network: &Name, id: &str, ip: IpAddr) -> Option<Write> {
    let owner = view.ip_claim(network, ip).and_then(|claim| claim.owner)?;
    (owner.endpoint == id).then(|| Write::Delete(Key::ipam(network, ip)))
}

/// Plans one more address of an endpoint. If the endpoint has it as an additional one already, the
/// plan has no writes: an earlier request may have been carried out though its answer was lost.
///
/// # Errors
///
/// The network is unknown; the container is not in it on this node; it has as many addresses as it
/// may have; the address is refused.
pub fn add_address(
    view: &View,
    network: &Name,
    node: &Name,
    container: &Name,
    ip: IpAddr,
) -> Result<(Endpoint, Plan), Refusal> {
    let (found, mut endpoint) = attached(view, network, node, container)?;
    if endpoint.additional.contains(&ip) {
        let key = Key::endpoint(network, &endpoint.id);
        let compares = vec![Compare::Unchanged(key, endpoint.revision)];
        return Ok((endpoint.record, Plan { compares, writes: Vec::new() }));
    }
    check_address(view, found, ip)?;
    check_number(endpoint.addresses().count() + 1)?;
    endpoint.record.additional.push(ip);
    let (key, claim) = (Key::endpoint(network, &endpoint.id), Key::ipam(network, ip));
    let owner = IpOwner { schema: SCHEMA, endpoint: endpoint.id.clone() };
    let plan = Plan {
        compares: vec![
            Compare::Unchanged(Key::network(network), found.revision),
            Compare::Unchanged(key.clone(), endpoint.revision),
            Compare::Absent(claim.clone()),
        ],
        writes: vec![put(key, &endpoint.record)?, put(claim, &owner)?],
    };
    Ok((endpoint.record, plan))
}

/// Plans the removal of an additional address of an endpoint.
///
/// # Errors
///
/// The network is unknown; the container is not in it on this node; the address is not an additional
/// one of it.
pub fn remove_address(
    view: &View,
    network: &Name,
    node: &Name,
    container: &Name,
    ip: IpAddr,
) -> Result<(Endpoint, Plan), Refusal> {
    let (_, mut endpoint) = attached(view, network, node, container)?;
    if !endpoint.additional.contains(&ip) {
        return Err(Refusal::Conflict(if endpoint.addresses().any(|own| own == ip) {
            format!(
                "address {ip} is the primary one of container '{container}' in network '{network}': 'culvert network disconnect {network} {container}' gives it up"
            )
        } else {
            format!(
                "address {ip} is not one of container '{container}' in network '{network}': 'culvert ps' shows which are"
            )
        }));
    }
    endpoint.record.additional.retain(|own| *own != ip);
    let key = Key::endpoint(network, &endpoint.id);
    let mut plan = Plan {
        compares: vec![Compare::Unchanged(key.clone(), endpoint.revision)],
        writes: vec![put(key, &endpoint.record)?],
    };
    plan.writes.extend(freed(view, network, &endpoint.id, ip));
    Ok((endpoint.record, plan))
}

/// The network, and the endpoint of a container in it.
fn attached<'a>(
    view: &'a View,
    name: &Name,
    node: &Name,
    container: &Name,
) -> Result<(&'a Versioned<Network>, Versioned<Endpoint>), Refusal> {
    let found = network(view, name)?;
    let endpoint = view.endpoint_of(name, node, container).ok_or_else(|| {
        Refusal::Conflict(format!(
            "container '{container}' is not in network '{name}': 'culvert ps' shows where it is"
        ))
    })?;
    Ok((found, endpoint))
}
