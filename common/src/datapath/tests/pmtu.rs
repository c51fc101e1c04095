use bytemuck::bytes_of;
use etherparse as ep;
use proptest::prelude::*;

use super::{MAC, OTHER_MAC, v4, v6};
use crate::datapath::pmtu::{
    Error, QUOTE_V4_LEN, could_be_sent, error, for_ethertype, icmp_allowed, icmpv6_allowed,
    is_of_tunnel, longest_packet, packet_too_big, path_mtu_from_icmp, quoted_vni,
};
use crate::wire::checksum::Sum;
use crate::wire::icmp::{V4_FRAG_NEEDED, V4_UNREACHABLE};
use crate::wire::{EthHdr, Ipv4Hdr, Ipv6Hdr, UdpHdr, VxlanHdr};

#[test]
fn gso_frames_are_judged_by_their_segments() {
    assert_eq!(longest_packet(1450, 0, 40), 1450, "not a GSO frame");
    assert_eq!(longest_packet(65_000, 1410, 40), 1450);
    assert_eq!(longest_packet(65_000, 1411, 40), 1451);
    assert_eq!(longest_packet(100, 1460, 40), 100, "shorter than one segment");
    assert_eq!(longest_packet(u32::MAX, u32::MAX, u32::MAX), u32::MAX);
}

#[test]
fn path_mtus() {
    assert_eq!(path_mtu_from_icmp(1400, 1450, 50), Some(1350));
    assert_eq!(path_mtu_from_icmp(1500, 1450, 50), None, "what the route takes");
    assert_eq!(path_mtu_from_icmp(9000, 1450, 50), None, "more than the route takes");
    assert_eq!(path_mtu_from_icmp(0, 1450, 50), None, "an old router");
    for mtu in [1, 68, 551] {
        assert_eq!(path_mtu_from_icmp(mtu, 1450, 50), None, "{mtu}: below Linux's minimum");
    }
    assert_eq!(path_mtu_from_icmp(552, 1450, 50), Some(502));
    assert_eq!(path_mtu_from_icmp(553, 1450, 50), Some(503));
    assert_eq!(path_mtu_from_icmp(552, 502, 50), None, "known already");
    assert_eq!(path_mtu_from_icmp(600, 400, 50), None, "a route lower still");
}

#[test]
fn no_path_mtu_stops_ipv6() {
    let (ipv4, ipv6) = (0x0800, 0x86dd);
    assert_eq!(for_ethertype(ipv4, 502, 1450), 502);
    assert_eq!(for_ethertype(ipv6, 502, 1450), 1280);
    assert_eq!(for_ethertype(ipv6, 1279, 1450), 1280);
    assert_eq!(for_ethertype(ipv6, 1300, 1450), 1300);
    assert_eq!(for_ethertype(ipv6, 502, 1000), 1000, "the route takes no more");
    assert_eq!(for_ethertype(0x0806, 502, 1450), 502);
}

/// The headers of a datagram of the tunnel from 192.0.2.1, with `bytes` of UDP.
fn tunnelled(src_port: u16, bytes: u16) -> (Ipv4Hdr, UdpHdr) {
    let ip = Ipv4Hdr::new(v4("192.0.2.1"), v4("192.0.2.2"), 17, bytes + 20, 0, 64);
    (ip, UdpHdr::new(src_port, 4789, bytes))
}

fn with_byte(ip: Ipv4Hdr, at: usize, value: u8) -> Ipv4Hdr {
    let mut bytes: [u8; 20] = bytemuck::cast(ip);
    bytes[at] = value;
    bytemuck::cast(bytes)
}

#[test]
fn datagrams_of_the_tunnel() {
    let own = v4("192.0.2.1");
    let (ip, udp) = tunnelled(50_000, 1480);
    assert!(is_of_tunnel(&own, &ip, &udp));
    assert!(!is_of_tunnel(&v4("192.0.2.3"), &ip, &udp), "of another host");
    assert!(!is_of_tunnel(&own, &with_byte(ip, 9, 6), &udp), "TCP");
    assert!(!is_of_tunnel(&own, &with_byte(ip, 0, 0x46), &udp), "with options");
    let mut bytes: [u8; 8] = bytemuck::cast(udp);
    bytes[7] = 1;
    assert!(!is_of_tunnel(&own, &ip, &bytemuck::cast(bytes)), "of a socket");
}

