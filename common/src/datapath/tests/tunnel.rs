use bytemuck::bytes_of;
use etherparse as ep;
use proptest::prelude::*;

use super::{MAC, OTHER_MAC, endpoint, free_endpoint, no_others, v4, v6};
use crate::abi::{DropReason, HeardEntry, LearnedEntry, VtepId};
use crate::datapath::decap::{
    check_outer_ip, check_outer_udp, check_vxlan, merged_frame_ok, second_datagram_offset,
    starts_datagram,
};
use crate::datapath::encap::{
    EncapHeaders, entropy_port, ipv4_flow_hash, ipv4_of, ipv4_template, l2_flow_hash,
};
use crate::datapath::learn::{
    Learn, TOUCH_AFTER_NS, hear, heard, is_audible, is_fresh, learn, valid_source,
};
use crate::datapath::source::{
    check_ipv4_shape, check_ipv4_source, check_ipv6_shape, check_ipv6_source, check_mac, owns_ipv6,
};
use crate::wire::{ARP_REPLY, ARP_REQUEST, ArpIpv4, EthHdr, Ipv4Hdr, Ipv6Hdr, UdpHdr, VxlanHdr};

const SECOND: u64 = 1_000_000_000;
const AGEING: u64 = 300 * SECOND;
/// Largest VNI: 24 bits (RFC 7348 §5).
const VNI_MAX: u32 = 0x00ff_ffff;

/// The headers of one frame, made as the agent and the programs make them: template, VNI, then
/// the fields that differ by frame.
fn headers(
    src: [u8; 4],
    dst: [u8; 4],
    (sport, dport): (u16, u16),
    vni: u32,
    tos: u8,
    len: u32,
) -> Result<EncapHeaders, DropReason> {
    let template = ipv4_template(EthHdr::new(MAC, OTHER_MAC, 0x0800), src, dst, dport);
    let mut headers = EncapHeaders::new(&template, vni, &EthHdr::new(OTHER_MAC, MAC, 0x0800));
    headers.outer.fit(sport, tos, len).map(|()| headers)
}

