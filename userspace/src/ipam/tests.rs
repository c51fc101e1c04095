use std::{collections::BTreeSet, time::Instant};

use proptest::prelude::*;

use super::*;
use crate::model::testing::{Cluster, endpoint, name, network};

fn subnet(cidr: &str, gateway: &str) -> Subnet {
    Subnet { subnet: cidr.parse().expect("subnet"), gateway: gateway.parse().expect("gateway") }
}

fn free(cidr: &str, gateway: &str, used: &[&str]) -> Option<String> {
    let used: BTreeSet<IpAddr> = used.iter().map(|ip| ip.parse().expect("address")).collect();
    lowest_free(subnet(cidr, gateway), used).map(|ip| ip.to_string())
}

#[test]
fn the_lowest_free_address_is_given() {
    for (cidr, gateway, used, expected) in [
        ("10.0.0.0/24", "10.0.0.1", vec![], Some("10.0.0.2")),
        ("10.0.0.0/24", "10.0.0.1", vec!["10.0.0.2", "10.0.0.3"], Some("10.0.0.4")),
        ("10.0.0.0/24", "10.0.0.1", vec!["10.0.0.3"], Some("10.0.0.2")),
        ("10.0.0.0/24", "10.0.0.254", vec![], Some("10.0.0.1")),
        ("10.0.0.0/24", "10.0.0.3", vec!["10.0.0.1", "10.0.0.2"], Some("10.0.0.4")),
        ("10.0.0.0/30", "10.0.0.1", vec![], Some("10.0.0.2")),
        ("10.0.0.0/30", "10.0.0.1", vec!["10.0.0.2"], None),
        ("10.0.0.0/30", "10.0.0.2", vec![], Some("10.0.0.1")),
        ("10.0.0.0/30", "10.0.0.2", vec!["10.0.0.1"], None),
        // Claims on what no endpoint can have are in nobody's way.
        ("10.0.0.0/30", "10.0.0.1", vec!["10.0.0.0", "10.0.0.1", "10.0.0.3"], Some("10.0.0.2")),
        ("fd00::/64", "fd00::1", vec![], Some("fd00::2")),
        ("fd00::/126", "fd00::1", vec!["fd00::2"], Some("fd00::3")),
        ("fd00::/126", "fd00::1", vec!["fd00::2", "fd00::3"], None),
        ("255.0.0.0/8", "255.0.0.1", vec![], Some("255.0.0.2")),
    ] {
        assert_eq!(free(cidr, gateway, &used).as_deref(), expected, "{cidr} {gateway} {used:?}");
    }
    assert_eq!(capacity("10.0.0.0/24".parse().expect("subnet")), 253);
    assert_eq!(capacity("10.0.0.0/30".parse().expect("subnet")), 1);
    assert_eq!(capacity("fd00::/126".parse().expect("subnet")), 2);
}

