//! Validation. Each error is one line: the value, what is wrong with it and what would be valid.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::{Driver, Invalid, Network, Subnet};
use crate::ipam;

/// Smallest MTU of IPv4 (RFC 791 §3.2).
pub const MIN_MTU: u32 = 68;
/// Smallest MTU of IPv6 (RFC 8200 §5).
pub const MIN_MTU_IPV6: u32 = 1280;
/// Prefix lengths of an IPv4 subnet. /30 is the longest: it has a gateway and one container besides
/// the network and broadcast addresses.
pub const IPV4_PREFIX: (u8, u8) = (8, 30);
/// Prefix lengths of an IPv6 subnet.
pub const IPV6_PREFIX: (u8, u8) = (16, 126);
/// Longest interface name: the kernel's `IFNAMSIZ` less the final zero.
pub const IFNAME_MAX: usize = 15;
/// The keys of `--opt`, with their valid values.
pub const OPTIONS: &[(&str, &str)] = &[
    ("allow_overlap", "true or false"),
    ("anti_spoof", "true or false"),
    ("block_hosts", "true or false"),
    ("bum_burst", "1 to 1000000 (frames)"),
    ("bum_rate", "0 to 10000000 (frames per second, 0: no limit)"),
    ("dscp", "copy or zero"),
];

type Check<T = ()> = Result<T, Invalid>;

fn invalid<T>(line: String) -> Check<T> {
    Err(Invalid(line))
}

const fn v4(a: u8, b: u8, prefix: u8) -> IpNetwork {
    subnet_v4(Ipv4Addr::new(a, b, 0, 0), prefix)
}

const fn subnet_v4(address: Ipv4Addr, prefix: u8) -> IpNetwork {
    match Ipv4Network::new_checked(address, prefix) {
        Some(network) => IpNetwork::V4(network),
        // Evaluated only at compile time.
        None => unreachable!(),
    }
}

const fn v6(first: u16, sixth: u16, prefix: u8) -> IpNetwork {
    match Ipv6Network::new_checked(Ipv6Addr::new(first, 0, 0, 0, 0, sixth, 0, 0), prefix) {
        Some(network) => IpNetwork::V6(network),
        None => unreachable!(),
    }
}

/// Ranges that a container network must not use.
const RESERVED: [(IpNetwork, &str); 9] = [
    (v4(0, 0, 8), "\"this network\" (RFC 1122)"),
    (v4(127, 0, 8), "loopback"),
    (v4(169, 254, 16), "link-local"),
    (v4(224, 0, 4), "multicast"),
    (v4(240, 0, 4), "reserved (RFC 1112)"),
    (v6(0, 0, 96), "loopback"),
    (v6(0, 0xffff, 96), "IPv4-mapped"),
    (v6(0xfe80, 0, 10), "link-local"),
    (v6(0xff00, 0, 8), "multicast"),
];

/// A subnet for documentation (RFC 5737).
const fn example(a: u8, b: u8, c: u8) -> IpNetwork {
    subnet_v4(Ipv4Addr::new(a, b, c, 0), 24)
}

/// IPv4 ranges that no machine of the Internet has (RFC 1918, RFC 6598, RFC 2544, RFC 5737).
const NOT_PUBLIC: [IpNetwork; 8] = [
    v4(10, 0, 8),
    v4(172, 16, 12),
    v4(192, 168, 16),
    v4(100, 64, 10),
    v4(198, 18, 15),
    example(192, 0, 2),
    example(198, 51, 100),
    example(203, 0, 113),
];

/// Whether machines of the Internet may have addresses of an IPv4 subnet of a network. No host has
/// a route to an IPv6 subnet of a network, so it takes nothing from the host.
pub fn is_public(subnet: IpNetwork) -> bool {
    let has = |range: &IpNetwork| range.prefix() <= subnet.prefix() && overlap(*range, subnet);
    subnet.is_ipv4() && !NOT_PUBLIC.iter().any(has)
}

/// Whether two subnets share an address.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}

