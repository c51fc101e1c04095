//! Addresses and MTU of the host.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::{
    agent::platform::NodeFacts,
    netlink::{Netlink, NetlinkError, subnet_of},
    sandbox,
};

/// Reads the facts. `uplinks` are the names of the uplinks.
///
/// # Errors
///
/// The kernel does not answer.
pub(crate) async fn read(netlink: &Netlink, uplinks: &[String]) -> Result<NodeFacts, NetlinkError> {
    let (mut first, mut mtus) = (None, Vec::new());
    for (position, name) in uplinks.iter().enumerate() {
        if let Some(link) = netlink.link(name).await? {
            if position == 0 {
                first = Some(link.index);
            }
            mtus.push(u16::try_from(link.mtu).unwrap_or(u16::MAX));
        }
    }
    let mut facts = NodeFacts {
        mtu: mtus.iter().min().copied().filter(|_| mtus.len() == uplinks.len()),
        ..NodeFacts::default()
    };
    for (ifindex, address) in netlink.all_addresses().await? {
        if let IpAddr::V4(ip) = address.ip() {
            facts.ips.insert(ip);
            if first == Some(ifindex) {
                facts.uplink_ips.push(ip);
            }
        }
        facts.prefixes.extend(connected(address).filter(|_| !is_gateway(ifindex)));
    }
    // Sorted, so that the same subnets always give the same record.
    facts.prefixes.sort_unstable();
    facts.prefixes.dedup();
    Ok(facts)
}

/// The subnet to which an address connects its interface. `None`: the prefix has the full length,
/// or the address is a loopback or link-local address, whose subnet every host has.
fn connected(address: IpNetwork) -> Option<IpNetwork> {
    let (shared, alone) = match address.ip() {
        IpAddr::V4(ip) => (ip.is_loopback() || ip.is_link_local(), 32),
        IpAddr::V6(ip) => (ip.is_loopback() || ip.is_unicast_link_local(), 128),
    };
    if shared || address.prefix() == alone {
        return None;
    }
    Some(subnet_of(address))
}

/// Whether the interface is a gateway device of Culvert.
pub(super) fn is_gateway(ifindex: u32) -> bool {
    let name = nix::net::if_::if_indextoname(ifindex);
    name.is_ok_and(|name| sandbox::is_gateway_ifname(&name.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::connected;

    #[test]
    fn an_address_connects_its_interface_to_its_subnet() {
        let subnet =
            |text: &str| connected(text.parse().expect("address")).map(|subnet| subnet.to_string());
        assert_eq!(subnet("192.0.2.7/24").as_deref(), Some("192.0.2.0/24"));
        assert_eq!(subnet("2001:db8::7/64").as_deref(), Some("2001:db8::/64"));
        for own in ["192.0.2.7/32", "127.0.0.1/8", "169.254.3.4/16", "fe80::1/64", "::1/128"] {
            assert_eq!(subnet(own), None, "{own}");
        }
    }
}
