//! The choice of the uplinks and of the VTEP address. An agent makes it at its start. While it runs,
//! it looks whether it would choose otherwise.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    agent::platform::UplinkFault,
    model::validate,
    netlink::{Link, NetlinkError, Route, default_link},
};

/// The names of the uplinks, and the VTEP address. `given` and `vtep_ip` are the values of `--uplink`
/// and `--vtep-ip`.
///
/// # Errors
///
/// Something is missing, or an interface cannot be an uplink.
pub(crate) fn find(
    given: &[String],
    vtep_ip: Option<Ipv4Addr>,
    links: &[Link],
    routes: &[Route],
) -> Result<(Vec<String>, Ipv4Addr), UplinkFault> {
    let uplinks = match given {
        [] => vec![default_uplink(links, routes)?],
        given => given.to_vec(),
    };
    for (index, name) in uplinks.iter().enumerate() {
        if uplinks.iter().take(index).any(|before| before == name) {
            return Err(UplinkFault::Wrong(format!(
                "uplink {name} is given twice: each --uplink once is valid"
            )));
        }
        let link = links.iter().find(|link| link.name == *name);
        let link = link.ok_or_else(|| {
            UplinkFault::Absent(NetlinkError::NoSuchInterface(name.clone()).to_string())
        })?;
        if link.loopback {
            return Err(UplinkFault::Wrong(format!(
                "uplink {name} is the loopback device: the interface that leads to the other hosts is valid"
            )));
        }
        if link.mac.is_none() {
            return Err(UplinkFault::Wrong(format!(
                "uplink {name} has no Ethernet header ({}): Culvert sends Ethernet frames; the Ethernet interface that leads to the other hosts is valid",
                link.kind.as_deref().unwrap_or("a tunnel")
            )));
        }
    }
    let vtep = vtep_address(vtep_ip, &uplinks, links)?;
    Ok((uplinks, vtep))
}

/// The interface of the default route.
fn default_uplink(links: &[Link], routes: &[Route]) -> Result<String, UplinkFault> {
    default_link(links, routes).map(|link| link.name.clone()).ok_or_else(|| {
        UplinkFault::Absent(
            "no default route tells the uplink: name the interface that leads to the other hosts with --uplink"
                .to_owned(),
        )
    })
}

