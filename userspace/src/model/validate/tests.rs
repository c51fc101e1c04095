use proptest::prelude::*;

use super::*;
use crate::model::testing::network;

fn net(text: &str) -> IpNetwork {
    text.parse().expect("subnet")
}

fn line<T: std::fmt::Debug>(result: Check<T>) -> String {
    let Invalid(line) = result.expect_err("is refused");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn subnets_for_containers_are_accepted() {
    for text in [
        "10.0.0.0/8",
        "10.0.0.0/24",
        "172.18.0.0/16",
        "192.168.1.0/30",
        "100.64.0.0/10",
        "203.0.113.0/24",
        "fd00::/64",
        "fd12:3456:789a::/48",
        "2001:db8::/126",
        "2001::/16",
    ] {
        assert_eq!(subnet(net(text)), Ok(()), "{text}");
    }
}

#[test]
fn other_subnets_are_refused_with_the_reason() {
    for (text, part) in [
        ("10.0.0.1/24", "10.0.0.0/24 is the subnet"),
        ("10.0.0.255/24", "address of a host"),
        ("fd00::1/64", "fd00::/64 is the subnet"),
        ("10.0.0.0/31", "/8 to /30"),
        ("10.0.0.0/32", "/8 to /30"),
        ("10.0.0.0/7", "/8 to /30"),
        ("0.0.0.0/0", "/8 to /30"),
        ("fd00::/127", "/16 to /126"),
        ("::/0", "/16 to /126"),
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/16", "loopback"),
        ("169.254.0.0/24", "link-local"),
        ("224.0.0.0/24", "multicast"),
        ("239.1.0.0/16", "multicast"),
        ("255.255.255.0/24", "reserved"),
        ("240.0.0.0/8", "reserved"),
        ("::/120", "loopback"),
        ("::ffff:10.0.0.0/120", "IPv4-mapped"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "multicast"),
        ("::/16", "loopback"),
    ] {
        let line = line(subnet(net(text)));
        assert!(line.contains(part), "{text}: {line}");
    }
}

#[test]
fn one_subnet_of_each_family() {
    assert_eq!(subnets(&[net("10.0.0.0/24"), net("fd00::/64")]), Ok(()));
    let two = line(subnets(&[net("10.0.0.0/24"), net("fd00::/64"), net("10.1.0.0/24")]));
    assert!(two.contains("second IPv4 subnet beside 10.0.0.0/24"), "{two}");
    let two = line(subnets(&[net("fd00::/64"), net("fd01::/64")]));
    assert!(two.contains("second IPv6 subnet"), "{two}");
}

#[test]
fn a_gateway_is_a_host_of_its_subnet() {
    let subnet = net("10.0.0.0/24");
    assert_eq!(gateway(subnet, [10, 0, 0, 1].into()), Ok(()));
    assert_eq!(gateway(subnet, [10, 0, 0, 254].into()), Ok(()));
    for (ip, part) in [
        ("10.0.0.0", "network or broadcast"),
        ("10.0.0.255", "network or broadcast"),
        ("10.0.1.1", "outside"),
        ("fd00::1", "outside"),
    ] {
        let line = line(gateway(subnet, ip.parse().expect("address")));
        assert!(line.contains(part) && line.contains("10.0.0.1 would be valid"), "{line}");
    }
    assert_eq!(gateway(net("fd00::/64"), "fd00::ffff:ffff:ffff:ffff".parse().expect("ip")), Ok(()));
    line(gateway(net("fd00::/64"), "fd00::".parse().expect("ip")));
}

#[test]
fn gateways_go_to_the_subnets_they_are_in() {
    let both = [net("10.0.0.0/24"), net("fd00::/64")];
    let gateways = |asked: Option<&str>| {
        let asked = asked.map(|ip| ip.parse().expect("address"));
        let subnets = with_gateways(&both, asked).expect("accepted");
        subnets.into_iter().map(|subnet| subnet.gateway.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(gateways(None), ["10.0.0.1", "fd00::1"]);
    assert_eq!(gateways(Some("10.0.0.254")), ["10.0.0.254", "fd00::1"]);
    assert_eq!(gateways(Some("fd00::fe")), ["10.0.0.1", "fd00::fe"]);
    assert!(line(with_gateways(&both, Some([10, 1, 0, 1].into()))).contains("outside"));
    assert!(line(with_gateways(&[], Some([10, 1, 0, 1].into()))).contains("no subnet"));
    assert_eq!(with_gateways(&[], None), Ok(Vec::new()));
}

#[test]
fn an_mtu_has_bounds_that_depend_on_the_family() {
    assert_eq!(mtu(68, false, 1450), Ok(68));
    assert_eq!(mtu(1450, true, 1450), Ok(1450));
    assert_eq!(mtu(1280, true, 1450), Ok(1280));
    for (value, ipv6, part) in [
        (67, false, "too small for IPv4: 68 to 1450"),
        (0, false, "too small"),
        (1279, true, "too small for IPv6: 1280 to 1450"),
        (1451, false, "more than the underlay takes: 68 to 1450"),
        (65_536 + 1400, false, "more than the underlay"),
        (u32::MAX, true, "more than the underlay"),
    ] {
        let line = line(mtu(value, ipv6, 1450));
        assert!(line.contains(part), "{line}");
    }
    // The MTU of an underlay may be too small for IPv6.
    line(mtu(1230, true, 1230));
}

#[test]
fn options_are_known_or_refused() {
    let one = |key: &str, value: &str| options(&[(key.to_owned(), value.to_owned())].into());
    for (key, value) in [
        ("allow_overlap", "true"),
        ("anti_spoof", "false"),
        ("block_hosts", "true"),
        ("dscp", "copy"),
        ("dscp", "zero"),
        ("bum_rate", "0"),
        ("bum_rate", "1000"),
        ("bum_burst", "1"),
        ("bum_burst", "1000000"),
    ] {
        assert_eq!(one(key, value), Ok(()), "{key}={value}");
    }
    for (key, value) in [
        ("allow_overlap", "yes"),
        ("allow_overlap", "TRUE"),
        ("anti_spoof", ""),
        ("block_hosts", "1"),
        ("dscp", "1"),
        ("bum_rate", "-1"),
        ("bum_rate", "+1"),
        ("bum_rate", "10000001"),
        ("bum_rate", "1.5"),
        ("bum_burst", "0"),
        ("bum_burst", ""),
        ("bum_rate", "99999999999999999999"),
    ] {
        assert!(line(one(key, value)).contains("is malformed"), "{key}={value}");
    }
    let unknown = line(one("mtu", "1400"));
    for (known, _) in OPTIONS {
        assert!(unknown.contains(known), "{unknown}");
    }
    line(one("a\nb", "c\nd"));
}

#[test]
fn networks_overlap_only_as_tenants() {
    let tenant = |text: &str, vni, subnet: &str| {
        let mut network = network(text, vni, &[subnet]);
        network.options.insert("allow_overlap".to_owned(), "true".to_owned());
        network
    };
    let plain = network("plain", 256, &["10.0.0.0/24"]);
    let inside = network("inside", 257, &["10.0.0.128/25"]);
    let around = network("around", 258, &["10.0.0.0/8"]);
    let beside = network("beside", 259, &["10.0.1.0/24"]);
    let one = tenant("one", 260, "10.0.0.0/24");
    let two = tenant("two", 261, "10.0.0.0/24");
    let mut bridge = tenant("bridge0", 262, "10.0.0.0/24");
    bridge.driver = Driver::Bridge;

    assert_eq!(no_overlap(&plain, [&beside, &plain]), Ok(()));
    assert_eq!(no_overlap(&one, [&two]), Ok(()));
    for (new, other) in [
        (&plain, &inside),
        (&inside, &plain),
        (&plain, &around),
        (&one, &plain),
        (&plain, &one),
        (&bridge, &one),
        (&one, &bridge),
    ] {
        let line = line(no_overlap(new, [other]));
        assert!(line.contains(&format!("network '{}'", other.name)), "{line}");
    }
}

#[test]
fn nodes_own_networks_meet_only_on_their_node() {
    let own = |text: &str, node: &str, subnet: &str| {
        let mut network = network(text, 270, &[subnet]);
        network.driver = Driver::Bridge;
        network.name = network.name.on(&crate::model::testing::name(node));
        network
    };
    let one = own("bridge", "host1", "172.17.0.0/16");
    let two = own("bridge", "host2", "172.17.0.0/16");
    let beside = own("lan", "host1", "172.17.3.0/24");
    let everybodys = network("blue", 271, &["172.17.3.0/24"]);
    assert_eq!(no_overlap(&one, [&two, &one]), Ok(()));
    assert!(line(no_overlap(&beside, [&two, &one])).contains("network 'bridge' on 'host1'"));
    assert!(line(no_overlap(&everybodys, [&two])).contains("network 'bridge' on 'host2'"));
    assert!(line(no_overlap(&two, [&everybodys])).contains("network 'blue'"));
}

#[test]
fn interface_names_are_the_kernels() {
    for good in ["eth0", "a", "fifteen-bytes-x", "...", "über0", "v.1_2-3"] {
        assert_eq!(ifname(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        ".",
        "..",
        "sixteen-bytes-xx",
        "a/b",
        "a b",
        "a:1",
        "a\tb",
        "a\n",
        "a\u{b}b",
        "eth%d",
        "a\0",
        "\u{a0}",
    ] {
        assert!(line(ifname(bad)).contains("is malformed"), "{bad:?}");
    }
}

#[test]
fn vteps_are_addresses_of_hosts() {
    assert_eq!(vtep_address([192, 0, 2, 1].into()), Ok(()));
    for bad in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        line(vtep_address(bad.into()));
    }
    line(udp_port(0));
    assert_eq!(udp_port(4789), Ok(()));
}

proptest! {
    #[test]
    fn an_accepted_subnet_has_room_and_a_gateway(bits: u32, prefix in 0..=32_u8) {
        let subnet_of = Ipv4Network::new(Ipv4Addr::from_bits(bits), prefix).expect("prefix");
        let masked = Ipv4Network::new(subnet_of.network(), prefix).expect("prefix");
        if subnet(masked.into()).is_ok() {
            prop_assert!(masked.size() >= 4);
            prop_assert_eq!(gateway(masked.into(), first_host(masked.into())), Ok(()));
        }
    }

    #[test]
    fn overlap_is_having_an_address_in_common(
        a: u32, b: u32, pa in 8..=30_u8, pb in 8..=30_u8,
    ) {
        // Close enough that the subnets overlap in some cases.
        let b = a ^ (b & 0x0003_ffff);
        let make = |bits: u32, prefix| {
            let any = Ipv4Network::new(Ipv4Addr::from_bits(bits), prefix).expect("prefix");
            Ipv4Network::new(any.network(), prefix).expect("prefix")
        };
        let (a, b) = (make(a, pa), make(b, pb));
        let common = a.network() <= b.broadcast() && b.network() <= a.broadcast();
        prop_assert_eq!(overlap(a.into(), b.into()), common);
        prop_assert_eq!(overlap(b.into(), a.into()), common);
    }
}

#[test]
fn public_subnets_are_those_that_machines_of_the_internet_have() {
    let is_public_text = |text: &str| is_public(text.parse().expect("subnet"));
    for public in ["8.8.8.0/24", "8.0.0.0/8", "172.0.0.0/8", "172.32.0.0/16", "192.0.3.0/24"] {
        assert!(is_public_text(public), "{public}");
    }
    let apart = ["10.0.0.0/8", "10.9.0.0/24", "172.31.0.0/16", "192.168.7.0/24", "100.127.0.0/24"];
    let others = ["198.19.0.0/16", "192.0.2.0/25", "198.51.100.0/24", "203.0.113.128/25"];
    for apart in apart.into_iter().chain(others).chain(["fd00::/64", "2001:db8::/64"]) {
        assert!(!is_public_text(apart), "{apart}");
    }
}
