//! The world beyond the underlay: a router on the switch, and a host behind it that knows no
//! route to any container. Neither has an agent.

use std::process::Command;

use anyhow::Result;

use super::host::HostPlan;
use super::underlay::run_batch;
use crate::process;

/// The outside host's address (RFC 5737).
pub(crate) const IP: &str = "198.51.100.9";

/// The router's address on the underlay: the hosts' default gateway.
pub(super) const ROUTER_IP: &str = "192.168.1.1";

/// The router's address towards the outside host.
const NEAR_IP: &str = "198.51.100.1";

/// The router's device towards the outside host.
const NEAR: &str = "out0";

/// The router, which is plugged into the switch as the hosts are.
pub(crate) fn router() -> HostPlan {
    plan("router", "uplink0", "port0", ROUTER_IP)
}

/// The outside host.
pub(crate) fn outside() -> HostPlan {
    plan("outside", "eth0", NEAR, IP)
}

fn plan(name: &str, uplink: &'static str, port: &str, ip: &str) -> HostPlan {
    HostPlan {
        node: name.to_owned(),
        netns: name.to_owned(),
        uplink,
        port: port.to_owned(),
        ip: ip.to_owned(),
    }
}

/// Makes the outside host, behind a router that is there.
pub(super) fn make() -> Result<()> {
    let HostPlan { netns, uplink, ip, port, .. } = outside();
    let router = router().netns;
    run_batch("ip", &["-batch", "-"], &format!("netns add {netns}\n"))?;
    let batch = format!(
        "link add {port} type veth peer name {uplink} netns {netns}\n\
         address add {NEAR_IP}/24 dev {port}\n\
         link set {port} up\n"
    );
    run_batch("ip", &["-netns", &router, "-batch", "-"], &batch)?;
    let batch = format!(
        "link set lo up\n\
         address add {ip}/24 dev {uplink}\n\
         link set {uplink} up\n\
         route add default via {NEAR_IP}\n"
    );
    run_batch("ip", &["-netns", &netns, "-batch", "-"], &batch)?;
    let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    let mut command = Command::new("nsenter");
    command.args([&format!("--net=/run/netns/{router}"), "--", "sh", "-c", forward]);
    process::quiet(&mut command).map(drop)
}
