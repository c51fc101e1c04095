//! Interfaces, addresses, routes, neighbours, events and features.

use std::{net::IpAddr, os::fd::AsFd};

use culvert::{
    model::MacAddr,
    netlink::{
        ENCAPSULATION_OFFLOADS, Event, Netlink, NetlinkError, PairSpec, RX_UDP_GRO_FORWARDING,
    },
};
use culvert_tests::netns::{Netns, Underlay};
use ipnetwork::IpNetwork;
use tokio::time::timeout;

use crate::{DEADLINE, block_on, kind};

const MAC: MacAddr = MacAddr([0x02, 0x42, 10, 0, 0, 2]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn inside(netns: &Netns) -> Netlink {
    Netlink::in_netns(netns.fd().as_fd()).unwrap()
}

async fn pair(
    netlink: &Netlink,
    name: &str,
    peer: &str,
    target: &Netns,
) -> Result<u32, NetlinkError> {
    let fd = target.fd();
    let spec = PairSpec {
        kind: kind(),
        name,
        peer_name: peer,
        peer_mac: MAC,
        mtu: 1450,
        peer_netns: fd.as_fd(),
    };
    netlink.create_pair(&spec).await
}

#[test]
#[ignore = "needs root"]
fn a_pair_is_made_with_its_peer_in_place() {
    let (host, sandbox) = (Netns::new("host"), Netns::new("box"));
    block_on(async {
        let of_host = inside(&host);
        let index = pair(&of_host, "cv01", "eth0", &sandbox).await.unwrap();
        let links = of_host.links().await.unwrap();
        assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo", "cv01"]);
        assert_eq!(links[1].index, index);
        assert_eq!((links[1].mtu, links[1].up), (1450, false));
        assert_eq!(links[1].kind.as_deref(), Some(kind().name()));
        assert!(links[0].loopback && links[0].addresses.contains(&net("127.0.0.1/8")));

        let within = inside(&sandbox);
        let peer = within.link("eth0").await.unwrap().unwrap();
        assert_eq!((peer.mac, peer.mtu), (Some(MAC), 1450));
        assert_eq!(peer.peer_index, Some(index));
        assert_eq!(links[1].peer_index, Some(peer.index));
        let id = of_host.netns_id(sandbox.fd().as_fd()).await.unwrap();
        assert!(id.is_some());
        assert_eq!(links[1].peer_netns_id, id);

        // The error says which of the two names is taken, and no device is left.
        let error = pair(&of_host, "cv01", "eth1", &sandbox).await.unwrap_err();
        assert!(matches!(&error, NetlinkError::NameTaken(name) if name == "cv01"), "{error}");
        let error = pair(&of_host, "cv02", "eth0", &sandbox).await.unwrap_err();
        assert!(matches!(&error, NetlinkError::NameTaken(name) if name == "eth0"), "{error}");
        assert_eq!(of_host.links().await.unwrap().len(), 2);
        assert_eq!(within.links().await.unwrap().len(), 2);
    });
}

#[test]
#[ignore = "needs root"]
fn links_change_and_go() {
    let (host, sandbox) = (Netns::new("host"), Netns::new("box"));
    block_on(async {
        let netlink = inside(&host);
        pair(&netlink, "cv01", "eth0", &sandbox).await.unwrap();
        for _ in 0..2 {
            netlink.set_alias("cv01", "culvert:0123").await.unwrap();
            netlink.set_mtu("cv01", 68).await.unwrap();
            netlink.set_mac("cv01", MacAddr([2, 0, 0, 0, 0, 7])).await.unwrap();
            netlink.set_up("cv01").await.unwrap();
        }
        let link = netlink.link("cv01").await.unwrap().unwrap();
        assert_eq!(link.alias.as_deref(), Some("culvert:0123"));
        assert_eq!((link.mtu, link.up, link.running), (68, true, false));
        assert_eq!(link.mac, Some(MacAddr([2, 0, 0, 0, 0, 7])));

        let error = netlink.set_mtu("cv01", 67).await.unwrap_err().to_string();
        assert_eq!(error, "MTU 67 of interface cv01 is out of range: 68 to 65535 is valid");
        let error = netlink.set_up("nothing").await.unwrap_err();
        assert!(error.to_string().starts_with("interface nothing does not exist"), "{error}");

        netlink.set_down("cv01").await.unwrap();
        netlink.rename("cv01", "cv02").await.unwrap();
        assert!(netlink.link("cv01").await.unwrap().is_none());
        let error = netlink.rename("cv02", "lo").await.unwrap_err();
        assert!(matches!(error, NetlinkError::NameTaken(_)), "{error}");

        netlink.create_bridge("gw0", Some(MAC)).await.unwrap();
        netlink.set_up("gw0").await.unwrap();
        let bridge = netlink.link("gw0").await.unwrap().unwrap();
        assert_eq!((bridge.kind.as_deref(), bridge.mac), (Some("bridge"), Some(MAC)));
        netlink.set_controller("cv02", bridge.index).await.unwrap();
        let port = netlink.link("cv02").await.unwrap().unwrap();
        assert_eq!(port.master, Some(bridge.index));

        for _ in 0..2 {
            netlink.delete_link("cv02").await.unwrap();
        }
        assert!(inside(&sandbox).link("eth0").await.unwrap().is_none(), "the peer goes with it");
    });
}

#[test]
#[ignore = "needs root"]
fn addresses_and_routes() {
    let underlay = Underlay::direct(1400);
    block_on(async {
        let netlink = inside(&underlay.hosts[0]);
        let up = Underlay::UPLINK;
        let uplink = netlink.link(up).await.unwrap().unwrap();
        for _ in 0..2 {
            netlink.add_address(up, net("10.1.0.5/24")).await.unwrap();
            netlink.add_address(up, net("2001:db8::5/64")).await.unwrap();
        }
        let addresses = netlink.addresses(up).await.unwrap();
        assert!(addresses.contains(&net("10.1.0.5/24")), "{addresses:?}");
        assert!(addresses.contains(&net("192.0.2.1/24")), "{addresses:?}");
        // The address can be used at once, so it is not tentative.
        let shown = underlay.hosts[0].run("ip -6 addr show dev up0 scope global");
        assert!(shown.contains("2001:db8::5/64") && !shown.contains("tentative"), "{shown}");

        for _ in 0..2 {
            netlink.add_route(up, net("198.51.100.0/24"), Some(ip("192.0.2.2"))).await.unwrap();
            netlink.add_route(up, net("203.0.113.7/32"), None).await.unwrap();
            netlink.add_route(up, net("0.0.0.0/0"), Some(ip("192.0.2.2"))).await.unwrap();
            netlink.add_route(up, net("::/0"), Some(ip("2001:db8::1"))).await.unwrap();
        }
        let routes = netlink.routes().await.unwrap();
        let gateway = |to: &str| {
            let found: Vec<_> = routes
                .iter()
                .filter(|route| route.destination == net(to) && route.table == 254)
                .collect();
            assert_eq!(found.len(), 1, "{to}: {found:?}");
            assert_eq!(found[0].ifindex, uplink.index);
            found[0].gateway
        };
        assert_eq!(gateway("198.51.100.0/24"), Some(ip("192.0.2.2")));
        assert_eq!(gateway("203.0.113.7/32"), None);
        assert_eq!(gateway("0.0.0.0/0"), Some(ip("192.0.2.2")));
        assert_eq!(gateway("::/0"), Some(ip("2001:db8::1")));

        let error = netlink.add_route(up, net("10.9.0.0/16"), Some(ip("10.200.0.1"))).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("10.9.0.0/16 via 10.200.0.1") && error.contains(up), "{error}");

        for _ in 0..2 {
            netlink.delete_address(up, net("10.1.0.5/24")).await.unwrap();
        }
        assert!(!netlink.addresses(up).await.unwrap().contains(&net("10.1.0.5/24")));
    });
}

