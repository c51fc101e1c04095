//! The network that the hosts and the router are plugged into: a switch, in the enclosure's own
//! network namespace, where the store listens, too.

use anyhow::{Context as _, Result};
use culvert_testbed::external::put_behind;
use culvert_testbed::netns::Netns;
use culvert_testbed::underlay::{Port, Switch, queue};

use super::external;
use super::host::HostPlan;
use super::places::STORE_IP;
use crate::signals;

/// The switch.
const SWITCH: &str = "switch0";

/// MTU of the underlay, in bytes.
const MTU: u32 = 1500;

/// Largest number of frames in the queue of each device of the underlay.
const QUEUE: u32 = 1000;

/// The underlay with its hosts and the router plugged in. They are removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Underlay {
    _hosts: Vec<Netns>,
}

impl Underlay {
    /// Makes the switch, each host's namespace with its uplink, and the external network.
    pub(crate) fn make(plans: &[HostPlan]) -> Result<Self> {
        let here = Netns::here();
        let switch = Switch { netns: &here, bridge: SWITCH };
        here.sh("ip link set lo up")?;
        switch.make(MTU)?;
        here.sh(&format!("ip addr add {STORE_IP}/24 dev {SWITCH}"))?;
        let router = external::router();
        let mut hosts = vec![plug(switch, &router)?];
        for plan in plans {
            signals::check()?;
            let host = plug(switch, plan)?;
            host.sh(&format!("ip route add default via {}", router.ip))?;
            hosts.push(host);
        }
        let external = Netns::make(&external::host().netns)?;
        if let Some(router) = hosts.first() {
            put_behind(router, &external)?;
        }
        hosts.push(external);
        Ok(Self { _hosts: hosts })
    }
}

/// Makes a host's namespace and plugs it into the switch.
fn plug(switch: Switch<'_>, plan: &HostPlan) -> Result<Netns> {
    let host = Netns::make(&plan.netns)?;
    let ip = plan.ip.parse().with_context(|| plan.ip.clone())?;
    switch.plug(&host, &Port { name: &plan.port, uplink: plan.uplink, ip, mtu: MTU })?;
    queue(&host, plan.uplink, QUEUE)?;
    queue(switch.netns, &plan.port, QUEUE)?;
    Ok(host)
}