proptest! {
    #[test]
    fn the_outer_header_is_rfc_7348(
        src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16, vni in 0..=VNI_MAX, tos: u8,
        len in 14u32..=65_499,
    ) {
        let headers = headers(src, dst, (sport, dport), vni, tos, len).unwrap();
        let outer = headers.outer;
        let on_the_wire = &bytes_of(&headers)[EncapHeaders::OFFSET..][..EncapHeaders::LEN];
        let (link, inner) =
            (EthHdr::new(MAC, OTHER_MAC, 0x0800), EthHdr::new(OTHER_MAC, MAC, 0x0800));
        prop_assert_eq!(&on_the_wire[..14], bytes_of(&link));
        prop_assert_eq!(&on_the_wire[50..], bytes_of(&inner));
        let mut packet = on_the_wire[14..50].to_vec();
        packet.resize(36 + len as usize, 0);
        let parsed = ep::SlicedPacket::from_ip(&packet).unwrap();
        let Some(ep::NetSlice::Ipv4(ip)) = parsed.net else { panic!("no IPv4") };
        let ip = ip.header().to_header();
        prop_assert_eq!((ip.source, ip.destination), (src, dst));
        prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        prop_assert_eq!(u32::from(ip.total_len), 36 + len);
        prop_assert_eq!((ip.dscp.value() << 2) | ip.ecn.value(), tos);
        prop_assert!(ip.dont_fragment && !ip.more_fragments);
        prop_assert_eq!((ip.identification, ip.time_to_live), (0, 64));
        let Some(ep::TransportSlice::Udp(udp)) = parsed.transport else { panic!("no UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port()), (sport, dport));
        prop_assert_eq!(u32::from(udp.length()), 16 + len);
        prop_assert_eq!(udp.checksum(), 0);
        let [_, a, b, c] = vni.to_be_bytes();
        prop_assert_eq!(&udp.payload()[..8], &[8, 0, 0, 0, a, b, c, 0][..]);

        // The decapsulation accepts the headers that the encapsulation makes.
        let ip_len = check_outer_ip(&outer.ip, 36 + len).unwrap();
        prop_assert_eq!(check_outer_udp(&outer.udp, 36 + len - ip_len), Ok(()));
        prop_assert_eq!(check_vxlan(&outer.vxlan), Ok((vni, false)));
    }

    #[test]
    fn a_header_that_is_used_again_is_as_a_new_one(
        src: [u8; 4], dst: [u8; 4], vni in 0..=VNI_MAX,
        frames in proptest::collection::vec((any::<u16>(), any::<u8>(), 14u32..=65_600), 1..20),
    ) {
        let template = ipv4_template(EthHdr::new(MAC, OTHER_MAC, 0x0800), src, dst, 4789);
        let mut kept = ipv4_of(&template);
        kept.vxlan = VxlanHdr::new(vni);
        for (sport, tos, len) in frames {
            let before = kept;
            match headers(src, dst, (sport, 4789), vni, tos, len) {
                Ok(EncapHeaders { outer: new, .. }) => {
                    prop_assert_eq!(kept.fit(sport, tos, len), Ok(()));
                    prop_assert_eq!(kept, new);
                    prop_assert_eq!(kept.ip.checksum(), kept.ip.header_checksum());
                }
                Err(reason) => {
                    prop_assert_eq!(kept.fit(sport, tos, len), Err(reason));
                    prop_assert_eq!(kept, before);
                }
            }
        }
    }

    #[test]
    fn a_length_over_16_bits_is_refused(len in 65_500u32..) {
        prop_assert_eq!(
            headers([0; 4], [0; 4], (0, 0), 1, 0, len), Err(DropReason::PacketTooBig)
        );
    }

    #[test]
    fn entropy_stays_in_the_dynamic_range(hash: u32) {
        prop_assert!((49_152..65_024).contains(&entropy_port(hash)));
    }

    #[test]
    fn a_merged_buffer_is_one_frame_only_if_the_inner_packet_fills_it(
        gso in 1u32.., rest: u32, total: u32,
    ) {
        prop_assert!(merged_frame_ok(0, rest, Some(total)));
        prop_assert!(merged_frame_ok(0, rest, None));
        prop_assert!(merged_frame_ok(gso, rest, Some(rest)));
        prop_assert_eq!(merged_frame_ok(gso, rest, Some(total)), total == rest);
        prop_assert!(!merged_frame_ok(gso, rest, None));
    }

    #[test]
    fn the_flow_hash_ignores_what_fragments_differ_in(bytes: [u8; 20], other: [u8; 20]) {
        let mut fragment = bytes;
        // Length, identification, offset, TTL and checksum; not the protocol.
        for byte in [1, 2, 3, 4, 5, 6, 7, 8, 10, 11] {
            fragment[byte] = other[byte];
        }
        let (a, b): (Ipv4Hdr, Ipv4Hdr) = (bytemuck::cast(bytes), bytemuck::cast(fragment));
        prop_assert_eq!(ipv4_flow_hash(&a, [0; 4]), ipv4_flow_hash(&b, [0; 4]));
    }
}

/// Flows that differ in few bits must get many different ports. A perfect hash puts 1024 flows on
/// about 992 of the 16384 ports; the test demands 900.
#[test]
fn entropy_spreads() {
    let distinct = |ports: &mut dyn Iterator<Item = u16>| {
        ports.collect::<std::collections::BTreeSet<_>>().len()
    };
    let macs = &mut (0..1024u16).map(|n| {
        let [a, b] = n.to_be_bytes();
        entropy_port(l2_flow_hash(&[2, 0x42, 10, 0, a, b], &MAC, 0x88b5))
    });
    assert!(distinct(macs) > 900);
    let addresses = &mut (0..1024u16).map(|n| {
        let [a, b] = n.to_be_bytes();
        entropy_port(ipv4_flow_hash(
            &Ipv4Hdr::new([10, 0, a, b], [10, 0, 0, 1], 17, 20, 0, 64),
            [0; 4],
        ))
    });
    assert!(distinct(addresses) > 900);
    // A kernel hash that varies in its high or its low bits only.
    assert!(distinct(&mut (0..1024u32).map(|n| entropy_port(n << 22))) > 900);
    assert!(distinct(&mut (0..1024u32).map(entropy_port)) > 900);
}

#[test]
fn vxlan_header_checks() {
    let header = |bytes: [u8; 8]| bytemuck::cast::<_, VxlanHdr>(bytes);
    assert_eq!(check_vxlan(&header([8, 0, 0, 0, 0, 1, 0, 0])), Ok((256, false)));
    assert_eq!(check_vxlan(&header([8, 0, 0, 0, 0xff, 0xff, 0xff, 0])), Ok((VNI_MAX, false)));
    assert_eq!(check_vxlan(&header([0, 0, 0, 0, 0, 1, 0, 0])), Err(DropReason::VniFlagClear));
    assert_eq!(check_vxlan(&header([0xf7, 0, 0, 0, 0, 1, 0, 0])), Err(DropReason::VniFlagClear));
    for bit in (0..64).filter(|bit| *bit != 59 && !(8..32).contains(bit)) {
        let word = 0x0800_0000_0001_0000u64 | 1 << bit;
        assert_eq!(check_vxlan(&header(word.to_be_bytes())), Ok((256, true)), "bit {bit}");
    }
}

#[test]
fn outer_header_checks() {
    let good = Ipv4Hdr::new([192, 0, 2, 1], [192, 0, 2, 2], 17, 36 + 60, 0, 64);
    let with = |edit: &dyn Fn(&mut [u8; 20])| {
        let mut bytes: [u8; 20] = bytemuck::cast(good);
        edit(&mut bytes);
        check_outer_ip(&bytemuck::cast(bytes), 96)
    };
    assert_eq!(check_outer_ip(&good, 96), Ok(20));
    assert_eq!(check_outer_ip(&good, 200), Ok(20), "padding");
    assert_eq!(check_outer_ip(&good, 95), Err(DropReason::OuterMalformed), "cut short");
    assert_eq!(with(&|b| b[0] = 0x46), Ok(24), "options");
    assert_eq!(with(&|b| b[0] = 0x44), Err(DropReason::OuterMalformed), "short header");
    assert_eq!(with(&|b| b[0] = 0x65), Err(DropReason::OuterMalformed), "version");
    assert_eq!(with(&|b| b[3] = 49), Err(DropReason::OuterMalformed), "no room for a frame");
    assert_eq!(with(&|b| b[3] = 50), Ok(20), "an Ethernet header and nothing more");
    assert_eq!(with(&|b| b[8] = 0), Err(DropReason::OuterMalformed), "TTL 0");
    assert_eq!(with(&|b| b[8] = 1), Ok(20), "TTL 1");
    assert_eq!(with(&|b| b[6] = 0x20), Err(DropReason::OuterFragment), "first fragment");
    assert_eq!(with(&|b| b[7] = 1), Err(DropReason::OuterFragment), "later fragment");

    let udp = |len| check_outer_udp(&UdpHdr::new(50_000, 4789, len), 76);
    assert_eq!(udp(76), Ok(()));
    assert_eq!(udp(30), Ok(()));
    assert_eq!(udp(77), Err(DropReason::OuterMalformed));
    assert_eq!(udp(29), Err(DropReason::OuterMalformed));
    assert_eq!(udp(0), Err(DropReason::OuterMalformed));
}

#[test]
fn datagrams_merged_as_plain_udp_are_found() {
    assert_eq!(second_datagram_offset(100, 0x1234, 200), Some(100));
    assert_eq!(second_datagram_offset(0, 0x1234, 200), None, "not merged");
    assert_eq!(second_datagram_offset(100, 0, 200), None, "UDP GRO wants a checksum");
    assert_eq!(second_datagram_offset(200, 0x1234, 200), None, "one datagram");
    assert!(starts_datagram(&VxlanHdr::new(257)));
    assert!(!starts_datagram(&bytemuck::cast(*b"GET / HT")));
}

#[test]
fn only_addresses_of_one_host_are_learned() {
    assert!(valid_source(&MAC));
    assert!(!valid_source(&[0; 6]));
    assert!(!valid_source(&[0xff; 6]));
    assert!(!valid_source(&[0x01, 0, 0x5e, 0, 0, 1]));
    assert!(!valid_source(&[0x33, 0x33, 0, 0, 0, 1]));
}

#[test]
fn learning() {
    let at = |last_seen_ns, vtep, ifindex| LearnedEntry {
        last_seen_ns,
        vtep,
        ifindex,
        ..LearnedEntry::default()
    };
    let there = VtepId(1);
    let known = at(1000 * SECOND, there, 0);
    let after = |age| at(1000 * SECOND + age, there, 0);
    assert_eq!(learn(None, &after(0), AGEING), Learn::Insert);
    assert_eq!(learn(Some(&known), &after(0), AGEING), Learn::Current);
    assert_eq!(learn(Some(&known), &after(TOUCH_AFTER_NS - 1), AGEING), Learn::Current);
    assert_eq!(learn(Some(&known), &after(TOUCH_AFTER_NS), AGEING), Learn::Refresh);
    assert_eq!(learn(Some(&known), &after(AGEING - 1), AGEING), Learn::Refresh);
    assert_eq!(learn(Some(&known), &after(AGEING), AGEING), Learn::Insert);

    let elsewhere = at(1001 * SECOND, VtepId(2), 0);
    assert_eq!(learn(Some(&known), &elsewhere, AGEING), Learn::Move);
    let here = at(1001 * SECOND, VtepId::NONE, 7);
    assert_eq!(learn(Some(&known), &here, AGEING), Learn::Move);
    let other_port = at(1001 * SECOND, VtepId::NONE, 8);
    assert_eq!(learn(Some(&here), &other_port, AGEING), Learn::Move);
    let much_later = at(2000 * SECOND, VtepId(2), 0);
    assert_eq!(
        learn(Some(&known), &much_later, AGEING),
        Learn::Insert,
        "an aged entry moves freely"
    );

    // Another CPU wrote the entry after this CPU had read the clock.
    let earlier = at(999 * SECOND, there, 0);
    assert_eq!(learn(Some(&known), &earlier, AGEING), Learn::Current);
    assert!(is_fresh(&known, 0, AGEING));
    assert!(is_fresh(&known, 1299 * SECOND, AGEING));
    assert!(!is_fresh(&known, 1300 * SECOND, AGEING));
}

#[test]
fn what_is_heard_of_an_address() {
    let ip = v4("10.0.0.100");
    let arp = |oper, mac, sender| ArpIpv4::new(oper, mac, sender, [0; 6], v4("10.0.0.3"));
    let told = |mac, last_seen_ns| HeardEntry { last_seen_ns, mac, ..HeardEntry::default() };
    for oper in [ARP_REQUEST, ARP_REPLY] {
        assert_eq!(heard(&arp(oper, MAC, ip), 7), Some((ip, told(MAC, 7))));
    }
    assert_eq!(heard(&arp(3, MAC, ip), 7), None, "RARP");
    assert_eq!(heard(&arp(ARP_REQUEST, MAC, [0; 4]), 7), None, "a probe");
    assert_eq!(heard(&arp(ARP_REQUEST, [0xff; 6], ip), 7), None, "a group address");
    let mut other = bytemuck::cast::<ArpIpv4, [u8; 28]>(arp(ARP_REQUEST, MAC, ip));
    other[5] = 16;
    assert_eq!(heard(&bytemuck::cast(other), 7), None, "not of IPv4");

    let known = told(MAC, 1000 * SECOND);
    let after = |mac, age| told(mac, 1000 * SECOND + age);
    assert_eq!(hear(None, &after(MAC, 0), AGEING), Learn::Insert);
    assert_eq!(hear(Some(&known), &after(MAC, TOUCH_AFTER_NS - 1), AGEING), Learn::Current);
    assert_eq!(hear(Some(&known), &after(MAC, TOUCH_AFTER_NS), AGEING), Learn::Refresh);
    assert_eq!(hear(Some(&known), &after(OTHER_MAC, 0), AGEING), Learn::Move);
    assert_eq!(hear(Some(&known), &after(OTHER_MAC, AGEING), AGEING), Learn::Insert);
    assert!(is_audible(&known, 1000 * SECOND + AGEING - 1, AGEING));
    assert!(!is_audible(&known, 1000 * SECOND + AGEING, AGEING));
}

#[test]
fn source_macs() {
    let from = |mac| EthHdr::new([0xff; 6], mac, 0x0800);
    assert_eq!(check_mac(&endpoint(), &from(MAC)), Ok(()));
    assert_eq!(check_mac(&endpoint(), &from(OTHER_MAC)), Err(DropReason::SpoofedMac));
    assert_eq!(check_mac(&endpoint(), &from([0xff; 6])), Err(DropReason::SpoofedMac));
    assert_eq!(check_mac(&free_endpoint(), &from(OTHER_MAC)), Ok(()));
    for group in [[0xff; 6], [0; 6], [1, 0, 0x5e, 0, 0, 1]] {
        assert_eq!(check_mac(&free_endpoint(), &from(group)), Err(DropReason::InvalidSourceMac));
    }
}

#[test]
fn ipv4_sources() {
    let from = |src| Ipv4Hdr::new(v4(src), v4("10.0.0.3"), 17, 28, 0, 64);
    assert_eq!(check_ipv4_source(&endpoint(), &from("10.0.0.2"), no_others), Ok(()));
    for other in ["10.0.0.3", "0.0.0.0", "127.0.0.1", "255.255.255.255"] {
        assert_eq!(
            check_ipv4_source(&endpoint(), &from(other), no_others),
            Err(DropReason::SpoofedIp),
            "{other}"
        );
        assert_eq!(check_ipv4_source(&free_endpoint(), &from(other), no_others), Ok(()));
    }
    let bare = crate::abi::EndpointInfo { ipv4: [0; 4], ..endpoint() };
    for others in [false, true] {
        let checked = check_ipv4_source(&bare, &from("0.0.0.0"), |_| others);
        assert_eq!(checked, Err(DropReason::SpoofedIp), "0.0.0.0 is nobody's");
    }
    let additional = |ip: &[u8; 4]| *ip == v4("10.0.0.100");
    assert_eq!(check_ipv4_source(&endpoint(), &from("10.0.0.100"), additional), Ok(()));
    let other = check_ipv4_source(&endpoint(), &from("10.0.0.101"), additional);
    assert_eq!(other, Err(DropReason::SpoofedIp));
}

#[test]
fn ipv6_sources() {
    let from = |src, dst| Ipv6Hdr::new(v6(src), v6(dst), 17, 8, 64);
    let check =
        |src, dst| check_ipv6_source(&endpoint(), &from(src, dst), |ip| *ip == v6("fd00::100"));
    assert_eq!(check("fd00::2", "fd00::3"), Ok(()), "its own");
    assert_eq!(check("fd00::100", "fd00::3"), Ok(()), "an additional one");
    assert_eq!(check("fe80::42:aff:fe00:2", "ff02::1"), Ok(()), "link-local of its MAC");
    assert_eq!(check("::", "ff02::1:ff00:2"), Ok(()), "detection of duplicates");
    assert_eq!(check("::", "fd00::3"), Err(DropReason::SpoofedIp), "nobody, to one host");
    for other in ["fd00::3", "fe80::1", "fe80::42:aff:fe00:3", "::1", "::ffff:10.0.0.2", "ff02::1"]
    {
        assert_eq!(check(other, "fd00::9"), Err(DropReason::SpoofedIp), "{other}");
        let free = check_ipv6_source(&free_endpoint(), &from(other, "fd00::9"), |_| false);
        assert_eq!(free, Ok(()), "{other}");
    }
    let bare = crate::abi::EndpointInfo { ipv6: [0; 16], ..endpoint() };
    assert!(!owns_ipv6(&bare, &[0; 16], |_| true), "no address is not an address");
    assert!(owns_ipv6(&bare, &v6("fe80::42:aff:fe00:2"), |_| false));
}

#[test]
fn shapes() {
    let v4_with = |first: u8, tot_len: u16, have| {
        let mut bytes: [u8; 20] =
            bytemuck::cast(Ipv4Hdr::new([10, 0, 0, 2], [10, 0, 0, 3], 17, tot_len, 0, 64));
        bytes[0] = first;
        check_ipv4_shape(&bytemuck::cast(bytes), have)
    };
    let malformed = Err(DropReason::Malformed);
    assert_eq!(v4_with(0x45, 28, 28), Ok(20));
    assert_eq!(v4_with(0x45, 28, 46), Ok(20), "Ethernet padding");
    assert_eq!(v4_with(0x4f, 60, 60), Ok(60), "all options");
    assert_eq!(v4_with(0x45, 29, 28), malformed.map(|()| 0), "claims more than there is");
    assert_eq!(v4_with(0x45, 19, 28), malformed.map(|()| 0), "shorter than its header");
    assert_eq!(v4_with(0x4f, 59, 60), malformed.map(|()| 0), "shorter than its options");
    assert_eq!(v4_with(0x44, 28, 28), malformed.map(|()| 0), "header below 20");
    assert_eq!(v4_with(0x65, 28, 28), malformed.map(|()| 0), "version");

    let v6_with = |len, have| check_ipv6_shape(&Ipv6Hdr::new([0; 16], [0; 16], 17, len, 64), have);
    assert_eq!(v6_with(8, 48), Ok(()));
    assert_eq!(v6_with(8, 60), Ok(()));
    assert_eq!(v6_with(8, 47), malformed);
    assert_eq!(v6_with(0, 70_000), Ok(()), "jumbogram");
    let v4: Ipv6Hdr = bytemuck::pod_read_unaligned(&[0x45u8; 40]);
    assert_eq!(check_ipv6_shape(&v4, u32::MAX), malformed);
}
