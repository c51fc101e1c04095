//! Tests of the headers against an independent library and against random bytes.

use bytemuck::{bytes_of, cast, pod_read_unaligned};
use etherparse as ep;
use proptest::prelude::*;

use super::checksum::{Sum, update_u16};
use super::*;

/// The checksum by the independent library.
fn reference(bytes: &[u8]) -> u16 {
    ep::checksum::Sum16BitWords::new().add_slice(bytes).ones_complement().to_be()
}

fn ipv4(bytes: [u8; 20]) -> Ipv4Hdr {
    cast(bytes)
}

/// EtherTypes of VLAN tags: IEEE 802.1Q, 802.1ad, and what was in use before 802.1ad.
const VLAN_TAGS: [u16; 5] = [0x8100, 0x88a8, 0x9100, 0x9200, 0x9300];

proptest! {
    #[test]
    fn ethernet_is_what_the_library_reads(bytes: [u8; 14]) {
        let ours: EthHdr = cast(bytes);
        let (theirs, _) = ep::Ethernet2Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.dst, theirs.destination);
        prop_assert_eq!(ours.src, theirs.source);
        prop_assert_eq!(ours.ethertype(), theirs.ether_type.0);
        prop_assert_eq!(EthHdr::new(ours.dst, ours.src, ours.ethertype()), ours);
        prop_assert_eq!(ours.is_vlan(), VLAN_TAGS.contains(&theirs.ether_type.0));
    }

    #[test]
    fn every_vlan_tag_is_known(macs: [u8; 12], tag in prop::sample::select(VLAN_TAGS.to_vec())) {
        let mut bytes = [0; 14];
        bytes[..12].copy_from_slice(&macs);
        bytes[12..].copy_from_slice(&tag.to_be_bytes());
        prop_assert!(cast::<_, EthHdr>(bytes).is_vlan());
    }

    #[test]
    fn arp_is_what_the_library_writes(
        oper: u16, smac: [u8; 6], sip: [u8; 4], tmac: [u8; 6], tip: [u8; 4],
    ) {
        let theirs = ep::ArpEthIpv4Packet {
            operation: ep::ArpOperation(oper),
            sender_mac: smac,
            sender_ipv4: sip,
            target_mac: tmac,
            target_ipv4: tip,
        };
        let ours = ArpIpv4::new(oper, smac, sip, tmac, tip);
        prop_assert_eq!(bytes_of(&ours), &theirs.to_bytes()[..]);
        prop_assert!(ours.is_ethernet_ipv4());
        prop_assert_eq!(ours.oper(), oper);
    }

    #[test]
    fn arp_for_other_layers_is_known(bytes: [u8; 28], header in prop::sample::select(vec![
        [0, 1, 8, 0, 6, 4], [0, 2, 8, 0, 6, 4], [0, 1, 0x86, 0xdd, 6, 4], [0, 1, 8, 0, 8, 4],
        [0, 1, 8, 0, 6, 16], [1, 0, 0, 8, 6, 4],
    ])) {
        let mut bytes = bytes;
        bytes[..6].copy_from_slice(&header);
        let ours: ArpIpv4 = cast(bytes);
        let theirs = ep::ArpPacket::from_slice(&bytes)
            .ok()
            .and_then(|packet| packet.try_eth_ipv4().ok());
        prop_assert_eq!(ours.is_ethernet_ipv4(), theirs.is_some());
        if let Some(theirs) = theirs {
            prop_assert_eq!(ours.sender_mac, theirs.sender_mac);
            prop_assert_eq!(ours.sender_ip, theirs.sender_ipv4);
            prop_assert_eq!(ours.target_mac, theirs.target_mac);
            prop_assert_eq!(ours.target_ip, theirs.target_ipv4);
        }
    }

    #[test]
    fn ipv4_is_what_the_library_reads(mut bytes: [u8; 20]) {
        bytes[0] = 0x45;
        let ours = ipv4(bytes);
        let (theirs, _) = ep::Ipv4Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.version(), 4);
        prop_assert_eq!(ours.header_len() as usize, theirs.header_len());
        prop_assert_eq!(ours.tos(), (theirs.dscp.value() << 2) | theirs.ecn.value());
        prop_assert_eq!(ours.tot_len(), theirs.total_len);
        prop_assert_eq!(ours.id(), theirs.identification);
        prop_assert_eq!(ours.more_fragments(), theirs.more_fragments);
        prop_assert_eq!(ours.is_first(), theirs.fragment_offset.value() == 0);
        prop_assert_eq!(ours.is_fragment(), theirs.is_fragmenting_payload());
        prop_assert_eq!(ours.frag_off() & 0x1fff, theirs.fragment_offset.value());
        prop_assert_eq!(ours.ttl(), theirs.time_to_live);
        prop_assert_eq!(ours.protocol(), theirs.protocol.0);
        prop_assert_eq!(ours.checksum(), theirs.header_checksum);
        prop_assert_eq!((ours.src, ours.dst), (theirs.source, theirs.destination));
    }

    #[test]
    fn ipv4_checksum_is_the_librarys(mut bytes: [u8; 20]) {
        bytes[0] = 0x45;
        // The library cannot hold the reserved flag.
        bytes[6] &= 0x7f;
        let mut ours = ipv4(bytes);
        let (theirs, _) = ep::Ipv4Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.header_checksum(), theirs.calc_header_checksum());
        ours.set_checksum(ours.header_checksum());
        prop_assert_eq!(reference(bytes_of(&ours)), 0);
    }

    #[test]
    fn ipv4_new_is_what_the_library_writes(
        src: [u8; 4], dst: [u8; 4], protocol: u8, len in 0u16..=65_515, tos: u8, ttl: u8,
    ) {
        let mut theirs =
            ep::Ipv4Header::new(len, ttl, ep::IpNumber(protocol), src, dst).unwrap();
        theirs.dscp = ep::IpDscp::try_new(tos >> 2).unwrap();
        theirs.ecn = ep::IpEcn::try_new(tos & 3).unwrap();
        theirs.identification = 0;
        theirs.dont_fragment = true;
        theirs.header_checksum = theirs.calc_header_checksum();
        let ours = Ipv4Hdr::new(src, dst, protocol, len + 20, tos, ttl);
        prop_assert_eq!(bytes_of(&ours), &theirs.to_bytes()[..]);
    }

    #[test]
    fn set_tos_keeps_the_checksum_right(mut bytes: [u8; 20], tos: u8) {
        bytes[0] = 0x45;
        let mut header = ipv4(bytes);
        header.set_checksum(header.header_checksum());
        header.set_tos(tos);
        prop_assert_eq!(header.tos(), tos);
        prop_assert_eq!(header.checksum(), header.header_checksum());
    }

    #[test]
    fn ipv6_is_what_the_library_reads(mut bytes: [u8; 40], tclass: u8) {
        bytes[0] = 0x60 | (bytes[0] & 0x0f);
        let mut ours: Ipv6Hdr = pod_read_unaligned(&bytes);
        let (theirs, _) = ep::Ipv6Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.version(), 6);
        prop_assert_eq!(ours.tclass(), theirs.traffic_class);
        prop_assert_eq!(ours.payload_len(), theirs.payload_length);
        prop_assert_eq!(ours.next_header(), theirs.next_header.0);
        prop_assert_eq!(ours.hop_limit(), theirs.hop_limit);
        prop_assert_eq!((ours.src, ours.dst), (theirs.source, theirs.destination));

        ours.set_tclass(tclass);
        let mut expected = theirs.clone();
        expected.traffic_class = tclass;
        prop_assert_eq!(bytes_of(&ours), &expected.to_bytes()[..]);
    }

    #[test]
    fn ipv6_new_is_what_the_library_writes(
        src: [u8; 16], dst: [u8; 16], next: u8, len: u16, hops: u8,
    ) {
        let theirs = ep::Ipv6Header {
            traffic_class: 0,
            flow_label: ep::Ipv6FlowLabel::ZERO,
            payload_length: len,
            next_header: ep::IpNumber(next),
            hop_limit: hops,
            source: src,
            destination: dst,
        };
        let ours = Ipv6Hdr::new(src, dst, next, len, hops);
        prop_assert_eq!(bytes_of(&ours), &theirs.to_bytes()[..]);
    }

    #[test]
    fn extension_lengths_are_the_librarys(next in prop::sample::select(vec![
        0u8, 43, 44, 51, 60, 135,
    ]), mut bytes: [u8; 2]) {
        // The library refuses an authentication header of length 0.
        bytes[1] = bytes[1].max(1);
        let mut chain = vec![0u8; 4096];
        chain[..2].copy_from_slice(&bytes);
        let (_, rest) =
            ep::Ipv6Header::skip_header_extension_in_slice(&chain, ep::IpNumber(next)).unwrap();
        prop_assert_eq!(
            ipv6::extension_len(next, bytes[1]),
            Some((chain.len() - rest.len()) as u32)
        );
    }

    #[test]
    fn udp_is_what_the_library_reads(bytes: [u8; 8]) {
        let ours: UdpHdr = cast(bytes);
        let theirs = ep::UdpHeader::from_bytes(bytes);
        prop_assert_eq!(ours.src_port(), theirs.source_port);
        prop_assert_eq!(ours.dst_port(), theirs.destination_port);
        prop_assert_eq!(ours.len(), theirs.length);
        prop_assert_eq!(ours.checksum(), theirs.checksum);
        prop_assert_eq!(ours.is_empty(), theirs.length < 8);
        let without = ep::UdpHeader { checksum: 0, ..theirs };
        let made = UdpHdr::new(ours.src_port(), ours.dst_port(), ours.len());
        prop_assert_eq!(bytes_of(&made), &without.to_bytes()[..]);
    }

    #[test]
    fn tcp_is_what_the_library_reads(mut bytes: [u8; 20]) {
        bytes[12] = 0x50 | (bytes[12] & 0x0f);
        let ours: TcpHdr = cast(bytes);
        let (theirs, _) = ep::TcpHeader::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.src_port(), theirs.source_port);
        prop_assert_eq!(ours.dst_port(), theirs.destination_port);
        prop_assert_eq!(ours.start().seq(), theirs.sequence_number);
        prop_assert_eq!(ours.start().ack(), theirs.acknowledgment_number);
        prop_assert_eq!(ours.header_len() as usize, theirs.header_len());
        prop_assert_eq!(ours.window(), theirs.window_size);
        prop_assert_eq!(ours.checksum(), theirs.checksum);
        prop_assert_eq!(ours.start().flags() & 0x02 != 0, theirs.syn);
        prop_assert_eq!(ours.start().flags() & 0x10 != 0, theirs.ack);
    }

    #[test]
    fn icmpv4_frag_needed_is_what_the_library_reads(bytes: [u8; 8], frag: bool) {
        let mut bytes = bytes;
        if frag {
            bytes[..2].copy_from_slice(&[3, 4]);
        }
        let ours: Icmpv4Hdr = cast(bytes);
        prop_assert_eq!(&[ours.kind(), ours.code()], &bytes[..2]);
        let theirs = ep::Icmpv4Slice::from_slice(&bytes).map(|slice| slice.header());
        let mtu = match theirs.map(|header| (header.checksum, header.icmp_type)) {
            Ok((checksum, ep::Icmpv4Type::DestinationUnreachable(
                ep::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
            ))) => {
                prop_assert_eq!(ours.checksum(), checksum);
                Some(next_hop_mtu)
            }
            _ => None,
        };
        prop_assert_eq!(ours.is_frag_needed().then(|| ours.next_hop_mtu()), mtu);
    }

    #[test]
    fn icmpv6_is_what_the_library_reads(mut bytes: [u8; 8], kind in 130u8..140) {
        bytes[..2].copy_from_slice(&[kind, 0]);
        let ours: Icmpv6Hdr = cast(bytes);
        let (theirs, _) = ep::Icmpv6Header::from_slice(&bytes).unwrap();
        prop_assert_eq!(ours.kind(), theirs.icmp_type.type_u8());
        prop_assert_eq!(ours.code(), theirs.icmp_type.code_u8());
        prop_assert_eq!(ours.checksum(), theirs.checksum);
        let discovery = matches!(
            theirs.icmp_type,
            ep::Icmpv6Type::RouterSolicitation
                | ep::Icmpv6Type::RouterAdvertisement(_)
                | ep::Icmpv6Type::NeighborSolicitation
                | ep::Icmpv6Type::NeighborAdvertisement(_)
                | ep::Icmpv6Type::Redirect
        );
        prop_assert_eq!(ours.is_neighbour_discovery(), discovery);
    }

    #[test]
    fn neighbour_advert_is_what_the_library_reads(flags: u8, target: [u8; 16], mac: [u8; 6]) {
        let message = NeighbourHdr::new(icmp::V6_NEIGHBOUR_ADVERT, flags, target);
        let (theirs, rest) = ep::Icmpv6Header::from_slice(bytes_of(&message)).unwrap();
        let ep::Icmpv6Type::NeighborAdvertisement(advert) = theirs.icmp_type else {
            panic!("{theirs:?} is no advertisement");
        };
        prop_assert_eq!(advert.solicited, message.flags() & icmp::NA_SOLICITED != 0);
        prop_assert_eq!(advert.r#override, message.flags() & icmp::NA_OVERRIDE != 0);
        prop_assert_eq!(rest, &target[..]);

        let option = LinkLayerOption::new(icmp::OPT_TARGET_LINK_LAYER, mac);
        prop_assert_eq!(bytes_of(&option), &[&[2, 1], &mac[..]].concat()[..]);
        prop_assert_eq!(option.option_len(), 8);
        prop_assert!(option.is_link_layer());
    }

    /// RFC 7348 §5: R R R R I R R R, 24 reserved bits, VNI, 8 reserved bits.
    #[test]
    fn vxlan_is_rfc_7348(bytes: [u8; 8]) {
        let header: VxlanHdr = cast(bytes);
        let word = u64::from_be_bytes(bytes);
        prop_assert_eq!(header.is_vni_valid(), word >> 59 & 1 == 1);
        prop_assert_eq!(u64::from(header.vni()), word >> 8 & 0xff_ffff);
        prop_assert_eq!(header.reserved_bits_set(), word & 0xf7ff_ffff_0000_00ff != 0);

        let made = VxlanHdr::new(header.vni());
        prop_assert!(made.is_vni_valid() && !made.reserved_bits_set());
        prop_assert_eq!(made.vni(), header.vni());
    }

    #[test]
    fn sum_is_the_librarys(a: [u8; 64], b: [u8; 7], word: u16, words: u32) {
        let theirs = ep::checksum::Sum16BitWords::new()
            .add_slice(&a)
            .add_4bytes(words.to_be_bytes())
            .add_2bytes(word.to_be_bytes())
            .add_slice(&b)
            .ones_complement()
            .to_be();
        let ours = Sum::new().add_bytes(&a).add_u32(words).add_u16(word).add_bytes(&b);
        prop_assert_eq!(ours.checksum(), theirs);
    }

    /// The sum of `bpf_csum_diff`: of native words, folded only to 32 bits.
    #[test]
    fn a_sum_in_host_order_is_the_same(data: [u8; 64], word: u16) {
        let (words, _) = data.as_chunks::<4>();
        let native = words.iter().fold(0u64, |sum, w| sum + u64::from(u32::from_ne_bytes(*w)));
        let native = (native >> 32) + (native & 0xffff_ffff);
        let native = ((native >> 32) + (native & 0xffff_ffff)) as u32;
        prop_assert_eq!(
            Sum::new().add_u16(word).add_host_order(native).checksum(),
            Sum::new().add_bytes(&data).add_u16(word).checksum()
        );
    }

    #[test]
    fn pseudo_headers_are_the_librarys(
        src6: [u8; 16], dst6: [u8; 16], payload: [u8; 32],
        ports: (u16, u16),
    ) {
        let udp = UdpHdr::new(ports.0, ports.1, 40);
        let sum = Sum::new().add_bytes(&cast::<UdpHdr, [u8; 8]>(udp)).add_bytes(&payload);
        let theirs = ep::UdpHeader::from_bytes(cast(udp));
        // RFC 768: a computed 0 is sent as all ones.
        let sent = |checksum: u16| if checksum == 0 { 0xffff } else { checksum };
        prop_assert_eq!(
            sent(sum.add_pseudo_ipv6(&src6, &dst6, ipv4::PROTO_UDP, 40).checksum()),
            theirs.calc_checksum_ipv6_raw(src6, dst6, &payload).unwrap()
        );
    }

    /// The first word is not zero, as in every header: for data that is all zero, the update and
    /// the new sum give different forms of zero (RFC 1624 §3).
    #[test]
    fn incremental_update_equals_recomputation(
        mut data: [u8; 40], word16: u16, at in 1usize..=9,
    ) {
        data[0] |= 0x40;
        let before = Sum::new().add_bytes(&data).checksum();

        let old = u16::from_be_bytes(data[at * 4..at * 4 + 2].try_into().unwrap());
        let mut changed = data;
        changed[at * 4..at * 4 + 2].copy_from_slice(&word16.to_be_bytes());
        prop_assert_eq!(
            update_u16(before, old, word16), Sum::new().add_bytes(&changed).checksum()
        );
    }

    #[test]
    fn fold_is_congruent_and_final(words in prop::collection::vec(any::<u32>(), 0..200)) {
        let mut sum = Sum::new();
        let mut plain = 0u64;
        for word in words {
            sum = sum.add_u32(word);
            plain += u64::from(word);
        }
        prop_assert_eq!(u64::from(sum.fold()) % 0xffff, plain % 0xffff);
        prop_assert_eq!(sum.fold() == 0, plain == 0);
    }

    #[test]
    fn multicast_is_the_standard_librarys(v4: [u8; 4], mut v6: [u8; 16], force: bool) {
        if force {
            v6[0] = 0xff;
        }
        prop_assert_eq!(
            ipv4::is_multicast(&v4), core::net::Ipv4Addr::from(v4).is_multicast()
        );
        let theirs = core::net::Ipv6Addr::from(v6);
        prop_assert_eq!(ipv6::is_multicast(&v6), theirs.is_multicast());
        prop_assert_eq!(ipv6::is_unspecified(&v6), theirs.is_unspecified());
    }
}

