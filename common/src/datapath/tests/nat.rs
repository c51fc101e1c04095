//! Tests of translation against an independent library, which computes whole checksums.

use etherparse::{Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use proptest::prelude::*;

use super::{cases, v4};
use crate::abi::{
    Flow, FlowKey, RESERVED_ENTRIES, RESERVED_WORDS, Tuple, reserved_bit, seen as bits,
};
use crate::datapath::nat::{
    self, BRIEF_PORT_TRIES, PORT_TRIES, PROBES, Quoted, Upper, WHOLE_SHARE, address_difference,
    begins_anew, candidate, checksum_offset, echo_id, has_ports, has_shares, in_share, is_in_share,
    port_difference, port_share, ports_offset, probe, readdress, translate_error, update,
    update_upper, upper,
};
use crate::wire::Ipv4Hdr;
use crate::wire::tcp::{ACK, RST, SYN};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

#[test]
fn what_can_be_translated() {
    let bytes = [8, 7, 6, 5, 4, 3, 2, 1];
    for protocol in [TCP, UDP] {
        assert_eq!(upper(protocol, &bytes), Upper::Ports([8, 7], [6, 5]));
    }
    for kind in 0..=u8::MAX {
        let wanted = match kind {
            8 => Upper::Ports([4, 3], [0, 0]),
            0 => Upper::Ports([0, 0], [4, 3]),
            3 | 4 | 11 | 12 => Upper::Error,
            _ => Upper::Unsupported,
        };
        assert_eq!(upper(ICMP, &[kind, 7, 6, 5, 4, 3, 2, 1]), wanted, "type {kind}");
    }
    for protocol in 0..=u8::MAX {
        let known = [ICMP, TCP, UDP].contains(&protocol);
        assert_eq!(has_ports(protocol), known);
        assert!(known || upper(protocol, &bytes) == Upper::Unsupported, "protocol {protocol}");
    }
}

#[test]
fn offsets_are_those_of_the_headers() {
    assert_eq!([TCP, UDP, ICMP].map(ports_offset), [0, 0, 4]);
    assert_eq!([TCP, UDP, ICMP].map(checksum_offset), [16, 6, 2]);
}

/// The upper layer of a packet with these addresses and ports.
fn upper_layer(protocol: u8, tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    let [src, dst] = [tuple.src_port, tuple.dst_port].map(u16::from_be_bytes);
    let mut bytes = match protocol {
        TCP => {
            let mut header = TcpHeader::new(src, dst, 0x0102_0304, 5000);
            header.checksum = header.calc_checksum_ipv4_raw(tuple.src, tuple.dst, payload).unwrap();
            header.to_bytes().to_vec()
        }
        UDP => {
            let mut header = UdpHeader::without_ipv4_checksum(src, dst, payload.len()).unwrap();
            header.checksum = header.calc_checksum_ipv4_raw(tuple.src, tuple.dst, payload).unwrap();
            header.to_bytes().to_vec()
        }
        _ => {
            // A sequence number that is not zero: the sum of a message of zeroes is a
            // special case.
            let [high, low] = echo_id(tuple);
            let type_u8 = if tuple.src_port == [0; 2] { 0 } else { 8 };
            let bytes5to8 = [high, low, 0, 1];
            let kind = Icmpv4Type::Unknown { type_u8, code_u8: 0, bytes5to8 };
            Icmpv4Header::with_checksum(kind, payload).to_bytes().to_vec()
        }
    };
    bytes.extend_from_slice(payload);
    bytes
}

/// The upper layer after translation in place.
fn translated(protocol: u8, from: &Tuple, to: &Tuple, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = checksum_offset(protocol) as usize;
    let old = [bytes[at], bytes[at + 1]];
    let ports = port_difference(protocol, from, to);
    let change = match protocol {
        ICMP => ports,
        _ => nat::add(address_difference(from, to), ports),
    };
    bytes[at..at + 2].copy_from_slice(&update_upper(protocol, old, change));
    let at = ports_offset(protocol) as usize;
    if protocol == ICMP {
        bytes[at..at + 2].copy_from_slice(&echo_id(to));
    } else {
        bytes[at..at + 4].copy_from_slice(&[to.src_port, to.dst_port].concat());
    }
    bytes
}

fn tuples() -> impl Strategy<Value = Tuple> {
    let bytes = prop_oneof![Just([0; 2]), Just([0xff; 2]), any::<[u8; 2]>()];
    (any::<[u8; 4]>(), any::<[u8; 4]>(), bytes.clone(), bytes)
        .prop_map(|(src, dst, src_port, dst_port)| Tuple { src, dst, src_port, dst_port })
}

/// The tuple of an ICMP echo: one port is 0.
fn echo_tuple(tuple: Tuple, request: bool) -> Tuple {
    if request { Tuple { dst_port: [0; 2], ..tuple } } else { Tuple { src_port: [0; 2], ..tuple } }
}

proptest! {
    #![proptest_config(cases(4000))]
    /// The update by differences gives exactly the checksum of the whole packet.
    #[test]
    fn translated_is_as_if_sent_so(
        protocol in prop::sample::select(vec![ICMP, TCP, UDP]),
        from in tuples(),
        to in tuples(),
        request: bool,
        payload in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let [from, to] = if protocol == ICMP {
            // Identifiers of echo requests are not zero.
            prop_assume!(!request || (from.src_port != [0; 2] && to.src_port != [0; 2]));
            [from, to].map(|tuple| echo_tuple(tuple, request))
        } else {
            [from, to]
        };
        let packet = upper_layer(protocol, &from, &payload);
        prop_assert_eq!(
            translated(protocol, &from, &to, packet),
            upper_layer(protocol, &to, &payload)
        );
    }

    /// A UDP checksum of 0 (none) stays 0; a computed 0 is sent as all ones (RFC 768).
    #[test]
    fn udp_zero_is_none(from in tuples(), to in tuples(), prefix in any::<[u8; 2]>()) {
        let change = nat::add(address_difference(&from, &to), port_difference(UDP, &from, &to));
        prop_assert_eq!(update_upper(UDP, [0; 2], change), [0; 2]);
        // The word with which the checksum of the translated datagram would be zero.
        let word = upper_layer(UDP, &to, &[prefix, [0; 2]].concat());
        let payload = [prefix, [word[6], word[7]]].concat();
        let wanted = upper_layer(UDP, &to, &payload);
        prop_assert_eq!(&wanted[6..8], [0xff; 2]);
        let packet = upper_layer(UDP, &from, &payload);
        prop_assert_eq!(translated(UDP, &from, &to, packet), wanted);
    }

    #[test]
    fn update_without_change_changes_nothing(checksum in any::<[u8; 2]>(), tuple in tuples()) {
        prop_assume!(checksum != [0xff; 2]);
        prop_assert_eq!(update(checksum, address_difference(&tuple, &tuple)), checksum);
    }

    #[test]
    fn readdressed_header_is_right(
        from in any::<([u8; 4], [u8; 4])>(),
        to in any::<([u8; 4], [u8; 4])>(),
        ttl in 1u8..,
        len in 0u16..1000,
        hop: bool,
    ) {
        let make = |(src, dst), ttl| {
            let mut header = Ipv4Header::new(len, ttl, IpNumber::UDP, src, dst).unwrap();
            header.identification = len;
            header.header_checksum = header.calc_header_checksum();
            let bytes: [u8; 20] = header.to_bytes().as_slice().try_into().unwrap();
            bytemuck::cast::<_, Ipv4Hdr>(bytes)
        };
        let wanted = make(to, ttl - u8::from(hop));
        prop_assert_eq!(readdress(&make(from, ttl), to.0, to.1, hop), wanted);
    }

    #[test]
    fn candidates_are_in_the_range(
        own: u16, random: u32, a: u16, b: u16, index in 0..PORT_TRIES, is_brief: bool,
    ) {
        let tries = if is_brief { BRIEF_PORT_TRIES } else { PORT_TRIES };
        let index = index % tries;
        let (min, max) = (a.min(b), a.max(b));
        match candidate(index, tries, own, random, min, max) {
            Some(port) if index == 0 => {
                prop_assert_eq!(port, own);
                prop_assert!(own != 0);
                prop_assert!((min..=max).contains(&own) || (min == 1024 && own < 1024));
            }
            Some(port) => prop_assert!((min..=max).contains(&port), "{port}"),
            None => prop_assert_eq!(index, 0),
        }
    }

    #[test]
    fn candidates_differ(random: u32, min in 1u16..60_000, more in 63u16..5000) {
        for tries in [PORT_TRIES, BRIEF_PORT_TRIES] {
            let mut ports: Vec<u16> = (1..tries)
                .filter_map(|index| candidate(index, tries, 0, random, min, min + more))
                .collect();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!(ports.len(), tries as usize - 1);
        }
    }

    /// A quarter of the range is free, and all other ports are in use.
    #[test]
    fn a_free_part_of_the_range_is_found(random: u32, first in 1024u16..49_000) {
        let free = first..=first + 16_383;
        for tries in [PORT_TRIES, BRIEF_PORT_TRIES] {
            let mut ports =
                (1..tries).filter_map(|at| candidate(at, tries, 0, random, 1024, u16::MAX));
            prop_assert!(ports.any(|port| free.contains(&port)), "{}", tries);
        }
    }

    /// Each container has about its share of all ports, and the same share of the ports that are
    /// outside of another container's share.
    #[test]
    fn shares_are_shares_and_differ(one: u32, other: u32, percent in 20u32..=100) {
        prop_assume!(one != other);
        let share = port_share(percent);
        let count = |of: &dyn Fn(u16) -> bool| (1024..=u16::MAX).filter(|port| of(*port)).count();
        let near = |count: usize, wanted: f64| (count as f64 - wanted).abs() < 1300.0;
        let (all, part) = (64_512.0, f64::from(share) / f64::from(WHOLE_SHARE));
        let own = count(&|port| is_in_share(port, one, share));
        prop_assert!(near(own, all * part), "{percent} %: {own}");
        let alone =
            count(&|port| is_in_share(port, one, share) && !is_in_share(port, other, share));
        prop_assert!(near(alone, all * part * (1.0 - part)), "{percent} %: {alone}");
    }

    #[test]
    fn a_port_in_the_share_is_beside(
        port: u16, owner: u32, share in 0..=WHOLE_SHARE, a: u16, b: u16,
    ) {
        let (min, max) = (a.min(b), a.max(b));
        if let Some(beside) = in_share(port, owner, share, min, max) {
            prop_assert!((min..=max).contains(&beside) && is_in_share(beside, owner, share));
            prop_assert!(port ^ beside < 8);
        }
        if is_in_share(port, owner, share) && (min..=max).contains(&port) {
            prop_assert_eq!(in_share(port, owner, share, min, max), Some(port));
        }
    }

    /// The other direction of the other direction is the first direction.
    #[test]
    fn other_is_an_involution(tuple in tuples(), to in tuples(), zones: (u32, u32)) {
        prop_assert_eq!(tuple.reversed().reversed(), tuple);
        let key = FlowKey::new(zones.0, TCP, tuple);
        let orig = Flow { to, zone: zones.1, ..Flow::default() };
        let reply = Flow { to: tuple.reversed(), zone: zones.0, ..Flow::default() };
        let other = key.other(&orig);
        prop_assert_eq!(other, FlowKey::new(zones.1, TCP, to.reversed()));
        prop_assert_eq!(other.other(&reply), key);
    }
}

#[test]
fn a_range_of_few_is_tried_in_full() {
    for (min, max) in [(5000, 5000), (5000, 5003), (1024, 1086), (65_473, 65_535)] {
        for random in [0, 1, 2, 77, u32::MAX] {
            let all = |at| candidate(at, PORT_TRIES, 0, random, min, max);
            let mut ports: Vec<u16> = (1..PORT_TRIES).filter_map(all).collect();
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports, (min..=max).collect::<Vec<u16>>());
        }
    }
}

