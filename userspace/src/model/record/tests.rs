use super::*;
use crate::model::{
    Vni,
    testing::{Cluster, endpoint, name, network, node},
};

/// Keys and records from docs/STATE.md.
fn documented() -> Vec<(&'static str, &'static str)> {
    let text = include_str!("../../../../docs/STATE.md");
    let mut found = Vec::new();
    let mut key = None;
    let mut rest = text;
    while let Some((line, after)) = rest.split_once('\n') {
        rest = after;
        let named = line.strip_prefix('`').and_then(|line| line.strip_suffix('`'));
        if let Some(named) = named.filter(|named| named.starts_with("/culvert/")) {
            key = Some(named);
        } else if line == "```json" {
            let (block, after) = rest.split_once("```").expect("a closed block");
            found.push((key.take().expect("a key before its record"), block));
            rest = after;
        }
    }
    found
}

#[test]
fn the_documented_records_are_what_is_read() {
    let documented = documented();
    assert_eq!(documented.len(), 9, "one of each kind");
    let mut cluster = Cluster::default();
    for (key, json) in &documented {
        cluster.raw(key, json.as_bytes());
    }
    // The examples show one claim; the endpoint has three.
    for ip in ["fd00:1::2", "10.0.0.100"] {
        cluster.claim(&name("overlaynet1"), ip.parse().expect("ip"), &"9c".repeat(32));
    }
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    let view = &cluster.view;
    let counts = [
        view.networks.len(),
        view.vnis.len(),
        view.nodes.len(),
        view.alive.len(),
        view.endpoints.networks().count(),
        view.ipam.networks().count(),
        view.macs.len(),
        view.vteps.len(),
    ];
    assert_eq!(counts, [1; 8]);
}

#[test]
fn the_documented_records_are_what_is_written() {
    let fields = |json: &[u8]| -> Vec<String> {
        let value: serde_json::Value = serde_json::from_slice(json).expect("JSON");
        value.as_object().expect("an object").keys().cloned().collect()
    };
    let red = network("red", 256, &["10.0.0.0/24"]);
    let mut ep = endpoint(&red, "0a", "host1", "10.0.0.2");
    ep.ipv6 = Some("fd00::2".parse().expect("address"));
    ep.additional.push([10, 0, 0, 100].into());
    ep.ports.push(crate::model::PublishedPort {
        host_ip: [0; 4].into(),
        host_port: 8080,
        container_port: 80,
        protocol: crate::model::Protocol::Tcp,
        count: 1,
    });
    ep.ports.push(crate::model::PublishedPort { count: 11, ..ep.ports[0] });
    ep.from.push("192.0.2.0/24".parse().expect("prefix"));
    let ip = [192, 0, 2, 9].into();
    let prefixes = vec!["192.0.2.0/24".parse().expect("prefix")];
    let host = Node { prefixes, mtu: Some(1500), ..node("host1", 1) };
    let written = [
        encode(&StoreMark { schema: SCHEMA, id: "00".to_owned() }),
        encode(&red),
        encode(&VniOwner { schema: SCHEMA, network: red.name.clone() }),
        encode(&host),
        encode(&Alive::new("00".to_owned())),
        encode(&ep),
        encode(&IpOwner { schema: SCHEMA, endpoint: "0a".to_owned() }),
        encode(&MacOwner { schema: SCHEMA, endpoint: "0a".to_owned() }),
        encode(&ForeignVtep { schema: SCHEMA, network: red.name.clone(), ip, port: 1 }),
    ];
    for ((key, documented), written) in documented().into_iter().zip(written) {
        assert_eq!(fields(documented.as_bytes()), fields(&written.expect("JSON")), "{key}");
    }
}

#[test]
fn an_endpoint_that_publishes_port_0_is_garbage() {
    let mut ep = endpoint(&network("red", 256, &["10.0.0.0/24"]), "0a", "host1", "10.0.0.2");
    let key = Key::Endpoint { network: name("red"), id: "0a".to_owned() };
    let mut decoded = |host_port, container_port, count| {
        let (host_ip, protocol) = ([0; 4].into(), crate::model::Protocol::Tcp);
        let port =
            crate::model::PublishedPort { host_ip, host_port, container_port, protocol, count };
        ep.ports = vec![port];
        decode::<Endpoint>(&key, &encode(&ep).expect("JSON"))
    };
    for (host_port, container_port, count) in
        [(0, 80, 1), (8080, 0, 1), (8080, 80, 0), (65_530, 80, 7), (80, 65_530, 7), (0, 1, 65_535)]
    {
        let decoded = decoded(host_port, container_port, count);
        assert!(matches!(decoded, Decoded::Garbage { .. }), "{decoded:?}");
    }
    for (host_port, container_port, count) in [(65_530, 80, 6), (1, 1, 65_535)] {
        let decoded = decoded(host_port, container_port, count);
        assert!(matches!(decoded, Decoded::Record(_)), "{decoded:?}");
    }
}

#[test]
fn an_endpoint_in_another_nodes_own_network_is_garbage() {
    let mut lan = network("lan", 256, &["10.0.0.0/24"]);
    lan.name = lan.name.on(&name("host1"));
    for (node, fits) in [("host1", true), ("host2", false)] {
        let ep = endpoint(&lan, "0a", node, "10.0.0.2");
        let key: Key = "/culvert/v1/endpoints/lan@host1/0a".parse().expect("key");
        let decoded = decode::<Endpoint>(&key, &encode(&ep).expect("JSON"));
        assert_eq!(decoded == Decoded::Record(ep), fits, "{node}");
        // The global network of that name does not match either.
        let key: Key = "/culvert/v1/endpoints/lan/0a".parse().expect("key");
        let ep = endpoint(&lan, "0a", node, "10.0.0.2");
        let decoded = decode::<Endpoint>(&key, &encode(&ep).expect("JSON"));
        assert!(matches!(decoded, Decoded::Garbage { .. }), "{decoded:?}");
    }
}

