//! Plans for nodes.

use std::net::Ipv4Addr;

use super::{Plan, Refusal, network::emptied_network, put, remove_endpoint};
use crate::{
    model::{Alive, Key, Name, Node, View, encode, networks_with, validate},
    store::{Compare, LeaseId, MAX_OPS, Write},
};

/// Plans the registration of `agent` under the name of its node, alive on `lease`. An agent makes
/// the same plan again when it restarts, when its lease has expired, or when its VTEP address has
/// changed.
///
/// # Errors
///
/// Another agent with that name or that VTEP address is alive. The node is not registered yet, and
/// its VTEP address is in the subnet of an overlay network of `view`. [`Refusal::Elsewhere`]: an
/// agent with that identifier is alive on another host.
pub fn register_node(
    view: &View,
    node: &Node,
    agent: &Alive,
    lease: LeaseId,
) -> Result<Plan, Refusal> {
    let name = &node.name;
    validate::vtep_address(node.vtep)?;
    validate::udp_port(node.port)?;
    let (key, alive_key) = (Key::node(name), Key::alive(name));
    if let Some(why) = view.problem_at(&key) {
        return Err(Refusal::Conflict(format!("node '{name}': its record in the store is {why}")));
    }
    check_identity(view, node, agent)?;
    // A node that is registered already may have containers. Its `status` names the network.
    let covering = networks_with(view, node.vtep).next();
    if let Some(network) = covering.filter(|_| !view.nodes.contains_key(name)) {
        return Err(Refusal::Conflict(format!(
            "node '{name}': its VTEP address {} is an address of network '{}', so hosts with containers in it would not reach this host: choose another address with --vtep-ip",
            node.vtep, network.name
        )));
    }
    let mut compares = vec![match view.nodes.get(name) {
        None => Compare::Absent(key.clone()),
        Some(known) => Compare::Unchanged(key.clone(), known.revision),
    }];
    // Of two copies of one agent that start at the same time, the second plans again. A record that
    // cannot be read is replaced.
    if view.problem_at(&alive_key).is_none() {
        compares.push(match view.alive.get(name) {
            None => Compare::Absent(alive_key.clone()),
            Some(alive) => Compare::Unchanged(alive_key.clone(), alive.revision),
        });
    }
    let mut writes = vec![Write::Put { key: alive_key, value: encode(agent)?, lease: Some(lease) }];
    // An unchanged record is not written again: the write would make every other agent process it.
    if view.nodes.get(name).is_none_or(|known| known.record != *node) {
        writes.push(put(key, node)?);
    }
    Ok(Plan { compares, writes })
}

/// Plans that the record of a node is as its agent wants it, after somebody else has written it:
/// with another identifier or address, with a record that cannot be read, or not at all.
///
/// # Errors
///
/// `agent` is not the one that is alive under the name.
pub fn restore_node(view: &View, node: &Node, agent: &Alive) -> Result<Plan, Refusal> {
    let name = &node.name;
    let (key, alive_key) = (Key::node(name), Key::alive(name));
    let alive = view.alive.get(name).filter(|alive| alive.run == agent.run).ok_or_else(|| {
        Refusal::Conflict(format!("node '{name}': its agent in the store is another one"))
    })?;
    let mut compares = vec![Compare::Unchanged(alive_key, alive.revision)];
    if view.problem_at(&key).is_none() {
        compares.push(match view.nodes.get(name) {
            None => Compare::Absent(key.clone()),
            Some(known) => Compare::Unchanged(key.clone(), known.revision),
        });
    }
    Ok(Plan { compares, writes: vec![put(key, node)?] })
}

