//! The interface of an endpoint in its sandbox: settings, addresses, routes, rules.

use std::{net::IpAddr, os::fd::AsFd as _};

use ipnetwork::IpNetwork;

use super::{
    Result, SandboxError,
    spec::{PlugSpec, link_local, source_table},
    sysctl,
};
use crate::{
    model::SandboxRef,
    netlink::{ENCAPSULATION_OFFLOADS, MAIN_TABLE, Netlink, NetlinkError, Route, Rule, subnet_of},
    netns::Netns,
};

/// Priority of the rules that lead to the tables of endpoints without the default route: before the
/// main table (32766), and before rules to which `ip rule add` gives a priority itself (32765 and
/// downward).
const SOURCE_PRIORITY: u32 = 31_000;

/// Turns the offloads off that a container must not have, see [`ENCAPSULATION_OFFLOADS`]. Returns
/// whether one was on.
pub(super) fn limit_offloads(inside: &Netlink, ifname: &str) -> Result<bool> {
    Ok(inside.disable_features(ifname, ENCAPSULATION_OFFLOADS)?)
}

/// Makes the interface match `spec`. Adds what was wrong to `found`, in words, each as soon as it
/// has been put right.
pub(super) async fn settle(
    inside: &Netlink,
    spec: &PlugSpec,
    sandbox: &Netns,
    found: &mut Vec<String>,
) -> Result<()> {
    let name = spec.ifname.as_str();
    if inside.link("lo").await?.is_some_and(|lo| !lo.up) {
        inside.set_up("lo").await?;
        found.push("had lo down".to_owned());
    }
    let link = inside.link(name).await?;
    let link = link.ok_or_else(|| NetlinkError::NoSuchInterface(name.to_owned()))?;
    // The MTU comes first: below 1280 the kernel removes all IPv6 state of the interface, settings
    // included.
    if link.mtu != spec.mtu {
        inside.set_mtu(name, spec.mtu).await?;
        found.push(format!("had MTU {}", link.mtu));
    }
    let ipv6 = sandbox.run(|| configure(spec))??;
    found.extend(ipv6.changed.into_iter().map(|key| format!("had {key} changed")));
    if link.mac != Some(spec.mac) {
        if let Some(old) = link.mac {
            inside.delete_address(name, link_local(old)).await?;
        }
        inside.set_mac(name, spec.mac).await?;
        found.push("had another MAC".to_owned());
    }
    if limit_offloads(inside, name)? {
        found.push("had offloads on".to_owned());
    }
    if !link.up {
        inside.set_up(name).await?;
        found.push("was down".to_owned());
    }
    // Addresses come last: while the link is down the kernel has no IPv6 addresses on it.
    addresses(inside, spec, ipv6.present, found).await?;
    routes(inside, spec, link.index, found).await?;
    // A link that goes down, or gets another MAC, loses them.
    for (ip, mac) in &spec.neighbours {
        if inside.enter_neighbour(link.index, *ip, *mac).await? {
            found.push(format!("had lost neighbour {ip}"));
        }
    }
    Ok(())
}

/// Result of [`configure`].
struct Ipv6 {
    /// The kernel has IPv6 on the interface.
    present: bool,
    /// Settings that were changed.
    changed: Vec<&'static str>,
}

/// Applies the settings of the interface. Must be called in the sandbox's namespace.
fn configure(spec: &PlugSpec) -> Result<Ipv6> {
    let name = spec.ifname.as_str();
    let mut ipv6 = Ipv6 { present: true, changed: Vec::new() };
    // IPv6 is enabled first: otherwise the other settings have no effect.
    for (key, value) in
        [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "0")]
    {
        match sysctl::set("ipv6", name, key, value)? {
            Some(true) => ipv6.changed.push(key),
            Some(false) => {}
            None => ipv6.present = false,
        }
    }
    Ok(ipv6)
}

async fn addresses(
    inside: &Netlink,
    spec: &PlugSpec,
    has_ipv6: bool,
    found: &mut Vec<String>,
) -> Result<()> {
    let name = spec.ifname.as_str();
    let mut wanted = spec.addrs.clone();
    let mut all = wanted.iter().chain(&spec.additional);
    if !has_ipv6 && let Some(address) = all.find(|address| address.is_ipv6()) {
        return Err(SandboxError::NoIpv6 {
            ifname: spec.ifname.clone(),
            address: *address,
            mtu: spec.mtu,
        });
    }
    if has_ipv6 {
        wanted.push(spec.link_local());
    }
    let present = inside.addresses(name).await?;
    for address in wanted.iter().filter(|address| !present.contains(address)) {
        // The same address with another prefix length would keep the wrong subnet route.
        for stale in present.iter().filter(|other| other.ip() == address.ip()) {
            inside.delete_address(name, *stale).await?;
        }
        inside.add_address(name, *address).await?;
        found.push(format!("had lost address {address}"));
    }
    additional(inside, spec, &wanted, found).await
}