#[test]
fn a_record_at_the_wrong_key_is_garbage() {
    let red = network("red", 256, &["10.0.0.0/24"]);
    let ep = endpoint(&red, "0a", "host1", "10.0.0.2");
    let at = |network: &str, id: &str| Key::Endpoint { network: name(network), id: id.to_owned() };
    let bytes = encode(&ep).expect("JSON");
    assert_eq!(decode(&at("red", "0a"), &bytes), Decoded::Record(ep.clone()));
    for key in [at("blue", "0a"), at("red", "0b"), Key::Network(name("red")), Key::Store] {
        assert!(matches!(decode::<Endpoint>(&key, &bytes), Decoded::Garbage { .. }), "{key}");
    }
    let vni = Vni::try_from(256).expect("VNI");
    assert!(matches!(decode::<Network>(&Key::Vni(vni), b"{}"), Decoded::Garbage { .. }));
}

#[test]
fn a_record_that_makes_no_sense_is_garbage() {
    let good = network("red", 256, &["10.0.0.0/24"]);
    let key = Key::Network(good.name.clone());
    let garbage = |change: &dyn Fn(&mut Network)| {
        let mut wrong = good.clone();
        change(&mut wrong);
        match decode::<Network>(&key, &encode(&wrong).expect("JSON")) {
            Decoded::Garbage { why } => why,
            other => panic!("{other:?}"),
        }
    };
    for (why, part) in [
        (garbage(&|net| net.subnets.clear()), "no subnet"),
        (garbage(&|net| net.subnets.push(net.subnets[0])), "second IPv4 subnet"),
        (garbage(&|net| net.subnets[0].gateway = [10, 1, 0, 1].into()), "outside"),
        (garbage(&|net| net.mtu = 0), "MTU 0"),
        (garbage(&|net| drop(net.options.insert("x".to_owned(), "y".to_owned()))), "unknown"),
    ] {
        assert!(why.contains(part), "{why}");
    }

    let good = endpoint(&good, "0a", "host1", "10.0.0.2");
    let key = Key::Endpoint { network: good.network.clone(), id: good.id.clone() };
    let refused = |change: &dyn Fn(&mut Endpoint)| {
        let mut wrong = good.clone();
        change(&mut wrong);
        matches!(decode::<Endpoint>(&key, &encode(&wrong).expect("JSON")), Decoded::Garbage { .. })
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|ep| ep.mac.0[0] |= 1));
    assert!(refused(&|ep| ep.ipv4 = None));
    assert!(refused(&|ep| ep.ifname = "a/b".to_owned()));
    let additional = |range: std::ops::Range<u8>| -> Vec<IpAddr> {
        range.map(|last| [10, 0, 0, last].into()).collect()
    };
    assert!(!refused(&|ep| ep.additional = additional(100..115)), "sixteen addresses");
    assert!(refused(&|ep| ep.additional = additional(100..116)), "seventeen");
    assert!(refused(&|ep| ep.additional = additional(2..3)), "the primary one again");
    assert!(refused(&|ep| ep.additional = [additional(9..10), additional(9..10)].concat()));
    // All ports of one address are valid, of both protocols. Few bytes could be very many ports.
    let ports = |addresses: u8| -> Vec<crate::model::PublishedPort> {
        let port = |last: u8| crate::model::PublishedPort {
            host_ip: [127, 0, 0, last].into(),
            host_port: 1,
            container_port: 1,
            protocol: crate::model::Protocol::Udp,
            count: u16::MAX,
        };
        (0..addresses).map(port).collect()
    };
    assert!(!refused(&|ep| ep.ports = ports(2)));
    assert!(refused(&|ep| ep.ports = ports(3)));
}

#[test]
fn an_endpoint_of_an_earlier_version_has_no_additional_address() {
    let ep = endpoint(&network("red", 256, &["10.0.0.0/24"]), "0a", "host1", "10.0.0.2");
    let bytes = encode(&ep).expect("JSON");
    let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    assert!(json.get("additional").is_none(), "{json}");
    let key = Key::Endpoint { network: name("red"), id: "0a".to_owned() };
    assert_eq!(decode(&key, &bytes), Decoded::Record(ep));
}

#[test]
fn unknown_fields_are_for_later() {
    let mut json = serde_json::to_value(node("host1", 1)).expect("JSON");
    json["colour"] = "red".into();
    let bytes = json.to_string().into_bytes();
    let key = Key::Node(name("host1"));
    assert_eq!(decode(&key, &bytes), Decoded::Record(node("host1", 1)));
}

#[test]
fn a_path_that_is_not_utf8_is_not_written() {
    use std::os::unix::ffi::OsStrExt;
    let red = network("red", 256, &["10.0.0.0/24"]);
    let mut ep = endpoint(&red, "0a", "host1", "10.0.0.2");
    ep.sandbox.netns = std::ffi::OsStr::from_bytes(b"/run/netns/\xff").into();
    assert!(encode(&ep).is_err());
}