/// Checks that `agent` may be the agent of `node`: no other agent that is alive has its identifier,
/// its name or its VTEP address.
fn check_identity(view: &View, node: &Node, agent: &Alive) -> Result<(), Refusal> {
    let name = &node.name;
    not_elsewhere(view, node.vtep, agent)?;
    let clash = view.nodes.values().find(|other| {
        other.name != *name
            && other.id != node.id
            && other.vtep == node.vtep
            && view.is_alive(&other.name)
    });
    if let Some(other) = clash {
        return Err(Refusal::Conflict(format!(
            "VTEP {} is that of node '{}', which is alive: give each node an address of its own with --vtep-ip",
            node.vtep, other.name
        )));
    }
    match view.nodes.get(name) {
        Some(known) if known.id == node.id => return Ok(()),
        // The earlier agent of that name is alive until its lease has expired.
        Some(known) if view.is_alive(name) => {
            return Err(Refusal::Conflict(format!(
                "node name '{name}' is taken by an agent that is alive, at VTEP {}: choose another --node, or stop that agent and wait for its lease to run out",
                known.vtep
            )));
        }
        _ => {}
    }
    // A host that changed its name would leave its containers behind, under the former name.
    match view.nodes.values().find(|other| other.id == node.id) {
        Some(other) => Err(Refusal::Conflict(format!(
            "node '{name}': this host is node '{other}' in the store, with its containers: start with --node {other}, or run 'culvert purge' first, which removes them",
            other = other.name
        ))),
        None => Ok(()),
    }
}

/// Checks that no agent with the identifier of `agent` is alive on another machine or at another
/// VTEP address: one of the two would be a copy. An earlier process on the same machine at the same
/// address is the same agent.
///
/// # Errors
///
/// [`Refusal::Elsewhere`].
pub fn not_elsewhere(view: &View, vtep: Ipv4Addr, agent: &Alive) -> Result<(), Refusal> {
    let elsewhere = |known: &Node| {
        view.alive.get(&known.name).is_some_and(|alive| {
            alive.id == agent.id
                && alive.run != agent.run
                && (known.vtep != vtep || alive.machine.differs_from(&agent.machine))
        })
    };
    let mut own = view.nodes.values().filter(|known| known.id == agent.id);
    match own.find(|known| elsewhere(known)) {
        Some(known) => Err(Refusal::Elsewhere(format!(
            "node '{}' is alive at VTEP {}, with the identifier of this host",
            known.name, known.vtep
        ))),
        None => Ok(()),
    }
}

/// Plans the removal of a node with all its endpoints and its node-local networks. Returns
/// transactions that each fit the store's limit, to be committed in order. The node's own record is
/// removed last, so that an interrupted removal can be repeated.
///
/// # Errors
///
/// The node is unknown, or its agent is alive and `force` is not set.
pub fn remove_node(view: &View, name: &Name, force: bool) -> Result<Vec<Plan>, Refusal> {
    let key = Key::node(name);
    if let Some(why) = view.problem_at(&key) {
        return Err(Refusal::Conflict(format!("{key}: {why}: delete that key first")));
    }
    let node = view.nodes.get(name).ok_or_else(|| {
        Refusal::NotFound(format!(
            "node '{name}' is unknown: 'culvert node ls' lists those there are"
        ))
    })?;
    if view.is_alive(name) && !force {
        return Err(Refusal::Conflict(format!(
            "node '{name}' is alive: stop its agent and wait 10 s, or use --force if nobody can reach it"
        )));
    }
    // An agent that starts meanwhile keeps the records that are not removed yet.
    let idle = || if force { Vec::new() } else { vec![Compare::Absent(Key::alive(name))] };
    let fresh = || Plan { compares: idle(), writes: Vec::new() };
    let mut plans = Vec::new();
    let mut open = fresh();
    for endpoint in view.endpoints_on(name) {
        let mut one = remove_endpoint(view, &endpoint.network, &endpoint.id)?;
        if open.writes.len() + one.writes.len() > MAX_OPS {
            plans.push(std::mem::replace(&mut open, fresh()));
        }
        open.compares.append(&mut one.compares);
        open.writes.append(&mut one.writes);
    }
    plans.push(open);
    let own = view.networks.values().filter(|network| network.name.node() == Some(name.as_str()));
    plans.extend(own.map(|network| {
        let mut plan = emptied_network(view, network);
        plan.compares.append(&mut idle());
        plan
    }));
    let mut last = Plan {
        compares: vec![Compare::Unchanged(key.clone(), node.revision)],
        writes: vec![Write::Delete(key), Write::Delete(Key::alive(name))],
    };
    last.compares.append(&mut idle());
    plans.push(last);
    plans.retain(|plan| !plan.writes.is_empty());
    Ok(plans)
}

#[cfg(test)]
mod tests;
