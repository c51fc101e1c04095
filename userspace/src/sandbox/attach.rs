//! The device pair between the host and a sandbox.

use std::{net::IpAddr, os::fd::AsFd};

use ipnetwork::IpNetwork;

use super::{Result, SandboxError, sysctl};
use crate::{
    model::{MacAddr, SandboxRef},
    netlink::{ENCAPSULATION_OFFLOADS, Link, MAIN_TABLE, Netlink, PairKind, PairSpec, Route, Rule},
    netns::{Netns, run_in, same_namespace},
};

/// Start of the alias that marks a host-side interface as Culvert's.
const ALIAS: &str = "culvert:";
/// Base of the routing table numbers of endpoints without the default route: the number of such a
/// table is this base plus the ifindex.
const SOURCE_TABLES: u32 = 67_000;
/// Priority of the rules that lead to these tables: before the main table (32766), and before rules
/// to which `ip rule add` gives a priority itself (32765 and downward).
const SOURCE_PRIORITY: u32 = 31_000;

/// The wanted state of an endpoint's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlugSpec {
    /// Endpoint.
    pub endpoint_id: String,
    /// Kind of a new pair. An existing pair keeps its kind.
    pub kind: PairKind,
    /// Name of the host side, see [`host_ifname`].
    pub host_ifname: String,
    /// Name of the interface in the sandbox.
    pub ifname: String,
    /// MAC address of the interface in the sandbox.
    pub mac: MacAddr,
    /// MTU of both sides, in bytes.
    pub mtu: u32,
    /// Addresses with the prefix length of their subnet; the kernel adds the subnet's route. The
    /// link-local address that is derived from the MAC is added as well.
    pub addrs: Vec<IpNetwork>,
    /// Additional addresses with the prefix length of their subnet. They carry Culvert's mark, so
    /// that those that are no longer wanted are removed.
    pub additional: Vec<IpNetwork>,
    /// Permanent neighbours. The kernel limits the number of others, of all network namespaces
    /// together.
    pub neighbours: Vec<(IpAddr, MacAddr)>,
    /// Further routes. A route without a gateway is on link. A route is left out if its destination
    /// is already reached through another interface.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

/// Result of [`plug`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// Index of the host side.
    pub ifindex: u32,
    /// The interface differed from the specification and was changed.
    pub changed: bool,
    /// Index of the bridge that has the host side as a port.
    pub master: Option<u32>,
    /// Kind of the pair.
    pub kind: PairKind,
}

/// Name of the host side of an endpoint: `cv` and the first twelve digits of its id.
pub fn host_ifname(endpoint_id: &str) -> String {
    format!("cv{}", endpoint_id.chars().take(12).collect::<String>())
}

/// Alias of the host side of an endpoint.
pub fn alias_of(endpoint_id: &str) -> String {
    format!("{ALIAS}{endpoint_id}")
}

/// The endpoint whose host side is `link`, if Culvert made `link`.
pub fn endpoint_of(link: &Link) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(ALIAS)
}

/// The first of `eth0`, `eth1` and so on that is neither in the sandbox nor in `reserved`.
///
/// # Errors
/// The kernel does not answer.
pub async fn free_ifname(sandbox: &Netns, reserved: &[String]) -> Result<String> {
    let links = Netlink::in_netns(sandbox.as_fd())?.links().await?;
    let taken = |name: &str| {
        links.iter().any(|link| link.name == name) || reserved.iter().any(|other| other == name)
    };
    let mut number = 0u32;
    loop {
        let name = format!("eth{number}");
        if !taken(&name) {
            return Ok(name);
        }
        number += 1;
    }
}

/// Makes the interface of an endpoint match `spec`. An existing pair is kept and its differences
/// are corrected. A pair whose other end is no longer in the sandbox is made anew. Idempotent.
///
/// Decisions:
/// * IPv6 addresses are used without duplicate address detection (`accept_dad` 0): the store gives
///   each address to one owner.
/// * Router advertisements are not accepted: routes come from the store.
/// * No gratuitous ARP is sent (`arp_notify` stays 0): peers learn the address from the store.
/// * Settings that a user added to the interface are kept.
/// * Offloads for packets that are already encapsulated are off, see [`ENCAPSULATION_OFFLOADS`].
///
/// # Errors
/// The name is taken in the sandbox, the MTU is out of range, or the kernel refuses.
pub async fn plug(netlink: &Netlink, spec: &PlugSpec, sandbox: &Netns) -> Result<Plugged> {
    let plugged = plug_closed(netlink, spec, sandbox).await?;
    let opened = open_port(netlink, &spec.host_ifname).await?;
    Ok(Plugged { changed: plugged.changed || opened, ..plugged })
}