#[test]
fn a_free_part_of_the_range_hides_no_taken_ports() {
    // An eighth of the range is free. Of 2^20 packets, four ports of 256 are all in that part; with
    // ports at even distances it were 80,000.
    let free = 20_000..28_064;
    let all = |random: &u32| {
        (1..=PROBES).all(|index| free.contains(&probe(index, *random, 1024, u16::MAX)))
    };
    let spread = |number: u32| number.wrapping_mul(0x0100_0193) ^ (number >> 7);
    let count = (0..1 << 20).map(spread).filter(all).count();
    assert!((128..512).contains(&count), "{count}");
    for (min, max) in [(1024, u16::MAX), (0, u16::MAX), (5000, 5000), (40_000, 44_095)] {
        for random in (0..=u32::MAX).step_by(4_000_037) {
            assert!((min..=max).contains(&probe(1, random, min, max)));
        }
    }
}

#[test]
fn few_ports_have_no_shares() {
    assert!(has_shares(1024, u16::MAX) && has_shares(16_384, 32_767));
    assert!(!has_shares(40_000, 40_003) && !has_shares(5, 5) && !has_shares(9, 8));
}

#[test]
fn a_whole_share_has_every_port() {
    assert_eq!((port_share(100), port_share(50), port_share(20)), (WHOLE_SHARE, 128, 51));
    let all = |share| (0..=u16::MAX).filter(|port| is_in_share(*port, 7, share)).count();
    assert_eq!((all(WHOLE_SHARE), all(0)), (65_536, 0));
}