/// Checks a subnet by itself.
///
/// # Errors
///
/// The subnet has host bits, its prefix length is out of range, or its range is reserved.
pub fn subnet(subnet: IpNetwork) -> Check {
    let (least, most) = if subnet.is_ipv4() { IPV4_PREFIX } else { IPV6_PREFIX };
    if !(least..=most).contains(&subnet.prefix()) {
        return invalid(format!(
            "subnet {subnet} has a prefix length out of range: /{least} to /{most} is valid"
        ));
    }
    if subnet.ip() != subnet.network() {
        return invalid(format!(
            "subnet {subnet} is the address of a host in it: {}/{} is the subnet",
            subnet.network(),
            subnet.prefix()
        ));
    }
    match RESERVED.iter().find(|(range, _)| overlap(*range, subnet)) {
        Some((range, what)) => invalid(format!(
            "subnet {subnet} lies in {range}, which is {what}: a private range such as 10.0.0.0/24 is valid"
        )),
        None => Ok(()),
    }
}

/// Checks the subnets of one network together.
///
/// # Errors
///
/// As [`subnet`]; also two subnets of one address family.
pub fn subnets(subnets: &[IpNetwork]) -> Check {
    for one in subnets {
        subnet(*one)?;
    }
    for (family, name) in [(true, "IPv4"), (false, "IPv6")] {
        let of_family: Vec<_> = subnets.iter().filter(|s| s.is_ipv4() == family).collect();
        if let [first, second, ..] = of_family.as_slice() {
            return invalid(format!(
                "subnet {second} is a second {name} subnet beside {first}: one of each family is valid"
            ));
        }
    }
    Ok(())
}

/// Whether one of the subnets is IPv6.
pub fn has_ipv6(subnets: &[IpNetwork]) -> bool {
    subnets.iter().any(IpNetwork::is_ipv6)
}

/// The first host address: the default gateway.
pub fn first_host(subnet: IpNetwork) -> IpAddr {
    match subnet {
        IpNetwork::V4(v4) => {
            IpAddr::V4(Ipv4Addr::from_bits(v4.network().to_bits().wrapping_add(1)))
        }
        IpNetwork::V6(v6) => IpAddr::V6(v6.network().to_bits().wrapping_add(1).into()),
    }
}

/// Checks a gateway address against its subnet.
///
/// # Errors
///
/// The address is not in the subnet, or no host may have it.
pub fn gateway(subnet: IpNetwork, gateway: IpAddr) -> Check {
    let right = first_host(subnet);
    if !subnet.contains(gateway) {
        invalid(format!("gateway {gateway} is outside subnet {subnet}: {right} would be valid"))
    } else if ipam::is_edge(subnet, gateway) {
        invalid(format!(
            "gateway {gateway} is the network or broadcast address of {subnet}: {right} would be valid"
        ))
    } else {
        Ok(())
    }
}

/// Assigns a gateway to each subnet: the requested one in its subnet, the first host address in the
/// others.
///
/// # Errors
///
/// As [`subnets`] and [`gateway`]; also a gateway in none of the subnets.
pub fn with_gateways(given: &[IpNetwork], asked: Option<IpAddr>) -> Check<Vec<Subnet>> {
    subnets(given)?;
    if let Some(asked) = asked
        && !given.iter().any(|subnet| subnet.contains(asked))
    {
        return match given {
            [] => invalid(format!("gateway {asked} has no subnet: give the subnet it is in, too")),
            [subnet, ..] => gateway(*subnet, asked).map(|()| Vec::new()),
        };
    }
    given
        .iter()
        .map(|&subnet| {
            let address = asked.filter(|asked| subnet.contains(*asked));
            let address = address.unwrap_or_else(|| first_host(subnet));
            gateway(subnet, address)?;
            Ok(Subnet { subnet, gateway: address })
        })
        .collect()
}

/// Checks an MTU in bytes: from 68, or 1280 with an IPv6 subnet, to `max`, which is the underlay's
/// MTU less the VXLAN overhead.
///
/// # Errors
///
/// The MTU is out of that range.
pub fn mtu(mtu: u32, ipv6: bool, max: u16) -> Check<u16> {
    let least = if ipv6 { MIN_MTU_IPV6 } else { MIN_MTU };
    match u16::try_from(mtu) {
        Ok(value) if (least..=u32::from(max)).contains(&mtu) => Ok(value),
        _ => {
            let why = match (ipv6, mtu > u32::from(max)) {
                (_, true) => "more than the underlay takes",
                (true, false) => "too small for IPv6",
                (false, false) => "too small for IPv4",
            };
            invalid(format!("MTU {mtu} is {why}: {least} to {max} is valid"))
        }
    }
}