/// As [`plug`], but a host side that is down stays down: nothing that the sandbox sends leaves it
/// before [`open_port`]. Before that call the caller attaches the BPF programs.
///
/// # Errors
/// As [`plug`].
pub async fn plug_closed(netlink: &Netlink, spec: &PlugSpec, sandbox: &Netns) -> Result<Plugged> {
    let inside = Netlink::in_netns(sandbox.as_fd())?;
    let mut changed = false;
    let host = match find_pair(netlink, &inside, spec, sandbox).await? {
        Some((host, peer)) => {
            if peer.name != spec.ifname {
                rename(&inside, &peer, spec, sandbox).await?;
                changed = true;
            }
            host
        }
        None => {
            let found = inside.link(&spec.ifname).await?;
            if found.is_some() {
                return Err(taken(spec, sandbox));
            }
            let pair = PairSpec {
                kind: spec.kind,
                name: &spec.host_ifname,
                peer_name: &spec.ifname,
                peer_mac: spec.mac,
                mtu: spec.mtu,
                peer_netns: sandbox.as_fd(),
            };
            netlink.create_pair(&pair).await?;
            changed = true;
            pending(netlink.link(&spec.host_ifname).await?, &spec.host_ifname)?
        }
    };
    changed |= host_side(netlink, &host, spec).await?;
    changed |= sandbox_side(&inside, spec, sandbox).await?;
    // The host side carries the endpoint's alias, so it is one end of a pair.
    let kind = PairKind::of(&host).unwrap_or(spec.kind);
    Ok(Plugged { ifindex: host.index, changed, master: host.master, kind })
}

/// Removes the pair of an endpoint. No error if the pair does not exist.
///
/// # Errors
/// The interface of that name belongs to another endpoint or not to Culvert.
pub async fn unplug(netlink: &Netlink, endpoint_id: &str) -> Result<()> {
    let name = host_ifname(endpoint_id);
    let Some(link) = netlink.link(&name).await? else { return Ok(()) };
    check_owner(&link, endpoint_id)?;
    Ok(netlink.delete_link(&name).await?)
}

/// An interface that this call has just read or made. An error if it was removed since.
fn pending(link: Option<Link>, name: &str) -> Result<Link> {
    link.ok_or_else(|| crate::netlink::NetlinkError::NoSuchInterface(name.to_owned()).into())
}

fn taken(spec: &PlugSpec, sandbox: &Netns) -> SandboxError {
    SandboxError::InterfaceTaken { ifname: spec.ifname.clone(), sandbox: sandbox.path().to_owned() }
}

/// Refuses an interface that is not the endpoint's. An interface without an alias is accepted: its
/// name is derived from the endpoint's id, and an agent that was stopped early has not set the
/// alias yet.
fn check_owner(link: &Link, endpoint_id: &str) -> Result<()> {
    let ours = PairKind::of(link).is_some()
        && link.alias.as_deref().is_none_or(|alias| alias == alias_of(endpoint_id));
    if ours {
        return Ok(());
    }
    Err(SandboxError::ForeignInterface {
        ifname: link.name.clone(),
        owner: format!("the interface of endpoint {endpoint_id}"),
    })
}

/// The existing pair, if both ends are in their namespaces. A pair whose other end is elsewhere is
/// deleted.
async fn find_pair(
    netlink: &Netlink,
    inside: &Netlink,
    spec: &PlugSpec,
    sandbox: &Netns,
) -> Result<Option<(Link, Link)>> {
    let Some(host) = netlink.link(&spec.host_ifname).await? else { return Ok(None) };
    check_owner(&host, &spec.endpoint_id)?;
    let peer_is_inside = match host.peer_netns_id {
        Some(id) => netlink.netns_id(sandbox.as_fd()).await? == Some(id),
        None => same_namespace(netlink.netns(), sandbox.as_fd())?,
    };
    if peer_is_inside && let Some(index) = host.peer_index {
        // Each end must name the other: an index may have been reused.
        let peer = inside
            .link_at(index)
            .await?
            .filter(|peer| peer.kind == host.kind && peer.peer_index == Some(host.index));
        if let Some(peer) = peer {
            return Ok(Some((host, peer)));
        }
    }
    netlink.delete_link(&spec.host_ifname).await?;
    Ok(None)
}

/// Renames the sandbox side to its wanted name. The kernel removes its routes.
async fn rename(inside: &Netlink, peer: &Link, spec: &PlugSpec, sandbox: &Netns) -> Result<()> {
    if inside.link(&spec.ifname).await?.is_some() {
        return Err(taken(spec, sandbox));
    }
    inside.set_down(&peer.name).await?;
    Ok(inside.rename(&peer.name, &spec.ifname).await?)
}

