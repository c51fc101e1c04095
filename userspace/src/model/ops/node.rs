//! Plans for nodes.

use super::{Plan, Refusal, network::emptied_network, put, remove_endpoint};
use crate::{
    model::{Alive, Key, Name, Node, SCHEMA, View, encode, validate},
    store::{Compare, LeaseId, MAX_OPS, Write},
};

/// Plans the registration of an agent under the name of its node, alive on `lease`. An agent makes
/// the same plan again when it restarts, when its lease has run out, or when its VTEP address has
/// changed.
///
/// # Errors
///
/// Another agent with that name or that VTEP address is alive.
pub fn register_node(view: &View, node: &Node, lease: LeaseId) -> Result<Plan, Refusal> {
    let name = &node.name;
    validate::vtep_address(node.vtep)?;
    validate::udp_port(node.port)?;
    let (key, alive_key) = (Key::node(name), Key::alive(name));
    if let Some(why) = view.problem_at(&key) {
        return Err(Refusal::Conflict(format!("node '{name}': its record in the store is {why}")));
    }
    let clash = view
        .nodes
        .values()
        .find(|other| other.name != *name && other.vtep == node.vtep && view.is_alive(&other.name));
    if let Some(other) = clash {
        return Err(Refusal::Conflict(format!(
            "VTEP {} is that of node '{}', which is alive: give each node an address of its own with --vtep-ip",
            node.vtep, other.name
        )));
    }
    let mut compares = Vec::new();
    match view.nodes.get(name) {
        None => compares.push(Compare::Absent(key.clone())),
        Some(known) => {
            compares.push(Compare::Unchanged(key.clone(), known.revision));
            if known.id != node.id {
                // The earlier agent of that name counts as gone only when its lease has run out.
                if view.is_alive(name) {
                    return Err(Refusal::Conflict(format!(
                        "node name '{name}' is taken by an agent that is alive, at VTEP {}: choose another --node, or stop that agent and wait for its lease to run out",
                        known.vtep
                    )));
                }
                compares.push(Compare::Absent(alive_key.clone()));
            }
        }
    }
    let alive = Alive { schema: SCHEMA, id: node.id.clone() };
    let mut writes =
        vec![Write::Put { key: alive_key, value: encode(&alive)?, lease: Some(lease) }];
    // An unchanged record is not written again: the write would make every other agent process it.
    if view.nodes.get(name).is_none_or(|known| known.record != *node) {
        writes.push(put(key, node)?);
    }
    Ok(Plan { compares, writes })
}

/// Plans the removal of a node with all its endpoints and its node-local networks. Returns
/// transactions that each fit the store's limit, to be committed in order. The node's own record is
/// removed last, so that an interrupted removal can be repeated.
///
/// # Errors
///
/// The node is unknown, or its agent is alive and `force` is not set.
pub fn remove_node(view: &View, name: &Name, force: bool) -> Result<Vec<Plan>, Refusal> {
    let node = view
        .nodes
        .get(name)
        .ok_or_else(|| Refusal::NotFound(format!("node '{name}' is unknown")))?;
    if view.is_alive(name) && !force {
        return Err(Refusal::Conflict(format!(
            "node '{name}' has an agent that is alive: stop that agent first"
        )));
    }
    let mut plans = Vec::new();
    let mut open = Plan::default();
    for endpoint in view.endpoints_on(name) {
        let mut one = remove_endpoint(view, &endpoint.network, &endpoint.id)?;
        if open.writes.len() + one.writes.len() > MAX_OPS {
            plans.push(std::mem::take(&mut open));
        }
        open.compares.append(&mut one.compares);
        open.writes.append(&mut one.writes);
    }
    plans.push(open);
    let own = view.networks.values().filter(|network| network.name.node() == Some(name.as_str()));
    plans.extend(own.map(|network| emptied_network(view, network)));
    plans.push(Plan {
        compares: vec![Compare::Unchanged(Key::node(name), node.revision)],
        writes: vec![Write::Delete(Key::node(name)), Write::Delete(Key::alive(name))],
    });
    plans.retain(|plan| !plan.writes.is_empty());
    Ok(plans)
}