#[test]
#[ignore = "needs root"]
fn the_way_to_an_address() {
    let underlay = Underlay::direct(1400);
    let host = &underlay.hosts[0];
    host.run(
        "ip route add 198.51.100.0/24 via 192.0.2.2 mtu 1300;
         ip route add 198.51.101.0/24 via 192.0.2.2 mtu 9000;
         ip route add unreachable 203.0.113.1; ip route add blackhole 203.0.113.2;
         ip route add prohibit 203.0.113.3",
    );
    block_on(async {
        let netlink = inside(host);
        let uplink = netlink.link(Underlay::UPLINK).await.unwrap().unwrap().index;
        let route = netlink.route_to(ip("192.0.2.2")).await.unwrap();
        assert_eq!((route.ifindex, route.next_hop, route.mtu), (uplink, ip("192.0.2.2"), 1400));
        assert_eq!((route.source, route.local), (Some(ip("192.0.2.1")), false));
        let route = netlink.route_to(ip("198.51.100.9")).await.unwrap();
        assert_eq!((route.next_hop, route.mtu), (ip("192.0.2.2"), 1300));
        let route = netlink.route_to(ip("198.51.101.9")).await.unwrap();
        assert_eq!(route.mtu, 1400, "a route cannot take more than its interface");
        assert!(netlink.route_to(ip("192.0.2.1")).await.unwrap().local);
        for nowhere in ["8.8.8.8", "203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8::1"] {
            let error = netlink.route_to(ip(nowhere)).await.unwrap_err();
            assert!(matches!(error, NetlinkError::NoRoute(_)), "{nowhere}: {error}");
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_managed_neighbour_is_resolved_without_traffic() {
    let underlay = Underlay::direct(1500);
    block_on(async {
        let netlink = inside(&underlay.hosts[0]);
        let uplink = netlink.link(Underlay::UPLINK).await.unwrap().unwrap().index;
        let other = inside(&underlay.hosts[1]);
        let mac = other.link(Underlay::UPLINK).await.unwrap().unwrap().mac;
        let mut monitor = netlink.monitor().unwrap();
        for _ in 0..2 {
            netlink.manage_neighbour(uplink, ip("192.0.2.2")).await.unwrap();
        }
        let resolved = async {
            while let Some(event) = monitor.next().await {
                if event == (Event::Neighbour { ifindex: uplink, ip: ip("192.0.2.2"), valid: true })
                {
                    return;
                }
            }
        };
        timeout(DEADLINE, resolved).await.expect("the neighbour is not resolved");
        let found = |all: Vec<culvert::netlink::Neighbour>| {
            all.into_iter().find(|neighbour| neighbour.ip == ip("192.0.2.2"))
        };
        let neighbour = found(netlink.neighbours().await.unwrap()).unwrap();
        assert_eq!((neighbour.mac, neighbour.valid, neighbour.managed), (mac, true, true));
        assert!(!neighbour.permanent);
        for _ in 0..2 {
            netlink.forget_neighbour(uplink, ip("192.0.2.2")).await.unwrap();
        }
        // The kernel may keep a failed entry for a while, but it is not a managed entry.
        let left = found(netlink.neighbours().await.unwrap());
        assert!(left.is_none_or(|neighbour| !neighbour.managed && !neighbour.valid), "{left:?}");
        underlay.hosts[0].run(&format!(
            "ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:07 dev {} nud permanent",
            Underlay::UPLINK
        ));
        let fixed = found(netlink.neighbours().await.unwrap()).unwrap();
        assert!(fixed.permanent && fixed.valid && !fixed.managed, "{fixed:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn events_tell_what_changed() {
    let (host, sandbox) = (Netns::new("host"), Netns::new("box"));
    block_on(async {
        let netlink = inside(&host);
        let mut monitor = netlink.monitor().unwrap();
        let index = pair(&netlink, "cv01", "eth0", &sandbox).await.unwrap();
        netlink.set_up("cv01").await.unwrap();
        inside(&sandbox).set_up("eth0").await.unwrap();
        netlink.add_address("cv01", net("10.0.0.1/24")).await.unwrap();
        netlink.delete_link("cv01").await.unwrap();
        let mut seen = Vec::new();
        let gone = Event::LinkGone { index, name: "cv01".to_owned() };
        let read = async {
            while let Some(event) = monitor.next().await {
                seen.push(event);
                if seen.last() == Some(&gone) {
                    return;
                }
            }
        };
        timeout(DEADLINE, read).await.expect("the deletion is not reported");
        let up = Event::Link {
            index,
            name: "cv01".to_owned(),
            up: true,
            master: None,
            vxlan_port: None,
        };
        assert!(seen.contains(&up));
        let main = Some(net("10.0.0.0/24"));
        let route = Event::Route { ifindex: index, is_ipv6: false, main, hops: Vec::new() };
        assert!(seen.contains(&route), "{seen:?}");
        let address = net("10.0.0.1/24");
        assert!(seen.contains(&Event::Address { ifindex: index, address, gone: false }));
        assert!(seen.contains(&Event::Address { ifindex: index, address, gone: true }));
    });
}

/// The kernel says nothing of a change of `disable_ipv6` itself, but of the first IPv6 route of the
/// interface.
#[test]
#[ignore = "needs root"]
fn an_event_tells_that_ipv6_has_come_up() {
    let (host, sandbox) = (Netns::new("host"), Netns::new("box"));
    block_on(async {
        let netlink = inside(&host);
        let index = pair(&netlink, "cv01", "eth0", &sandbox).await.unwrap();
        host.run("sysctl -qw net.ipv6.conf.cv01.disable_ipv6=1");
        netlink.set_up("cv01").await.unwrap();
        inside(&sandbox).set_up("eth0").await.unwrap();
        let mut monitor = netlink.monitor().unwrap();
        host.run("sysctl -qw net.ipv6.conf.cv01.disable_ipv6=0");
        let is_told = |event: &Event| match event {
            Event::Route { ifindex, is_ipv6: true, .. } => *ifindex == index,
            _ => false,
        };
        let told = async {
            while let Some(event) = monitor.next().await {
                if is_told(&event) {
                    return;
                }
            }
        };
        timeout(DEADLINE, told).await.expect("nothing is told");
    });
}

#[test]
#[ignore = "needs root"]
fn features_are_read_and_turned_off() {
    let underlay = Underlay::direct(1500);
    let host = &underlay.hosts[0];
    block_on(async {
        let netlink = inside(host);
        let up = Underlay::UPLINK;
        for feature in ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"] {
            assert_eq!(netlink.feature(up, feature).unwrap(), Some(true), "{feature}");
        }
        assert!(netlink.disable_features(up, ENCAPSULATION_OFFLOADS).unwrap());
        assert!(!netlink.disable_features(up, ENCAPSULATION_OFFLOADS).unwrap(), "done already");
        assert_eq!(netlink.feature(up, "tx-udp_tnl-segmentation").unwrap(), Some(false));
        assert_eq!(netlink.feature(up, "tx-tcp-segmentation").unwrap(), Some(true));
        let shown = host.run("ethtool -k up0");
        assert!(shown.contains("tx-udp_tnl-csum-segmentation: off"), "{shown}");

        assert_eq!(netlink.feature(up, RX_UDP_GRO_FORWARDING).unwrap(), Some(false));
        host.run("ethtool -K up0 rx-udp-gro-forwarding on");
        assert_eq!(netlink.feature(up, RX_UDP_GRO_FORWARDING).unwrap(), Some(true));
        assert_eq!(netlink.merging(up).unwrap(), [RX_UDP_GRO_FORWARDING]);
        host.run("ethtool -K up0 rx-udp-gro-forwarding off");
        assert_eq!(netlink.merging(up).unwrap(), [""; 0]);

        assert_eq!(netlink.feature(up, "no-such-feature").unwrap(), None);
        let error = netlink.feature("nothing", RX_UDP_GRO_FORWARDING).unwrap_err();
        assert!(matches!(error, NetlinkError::NoSuchInterface(_)), "{error}");
    });
}

/// A queueing discipline alone filters nothing.
#[test]
#[ignore = "needs root"]
fn filters_of_traffic_control_are_found() {
    let host = Netns::new("host");
    host.run("ip link add cv01 type veth peer name cv02");
    block_on(async {
        let netlink = inside(&host);
        for (name, hook, direction) in
            [("cv01", "clsact", "egress"), ("cv02", "ingress", "parent ffff:")]
        {
            let index = netlink.link(name).await.unwrap().unwrap().index;
            assert!(!netlink.filter_hooks().await.unwrap().contains(&index));
            host.run(&format!("tc qdisc add dev {name} {hook}"));
            assert!(netlink.filter_hooks().await.unwrap().contains(&index));
            assert!(!netlink.has_filters(index).await.unwrap(), "{name}");
            let filter = "protocol ip u32 match u32 0 0 flowid 1:1";
            host.run(&format!("tc filter add dev {name} {direction} {filter}"));
            assert!(netlink.has_filters(index).await.unwrap(), "{name}");
            host.run(&format!("tc filter del dev {name} {direction}"));
            assert!(!netlink.has_filters(index).await.unwrap(), "{name}");
        }
        assert_eq!(netlink.filter_hooks().await.unwrap().len(), 2);
    });
}

/// Concurrent reads of tables. The kernel would refuse a second dump on the same socket.
#[test]
#[ignore = "needs root"]
fn tables_are_read_one_after_the_other() {
    let host = Netns::new("dumps");
    // The kernel needs several messages for this table.
    let routes: String =
        (0..2000).map(|i| format!("route add 10.{}.{}.0/24 dev lo\n", i / 250, i % 250)).collect();
    let dir = tempfile::tempdir().unwrap();
    let batch = dir.path().join("routes");
    std::fs::write(&batch, routes).unwrap();
    host.run(&format!("ip -batch {}", batch.display()));
    block_on(async {
        let netlink = inside(&host);
        let read = (0..8).map(|_| netlink.routes());
        for routes in futures::future::join_all(read).await {
            assert!(routes.unwrap().len() >= 2000);
        }
    });
}