/// Brings the host side of a pair up. Returns whether it was down.
///
/// # Errors
/// The interface does not exist, or the kernel refuses.
pub async fn open_port(netlink: &Netlink, host_ifname: &str) -> Result<bool> {
    let host = pending(netlink.link(host_ifname).await?, host_ifname)?;
    if host.up {
        return Ok(false);
    }
    silence(netlink, host_ifname)?;
    netlink.set_up(host_ifname).await?;
    Ok(true)
}

/// Turns IPv6 off on the host side of a pair. The host itself does not use this link: it has no
/// address there, not even a link-local one, and sends nothing by itself. Must be called in the
/// host's namespace. Returns whether IPv6 was on.
///
/// # Errors
/// The kernel refuses.
pub fn keep_quiet(host_ifname: &str) -> Result<bool> {
    Ok(sysctl::set("ipv6", host_ifname, "disable_ipv6", "1")?.unwrap_or(false))
}

/// As [`keep_quiet`], in the host's namespace.
fn silence(netlink: &Netlink, host_ifname: &str) -> Result<()> {
    run_in(netlink.netns(), || keep_quiet(host_ifname).map(drop))?
}

async fn host_side(netlink: &Netlink, host: &Link, spec: &PlugSpec) -> Result<bool> {
    let name = spec.host_ifname.as_str();
    let alias = alias_of(&spec.endpoint_id);
    let mut changed = false;
    if host.alias.as_deref() != Some(alias.as_str()) {
        netlink.set_alias(name, &alias).await?;
        changed = true;
    }
    if host.mtu != spec.mtu {
        netlink.set_mtu(name, spec.mtu).await?;
        // If the MTU was below 1280, the kernel has just made the IPv6 state of the interface anew,
        // with its default settings.
        silence(netlink, name)?;
        changed = true;
    }
    Ok(changed)
}

async fn sandbox_side(inside: &Netlink, spec: &PlugSpec, sandbox: &Netns) -> Result<bool> {
    let name = spec.ifname.as_str();
    let mut changed = false;
    if inside.link("lo").await?.is_some_and(|lo| !lo.up) {
        inside.set_up("lo").await?;
        changed = true;
    }
    let link = pending(inside.link(name).await?, name)?;
    // The MTU comes first: below 1280 the kernel removes all IPv6 state of the interface, settings
    // included.
    if link.mtu != spec.mtu {
        inside.set_mtu(name, spec.mtu).await?;
        changed = true;
    }
    let ipv6 = sandbox.run(|| configure(spec))??;
    changed |= ipv6.changed;
    if link.mac != Some(spec.mac) {
        if let Some(old) = link.mac {
            inside.delete_address(name, link_local(old)).await?;
        }
        inside.set_mac(name, spec.mac).await?;
        changed = true;
    }
    changed |= inside.disable_features(name, ENCAPSULATION_OFFLOADS)?;
    if !link.up {
        inside.set_up(name).await?;
        changed = true;
    }
    // Addresses come last: while the link is down the kernel has no IPv6 addresses on it.
    changed |= addresses(inside, spec, ipv6.present).await?;
    changed |= routes(inside, spec, link.index).await?;
    // A link that goes down, or gets another MAC, loses them.
    for (ip, mac) in &spec.neighbours {
        changed |= inside.enter_neighbour(link.index, *ip, *mac).await?;
    }
    Ok(changed)
}

/// Result of [`configure`].
struct Ipv6 {
    /// The kernel has IPv6 on the interface.
    present: bool,
    /// A setting was changed.
    changed: bool,
}

/// Applies the settings of the interface. Must be called in the sandbox's namespace.
fn configure(spec: &PlugSpec) -> Result<Ipv6> {
    let name = spec.ifname.as_str();
    let mut changed = false;
    let mut present = true;
    // IPv6 is enabled first: otherwise the other settings have no effect.
    for (key, value) in
        [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "0")]
    {
        match sysctl::set("ipv6", name, key, value)? {
            Some(written) => changed |= written,
            None => present = false,
        }
    }
    Ok(Ipv6 { present, changed })
}

fn link_local(mac: MacAddr) -> IpNetwork {
    let ip = IpAddr::V6(mac.link_local());
    // 64 is a valid prefix length, so the fallback is never used.
    IpNetwork::new(ip, 64).unwrap_or_else(|_| IpNetwork::from(ip))
}

async fn addresses(inside: &Netlink, spec: &PlugSpec, has_ipv6: bool) -> Result<bool> {
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
        wanted.push(link_local(spec.mac));
    }
    let present = inside.addresses(name).await?;
    let mut changed = false;
    for address in wanted.iter().filter(|address| !present.contains(address)) {
        // The same address with another prefix length would keep the wrong subnet route.
        for stale in present.iter().filter(|other| other.ip() == address.ip()) {
            inside.delete_address(name, *stale).await?;
        }
        inside.add_address(name, *address).await?;
        changed = true;
    }
    changed |= additional(inside, spec, &wanted).await?;
    Ok(changed)
}

