//! Plans for foreign VTEPs: VTEPs that are not Culvert hosts.

use std::net::Ipv4Addr;

use super::{Plan, Refusal, network, put};
use crate::{
    model::{Driver, ForeignVtep, Key, Name, SCHEMA, View, networks_with, validate},
    store::{Compare, Write},
};

/// Plans the addition of a foreign VTEP to a network.
///
/// # Errors
///
/// The network is unknown, is no overlay network or does not learn; the address cannot be a host's, is that of a
/// Culvert node, is in the network already, or is in the subnet of an overlay network.
pub fn add_vtep(
    view: &View,
    name: &Name,
    ip: Ipv4Addr,
    port: u16,
) -> Result<(ForeignVtep, Plan), Refusal> {
    let found = network(view, name)?;
    if found.driver != Driver::Overlay {
        return Err(Refusal::Invalid(format!(
            "network '{name}' has no VTEPs: an overlay network is valid"
        )));
    }
    validate::vtep_address(ip)?;
    validate::udp_port(port)?;
    if let Some(node) = view.node_at(ip) {
        return Err(Refusal::Conflict(format!(
            "VTEP {ip} is node '{}', which needs no adding: the address of a host without Culvert is valid",
            node.name
        )));
    }
    if !found.learns() {
        return Err(Refusal::Invalid(format!(
            "network '{name}' does not learn, so hosts would drop all frames of VTEP {ip}: a network of 'network create --learning' is valid"
        )));
    }
    if let Some(other) = networks_with(view, ip).next() {
        return Err(Refusal::Conflict(format!(
            "VTEP {ip} is an address of network '{}', so hosts with containers in it would not reach the VTEP: give the VTEP another address",
            other.name
        )));
    }
    let key = Key::vtep(name, ip);
    if view.vteps.get(name).is_some_and(|vteps| vteps.contains_key(&ip))
        || view.problem_at(&key).is_some()
    {
        return Err(Refusal::Conflict(format!("VTEP {ip} is in network '{name}' already")));
    }
    let vtep = ForeignVtep { schema: SCHEMA, network: name.clone(), ip, port };
    let plan = Plan {
        compares: vec![
            Compare::Unchanged(Key::network(name), found.revision),
            Compare::Absent(key.clone()),
        ],
        writes: vec![put(key, &vtep)?],
    };
    Ok((vtep, plan))
}

/// Plans the removal of a foreign VTEP from a network. A record that cannot be read is removed too.
///
/// # Errors
///
/// The network or the VTEP is unknown.
pub fn remove_vtep(view: &View, name: &Name, ip: Ipv4Addr) -> Result<Plan, Refusal> {
    network(view, name)?;
    let key = Key::vtep(name, ip);
    let compares = match view.vteps.get(name).and_then(|vteps| vteps.get(&ip)) {
        _ if view.problem_at(&key).is_some() => Vec::new(),
        Some(found) => vec![Compare::Unchanged(key.clone(), found.revision)],
        None => {
            return Err(Refusal::NotFound(format!(
                "VTEP {ip} is not in network '{name}': `culvert vtep ls` lists those that are"
            )));
        }
    };
    Ok(Plan { compares, writes: vec![Write::Delete(key)] })
}
