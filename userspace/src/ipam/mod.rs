//! Which address an endpoint gets: the lowest free one, as Docker does.
//!
//! Pure: the addresses in use come from the [`View`]; the transaction that
//! [`crate::model::ops::create_endpoint`] plans makes the choice hold.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Name, Network, Subnet, View, ops::Refusal, validate};

/// One address of each subnet of a network; `asked` is that of its subnet.
///
/// # Errors
///
/// The address asked for is outside, taken or not for hosts; a subnet is full.
pub fn allocate(
    view: &View,
    network: &Network,
    asked: Option<IpAddr>,
) -> Result<Vec<IpAddr>, Refusal> {
    if let Some(ip) = asked {
        check(view, network, ip)?;
    }
    network
        .subnets
        .iter()
        .map(|subnet| match asked {
            Some(ip) if subnet.subnet.contains(ip) => Ok(ip),
            _ => lowest_free(*subnet, used(view, network, *subnet))
                .ok_or_else(|| full(view, network, *subnet)),
        })
        .collect()
}

/// The lowest address of a subnet that an endpoint can have, given those in
/// use in ascending order. One pass over these, however large the subnet.
pub fn lowest_free(subnet: Subnet, used: impl IntoIterator<Item = IpAddr>) -> Option<IpAddr> {
    let (first, last) = hosts(subnet.subnet);
    let gateway = bits(subnet.gateway);
    let past_gateway = |free: u128| if free == gateway { free + 1 } else { free };
    let mut free = past_gateway(first);
    for taken in used.into_iter().map(bits) {
        if taken > free {
            break;
        }
        if taken == free {
            free = past_gateway(free + 1);
        }
    }
    (free <= last).then(|| address(subnet.subnet, free))
}

/// How many endpoints a subnet has room for.
pub fn capacity(subnet: IpNetwork) -> u128 {
    let (first, last) = hosts(subnet);
    // The gateway takes one.
    last - first
}

/// First and last address that a host may have. Prefix lengths leave room for
/// two at least (see [`validate::subnet`]).
fn hosts(subnet: IpNetwork) -> (u128, u128) {
    let (network, broadcast) = (bits(subnet.network()), bits(subnet.broadcast()));
    let last = if subnet.is_ipv4() { broadcast.saturating_sub(1) } else { broadcast };
    (network.saturating_add(1).min(last), last)
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn address(subnet: IpNetwork, bits: u128) -> IpAddr {
    match subnet {
        // `hosts` keeps to 32 bits for IPv4.
        IpNetwork::V4(_) => IpAddr::V4((bits as u32).into()),
        IpNetwork::V6(_) => IpAddr::V6(bits.into()),
    }
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
        capacity(subnet.subnet)
    ))
}

fn check(view: &View, network: &Network, ip: IpAddr) -> Result<(), Refusal> {
    let name = &network.name;
    let Some(subnet) = network.subnets.iter().find(|subnet| subnet.subnet.contains(ip)) else {
        let subnets: Vec<_> = network.subnets.iter().map(|s| s.subnet.to_string()).collect();
        return Err(Refusal::Invalid(format!(
            "address {ip} is outside network '{name}': one in {} is valid",
            subnets.join(" or ")
        )));
    };
    let such_as = || match lowest_free(*subnet, used(view, network, *subnet)) {
        Some(free) => format!("{free} is free"),
        None => "none is free".to_owned(),
    };
    if ip == subnet.gateway {
        return Err(Refusal::Conflict(format!(
            "address {ip} is the gateway of network '{name}': {}",
            such_as()
        )));
    }
    if validate::is_edge(subnet.subnet, ip) {
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
