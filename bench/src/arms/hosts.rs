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
/// First address of 198.18.0.0/15 (RFC 2544). The second host of a pair silently discards packets
/// to this prefix.
pub(crate) const SINK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Length of an uplink's queue in the wire-like regime, frames, as of a network card.
const QUEUE: u32 = 1000;

/// The core that processes received frames of an uplink.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Receive {
    /// The core that sent them. A veth does this by default.
    SendersCore,
    /// The receiver's core, by threaded NAPI, as on a second machine.
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

    /// Makes the hosts.
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
            // A veth without GRO has no NAPI. This is the default between namespaces.
            Regime::Intact => run(
                host,
                &format!(
                    "ethtool -K {up} tso on gso on gro off && \
                         {{ tc qdisc del dev {up} root 2>/dev/null || true; }}"
                ),
            )?,
            Regime::WireLike => {
                // The threads have the name of the device, which is the same on all hosts.
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

/// Reuse of ports in TIME_WAIT, and a wide range of client ports: no connection fails for want of a
/// port. The range has no port of a server. A connection sends as fast after a pause as before it.
pub(super) const TUNING: &str = "sysctl -qw net.ipv4.tcp_tw_reuse=1 \
     net.ipv4.ip_local_port_range='10000 65535' net.ipv4.tcp_slow_start_after_idle=0";

/// Runs a shell command on a host.
pub(super) fn run(host: &Netns, script: &str) -> Result<()> {
    let output = host.try_run(script);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: '{script}': {}", host.name(), said.trim().lines().last().unwrap_or_default());
    }
    Ok(())
}

/// Moves the receive work of the uplink into a kernel thread, or back.
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
        // A process may end during this loop.
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(&prefix) {
            threads.insert(pid);
        }
    }
    Ok(threads)
}