#[test]
fn datagrams_that_the_programs_may_have_sent() {
    let could = |src_port, bytes, mtu| {
        let (ip, udp) = tunnelled(src_port, bytes);
        could_be_sent(&ip, &udp, mtu)
    };
    assert!(could(49_152, 1480, 1400) && could(65_535, 1480, 1499));
    assert!(!could(49_151, 1480, 1400) && !could(0, 1480, 1400), "another source port");
    assert!(!could(50_000, 1480, 1500) && !could(50_000, 100, 1400), "within the MTU");
    assert!(could(50_000, 1480, 1), "the MTU itself is not judged");
    let (ip, udp) = tunnelled(50_000, 1480);
    assert!(!could_be_sent(&with_byte(ip, 6, 0x20), &udp, 1400), "a fragment");
    assert!(!could_be_sent(&with_byte(ip, 7, 1), &udp, 1400), "a later fragment");
    assert!(could_be_sent(&with_byte(ip, 3, 0), &udp, 1400), "old systems change the length");
}

#[test]
fn quoted_vxlan_headers() {
    assert_eq!(quoted_vni(&VxlanHdr::new(0xab_cdef)), Some(0xab_cdef));
    let with = |at: usize, value: u8| {
        let mut bytes: [u8; 8] = bytemuck::cast(VxlanHdr::new(256));
        bytes[at] = value;
        quoted_vni(&bytemuck::cast(bytes))
    };
    assert_eq!(with(0, 0), None, "the I flag is clear");
    assert_eq!(with(0, 0x88), None, "another flag");
    for at in [1, 2, 3, 7] {
        assert_eq!(with(at, 1), None, "reserved byte {at}");
    }
}

fn eth(dst: [u8; 6], src: [u8; 6]) -> EthHdr {
    EthHdr::new(dst, src, 0x0800)
}

#[test]
fn who_gets_an_icmp_error() {
    let unicast = eth(OTHER_MAC, MAC);
    let ip = |src, dst, protocol| Ipv4Hdr::new(v4(src), v4(dst), protocol, 1500, 0, 64);
    let tcp = ip("10.0.0.2", "10.0.0.3", 6);
    assert!(icmp_allowed(&unicast, &tcp, None));
    assert!(!icmp_allowed(&eth([0xff; 6], MAC), &tcp, None), "broadcast frame");
    assert!(!icmp_allowed(&eth([1, 0, 0x5e, 1, 1, 1], MAC), &tcp, None), "multicast frame");
    assert!(!icmp_allowed(&eth(OTHER_MAC, [1, 0, 0, 0, 0, 0]), &tcp, None), "group source");
    for bad in ["0.0.0.0", "224.0.0.1", "239.255.0.1", "255.255.255.255", "240.0.0.1", "127.0.0.1"]
    {
        assert!(!icmp_allowed(&unicast, &ip("10.0.0.2", bad, 6), None), "to {bad}");
        assert!(!icmp_allowed(&unicast, &ip(bad, "10.0.0.3", 6), None), "from {bad}");
    }
    let fragment = |high, low| {
        let mut bytes: [u8; 20] = bytemuck::cast(tcp);
        bytes[6..8].copy_from_slice(&[high, low]);
        bytemuck::cast::<_, Ipv4Hdr>(bytes)
    };
    assert!(icmp_allowed(&unicast, &fragment(0x20, 0), None), "first fragment");
    assert!(!icmp_allowed(&unicast, &fragment(0x20, 1), None), "middle fragment");
    assert!(!icmp_allowed(&unicast, &fragment(0, 1), None), "last fragment");

    let icmp = ip("10.0.0.2", "10.0.0.3", 1);
    for kind in 0..=255 {
        // RFC 1122 §3.2.2: the error messages.
        let error = [3, 4, 5, 11, 12].contains(&kind);
        assert_eq!(icmp_allowed(&unicast, &icmp, Some(kind)), !error, "type {kind}");
    }
    assert!(!icmp_allowed(&unicast, &icmp, None), "type unknown");
}

