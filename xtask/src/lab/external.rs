//! The external network: a router on the switch, and a host behind it without a route to any
//! container. Neither has an agent.

use culvert_testbed::external::{self, External};

use super::host::{HostPlan, UPLINK};

/// The router's address on the underlay: the hosts' default gateway.
const ROUTER_IP: &str = "192.168.1.1";

/// The router, which is connected to the switch like the hosts.
pub(crate) fn router() -> HostPlan {
    plan("router", UPLINK, "port0", ROUTER_IP)
}

/// The external host.
pub(crate) fn host() -> HostPlan {
    plan("external", external::DEVICE, external::ROUTER_DEVICE, &External::IP.to_string())
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
