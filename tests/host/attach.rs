//! The device pair of an endpoint: made, kept, corrected, and made again after a loss.

use std::os::fd::AsFd;

use culvert::{
    model::MacAddr,
    netlink::{Heard, Netlink},
    netns::Netns as Sandbox,
    sandbox::{
        PlugSpec, Plugged, SandboxError, alias_of, endpoint_of, free_ifname, host_ifname, plug,
        plug_closed, unplug,
    },
};
use culvert_tests::netns::Netns;

use crate::{block_on, kind};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "1123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Setup {
    host: Netns,
    inside: Netns,
    netlink: Netlink,
    sandbox: Sandbox,
}

/// Waits until the kernel has removed the sandbox: the interface's side in it goes with it, and the
/// host side with that.
async fn ends(netlink: &Netlink) {
    let gone = async {
        while netlink.link("cv0123456789ab").await.unwrap().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(crate::DEADLINE, gone).await;
    assert!(ended.is_ok(), "the sandbox is still there");
}

impl Setup {
    fn new() -> Self {
        let (host, inside) = (Netns::new("host"), Netns::new("box"));
        let netlink = Netlink::in_netns(host.fd().as_fd()).unwrap();
        let sandbox = Sandbox::open(inside.path()).unwrap();
        Self { host, inside, netlink, sandbox }
    }

    async fn plug(&self, spec: &PlugSpec) -> Result<Plugged, SandboxError> {
        plug(&self.netlink, spec, &self.sandbox).await
    }

    /// Plugs an endpoint, and returns what was wrong in the sandbox.
    async fn found(&self, spec: &PlugSpec) -> Vec<String> {
        let mut found = Vec::new();
        plug_closed(&self.netlink, spec, &self.sandbox, |_| {}, &mut found).await.unwrap();
        found
    }

    /// Plugs an endpoint twice: the first call must change something, the second nothing.
    async fn settle(&self, spec: &PlugSpec) -> u32 {
        let first = self.plug(spec).await.unwrap();
        assert!(first.changed);
        let second = self.plug(spec).await.unwrap();
        assert_eq!(second, Plugged { changed: false, ..plugged(first.ifindex) });
        first.ifindex
    }
}

/// The result for an endpoint of which something was changed.
fn plugged(ifindex: u32) -> Plugged {
    Plugged { ifindex, changed: true, master: None, kind: kind() }
}

fn spec(id: &str, ifname: &str, last: u8) -> PlugSpec {
    PlugSpec {
        endpoint_id: id.to_owned(),
        kind: kind(),
        host_ifname: host_ifname(id),
        ifname: ifname.to_owned(),
        mac: MacAddr([2, 0x42, 10, 0, 0, last]),
        mtu: 1450,
        addrs: vec![
            format!("10.0.0.{last}/24").parse().unwrap(),
            format!("fd00::{last}/64").parse().unwrap(),
        ],
        additional: Vec::new(),
        neighbours: vec![("10.0.0.1".parse().unwrap(), MacAddr([2, 0x42, 10, 0, 0, 1]))],
        routes: vec![
            ("0.0.0.0/0".parse().unwrap(), Some("10.0.0.1".parse().unwrap())),
            ("198.51.100.0/24".parse().unwrap(), None),
        ],
    }
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_looks_as_in_docker() {
    block_on(async {
        let setup = Setup::new();
        let spec = spec(ID, "eth0", 2);
        let index = setup.settle(&spec).await;
        let host = setup.netlink.link("cv0123456789ab").await.unwrap().unwrap();
        assert_eq!((host.index, host.mtu, host.up), (index, 1450, true));
        assert_eq!(endpoint_of(&host), Some(ID));
        assert!(setup.netlink.addresses("cv0123456789ab").await.unwrap().is_empty());

        let shown = setup.inside.run("ip addr show dev eth0");
        for words in [
            "mtu 1450",
            "state UP",
            "link/ether 02:42:0a:00:00:02",
            "inet 10.0.0.2/24 scope global eth0",
            "inet6 fe80::42:aff:fe00:2/64 scope link",
            "inet6 fd00::2/64 scope global",
        ] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        assert_eq!(shown.matches("inet6 fe80").count(), 1, "{shown}");
        assert!(!shown.contains("tentative"), "{shown}");
        let routes = setup.inside.run("ip route");
        for words in [
            "default via 10.0.0.1 dev eth0",
            "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.2",
            "198.51.100.0/24 dev eth0 scope link",
        ] {
            assert!(routes.contains(words), "{words}: {routes}");
        }
        // The kernel's limit of neighbours does not count it.
        let neighbours = setup.inside.run("ip -4 neigh show");
        let gateway = "10.0.0.1 dev eth0 lladdr 02:42:0a:00:00:01 PERMANENT";
        assert_eq!(neighbours.trim_end(), gateway);
        let conf = "/proc/sys/net/ipv6/conf/eth0";
        assert_eq!(setup.inside.run(&format!("cat {conf}/accept_ra {conf}/accept_dad")), "0\n0\n");
        let features = setup.inside.run("ethtool -k eth0");
        for off in ["tx-udp_tnl-segmentation: off", "tx-udp-segmentation: off"] {
            assert!(features.contains(off), "{features}");
        }
        assert!(features.contains("tx-tcp-segmentation: on"), "{features}");

        for _ in 0..2 {
            unplug(&setup.netlink, ID).await.unwrap();
        }
        assert!(!setup.inside.succeeds("ip link show dev eth0"));
    });
}

#[test]
#[ignore = "needs root"]
fn what_differs_is_corrected_and_the_pair_is_kept() {
    block_on(async {
        let setup = Setup::new();
        let mut spec = spec(ID, "eth0", 2);
        let index = setup.settle(&spec).await;
        for (namespace, damage) in [
            (&setup.inside, "ip link set eth0 mtu 1200"),
            (&setup.inside, "ip link set eth0 address 02:00:00:00:00:09"),
            (&setup.inside, "ip link set eth0 down"),
            (&setup.inside, "ip link set lo down"),
            (&setup.inside, "ip addr flush dev eth0"),
            (&setup.inside, "ip addr del 10.0.0.2/24 dev eth0; ip addr add 10.0.0.2/16 dev eth0"),
            (&setup.inside, "ip addr del fe80::42:aff:fe00:2/64 dev eth0"),
            (&setup.inside, "ip route del default"),
            (&setup.inside, "ip neigh del 10.0.0.1 dev eth0"),
            (&setup.inside, "ip link set eth0 down; ip link set eth0 name eth7"),
            (&setup.inside, "ethtool -K eth0 tx-udp_tnl-segmentation on"),
            (&setup.inside, "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1"),
            (&setup.host, "ip link set cv0123456789ab down"),
            (&setup.host, "ip link set cv0123456789ab mtu 1300"),
            (&setup.host, "ip link set cv0123456789ab alias ''"),
        ] {
            namespace.run(damage);
            let again = setup.plug(&spec).await.unwrap();
            assert_eq!(again, plugged(index), "{damage}");
            let again = setup.plug(&spec).await.unwrap();
            assert_eq!(again, Plugged { changed: false, ..plugged(index) }, "{damage}");
            let shown = setup.inside.run("ip addr show dev eth0");
            for words in ["mtu 1450", "02:42:0a:00:00:02", "10.0.0.2/24", "fe80::42:aff:fe00:2/64"]
            {
                assert!(shown.contains(words), "{damage}: {words}: {shown}");
            }
            assert_eq!(shown.matches("inet6 fe80").count(), 1, "{damage}: {shown}");
            assert!(!shown.contains("10.0.0.2/16"), "{damage}: {shown}");
            assert!(setup.inside.run("ip route").contains("default via 10.0.0.1"), "{damage}");
            let neighbours = setup.inside.run("ip neigh show dev eth0");
            assert!(neighbours.contains("02:42:0a:00:00:01 PERMANENT"), "{damage}: {neighbours}");
        }
        // An address that a user added stays.
        setup.inside.run("ip addr add 10.7.7.7/32 dev eth0");
        assert!(!setup.plug(&spec).await.unwrap().changed);
        assert!(setup.inside.run("ip addr show dev eth0").contains("10.7.7.7/32"));
        // The MTU of the network changes.
        spec.mtu = 1400;
        assert_eq!(setup.settle(&spec).await, index);
        assert!(setup.inside.run("ip link show dev eth0").contains("mtu 1400"));
    });
}

/// What was wrong in the sandbox is named. The route of a subnet, which the kernel does not restore,
/// is made again before the routes whose gateways are in the subnet.
#[test]
#[ignore = "needs root"]
fn what_was_wrong_in_the_sandbox_is_named() {
    block_on(async {
        let setup = Setup::new();
        let spec = spec(ID, "eth0", 2);
        assert_eq!(setup.found(&spec).await, ["was missing"]);
        setup.plug(&spec).await.unwrap();
        assert!(setup.found(&spec).await.is_empty());
        for (damage, words) in [
            ("ip link set eth0 mtu 1300", "had MTU 1300"),
            ("ip link set eth0 address 02:00:00:00:00:09", "had another MAC"),
            ("ip link set eth0 down", "was down"),
            ("ip link set eth0 down", "had lost the route to 0.0.0.0/0"),
            ("ip link set lo down", "had lo down"),
            ("ip addr del 10.0.0.2/24 dev eth0", "had lost address 10.0.0.2/24"),
            ("ip addr del fe80::42:aff:fe00:2/64 dev eth0", "had lost address fe80::"),
            ("ip route del default", "had lost the route to 0.0.0.0/0"),
            ("ip route flush dev eth0", "had lost the route to 10.0.0.0/24"),
            ("ip route flush dev eth0", "had lost the route to 0.0.0.0/0"),
            ("ip -6 route flush dev eth0", "had lost the route to fd00::/64"),
            ("ip neigh del 10.0.0.1 dev eth0", "had lost neighbour 10.0.0.1"),
            ("ip link set eth0 down; ip link set eth0 name eth7", "was named eth7"),
            ("ethtool -K eth0 tx-udp_tnl-segmentation on", "had offloads on"),
            ("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1", "had disable_ipv6 changed"),
            ("ip link del eth0", "was missing"),
        ] {
            setup.inside.run(damage);
            let found = setup.found(&spec).await;
            assert!(found.iter().any(|line| line.starts_with(words)), "{damage}: {found:?}");
            setup.plug(&spec).await.unwrap();
            assert!(setup.found(&spec).await.is_empty(), "{damage}");
            assert!(setup.inside.run("ip route").contains("default via 10.0.0.1"), "{damage}");
        }
        setup.inside.run("ip route flush dev eth0");
        let routes = ["10.0.0.0/24", "0.0.0.0/0", "198.51.100.0/24"];
        let lost = routes.map(|route| format!("had lost the route to {route}"));
        assert_eq!(setup.found(&spec).await, lost);
        // A user may route the subnet through another interface.
        setup.inside.run(
            "ip link add own0 type veth peer name own1; ip link set own0 up; \
             ip route replace 10.0.0.0/24 dev own0",
        );
        assert!(setup.found(&spec).await.is_empty());
        assert!(setup.inside.run("ip route").contains("10.0.0.0/24 dev own0"));
    });
}

/// One netlink socket in the host's namespace receives a sandbox's events. It does not keep the
/// sandbox alive.
#[test]
#[ignore = "needs root"]
fn the_events_of_a_sandbox_are_received_in_the_hosts_namespace() {
    block_on(async {
        let setup = Setup::new();
        let monitor = setup.netlink.monitor_namespaces().unwrap();
        let spec = spec(ID, "eth0", 2);
        let mut place = None;
        let watch = |inside| place = Some(inside);
        plug_closed(&setup.netlink, &spec, &setup.sandbox, watch, &mut Vec::new()).await.unwrap();
        let place = place.unwrap();
        assert!(place.namespace.is_some(), "{place:?}");
        let harm = || {
            let (mut harm, mut lost) = (Vec::new(), 0);
            let read = monitor.drain(|heard| match heard {
                Heard::Lost => lost += 1,
                Heard::Message(message) if message.namespace == place.namespace => {
                    let change = message.change();
                    harm.extend(change.filter(|it| spec.is_harmed_by(place.ifindex, it)));
                }
                Heard::Message(_) => {}
            });
            read.unwrap();
            assert_eq!(lost, 0);
            harm
        };
        // Of the plug itself: the interface was down when it was made.
        harm();
        setup.plug(&spec).await.unwrap();
        assert_eq!(harm(), []);
        for harmless in [
            "ip addr add 10.7.7.7/32 dev eth0; ip addr del 10.7.7.7/32 dev eth0",
            "ip route add 10.9.0.0/16 dev eth0; ip route del 10.9.0.0/16 dev eth0",
            "ip link add own0 type veth peer name own1; ip link set own0 up; ip link del own0",
        ] {
            setup.inside.run(harmless);
            assert_eq!(harm(), [], "{harmless}");
        }
        for damage in [
            "ip link set eth0 down",
            "ip link set eth0 mtu 1300",
            "ip link set eth0 address 02:00:00:00:00:09",
            "ip addr flush dev eth0",
            "ip addr del fd00::2/64 dev eth0",
            "ip route del default",
            "ip route flush dev eth0",
            "ip link set lo down",
        ] {
            setup.inside.run(damage);
            assert_ne!(harm(), [], "{damage}");
            setup.plug(&spec).await.unwrap();
            harm();
        }
        let Setup { netlink, sandbox, inside, host: _host } = setup;
        drop((sandbox, inside));
        ends(&netlink).await;
    });
}

/// With an MTU below 1280 an interface has no IPv6, and with a greater one it has IPv6 with the
/// kernel's default settings.
#[test]
#[ignore = "needs root"]
fn the_host_side_has_no_ipv6_after_a_change_of_its_mtu() {
    block_on(async {
        let setup = Setup::new();
        let spec = spec(ID, "eth0", 2);
        setup.settle(&spec).await;
        let setting = "cat /proc/sys/net/ipv6/conf/cv0123456789ab/disable_ipv6";
        assert_eq!(setup.host.run(setting), "1\n");
        setup.host.run("ip link set cv0123456789ab mtu 1200");
        assert!(!setup.host.succeeds(setting), "the kernel keeps the setting");
        setup.settle(&spec).await;
        assert_eq!(setup.host.run(setting), "1\n");
    });
}

#[test]
#[ignore = "needs root"]
fn additional_addresses_come_and_go() {
    block_on(async {
        let setup = Setup::new();
        let mut spec = spec(ID, "eth0", 2);
        spec.additional =
            ["10.0.0.100/24", "10.0.0.101/24", "fd00::100/64"].map(|ip| ip.parse().unwrap()).into();
        let index = setup.settle(&spec).await;
        let shown = || setup.inside.run("ip addr show dev eth0");
        let has = |words: &str| shown().contains(words);
        for words in ["10.0.0.2/24 ", "10.0.0.100/24 ", "10.0.0.101/24 ", "fd00::100/64 "] {
            assert!(has(words), "{words}: {}", shown());
        }
        // By default the container sends from its primary addresses.
        let route = setup.inside.run("ip route get 10.0.0.9; ip -6 route get fd00::9");
        assert!(route.contains("src 10.0.0.2 ") && route.contains("src fd00::2 "), "{route}");
        for damage in [
            "ip addr del 10.0.0.100/24 dev eth0",
            "ip addr del fd00::100/64 dev eth0",
            // The kernel removes the other addresses of the subnet with the primary address.
            "ip addr del 10.0.0.2/24 dev eth0",
            "ip addr flush dev eth0",
        ] {
            setup.inside.run(damage);
            assert_eq!(setup.settle(&spec).await, index, "{damage}");
            for words in ["10.0.0.2/24 ", "10.0.0.100/24 ", "10.0.0.101/24 ", "fd00::100/64 "] {
                assert!(has(words), "{damage}: {words}: {}", shown());
            }
        }
        // An address of the user stays. If it is given to the container as well, it becomes the
        // container's.
        setup.inside.run("ip addr add 10.7.7.7/32 dev eth0; ip addr add 10.0.0.102/24 dev eth0");
        spec.additional = vec!["10.0.0.102/24".parse().unwrap()];
        setup.settle(&spec).await;
        assert!(has("10.7.7.7/32") && has("10.0.0.102/24 "), "{}", shown());
        assert!(!has("10.0.0.100/24") && !has("10.0.0.101/24") && !has("fd00::100"), "{}", shown());
        spec.additional.clear();
        setup.settle(&spec).await;
        assert!(has("10.7.7.7/32") && has("10.0.0.2/24 ") && has("fd00::2/64 "), "{}", shown());
        assert!(!has("10.0.0.102/24"), "{}", shown());
    });
}

#[test]
#[ignore = "needs root"]
fn a_pair_whose_end_is_elsewhere_is_made_again() {
    block_on(async {
        let setup = Setup::new();
        let elsewhere = Netns::new("elsewhere");
        let spec = spec(ID, "eth0", 2);
        setup.settle(&spec).await;
        setup.inside.run("ip link del eth0");
        setup.settle(&spec).await;
        setup.inside.run(&format!("ip link set eth0 netns {}", elsewhere.name()));
        setup.settle(&spec).await;
        assert!(!elsewhere.succeeds("ip link show dev eth0"));
        assert!(setup.inside.succeeds("ip link show dev eth0"));
        setup.inside.run(&format!("ip link set eth0 netns {}", setup.host.name()));
        setup.settle(&spec).await;
        assert!(!setup.host.succeeds("ip link show dev eth0"));
    });
}

#[test]
#[ignore = "needs root"]
fn a_default_route_of_another_network_is_kept() {
    block_on(async {
        let setup = Setup::new();
        setup.settle(&spec(ID, "eth0", 2)).await;
        let mut second = spec(OTHER, "eth1", 3);
        second.addrs = vec!["10.1.0.3/24".parse().unwrap()];
        second.routes[0].1 = Some("10.1.0.1".parse().unwrap());
        second.neighbours[0].0 = "10.1.0.1".parse().unwrap();
        setup.settle(&second).await;
        let shown = setup.inside.run("ip route show default");
        assert_eq!(shown.trim_end(), "default via 10.0.0.1 dev eth0");
        // Both endpoints are in the desired state: neither takes the default route from the other.
        assert!(!setup.plug(&spec(ID, "eth0", 2)).await.unwrap().changed);
        // The second endpoint gets the default route when the first is removed. A wrong gateway is
        // corrected.
        unplug(&setup.netlink, ID).await.unwrap();
        setup.settle(&second).await;
        setup.inside.run("ip route replace default via 10.1.0.77 dev eth1");
        setup.settle(&second).await;
        let shown = setup.inside.run("ip route show default");
        assert_eq!(shown.trim_end(), "default via 10.1.0.1 dev eth1");
    });
}

#[test]
#[ignore = "needs root"]
fn nothing_of_ours_keeps_a_removed_sandbox_alive() {
    block_on(async {
        let setup = Setup::new();
        setup.settle(&spec(ID, "eth0", 2)).await;
        let Setup { netlink, sandbox, inside, host: _host } = setup;
        let monitor = Netlink::in_netns(sandbox.as_fd()).unwrap().monitor().unwrap();
        drop((sandbox, inside));
        assert!(netlink.link("cv0123456789ab").await.unwrap().is_some(), "the monitor is there");
        drop(monitor);
        ends(&netlink).await;
    });
}

#[test]
#[ignore = "needs root"]
fn names_that_are_taken_are_refused() {
    block_on(async {
        let setup = Setup::new();
        setup.inside.run("ip link add eth0 type bridge");
        let error = setup.plug(&spec(ID, "eth0", 2)).await.unwrap_err().to_string();
        assert!(error.starts_with("interface name eth0 is taken in /run/netns/"), "{error}");
        assert!(setup.netlink.link("cv0123456789ab").await.unwrap().is_none(), "nothing is left");

        assert_eq!(free_ifname(&setup.sandbox, &[]).await.unwrap(), "eth1");
        assert_eq!(free_ifname(&setup.sandbox, &["eth1".to_owned()]).await.unwrap(), "eth2");
        setup.settle(&spec(ID, "eth1", 2)).await;
        setup.settle(&spec(OTHER, "eth2", 3)).await;
        let error = setup.plug(&spec(OTHER, "eth1", 3)).await.unwrap_err();
        assert!(matches!(error, SandboxError::InterfaceTaken { .. }), "{error}");

        // The interfaces of another endpoint or of another program are left alone.
        setup.netlink.set_alias("cv0123456789ab", &alias_of(OTHER)).await.unwrap();
        let error = setup.plug(&spec(ID, "eth1", 2)).await.unwrap_err();
        assert!(matches!(error, SandboxError::ForeignInterface { .. }), "{error}");
        let error = unplug(&setup.netlink, ID).await.unwrap_err();
        assert!(error.to_string().contains("cv0123456789ab"), "{error}");
        assert!(setup.netlink.link("cv0123456789ab").await.unwrap().is_some());
    });
}

#[test]
#[ignore = "needs root"]
fn a_bad_mtu_leaves_nothing() {
    block_on(async {
        let setup = Setup::new();
        for mtu in [0, 67, 65536] {
            let mut bad = spec(ID, "eth0", 2);
            bad.mtu = mtu;
            let error = setup.plug(&bad).await.unwrap_err().to_string();
            assert!(error.contains(&format!("MTU {mtu} ")) && error.contains("68 to"), "{error}");
        }
        assert!(setup.netlink.link("cv0123456789ab").await.unwrap().is_none());

        // The MTU is too small for IPv6, which the endpoint shall have, but enough for IPv4.
        let mut small = spec(ID, "eth0", 2);
        small.mtu = 1279;
        let error = setup.plug(&small).await.unwrap_err().to_string();
        assert!(error.contains("fd00::2/64") && error.contains("1279"), "{error}");
        small.addrs.truncate(1);
        setup.plug(&small).await.unwrap();
        assert!(!setup.plug(&small).await.unwrap().changed);
    });
}