#[test]
fn own_port_is_kept() {
    let first = |own, min, max| candidate(0, PORT_TRIES, own, 7, min, max);
    for own in [1024, 40_000, 65_535] {
        assert_eq!(first(own, 1024, 65_535), Some(own));
    }
    // A privileged port is kept if the range is all unprivileged ports.
    for own in [1, 53, 1023] {
        assert_eq!(first(own, 1024, 65_535), Some(own));
        assert_eq!(first(own, 1025, 65_535), None);
        assert_eq!(first(own, 20_000, 30_000), None);
    }
    assert_eq!(first(0, 1024, 65_535), None);
    assert_eq!(first(0, 0, 65_535), None);
    assert_eq!(first(19_999, 20_000, 30_000), None);
    assert_eq!(first(30_001, 20_000, 30_000), None);
    assert_eq!(first(20_000, 20_000, 30_000), Some(20_000));
    assert_eq!(first(30_000, 20_000, 30_000), Some(30_000));
}

#[test]
fn ranges_turned_around_or_whole_do_not_panic() {
    for (min, max) in [(2000, 1000), (0, u16::MAX), (u16::MAX, u16::MAX), (0, 0)] {
        for index in 0..PORT_TRIES {
            for tries in [PORT_TRIES, BRIEF_PORT_TRIES] {
                let _ = candidate(index, tries, 5, u32::MAX, min, max);
            }
        }
    }
}

