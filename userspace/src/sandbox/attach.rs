//! The device pair between the host and a sandbox.

use std::{os::fd::AsFd, path::Path};

use super::{Result, SandboxError, interface, spec::PlugSpec, sysctl};
use crate::{
    netlink::{Link, Netlink, PairKind, PairSpec},
    netns::{Netns, run_in, same_namespace},
};

/// Start of the alias that marks a host-side interface as Culvert's.
const ALIAS: &str = "culvert:";

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

/// Where the interface of an endpoint is in its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The host's number for the namespace, see [`Netlink::netns_id`]. `None`: it is the host's own.
    pub namespace: Option<i32>,
    /// Index of the interface in the namespace.
    pub ifindex: u32,
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
/// * Offloads for packets that are already encapsulated are off, see
///   [`crate::netlink::ENCAPSULATION_OFFLOADS`].
///
/// # Errors
/// The name is taken in the sandbox, the MTU is out of range, or the kernel refuses.
pub async fn plug(netlink: &Netlink, spec: &PlugSpec, sandbox: &Netns) -> Result<Plugged> {
    let plugged = plug_closed(netlink, spec, sandbox, |_| {}, &mut Vec::new()).await?;
    let opened = open_host_side(netlink, &spec.host_ifname).await?;
    Ok(Plugged { changed: plugged.changed || opened, ..plugged })
}

/// As [`plug`], but a host side that is down stays down: nothing that the sandbox sends leaves it
/// before [`open_host_side`]. Before that call the caller attaches the BPF programs.
///
/// `watch` is called before the interface in the sandbox is looked at. If `watch` begins to receive
/// the interface's events, no later change is missed. What was wrong in the sandbox is added to
/// `found`, in words, each as soon as it has been put right.
///
/// # Errors
/// As [`plug`].
pub async fn plug_closed(
    netlink: &Netlink,
    spec: &PlugSpec,
    sandbox: &Netns,
    watch: impl FnOnce(Inside) + Send,
    found: &mut Vec<String>,
) -> Result<Plugged> {
    let inside = Netlink::in_netns(sandbox.as_fd())?;
    let before = found.len();
    let (host, is_new) = match find_pair(netlink, &inside, spec, sandbox).await? {
        Some((host, peer)) => {
            watch(Inside { namespace: host.peer_netns_id, ifindex: peer.index });
            if peer.name != spec.ifname {
                rename(&inside, &peer, spec, sandbox).await?;
                found.push(format!("was named {}", peer.name));
            }
            (host, false)
        }
        None => {
            let host = make_pair(netlink, &inside, spec, sandbox).await?;
            found.push("was missing".to_owned());
            // Before `watch`: otherwise this change would be an event of an interface that is down.
            interface::limit_offloads(&inside, &spec.ifname)?;
            if let Some(ifindex) = host.peer_index {
                watch(Inside { namespace: host.peer_netns_id, ifindex });
            }
            (host, true)
        }
    };
    let mut changed = host_side(netlink, &host, spec).await?;
    // `found` already says that the interface was missing. What the new one lacks follows from
    // that.
    let mut lacking = Vec::new();
    let told = if is_new { &mut lacking } else { &mut *found };
    interface::settle(&inside, spec, sandbox, told).await?;
    changed |= found.len() > before;
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

/// Whether the pair of an endpoint exists, with its other end in the namespace at `path`. The path
/// is looked at only if there is a pair.
///
/// # Errors
/// The kernel does not answer, or there is no namespace at the path.
pub async fn leads_into(netlink: &Netlink, endpoint_id: &str, path: &Path) -> Result<bool> {
    let Some(host) = netlink.link(&host_ifname(endpoint_id)).await? else { return Ok(false) };
    if endpoint_of(&host) != Some(endpoint_id) {
        return Ok(false);
    }
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || Netns::open(&path)).await {
        Ok(sandbox) => peer_is_in(netlink, &host, &sandbox?).await,
        // The runtime stops.
        Err(_) => Ok(false),
    }
}

/// Whether the other end of a pair is in `sandbox`.
async fn peer_is_in(netlink: &Netlink, host: &Link, sandbox: &Netns) -> Result<bool> {
    Ok(match host.peer_netns_id {
        Some(id) => netlink.netns_id(sandbox.as_fd()).await? == Some(id),
        None => same_namespace(netlink.netns(), sandbox.as_fd())?,
    })
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
    if peer_is_in(netlink, &host, sandbox).await?
        && let Some(index) = host.peer_index
    {
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

/// Makes the pair of an endpoint. Both ends are down. Returns the host side.
async fn make_pair(
    netlink: &Netlink,
    inside: &Netlink,
    spec: &PlugSpec,
    sandbox: &Netns,
) -> Result<Link> {
    if inside.link(&spec.ifname).await?.is_some() {
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
    pending(netlink.link(&spec.host_ifname).await?, &spec.host_ifname)
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
pub async fn open_host_side(netlink: &Netlink, host_ifname: &str) -> Result<bool> {
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