/// Checks the options of a network.
///
/// # Errors
///
/// An unknown key, or an invalid value of a key.
pub fn options(options: &BTreeMap<String, String>) -> Check {
    for (key, value) in options {
        let Some((_, takes)) = OPTIONS.iter().find(|(known, _)| known == key) else {
            let known: Vec<_> = OPTIONS.iter().map(|(known, _)| *known).collect();
            return invalid(format!("option {key:?} is unknown: {} are valid", known.join(", ")));
        };
        let number = |least: u32, most: u32| {
            let plain = value.bytes().all(|byte| byte.is_ascii_digit());
            plain && value.parse::<u32>().is_ok_and(|n| (least..=most).contains(&n))
        };
        let fits = match key.as_str() {
            "dscp" => matches!(value.as_str(), "copy" | "zero"),
            "bum_rate" => number(0, 10_000_000),
            "bum_burst" => number(1, 1_000_000),
            _ => matches!(value.as_str(), "true" | "false"),
        };
        if !fits {
            return invalid(format!("option {key}={value:?} is malformed: {takes} is valid"));
        }
    }
    Ok(())
}

/// Whether a network permits other networks with the same option to share its addresses.
pub fn allows_overlap(network: &Network) -> bool {
    network.driver == Driver::Overlay
        && network.options.get("allow_overlap").is_some_and(|value| value == "true")
}

/// Checks that the subnets of a network do not overlap the subnets of other networks.
///
/// # Errors
///
/// Two networks share an address. This is valid only if both are overlay networks with
/// `allow_overlap=true`, or if they are local to different nodes.
pub fn no_overlap<'a>(new: &Network, others: impl IntoIterator<Item = &'a Network>) -> Check {
    for other in others.into_iter().filter(|other| other.name != new.name) {
        if (allows_overlap(new) && allows_overlap(other)) || new.name.is_apart_from(&other.name) {
            continue;
        }
        for ours in &new.subnets {
            if let Some(theirs) = other.subnets.iter().find(|s| overlap(s.subnet, ours.subnet)) {
                return invalid(format!(
                    "subnet {} overlaps {} of network {}: choose another, or create both overlay networks with --opt allow_overlap=true",
                    ours.subnet,
                    theirs.subnet,
                    other.name.quoted()
                ));
            }
        }
    }
    Ok(())
}

/// Checks the name of an interface as the kernel does (`dev_valid_name`).
///
/// # Errors
///
/// The name is empty, too long, `.` or `..`, or contains '/', ':', '%' or white space.
pub fn ifname(name: &str) -> Check {
    // The kernel treats 0xa0 as white space, and '%' as a pattern.
    let bad = |byte| matches!(byte, b'/' | b':' | b'%' | 0 | b' ' | 0x09..=0x0d | 0xa0);
    if (1..=IFNAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.bytes().any(bad)
    {
        Ok(())
    } else {
        invalid(format!(
            "interface name {name:?} is malformed: 1 to {IFNAME_MAX} bytes without '/', ':', '%' or white space, such as eth0, is valid"
        ))
    }
}

/// Checks the address of a VTEP.
///
/// # Errors
///
/// No host can have the address on an underlay.
pub fn vtep_address(ip: Ipv4Addr) -> Check {
    let wrong = if ip.is_unspecified() {
        "unspecified"
    } else if ip.is_loopback() {
        "a loopback address"
    } else if ip.is_multicast() {
        "a multicast address"
    } else if ip.is_broadcast() {
        "the broadcast address"
    } else {
        return Ok(());
    };
    invalid(format!("VTEP {ip} is {wrong}: the underlay address of a host is valid"))
}

/// Checks a UDP port.
///
/// # Errors
///
/// The port is 0.
pub fn udp_port(port: u16) -> Check {
    if port == 0 {
        invalid("UDP port 0 is out of range: 1 to 65535 is valid".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