#[test]
fn a_syn_begins_anew_what_has_ended() {
    let (fin, rst) = (bits::FIN, bits::RST);
    for (orig, reply, ended) in [
        (0, 0, false),
        (fin, 0, false),
        (0, fin, false),
        (fin, fin, true),
        (rst, 0, true),
        (0, rst, true),
        (fin, rst, true),
    ] {
        for flags in 0..64 {
            let syn = flags & SYN != 0 && flags & (ACK | RST) == 0;
            let others = bits::PACKET | bits::SYN | bits::ACK;
            let anew = begins_anew(flags, orig | others, reply | others);
            assert_eq!(anew, syn && ended, "{flags:#x} {orig:#x} {reply:#x}");
        }
    }
}

fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
    Tuple {
        src: v4(src),
        dst: v4(dst),
        src_port: src_port.to_be_bytes(),
        dst_port: dst_port.to_be_bytes(),
    }
}

fn error(src: &str, dst: &str) -> Ipv4Hdr {
    Ipv4Hdr::new(v4(src), v4(dst), ICMP, 56, 0, 64)
}

#[test]
fn error_from_an_external_host() {
    // RFC 5508 §4.2: an error about a packet that a container sent.
    let quoted = tuple("192.0.2.1", 2000, "203.0.113.7", 80);
    let to = tuple("203.0.113.7", 80, "10.0.0.2", 1000);
    let inside = tuple("10.0.0.2", 1000, "203.0.113.7", 80);
    // The source address of the error is not changed: neither a router's nor the receiver's.
    for from in ["198.51.100.9", "203.0.113.7"] {
        let wanted = Quoted { tuple: inside, src: v4(from), dst: v4("10.0.0.2") };
        assert_eq!(translate_error(&error(from, "192.0.2.1"), &quoted, &to), wanted);
    }
}

#[test]
fn error_from_inside() {
    // RFC 5508 §4.3: an error of a container about a packet that it received.
    let quoted = tuple("203.0.113.7", 80, "10.0.0.2", 1000);
    let to = tuple("192.0.2.1", 2000, "203.0.113.7", 80);
    let wanted = Quoted {
        tuple: tuple("203.0.113.7", 80, "192.0.2.1", 2000),
        src: v4("192.0.2.1"),
        dst: v4("203.0.113.7"),
    };
    assert_eq!(translate_error(&error("10.0.0.2", "203.0.113.7"), &quoted, &to), wanted);
}

#[test]
fn error_from_inside_to_another_container() {
    // The server sees the gateway's address as its client's. The client sees the host's address as
    // its server's.
    let quoted = tuple("10.0.0.1", 5000, "10.0.0.3", 80);
    let to = tuple("192.0.2.1", 8080, "10.0.0.2", 4000);
    let wanted = Quoted {
        tuple: tuple("10.0.0.2", 4000, "192.0.2.1", 8080),
        src: v4("192.0.2.1"),
        dst: v4("10.0.0.2"),
    };
    assert_eq!(translate_error(&error("10.0.0.3", "10.0.0.1"), &quoted, &to), wanted);
}

#[test]
fn every_reserved_port_has_a_bit_of_its_own() {
    for (class, protocol) in [TCP, UDP, ICMP].into_iter().enumerate() {
        let mut words = vec![0u64; RESERVED_ENTRIES as usize];
        for port in 0..=u16::MAX {
            let (word, bit) = reserved_bit(protocol, port).unwrap();
            assert_eq!(bit.count_ones(), 1);
            assert_eq!(words[word as usize] & bit, 0, "{protocol} {port}");
            words[word as usize] |= bit;
        }
        let first = class * RESERVED_WORDS as usize;
        for (at, word) in words.iter().enumerate() {
            let own = (first..first + RESERVED_WORDS as usize).contains(&at);
            assert_eq!(*word, if own { u64::MAX } else { 0 });
        }
    }
    for protocol in (0..=u8::MAX).filter(|protocol| !has_ports(*protocol)) {
        assert_eq!(reserved_bit(protocol, 80), None);
    }
}