/// Adds the additional addresses, and removes earlier ones. The kernel removes the additional IPv4
/// addresses itself together with the primary one of their subnet, so they are read after that.
async fn additional(inside: &Netlink, spec: &PlugSpec, primary: &[IpNetwork]) -> Result<bool> {
    let name = spec.ifname.as_str();
    let marked = inside.marked_addresses(name).await?;
    let mut changed = false;
    for stale in marked.iter().filter(|other| !spec.additional.contains(other)) {
        if !primary.contains(stale) {
            inside.delete_address(name, *stale).await?;
            changed = true;
        }
    }
    for address in spec.additional.iter().filter(|address| !marked.contains(address)) {
        inside.add_marked_address(name, *address).await?;
        changed = true;
    }
    Ok(changed)
}

async fn routes(inside: &Netlink, spec: &PlugSpec, ifindex: u32) -> Result<bool> {
    let present = inside.routes().await?;
    let mut changed = false;
    for (destination, gateway) in &spec.routes {
        let same: Vec<&Route> = present
            .iter()
            .filter(|route| {
                route.is_main()
                    && route.destination.network() == destination.network()
                    && route.destination.prefix() == destination.prefix()
            })
            .collect();
        // A route through another interface exists already. Of several networks one has the default
        // route, and an adopted sandbox keeps its own default route.
        let settled =
            same.iter().any(|route| route.ifindex != ifindex || route.gateway == *gateway);
        if !settled {
            inside.add_route(&spec.ifname, *destination, *gateway).await?;
            changed = true;
        } else if let Some(gateway) = gateway
            && destination.prefix() == 0
            && same.iter().all(|route| route.ifindex != ifindex)
        {
            // The endpoint works without rules: only answers to clients of published ports are
            // lost.
            let everything = (*destination, *gateway);
            match route_by_source(inside, spec, ifindex, everything, &present).await {
                Ok(more) => changed |= more,
                Err(error) => tracing::warn!("{}: routing rules: {error}", spec.ifname),
            }
        }
    }
    Ok(changed)
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
) -> Result<bool> {
    let table = SOURCE_TABLES.saturating_add(ifindex);
    let mut changed = false;
    let routed = present.iter().any(|route| {
        route.table == table && route.ifindex == ifindex && route.gateway == Some(gateway)
    });
    if !routed {
        inside.add_table_route(&spec.ifname, everything, Some(gateway), table).await?;
        changed = true;
    }
    let known = inside.rules().await?;
    let sources = spec.addrs.iter().chain(&spec.additional);
    let sources = sources.filter(|address| address.is_ipv4() == everything.is_ipv4());
    for source in sources.map(IpNetwork::ip) {
        let wanted = rules_of(source, table);
        // Rules of an earlier interface of the endpoint are removed.
        for stale in known.iter().filter(|rule| rule.source == source && !wanted.contains(*rule)) {
            inside.delete_rule(stale).await?;
        }
        for rule in wanted.iter().filter(|rule| !known.contains(*rule)) {
            inside.add_rule(rule).await?;
            changed = true;
        }
    }
    Ok(changed)
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
/// another namespace is at its path.
///
/// # Errors
/// The kernel does not answer, or refuses.
pub async fn forget_rules(sandbox: &SandboxRef) -> Result<()> {
    let path = sandbox.netns.clone();
    let Ok(Ok(found)) = tokio::task::spawn_blocking(move || Netns::open(&path)).await else {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_side_is_named_for_the_endpoint() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(host_ifname(id), "cv0123456789ab");
        assert_eq!(host_ifname("ab"), "cvab");
        let alias = Some(alias_of(id));
        let link = Link { alias, ..Link::default() };
        assert_eq!(endpoint_of(&link), Some(id));
        assert_eq!(endpoint_of(&Link::default()), None);
        let other = Link { alias: Some("other".to_owned()), ..Link::default() };
        assert_eq!(endpoint_of(&other), None);
    }

    #[test]
    fn only_the_endpoint_s_own_pair_is_touched() {
        let of_kind = |kind: &str, alias: Option<&str>| Link {
            name: "cv01".to_owned(),
            kind: Some(kind.to_owned()),
            alias: alias.map(str::to_owned),
            ..Link::default()
        };
        let veth = |alias| of_kind("veth", alias);
        check_owner(&veth(None), "01").unwrap();
        check_owner(&veth(Some("culvert:01")), "01").unwrap();
        check_owner(&of_kind("netkit", Some("culvert:01")), "01").unwrap();
        for foreign in [
            veth(Some("culvert:02")),
            veth(Some("mine")),
            Link { kind: Some("bridge".to_owned()), ..veth(None) },
        ] {
            let error = check_owner(&foreign, "01").unwrap_err().to_string();
            assert!(error.contains("cv01"), "{error}");
        }
    }
}