#[test]
fn who_gets_an_icmpv6_error() {
    let unicast = eth(OTHER_MAC, MAC);
    let ip = |src, dst, next| Ipv6Hdr::new(v6(src), v6(dst), next, 1460, 64);
    assert!(icmpv6_allowed(&unicast, &ip("fd00::2", "fd00::3", 6), None));
    assert!(!icmpv6_allowed(&unicast, &ip("::", "fd00::3", 6), None));
    assert!(!icmpv6_allowed(&unicast, &ip("fd00::2", "::", 6), None));
    assert!(!icmpv6_allowed(&unicast, &ip("ff02::1", "fd00::3", 6), None));
    assert!(!icmpv6_allowed(&unicast, &ip("fd00::2", "ff02::1", 6), None));
    assert!(!icmpv6_allowed(
        &eth([0x33, 0x33, 0, 0, 0, 1], MAC),
        &ip("fd00::2", "fd00::3", 6),
        None
    ));
    let icmp = ip("fd00::2", "fd00::3", 58);
    for kind in 0..=255u8 {
        let allowed = kind >= 128 && kind != 137;
        assert_eq!(icmpv6_allowed(&unicast, &icmp, Some(kind)), allowed, "type {kind}");
    }
    assert!(!icmpv6_allowed(&unicast, &icmp, None), "type unknown");
}

proptest! {
    #[test]
    fn frag_needed_with_its_quote_is_a_packet(
        src: [u8; 4], dst: [u8; 4], mtu: u16, payload: [u8; 64],
    ) {
        let ip = Ipv4Hdr::new(src, dst, 17, 1500, 0, 64);
        let mut quote = payload;
        quote[..20].copy_from_slice(bytes_of(&ip));
        let what = Error { from: ip.dst, kind: V4_UNREACHABLE, code: V4_FRAG_NEEDED, mtu };
        let sum = Sum::new().add_bytes(&quote);
        let headers = error(&eth(OTHER_MAC, MAC), &ip, &what, QUOTE_V4_LEN as u16, sum);
        let frame = [bytes_of(&headers), &quote].concat();

        let packet = ep::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(ep::LinkSlice::Ethernet2(eth)) = packet.link else { panic!("no Ethernet") };
        prop_assert_eq!((eth.source(), eth.destination()), (OTHER_MAC, MAC));
        let Some(ep::NetSlice::Ipv4(outer)) = packet.net else { panic!("no IPv4") };
        let outer = outer.header().to_header();
        prop_assert_eq!((outer.source, outer.destination), (dst, src));
        prop_assert_eq!(usize::from(outer.total_len), frame.len() - 14);
        prop_assert_eq!(outer.header_checksum, outer.calc_header_checksum());
        let Some(ep::TransportSlice::Icmpv4(icmp)) = packet.transport else { panic!("no ICMP") };
        let sum = ep::checksum::Sum16BitWords::new().add_slice(icmp.slice());
        prop_assert_eq!(sum.ones_complement(), 0);
        prop_assert_eq!(icmp.icmp_type(), ep::Icmpv4Type::DestinationUnreachable(
            ep::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu },
        ));
        prop_assert_eq!(icmp.payload(), &quote[..]);
    }

    #[test]
    fn packet_too_big_with_its_quote_is_a_packet(
        src: [u8; 16], dst: [u8; 16], mtu: u32, payload: [u8; 88],
    ) {
        let ip = Ipv6Hdr::new(src, dst, 17, 1460, 64);
        let mut quote = [0; 128];
        quote[..40].copy_from_slice(bytes_of(&ip));
        quote[40..].copy_from_slice(&payload);
        let headers = packet_too_big(&eth(OTHER_MAC, MAC), &ip, mtu, Sum::new().add_bytes(&quote));
        let frame = [bytes_of(&headers), &quote].concat();

        let packet = ep::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(ep::LinkSlice::Ethernet2(eth)) = packet.link else { panic!("no Ethernet") };
        prop_assert_eq!((eth.source(), eth.destination()), (OTHER_MAC, MAC));
        let Some(ep::NetSlice::Ipv6(outer)) = packet.net else { panic!("no IPv6") };
        let outer = outer.header();
        prop_assert_eq!((outer.source(), outer.destination()), (dst, src));
        prop_assert_eq!(usize::from(outer.payload_length()), frame.len() - 54);
        let Some(ep::TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
        prop_assert!(icmp.is_checksum_valid(dst, src));
        prop_assert_eq!(icmp.icmp_type(), ep::Icmpv6Type::PacketTooBig { mtu });
        prop_assert_eq!(icmp.payload(), &quote[..]);
        prop_assert!(frame.len() - 14 <= 1280, "RFC 4443 §2.4 (c)");
    }

    #[test]
    fn a_learnt_path_mtu_only_lowers(next_hop: u16, route: u32) {
        if let Some(inner) = path_mtu_from_icmp(next_hop, route, 50) {
            prop_assert!(inner < route && inner >= 502);
            prop_assert!(inner + 50 == u32::from(next_hop));
        }
    }
}
