use std::time::Instant;

use super::*;
use crate::model::testing::{Cluster, endpoint, name, network};

#[test]
fn both_families_get_an_address() {
    let net = network("net", 256, &["10.0.0.0/24", "fd00::/64"]);
    let mut cluster = Cluster::default();
    cluster.network(&net);
    cluster.claim(&net.name, "fd00::2".parse().expect("ip"), "0a");
    let text = |asked: &[&str]| {
        let asked: Vec<_> = asked.iter().map(|ip| ip.parse().expect("address")).collect();
        let given = allocate(&cluster.view, &net, &asked).expect("addresses");
        let text = |ips: Vec<IpAddr>| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        [given.primary, given.additional].map(text)
    };
    let none: Vec<String> = Vec::new();
    let primary = |ips: [&str; 2]| [ips.map(str::to_owned).to_vec(), none.clone()];
    assert_eq!(text(&[]), primary(["10.0.0.2", "fd00::3"]));
    assert_eq!(text(&["10.0.0.77"]), primary(["10.0.0.77", "fd00::3"]));
    assert_eq!(text(&["fd00::77"]), primary(["10.0.0.2", "fd00::77"]));
    assert_eq!(text(&["fd00::77", "10.0.0.77"]), primary(["10.0.0.77", "fd00::77"]));
    // The first address of a subnet is the primary one.
    assert_eq!(
        text(&["10.0.0.77", "10.0.0.9", "fd00::77", "10.0.0.8", "fd00::9"]),
        [vec!["10.0.0.77", "fd00::77"], vec!["10.0.0.9", "10.0.0.8", "fd00::9"]]
            .map(|ips| ips.into_iter().map(str::to_owned).collect::<Vec<_>>())
    );
}

#[test]
fn additional_addresses_are_each_given_once_and_not_too_many() {
    let net = network("net", 256, &["10.0.0.0/24", "fd00::/64"]);
    let mut cluster = Cluster::default();
    cluster.network(&net);
    cluster.endpoint(&endpoint(&net, "0a", "host1", "10.0.0.2"));
    let asked = |range: std::ops::RangeInclusive<u8>| -> Vec<IpAddr> {
        range.map(|last| [10, 0, 0, last].into()).collect()
    };
    // 15 requested addresses and the IPv6 address that is allocated make 16.
    assert!(allocate(&cluster.view, &net, &asked(10..=24)).is_ok());
    for (asked, part) in [
        (asked(10..=25), "17 addresses are too many for an interface: 16 are valid"),
        ([asked(10..=12), asked(11..=11)].concat(), "address 10.0.0.11 is given twice"),
        ([asked(10..=10), asked(2..=2)].concat(), "address 10.0.0.2 is taken by container 'c0a'"),
        ([asked(10..=10), asked(1..=1)].concat(), "address 10.0.0.1 is the gateway"),
    ] {
        let line = allocate(&cluster.view, &net, &asked).expect_err(part).to_string();
        assert!(line.contains(part) && line.lines().count() == 1, "{line}");
    }
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
        let asked = [ip.parse().expect("address")];
        let line = allocate(&cluster.view, &net, &asked).expect_err(ip).to_string();
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
            allocate(&cluster.view, &net, &[]).expect("room").primary,
            [IpAddr::from([10, 0, 0, last])]
        );
        cluster.claim(&net.name, [10, 0, 0, last].into(), "0a");
    }
    let line = allocate(&cluster.view, &net, &[]).expect_err("full").to_string();
    assert!(line.contains("network 'net': subnet 10.0.0.0/29 is full, 5 of 5"), "{line}");
    let line = allocate(&cluster.view, &net, &[[10, 0, 0, 1].into()]).expect_err("gateway");
    assert!(line.to_string().contains("none is free"), "{line}");
    // Addresses of another network are independent.
    cluster.claim(&name("other"), [10, 0, 0, 2].into(), "0b");
    for last in 2..=6 {
        cluster.view.ipam.remove(&net.name, [10, 0, 0, last].into());
    }
    assert!(allocate(&cluster.view, &net, &[]).is_ok());
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
        let given = allocate(&cluster.view, &net, &[]).expect("room").primary;
        assert_eq!(given, [IpAddr::from((0x0a00_0000_u32 + 60_002).to_be_bytes())]);
    }
    // This takes milliseconds; quadratic work would take minutes.
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}
