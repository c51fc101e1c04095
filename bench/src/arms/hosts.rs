//! Two hosts on one veth pair.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::{Context as _, Result, bail};
use culvert_testbed::{netns::Netns, underlay::Underlay};

use crate::{
    load::{Side, pin},
    results::Regime,
};

/// Uplink of each host.
pub(super) const UPLINK: &str = Underlay::UPLINK;
/// Prefix of the addresses whose packets every second host discards silently (RFC 2544).
pub(crate) const SINK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Frames that wait in front of an uplink in the wire-like regime, as with a network card.
const QUEUE: u32 = 1000;

/// The core that processes received frames of an uplink.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Receive {
    /// On the core that sent them: a veth has no other.
    SendersCore,
    /// On the receiver's core, by threaded NAPI, as a second machine would.
    OtherCore,
}

/// Two hosts.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The host of the clients.
    pub(crate) one: Netns,
    /// The host of the servers.
    pub(crate) two: Netns,
}

impl Pair {
    /// Address of the first host.
    pub(crate) const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    /// Address of the second.
    pub(crate) const TWO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    /// Makes them.
    pub(crate) fn new() -> Result<Self> {
        let mut hosts = Underlay::direct(1500).hosts.into_iter();
        let (Some(one), Some(two)) = (hosts.next(), hosts.next()) else {
            bail!("underlay: not two hosts");
        };
        let pair = Self { one, two };
        for host in [&pair.one, &pair.two] {
            run(host, &format!("{TUNING} && sysctl -qw net.ipv4.ip_forward=1"))?;
        }
        run(&pair.one, &format!("ip route add {SINK}/15 via {}", Self::TWO))?;
        run(&pair.two, &format!("ip route add blackhole {SINK}/15"))?;
        Ok(pair)
    }
}

/// Sets the underlay between two hosts to a regime.
pub(super) fn set(hosts: [&Netns; 2], regime: Regime, receive: Receive) -> Result<()> {
    for (host, side) in hosts.into_iter().zip([Side::Client, Side::Server]) {
        let up = UPLINK;
        match regime {
            // Without GRO a veth has no NAPI, as between namespaces by default.
            Regime::Intact => run(
                host,
                &format!(
                    "ethtool -K {up} tso on gso on gro off && \
                         {{ tc qdisc del dev {up} root 2>/dev/null || true; }}"
                ),
            )?,
            Regime::WireLike => {
                // The threads are named for the device, and all hosts' are named alike.
                let others = napi_threads()?;
                run(
                    host,
                    &format!(
                        "ethtool -K {up} tso off gso off gro on && \
                             tc qdisc replace dev {up} root pfifo limit {QUEUE}"
                    ),
                )?;
                threaded(host, receive == Receive::OtherCore)?;
                for thread in napi_threads()?.difference(&others) {
                    pin(*thread, side.core())?;
                }
            }
        }
    }
    Ok(())
}

/// Ports of connections that were closed may be taken again: no connection shall fail
/// because there is none left. None is a server's.
pub(super) const TUNING: &str =
    "sysctl -qw net.ipv4.tcp_tw_reuse=1 net.ipv4.ip_local_port_range='10000 65535'";

/// Runs a shell command on a host.
pub(super) fn run(host: &Netns, script: &str) -> Result<()> {
    let output = host.try_run(script);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: '{script}': {}", host.name(), said.trim().lines().last().unwrap_or_default());
    }
    Ok(())
}

/// Puts the receive work of the uplink into a kernel thread, or takes it out.
fn threaded(host: &Netns, on: bool) -> Result<()> {
    // `/sys` shows the devices of the namespace in which it was mounted.
    let file = format!("/sys/class/net/{UPLINK}/threaded");
    let script = format!("mount -t sysfs none /sys && echo {} > {file}", u8::from(on));
    let args = ["--mount", "--propagation", "private", "sh", "-c", &script];
    let output = host.command("unshare").args(args).output().context("unshare")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{UPLINK}: no threaded NAPI: {}", said.trim());
    }
    Ok(())
}

/// The kernel threads that receive frames of uplinks.
fn napi_threads() -> Result<BTreeSet<i32>> {
    let prefix = format!("napi/{UPLINK}-");
    let mut threads = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(&prefix) {
            threads.insert(pid);
        }
    }
    Ok(threads)
}
