use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn free(cidr: &str, gateway: &str, used: &[&str]) -> Option<String> {
    let used: BTreeSet<IpAddr> = used.iter().map(|ip| ip.parse().expect("address")).collect();
    let (subnet, gateway) = (cidr.parse().expect("subnet"), gateway.parse().expect("gateway"));
    lowest_free(subnet, gateway, used).map(|ip| ip.to_string())
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
        // Claims to addresses that no endpoint can have are ignored.
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

proptest! {
    /// Allocation until the subnet is full gives every host address exactly once, in ascending
    /// order.
    #[test]
    fn every_address_is_given_once_and_none_is_left(
        prefix in 25..=30_u8, gateway: u8, taken in proptest::collection::btree_set(any::<u8>(), 0..40),
    ) {
        let cidr: IpNetwork = format!("10.0.0.0/{prefix}").parse().expect("subnet");
        let size = 1_u16 << (32 - prefix);
        let gateway = 1 + u16::from(gateway) % (size - 2);
        let at = |n: u16| IpAddr::from([10, 0, 0, n as u8]);
        let mut used: BTreeSet<IpAddr> =
            taken.into_iter().filter(|n| u16::from(*n) < size).map(|n| at(n.into())).collect();
        let mut expected: Vec<IpAddr> = (1..size - 1)
            .filter(|n| *n != gateway).map(at).filter(|ip| !used.contains(ip)).collect();
        expected.reverse();
        while let Some(ip) = lowest_free(cidr, at(gateway), used.iter().copied()) {
            prop_assert_eq!(Some(ip), expected.pop());
            prop_assert!(cidr.contains(ip) && used.insert(ip));
        }
        prop_assert!(expected.is_empty(), "left out: {:?}", expected);
    }

    #[test]
    fn nothing_is_given_twice_or_outside_in_ipv6(used in proptest::collection::btree_set(0..200_u128, 0..150)) {
        let subnet: IpNetwork = "fd00::/64".parse().expect("subnet");
        let gateway: IpAddr = "fd00::1".parse().expect("gateway");
        let base = bits(subnet.network());
        let used: BTreeSet<IpAddr> = used.into_iter().map(|n| address(subnet, base + n)).collect();
        let ip = lowest_free(subnet, gateway, used.iter().copied()).expect("there is room");
        prop_assert!(subnet.contains(ip) && !used.contains(&ip));
        prop_assert!(ip != gateway && bits(ip) > base);
        // Every lower address is taken.
        for lower in base + 1..bits(ip) {
            let lower = address(subnet, lower);
            prop_assert!(lower == gateway || used.contains(&lower));
        }
    }
}
