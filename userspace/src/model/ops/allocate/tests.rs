use std::time::Instant;

use super::*;
use crate::model::testing::{Cluster, endpoint, name, network};

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
    // Addresses of another network are independent.
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
    // This takes milliseconds; quadratic work would take minutes.
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}