/// Adds the additional addresses, and removes earlier ones. The kernel removes the additional IPv4
/// addresses itself together with the primary one of their subnet, so they are read after that.
async fn additional(
    inside: &Netlink,
    spec: &PlugSpec,
    primary: &[IpNetwork],
    found: &mut Vec<String>,
) -> Result<()> {
    let name = spec.ifname.as_str();
    let marked = inside.marked_addresses(name).await?;
    for stale in marked.iter().filter(|other| !spec.additional.contains(other)) {
        if !primary.contains(stale) {
            inside.delete_address(name, *stale).await?;
            found.push(format!("had address {stale}"));
        }
    }
    for address in spec.additional.iter().filter(|address| !marked.contains(address)) {
        inside.add_marked_address(name, *address).await?;
        found.push(format!("had lost address {address}"));
    }
    Ok(())
}

/// Adds the routes that are missing. The route of a subnet comes from the kernel with the address,
/// and does not come back by itself.
async fn routes(
    inside: &Netlink,
    spec: &PlugSpec,
    ifindex: u32,
    found: &mut Vec<String>,
) -> Result<()> {
    let present = inside.routes().await?;
    for (destination, gateway) in spec.all_routes() {
        let same: Vec<&Route> = present
            .iter()
            .filter(|route| {
                route.is_main() && subnet_of(route.destination) == subnet_of(destination)
            })
            .collect();
        // A route through another interface exists already. Of several networks one has the default
        // route, and an adopted sandbox keeps its own default route.
        let settled = same.iter().any(|route| route.ifindex != ifindex || route.gateway == gateway);
        if !settled {
            inside.add_route(&spec.ifname, destination, gateway).await?;
            found.push(format!("had lost the route to {destination}"));
        } else if let Some(gateway) = gateway
            && destination.prefix() == 0
            && same.iter().all(|route| route.ifindex != ifindex)
        {
            // The endpoint works without rules: only answers to clients of published ports are
            // lost.
            let everything = (destination, gateway);
            let routed = route_by_source(inside, spec, ifindex, everything, &present, found).await;
            if let Err(error) = routed {
                tracing::warn!("{}: routing rules: {error}", spec.ifname);
            }
        }
    }
    Ok(())
}

/// Adds rules for an endpoint whose sandbox has its default route on another interface: packets
/// with the endpoint's source address leave through the endpoint's gateway. So an answer to a
/// client of a published port takes the path of the request. Routes to subnets apply to these
/// packets as to all others.
async fn route_by_source(
    inside: &Netlink,
    spec: &PlugSpec,
    ifindex: u32,
    (everything, gateway): (IpNetwork, IpAddr),
    present: &[Route],
    found: &mut Vec<String>,
) -> Result<()> {
    let table = source_table(ifindex);
    let routed = present.iter().any(|route| {
        route.table == table && route.ifindex == ifindex && route.gateway == Some(gateway)
    });
    if !routed {
        inside.add_table_route(&spec.ifname, everything, Some(gateway), table).await?;
        found.push(format!("had lost the route of table {table}"));
    }
    let known = inside.rules().await?;
    for source in spec.sources().filter(|source| source.is_ipv4() == everything.is_ipv4()) {
        let wanted = rules_of(source, table);
        // Rules of an earlier interface of the endpoint are removed.
        for stale in known.iter().filter(|rule| rule.source == source && !wanted.contains(*rule)) {
            inside.delete_rule(stale).await?;
        }
        for rule in wanted.iter().filter(|rule| !known.contains(*rule)) {
            inside.add_rule(rule).await?;
            found.push(format!("had lost the rule {} of {source}", rule.priority));
        }
    }
    Ok(())
}

/// The two rules of a source address: the main table without its default routes, then the table of
/// the endpoint's interface.
fn rules_of(source: IpAddr, table: u32) -> [Rule; 2] {
    [
        Rule { source, table: MAIN_TABLE, priority: SOURCE_PRIORITY, without_default: true },
        Rule { source, table, priority: SOURCE_PRIORITY + 1, without_default: false },
    ]
}

/// Removes the rules of addresses that no interface of the sandbox has any more. The kernel has
/// removed the routes together with the interface. Nothing is done if the sandbox is gone, or if
/// another namespace, such as the host's own, is at its path.
///
/// # Errors
/// The kernel does not answer, or refuses.
pub async fn forget_rules(sandbox: &SandboxRef) -> Result<()> {
    let path = sandbox.netns.clone();
    let open = move || Netns::open(&path).and_then(Netns::not_of_host);
    let Ok(Ok(found)) = tokio::task::spawn_blocking(open).await else {
        return Ok(());
    };
    if sandbox.id.is_some_and(|attached| attached != found.id()) {
        return Ok(());
    }
    let inside = Netlink::in_netns(found.as_fd())?;
    let rules = inside.rules().await?;
    if rules.is_empty() {
        return Ok(());
    }
    let addresses = inside.all_addresses().await?;
    for rule in rules {
        if !addresses.iter().any(|(_, address)| address.ip() == rule.source) {
            inside.delete_rule(&rule).await?;
        }
    }
    Ok(())
}