/// The IPv4 addresses of an interface.
pub(crate) fn ipv4_addresses(link: &Link) -> impl Iterator<Item = Ipv4Addr> {
    link.addresses.iter().filter_map(|address| match address.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

fn vtep_address(
    vtep_ip: Option<Ipv4Addr>,
    uplinks: &[String],
    links: &[Link],
) -> Result<Ipv4Addr, UplinkFault> {
    match vtep_ip {
        Some(ip) => {
            validate::vtep_address(ip).map_err(|error| UplinkFault::Wrong(error.0))?;
            if links.iter().flat_map(ipv4_addresses).any(|other| other == ip) {
                return Ok(ip);
            }
            Err(UplinkFault::Absent(format!(
                "VTEP address {ip} is not an address of this host: add it, or give one that is with --vtep-ip"
            )))
        }
        None => {
            let first = uplinks.first().map(String::as_str).unwrap_or_default();
            let link = links.iter().find(|link| link.name == first);
            link.and_then(|link| ipv4_addresses(link).next()).ok_or_else(|| {
                UplinkFault::Absent(format!(
                    "uplink {first} has no IPv4 address: give it one, or name the VTEP address with --vtep-ip"
                ))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::MacAddr, netlink::MAIN_TABLE};

    /// An Ethernet interface.
    fn link(index: u32, name: &str, addresses: &[&str]) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Link::default()
        }
    }

    /// The route to `destination` by the interface of this index.
    fn route(destination: &str, ifindex: u32, metric: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: None,
            ifindex,
            paths: Vec::new(),
            source: None,
            metric,
            table: MAIN_TABLE,
        }
    }

    fn find_in(
        given: &[&str],
        vtep: Option<[u8; 4]>,
        links: &[Link],
        routes: &[Route],
    ) -> Result<(Vec<String>, Ipv4Addr), UplinkFault> {
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        find(&given, vtep.map(Ipv4Addr::from), links, routes)
    }

    #[track_caller]
    fn is_absent(found: Result<(Vec<String>, Ipv4Addr), UplinkFault>, part: &str) {
        assert!(
            matches!(&found, Err(UplinkFault::Absent(line)) if line.contains(part)),
            "{found:?}"
        );
    }

    #[track_caller]
    fn is_wrong(found: Result<(Vec<String>, Ipv4Addr), UplinkFault>, part: &str) {
        assert!(
            matches!(&found, Err(UplinkFault::Wrong(line)) if line.contains(part)),
            "{found:?}"
        );
    }

    /// At boot the default route may come after the agent: until then only the interface is missing.
    #[test]
    fn the_default_route_tells_the_uplink_once_it_is_there() {
        let links = [link(2, "up0", &["192.0.2.1/24"]), link(3, "vpn0", &["10.8.0.2/24"])];
        let lacking = "no default route tells the uplink: name the interface";
        is_absent(find_in(&[], None, &links, &[]), lacking);
        is_absent(find_in(&[], None, &links, &[route("192.0.2.0/24", 2, 0)]), lacking);
        // The default routes of IPv6 and of another table lead elsewhere.
        is_absent(find_in(&[], None, &links, &[route("::/0", 2, 0)]), lacking);
        let elsewhere = Route { table: 51820, ..route("0.0.0.0/0", 3, 0) };
        is_absent(find_in(&[], None, &links, &[elsewhere]), lacking);
        // The route is there before its interface is listed.
        is_absent(find_in(&[], None, &links, &[route("0.0.0.0/0", 9, 0)]), lacking);

        let routes = [route("0.0.0.0/0", 3, 200), route("0.0.0.0/0", 2, 100)];
        let found = find_in(&[], None, &links, &routes);
        assert_eq!(found, Ok((vec!["up0".to_owned()], [192, 0, 2, 1].into())));
    }

    #[test]
    fn a_given_uplink_is_waited_for() {
        let links = [link(2, "up0", &[]), link(3, "up1", &["fd00::1/64", "192.0.2.1/24"])];
        is_absent(find_in(&["up1", "up9"], None, &links, &[]), "up9");
        is_absent(find_in(&["up0", "up1"], None, &links, &[]), "uplink up0 has no IPv4 address");
        let found = find_in(&["up1", "up0"], None, &links, &[]);
        assert_eq!(found, Ok((vec!["up1".to_owned(), "up0".to_owned()], [192, 0, 2, 1].into())));
    }

    #[test]
    fn a_given_vtep_address_is_waited_for_on_any_interface() {
        let links = [link(2, "up0", &["192.0.2.1/24"]), link(3, "dummy0", &["198.51.100.1/32"])];
        let found = find_in(&["up0"], Some([198, 51, 100, 1]), &links, &[]);
        assert_eq!(found, Ok((vec!["up0".to_owned()], [198, 51, 100, 1].into())));
        let absent = find_in(&["up0"], Some([198, 51, 100, 2]), &links, &[]);
        is_absent(absent, "VTEP address 198.51.100.2 is not an address of this host");
        is_wrong(find_in(&["up0"], Some([224, 0, 0, 1]), &links, &[]), "multicast");
    }

    /// Waiting does not help: the interface is there and of another kind.
    #[test]
    fn an_interface_that_cannot_be_an_uplink_is_refused() {
        let lo = Link { loopback: true, ..link(1, "lo", &["127.0.0.1/8"]) };
        let l3 = |name: &str, kind: Option<&str>| Link {
            mac: None,
            kind: kind.map(str::to_owned),
            ..link(4, name, &["10.8.0.2/24"])
        };
        let links = [
            lo,
            link(2, "up0", &["192.0.2.1/24"]),
            l3("tun9", Some("tun")),
            l3("wg0", Some("wireguard")),
            l3("ppp0", None),
        ];
        is_wrong(find_in(&["lo"], None, &links, &[]), "uplink lo is the loopback device");
        is_wrong(find_in(&["up0", "up0"], None, &links, &[]), "uplink up0 is given twice");
        for (name, kind) in [("tun9", "(tun)"), ("wg0", "(wireguard)"), ("ppp0", "(a tunnel)")] {
            let fault = format!("uplink {name} has no Ethernet header {kind}");
            is_wrong(find_in(&[name], None, &links, &[]), &fault);
            is_wrong(find_in(&["up0", name], None, &links, &[]), &fault);
        }
        // A VPN that has the default route of the main table.
        let routes = [route("0.0.0.0/0", 4, 50), route("0.0.0.0/0", 2, 100)];
        let vpn = [l3("tun9", Some("tun")), link(2, "up0", &["192.0.2.1/24"])];
        is_wrong(find_in(&[], None, &vpn, &routes), "uplink tun9 has no Ethernet header");
    }
}
