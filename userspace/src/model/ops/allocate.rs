//! Allocation of the addresses of a new endpoint.
//!
//! The addresses in use come from the [`View`]. The transaction of
//! [`create_endpoint`](super::create_endpoint) fails if another host takes one of them first.

use std::net::IpAddr;

use super::Refusal;
use crate::{
    ipam,
    model::{Endpoint, Name, Network, Subnet, View},
};

/// Addresses for a new endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allocated {
    /// The primary addresses, one of each subnet.
    pub(super) primary: Vec<IpAddr>,
    /// The additional addresses, each of any of the subnets.
    pub(super) additional: Vec<IpAddr>,
}

/// Chooses one primary address of each subnet of a network, as in Docker: the first address of
/// `asked` that is in the subnet, or else the lowest free one. The other addresses of `asked` are
/// additional addresses.
///
/// # Errors
///
/// A requested address is not in the network, is taken, is requested twice or cannot be a host's;
/// there are too many; or a subnet is full.
pub(super) fn allocate(
    view: &View,
    network: &Network,
    asked: &[IpAddr],
) -> Result<Allocated, Refusal> {
    for (number, ip) in asked.iter().enumerate() {
        check_address(view, network, *ip)?;
        if asked.iter().take(number).any(|earlier| earlier == ip) {
            return Err(Refusal::Invalid(format!("address {ip} is given twice: once is valid")));
        }
    }
    let first = |subnet: &Subnet| asked.iter().copied().find(|ip| subnet.subnet.contains(*ip));
    let primary = network.subnets.iter().map(|subnet| {
        let ip = first(subnet).or_else(|| free_in(view, network, *subnet));
        ip.ok_or_else(|| full(view, network, *subnet))
    });
    let primary: Vec<IpAddr> = primary.collect::<Result<_, Refusal>>()?;
    let others = asked.iter().copied().filter(|ip| !primary.contains(ip));
    let additional: Vec<IpAddr> = others.collect();
    check_number(primary.len() + additional.len())?;
    Ok(Allocated { primary, additional })
}

/// Checks the number of addresses of an interface.
pub(super) fn check_number(count: usize) -> Result<(), Refusal> {
    let most = Endpoint::MOST_ADDRESSES;
    if count <= most {
        return Ok(());
    }
    Err(Refusal::Invalid(format!(
        "{count} addresses are too many for an interface: {most} are valid, the primary ones included"
    )))
}

fn free_in(view: &View, network: &Network, subnet: Subnet) -> Option<IpAddr> {
    ipam::lowest_free(subnet.subnet, subnet.gateway, used(view, network, subnet))
}

fn used<'a>(
    view: &'a View,
    network: &Network,
    subnet: Subnet,
) -> impl Iterator<Item = IpAddr> + 'a {
    let range = subnet.subnet.network()..=subnet.subnet.broadcast();
    view.ipam.taken(&network.name, range)
}

fn full(view: &View, network: &Network, subnet: Subnet) -> Refusal {
    Refusal::Conflict(format!(
        "network '{}': subnet {} is full, {} of {} addresses are used: remove a container or use a larger subnet",
        network.name,
        subnet.subnet,
        used(view, network, subnet).count(),
        ipam::capacity(subnet.subnet)
    ))
}

/// Checks that an endpoint may get an address.
pub(super) fn check_address(view: &View, network: &Network, ip: IpAddr) -> Result<(), Refusal> {
    let name = &network.name;
    let Some(subnet) = network.subnet_with(ip) else {
        let subnets: Vec<_> = network.subnets.iter().map(|s| s.subnet.to_string()).collect();
        return Err(Refusal::Invalid(format!(
            "address {ip} is outside network '{name}': one in {} is valid",
            subnets.join(" or ")
        )));
    };
    let such_as = || match free_in(view, network, *subnet) {
        Some(free) => format!("{free} is free"),
        None => "none is free".to_owned(),
    };
    if ip == subnet.gateway {
        return Err(Refusal::Conflict(format!(
            "address {ip} is the gateway of network '{name}': {}",
            such_as()
        )));
    }
    if ipam::is_edge(subnet.subnet, ip) {
        return Err(Refusal::Invalid(format!(
            "address {ip} is the network or broadcast address of {}: {}",
            subnet.subnet,
            such_as()
        )));
    }
    match view.ip_claim(name, ip) {
        None => Ok(()),
        Some(claim) => {
            let owner = claim.owner.as_ref().map(|owner| owner.endpoint.as_str());
            Err(Refusal::Conflict(format!(
                "address {ip} is taken by {} in network '{name}': {}",
                holder(view, name, owner),
                such_as()
            )))
        }
    }
}

fn holder(view: &View, network: &Name, endpoint: Option<&str>) -> String {
    match endpoint {
        None => "an unreadable record".to_owned(),
        Some(id) => match view.endpoint(network, id) {
            Some(endpoint) => format!("container '{}' on '{}'", endpoint.container, endpoint.node),
            None => format!("endpoint {id}"),
        },
    }
}

#[cfg(test)]
mod tests;
