//! Address arithmetic: the lowest free address of a subnet.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Returns the lowest free address of `subnet` that an endpoint can have. `used` are the addresses
/// in use, in ascending order; they are read once, up to the first gap. `None`: the subnet is full.
pub fn lowest_free(
    subnet: IpNetwork,
    gateway: IpAddr,
    used: impl IntoIterator<Item = IpAddr>,
) -> Option<IpAddr> {
    let (first, last) = hosts(subnet);
    let gateway = bits(gateway);
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
    (free <= last).then(|| address(subnet, free))
}

/// Number of endpoints that fit into a subnet.
pub fn capacity(subnet: IpNetwork) -> u128 {
    let (first, last) = hosts(subnet);
    // One address is the gateway.
    last - first
}

/// Whether the address is reserved, so that no host may have it: the network and the broadcast
/// address of IPv4, the subnet-router anycast address of IPv6 (RFC 4291 §2.6.1).
pub fn is_edge(subnet: IpNetwork, ip: IpAddr) -> bool {
    ip == subnet.network() || (subnet.is_ipv4() && ip == subnet.broadcast())
}

/// The first and the last host address of a subnet. A subnet has at least two: it is an IPv4 /30 or
/// an IPv6 /126, or larger.
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
        // For IPv4, `hosts` returns values of 32 bits.
        IpNetwork::V4(_) => IpAddr::V4((bits as u32).into()),
        IpNetwork::V6(_) => IpAddr::V6(bits.into()),
    }
}

#[cfg(test)]
mod tests;
