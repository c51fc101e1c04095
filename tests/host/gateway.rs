//! Gateway devices, and the settings of the loopback device.

use std::os::fd::AsFd;

use culvert::{
    model::MacAddr,
    netlink::Netlink,
    sandbox::{
        GatewaySpec, SandboxError, allow_loopback, open_gateway, plug_gateway, restore_loopback,
    },
};
use culvert_tests::netns::Netns;

use crate::block_on;

fn spec() -> GatewaySpec {
    GatewaySpec {
        vni: 256,
        mac: MacAddr([2, 0x42, 10, 9, 0, 1]),
        mtu: 1450,
        address: Some("10.9.0.1/24".parse().unwrap()),
        source: None,
    }
}

/// A route of the host to the subnet is refused before anything is taken, and what the device has
/// already is taken from it.
#[test]
#[ignore = "needs root"]
fn a_gateway_gives_way_to_a_route_of_the_host() {
    let host = Netns::new("host");
    host.run(
        "ip link add lan0 type veth peer name lan1 && ip link set lan1 up && ip link set lan0 up \
         && ip route add 10.9.0.0/24 dev lan0",
    );
    let routes = || host.run("ip route show");
    let addresses = || host.run("ip -4 addr show dev cvg256");
    block_on(async {
        let netlink = Netlink::in_netns(host.fd().as_fd()).unwrap();
        plug_gateway(&netlink, &spec()).await.unwrap();
        let refused = async || match open_gateway(&netlink, &spec()).await {
            Err(SandboxError::RouteTaken { device, .. }) => assert_eq!(device, "lan0"),
            other => panic!("{other:?}"),
        };
        refused().await;
        assert_eq!(addresses(), "");
        assert_eq!(routes().trim_end(), "10.9.0.0/24 dev lan0 scope link");

        host.run("ip route del 10.9.0.0/24 dev lan0");
        for _ in 0..2 {
            open_gateway(&netlink, &spec()).await.unwrap();
            assert!(addresses().contains("10.9.0.1/24"), "{}", addresses());
            assert_eq!(routes().lines().count(), 1, "{}", routes());
            let wanted = "10.9.0.0/24 via 169.254.67.1 dev cvg256 onlink";
            assert!(routes().contains(wanted), "{}", routes());
        }

        // The host's own route would never be used beside one with a smaller metric.
        host.run("ip route add 10.9.0.0/24 dev lan0 metric 100");
        refused().await;
        assert_eq!(addresses(), "");
        assert_eq!(routes().trim_end(), "10.9.0.0/24 dev lan0 scope link metric 100");
    });
}

/// The device's address would hide the machine to which a narrower route of the host leads. The
/// kernel itself prefers a route to another part of the subnet: a route that is there stays beside
/// it, and none is added. Beside a wider route the network goes on. A route is not added either if
/// it would cover the next hop of a route of the host. One that is there stays.
#[test]
#[ignore = "needs root"]
fn a_gateway_hides_no_route_of_the_host() {
    let host = Netns::new("host");
    host.run(
        "ip link add lan0 type veth peer name lan1 && ip link set lan1 up && ip link set lan0 up",
    );
    let addresses = || host.run("ip -4 addr show dev cvg256");
    let gateway = "10.9.0.0/24 via 169.254.67.1 dev cvg256 onlink";
    block_on(async {
        let netlink = Netlink::in_netns(host.fd().as_fd()).unwrap();
        plug_gateway(&netlink, &spec()).await.unwrap();
        for to in ["10.9.0.0/25", "10.9.0.1"] {
            open_gateway(&netlink, &spec()).await.unwrap();
            assert!(addresses().contains("10.9.0.1/24"), "{to}: {}", addresses());
            host.run(&format!("ip route add {to} dev lan0"));
            let line = match open_gateway(&netlink, &spec()).await {
                Err(error @ SandboxError::RouteTaken { .. }) => error.to_string(),
                other => panic!("{to}: {other:?}"),
            };
            assert!(line.starts_with("subnet 10.9.0.0/24: this host has a route to"), "{line}");
            assert!(line.contains(to) && line.contains("by lan0"), "{line}");
            assert_eq!(addresses(), "", "{to}");
            let routes = host.run("ip route show");
            assert_eq!(routes.trim_end(), format!("{to} dev lan0 scope link"));
            host.run(&format!("ip route del {to} dev lan0"));
        }
        // The route is there already, and stays beside these.
        open_gateway(&netlink, &spec()).await.unwrap();
        let parts = ["10.9.0.128/25", "10.9.0.7"];
        let others = ["10.9.0.0/16", "10.0.0.0/8", "0.0.0.0/1", "default"];
        for to in parts.into_iter().chain(others) {
            host.run(&format!("ip route add {to} dev lan0"));
            open_gateway(&netlink, &spec()).await.unwrap();
            assert!(addresses().contains("10.9.0.1/24"), "{to}: {}", addresses());
            assert!(host.run("ip route show").contains(gateway), "{to}");
            host.run(&format!("ip route del {to} dev lan0"));
        }
        // It is not added beside a part. A wider route is no reason to leave it out.
        for to in parts {
            host.run(&format!("ip route del 10.9.0.0/24 dev cvg256 && ip route add {to} dev lan0"));
            match open_gateway(&netlink, &spec()).await {
                Err(SandboxError::RouteTaken { device, .. }) => assert_eq!(device, "lan0"),
                other => panic!("{to}: {other:?}"),
            }
            assert_eq!(addresses(), "", "{to}");
            assert!(!host.run("ip route show").contains("cvg256"), "{to}");
            host.run(&format!("ip route del {to} dev lan0"));
            open_gateway(&netlink, &spec()).await.unwrap();
            assert!(host.run("ip route show").contains(gateway), "{to}");
        }
        for to in others {
            host.run(&format!("ip route del 10.9.0.0/24 dev cvg256 && ip route add {to} dev lan0"));
            open_gateway(&netlink, &spec()).await.unwrap();
            assert!(host.run("ip route show").contains(gateway), "{to}");
            host.run(&format!("ip route del {to} dev lan0"));
        }
        // Next hops that only the route's `onlink` makes on link.
        for hops in [
            "via 10.9.0.77 dev lan0 onlink",
            "nexthop via 198.18.0.9 dev lan0 onlink nexthop via 10.9.0.77 dev lan0 onlink",
        ] {
            host.run(&format!("ip route add default {hops}"));
            open_gateway(&netlink, &spec()).await.unwrap();
            assert!(addresses().contains("10.9.0.1/24"), "{hops}: {}", addresses());
            assert!(host.run("ip route show").contains(gateway), "{hops}");
            host.run("ip route del 10.9.0.0/24 dev cvg256");
            match open_gateway(&netlink, &spec()).await {
                Err(error @ SandboxError::HopTaken { .. }) => {
                    let line = error.to_string();
                    let words = "10.9.0.77, the next hop of the route";
                    assert!(line.contains(words) && line.contains("lan0"), "{line}");
                }
                other => panic!("{hops}: {other:?}"),
            }
            assert!(!host.run("ip route show").contains("cvg256"), "{hops}");
            host.run("ip route del default");
            open_gateway(&netlink, &spec()).await.unwrap();
        }
        // The host has another VTEP address: the route gets another source beside a part.
        host.run("ip addr add 198.18.0.1/32 dev lan0 && ip route add 10.9.0.128/25 dev lan0");
        let moved = GatewaySpec { source: Some([198, 18, 0, 1].into()), ..spec() };
        open_gateway(&netlink, &moved).await.unwrap();
        let routes = host.run("ip route show");
        assert!(routes.contains("dev cvg256 src 198.18.0.1"), "{routes}");
        host.run("ip route del 10.9.0.128/25 dev lan0 && ip route del 10.9.0.0/24 dev cvg256");
        open_gateway(&netlink, &spec()).await.unwrap();
        // A route of another table serves only who has a rule for it.
        host.run("ip route add 10.9.0.0/16 dev lan0 table 77");
        open_gateway(&netlink, &spec()).await.unwrap();
        assert!(host.run("ip route show").contains(gateway));
    });
}