#[test]
fn both_families_get_an_address() {
    let net = network("net", 256, &["10.0.0.0/24", "fd00::/64"]);
    let mut cluster = Cluster::default();
    cluster.network(&net);
    cluster.claim(&net.name, "fd00::2".parse().expect("ip"), "0a");
    let text = |asked: Option<&str>| {
        let asked = asked.map(|ip| ip.parse().expect("address"));
        let given = allocate(&cluster.view, &net, asked).expect("addresses");
        given.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(text(None), ["10.0.0.2", "fd00::3"]);
    assert_eq!(text(Some("10.0.0.77")), ["10.0.0.77", "fd00::3"]);
    assert_eq!(text(Some("fd00::77")), ["10.0.0.2", "fd00::77"]);
}

#[test]
fn an_address_that_cannot_be_had_is_refused_in_one_line() {
    let net = network("net", 256, &["10.0.0.0/24"]);
    let mut cluster = Cluster::default();
    cluster.network(&net);
    cluster.endpoint(&endpoint(&net, "0a", "host1", "10.0.0.2"));
    cluster.claim(&net.name, "10.0.0.7".parse().expect("ip"), "0b");
    cluster.raw("/culvert/v1/ipam/net/10.0.0.8", b"garbage");
    for (ip, parts) in [
        ("10.0.1.5", ["outside network 'net'", "10.0.0.0/24"]),
        ("fd00::5", ["outside network 'net'", "10.0.0.0/24"]),
        ("10.0.0.1", ["is the gateway", "10.0.0.3 is free"]),
        ("10.0.0.0", ["network or broadcast", "10.0.0.3 is free"]),
        ("10.0.0.255", ["network or broadcast", "10.0.0.3 is free"]),
        ("10.0.0.2", ["taken by container 'c0a' on 'host1'", "10.0.0.3 is free"]),
        ("10.0.0.7", ["taken by endpoint 0b", "10.0.0.3 is free"]),
        ("10.0.0.8", ["taken by an unreadable record", "10.0.0.3 is free"]),
    ] {
        let asked = Some(ip.parse().expect("address"));
        let line = allocate(&cluster.view, &net, asked).expect_err(ip).to_string();
        assert!(line.lines().count() == 1 && line.contains(ip), "{line}");
        for part in parts {
            assert!(line.contains(part), "{ip}: {line}");
        }
    }
}

#[test]
fn a_full_subnet_says_how_full() {
    let net = network("net", 256, &["10.0.0.0/29"]);
    let mut cluster = Cluster::default();
    cluster.network(&net);
    for last in 2..=6_u8 {
        assert_eq!(
            allocate(&cluster.view, &net, None).expect("room"),
            [IpAddr::from([10, 0, 0, last])]
        );
        cluster.claim(&net.name, [10, 0, 0, last].into(), "0a");
    }
    let line = allocate(&cluster.view, &net, None).expect_err("full").to_string();
    assert!(line.contains("network 'net': subnet 10.0.0.0/29 is full, 5 of 5"), "{line}");
    let line = allocate(&cluster.view, &net, Some([10, 0, 0, 1].into())).expect_err("gateway");
    assert!(line.to_string().contains("none is free"), "{line}");
    // Another network's addresses are no concern of this one's.
    cluster.claim(&name("other"), [10, 0, 0, 2].into(), "0b");
    for last in 2..=6 {
        cluster.view.ipam.remove(&net.name, [10, 0, 0, last].into());
    }
    assert!(allocate(&cluster.view, &net, None).is_ok());
}

#[test]
fn a_crowded_large_subnet_is_no_trouble() {
    let net = network("net", 256, &["10.0.0.0/16"]);
    let mut cluster = Cluster::default();
    cluster.network(&net);
    for n in 2..60_002_u32 {
        let ip = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let claim = crate::model::Claim { owner: None, revision: 1 };
        cluster.view.ipam.put(&net.name, ip, claim);
    }
    let started = Instant::now();
    for _ in 0..20 {
        let given = allocate(&cluster.view, &net, None).expect("room");
        assert_eq!(given, [IpAddr::from((0x0a00_0000_u32 + 60_002).to_be_bytes())]);
    }
    // Milliseconds in truth; quadratic work would take minutes.
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}

proptest! {
    /// Handing out until nothing is left gives each address once, in order,
    /// all inside, and leaves none out.
    #[test]
    fn every_address_is_given_once_and_none_is_left(
        prefix in 25..=30_u8, gateway: u8, taken in proptest::collection::btree_set(any::<u8>(), 0..40),
    ) {
        let cidr: IpNetwork = format!("10.0.0.0/{prefix}").parse().expect("subnet");
        let size = 1_u16 << (32 - prefix);
        let gateway = 1 + u16::from(gateway) % (size - 2);
        let at = |n: u16| IpAddr::from([10, 0, 0, n as u8]);
        let subnet = Subnet { subnet: cidr, gateway: at(gateway) };
        let mut used: BTreeSet<IpAddr> =
            taken.into_iter().filter(|n| u16::from(*n) < size).map(|n| at(n.into())).collect();
        let mut expected: Vec<IpAddr> = (1..size - 1)
            .filter(|n| *n != gateway).map(at).filter(|ip| !used.contains(ip)).collect();
        expected.reverse();
        while let Some(ip) = lowest_free(subnet, used.iter().copied()) {
            prop_assert_eq!(Some(ip), expected.pop());
            prop_assert!(cidr.contains(ip) && used.insert(ip));
        }
        prop_assert!(expected.is_empty(), "left out: {:?}", expected);
    }

    #[test]
    fn nothing_is_given_twice_or_outside_in_ipv6(used in proptest::collection::btree_set(0..200_u128, 0..150)) {
        let subnet = subnet("fd00::/64", "fd00::1");
        let base = bits(subnet.subnet.network());
        let used: BTreeSet<IpAddr> = used.into_iter().map(|n| address(subnet.subnet, base + n)).collect();
        let ip = lowest_free(subnet, used.iter().copied()).expect("there is room");
        prop_assert!(subnet.subnet.contains(ip) && !used.contains(&ip));
        prop_assert!(ip != subnet.gateway && bits(ip) > base);
        // Nothing lower was free.
        for lower in base + 1..bits(ip) {
            let lower = address(subnet.subnet, lower);
            prop_assert!(lower == subnet.gateway || used.contains(&lower));
        }
    }
}