/// RFC 1624 §4: the example that the older equation gets wrong.
#[test]
fn update_of_rfc_1624() {
    assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn addresses_of_ipv6_over_ethernet() {
    let parse = |text: &str| text.parse::<core::net::Ipv6Addr>().unwrap().octets();
    // RFC 4291 appendix A, with the universal bit inverted.
    assert_eq!(
        ipv6::link_local(&[0x02, 0x42, 0x0a, 0, 0, 2]),
        parse("fe80::42:aff:fe00:2"),
        "the local bit of a Docker-like MAC is cleared"
    );
    assert_eq!(
        ipv6::link_local(&[0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]),
        parse("fe80::3656:78ff:fe9a:bcde")
    );
    let mac = |text| ipv6::mac_of_link_local(&parse(text));
    assert_eq!(mac("fe80::3656:78ff:fe9a:bcde"), Some([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]));
    for other in ["fe80::1", "fe80:0:0:1:3656:78ff:fe9a:bcde", "fd00::3656:78ff:fe9a:bcde"] {
        assert_eq!(mac(other), None, "{other}");
    }
    assert_eq!(ethernet::ipv6_multicast(&parse("ff02::1:ff00:2")), [0x33, 0x33, 0xff, 0, 0, 2]);
    assert!(ipv6::is_solicited_node(&parse("ff02::1:ff12:3456")));
    assert!(!ipv6::is_solicited_node(&parse("ff02::1")));
    assert!(!ipv6::is_solicited_node(&parse("ff02::2:ff12:3456")));
    assert_eq!(ipv6::ALL_NODES, parse("ff02::1"));
}

#[test]
fn group_and_zero_macs() {
    assert!(ethernet::is_multicast(&ethernet::BROADCAST));
    assert!(ethernet::is_multicast(&[0x01, 0, 0x5e, 0, 0, 1]));
    assert!(!ethernet::is_multicast(&[0x02, 0x42, 10, 0, 0, 2]));
    for group in [[0x01, 0, 0x5e, 0, 0, 22], [0x33, 0x33, 0xff, 0, 0, 2]] {
        assert!(ethernet::is_group_of_ip(&group));
    }
    for other in [ethernet::BROADCAST, [0x01, 0x80, 0xc2, 0, 0, 0], [0x33, 0x42, 10, 0, 0, 2]] {
        assert!(!ethernet::is_group_of_ip(&other));
    }
    assert!(ethernet::is_zero(&[0; 6]));
    for byte in 0..6 {
        let mut mac = [0; 6];
        mac[byte] = 0x10;
        assert!(!ethernet::is_zero(&mac));
    }
}