/// The host needs one neighbour for a network, however many containers it talks to, and the kernel's
/// limit does not count it. A route of an earlier version, without a next hop, is replaced.
#[test]
#[ignore = "needs root"]
fn a_gateway_has_one_neighbour() {
    let host = Netns::new("host");
    block_on(async {
        let netlink = Netlink::in_netns(host.fd().as_fd()).unwrap();
        plug_gateway(&netlink, &spec()).await.unwrap();
        host.run("ip link set cvg256 up && ip route add 10.9.0.0/24 dev cvg256");
        open_gateway(&netlink, &spec()).await.unwrap();
        let routes = host.run("ip route show");
        assert_eq!(routes.lines().count(), 1, "{routes}");
        assert!(routes.starts_with("10.9.0.0/24 via 169.254.67.1 dev cvg256"), "{routes}");
        // Nobody answers: the packets end at the device, which has no ports.
        for last in 2..10 {
            host.try_run(&format!("ping -c1 -W0.1 10.9.0.{last}"));
        }
        let neighbours = host.run("ip -4 neigh show dev cvg256");
        assert_eq!(neighbours.trim_end(), "169.254.67.1 lladdr 02:42:0a:09:00:01 PERMANENT");
        // Entered by hand, the MAC does not matter, as the program writes its own.
        host.run("ip neigh replace 169.254.67.1 lladdr 02:00:00:00:00:07 dev cvg256 nud permanent");
        open_gateway(&netlink, &spec()).await.unwrap();
        host.run("ip neigh del 169.254.67.1 dev cvg256");
        open_gateway(&netlink, &spec()).await.unwrap();
        let neighbours = host.run("ip -4 neigh show dev cvg256");
        assert!(neighbours.contains("02:42:0a:09:00:01 PERMANENT"), "{neighbours}");
    });
}

/// A setting that is on already is left alone. One that Culvert has turned on is turned off, unless
/// another program has turned it on since.
#[test]
#[ignore = "needs root"]
fn settings_of_the_loopback_device_are_put_back() {
    let host = Netns::new("host");
    let settings = || host.run("cd /proc/sys/net/ipv4/conf/lo && cat accept_local route_localnet");
    let write = |key: &str, value: &str| {
        host.run(&format!("echo {value} > /proc/sys/net/ipv4/conf/lo/{key}"));
    };
    block_on(async {
        let netlink = Netlink::in_netns(host.fd().as_fd()).unwrap();
        assert_eq!(allow_loopback(&netlink).unwrap(), ["accept_local", "route_localnet"]);
        assert_eq!(allow_loopback(&netlink).unwrap(), [""; 0]);
        assert_eq!(settings(), "67\n67\n");
        for _ in 0..2 {
            restore_loopback(&netlink).unwrap();
            assert_eq!(settings(), "0\n0\n");
        }
        write("accept_local", "1");
        assert_eq!(allow_loopback(&netlink).unwrap(), ["route_localnet"]);
        write("route_localnet", "2");
        restore_loopback(&netlink).unwrap();
        assert_eq!(settings(), "1\n2\n");
    });
}
