//! Uplinks and VTEP address. At boot they may appear after the start of the agent.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{anyhow, bail};
use tokio::time::Instant;

use crate::{
    config::AgentOptions,
    model::validate,
    netlink::{Link, Netlink, NetlinkError, Route, default_link},
};

/// Interval at which the host is checked.
const EVERY: Duration = Duration::from_millis(500);

/// The fault of an uplink or of the VTEP address, on one line.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// Something is missing that may still appear: a device that a driver has not made yet, or an
    /// address that DHCP has not got yet.
    Absent(String),
    /// The fault does not go away by itself.
    Wrong(String),
}

/// The names of the uplinks, and the VTEP address. Waits for them up to `--store-timeout`. Logs
/// each missing thing once.
///
/// # Errors
///
/// An uplink is of a kind that cannot be one; `--store-timeout` has passed; the kernel does not
/// answer.
pub(super) async fn wait(
    netlink: &Netlink,
    options: &AgentOptions,
) -> anyhow::Result<(Vec<String>, Ipv4Addr)> {
    let began = Instant::now();
    let mut told = None;
    loop {
        let (links, routes) = (netlink.links().await?, netlink.routes().await?);
        let line = match find(options, &links, &routes) {
            Ok(found) => return Ok(found),
            Err(Fault::Wrong(line)) => bail!(line),
            Err(Fault::Absent(line)) => line,
        };
        if options.store_timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            return Err(anyhow!(line));
        }
        if told.as_ref() != Some(&line) {
            tracing::warn!("{line}; waiting for it");
            told = Some(line);
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn find(
    options: &AgentOptions,
    links: &[Link],
    routes: &[Route],
) -> Result<(Vec<String>, Ipv4Addr), Fault> {
    let uplinks = match options.uplinks.as_slice() {
        [] => vec![default_uplink(links, routes)?],
        given => given.to_vec(),
    };
    for (index, name) in uplinks.iter().enumerate() {
        if uplinks.iter().take(index).any(|before| before == name) {
            return Err(Fault::Wrong(format!(
                "uplink {name} is given twice: each --uplink once is valid"
            )));
        }
        let link = links.iter().find(|link| link.name == *name);
        let link = link.ok_or_else(|| {
            Fault::Absent(NetlinkError::NoSuchInterface(name.clone()).to_string())
        })?;
        if link.loopback {
            return Err(Fault::Wrong(format!(
                "uplink {name} is the loopback device: the interface that leads to the other hosts is valid"
            )));
        }
        if link.mac.is_none() {
            return Err(Fault::Wrong(format!(
                "uplink {name} has no Ethernet header ({}): Culvert sends Ethernet frames; the Ethernet interface that leads to the other hosts is valid",
                link.kind.as_deref().unwrap_or("a tunnel")
            )));
        }
    }
    let vtep = vtep_address(options, &uplinks, links)?;
    Ok((uplinks, vtep))
}

/// The interface of the default route.
fn default_uplink(links: &[Link], routes: &[Route]) -> Result<String, Fault> {
    default_link(links, routes).map(|link| link.name.clone()).ok_or_else(|| {
        Fault::Absent(
            "no default route tells the uplink: name the interface that leads to the other hosts with --uplink"
                .to_owned(),
        )
    })
}

fn vtep_address(
    options: &AgentOptions,
    uplinks: &[String],
    links: &[Link],
) -> Result<Ipv4Addr, Fault> {
    let v4 = |link: &Link| -> Vec<Ipv4Addr> {
        let ips = link.addresses.iter().map(|address| address.ip());
        ips.filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }).collect()
    };
    match options.vtep_ip {
        Some(ip) => {
            validate::vtep_address(ip).map_err(|error| Fault::Wrong(error.0))?;
            if links.iter().any(|link| v4(link).contains(&ip)) {
                return Ok(ip);
            }
            Err(Fault::Absent(format!(
                "VTEP address {ip} is not an address of this host: add it, or give one that is with --vtep-ip"
            )))
        }
        None => {
            let first = uplinks.first().map(String::as_str).unwrap_or_default();
            let link = links.iter().find(|link| link.name == first);
            link.and_then(|link| v4(link).first().copied()).ok_or_else(|| {
                Fault::Absent(format!(
                    "uplink {first} has no IPv4 address: give it one, or name the VTEP address with --vtep-ip"
                ))
            })
        }
    }
}
