//! No packet bytes make a decision panic.

use bytemuck::pod_read_unaligned as read;
use proptest::prelude::*;

use super::{cases, endpoint, free_endpoint};
use crate::abi::{NetworkInfo, VtepId};
use crate::datapath::{arp, decap, ecn, encap, learn, nd, pmtu, source, tunnel_source};
use crate::wire::checksum::Sum;
use crate::wire::{
    ArpIpv4, EthHdr, Icmpv4Hdr, Icmpv6Hdr, Ipv4Hdr, Ipv6Hdr, LinkLayerOption, NeighbourHdr, TcpHdr,
    UdpHdr, VxlanHdr,
};

proptest! {
    #![proptest_config(cases(2000))]
    #[test]
    fn nothing_panics(
        bytes in prop::array::uniform32(any::<[u8; 4]>()).prop_map(|rows| {
            let mut bytes = [0u8; 128];
            bytes.copy_from_slice(rows.as_flattened());
            bytes
        }),
        len: u32,
        gso: u32,
        mtu: u32,
        free: bool,
        first in prop::sample::select(vec![0x45u8, 0x4f, 0x60, 0x00, 0xff]),
    ) {
        let mut bytes = bytes;
        bytes[0] = first;
        let ep = if free { free_endpoint() } else { endpoint() };
        let eth: EthHdr = read(&bytes[..14]);
        let ip: Ipv4Hdr = read(&bytes[..20]);
        let ip6: Ipv6Hdr = read(&bytes[..40]);
        let udp: UdpHdr = read(&bytes[20..28]);
        let tcp: TcpHdr = read(&bytes[20..40]);
        let vxlan: VxlanHdr = read(&bytes[28..36]);
        let arp: ArpIpv4 = read(&bytes[14..42]);
        let icmp: Icmpv4Hdr = read(&bytes[20..28]);
        let icmp6: Icmpv6Hdr = read(&bytes[40..48]);
        let message: NeighbourHdr = read(&bytes[40..64]);
        let option: LinkLayerOption = read(&bytes[64..72]);

        let _ = (eth.is_vlan(), udp.is_empty(), tcp.header_len(), icmp.is_frag_needed());
        let _ = (ip.header_checksum(), ip.is_fragment(), option.is_link_layer());
        let _ = source::check_mac(&ep, &eth);
        let _ = source::check_ipv4_source(&ep, &ip, |_| false);
        let _ = source::check_ipv6_source(&ep, &ip6, |_| false);
        let (flags, gateway_mac) = (len, eth.src);
        let net = NetworkInfo { flags, gateway_mac, gateway_ip: ip.src, ..NetworkInfo::NONE };
        let _ = tunnel_source::identify(&net, &eth, VtepId(gso), None);
        let _ = tunnel_source::check_host_ipv4(&net, &eth, &ip, &ip.dst);
        let _ = tunnel_source::check_host_arp(&net, &eth, &arp);
        let _ = tunnel_source::check_ipv4(&net, &ep, &ip, |_| false);
        let _ = tunnel_source::check_arp(&net, &ep, &arp, |_| false);
        if let Ok(header_len) = source::check_ipv4_shape(&ip, len) {
            prop_assert!((20..=60).contains(&header_len) && header_len <= len);
        }
        let _ = source::check_ipv6_shape(&ip6, len);
        let _ = source::check_ipv6_headers(&ip6, ip.protocol(), len);
        if let Ok(header_len) = decap::check_outer_ip(&ip, len) {
            prop_assert!(header_len + 30 <= len);
            let _ = decap::check_outer_udp(&udp, len - header_len);
        }
        let _ = decap::check_vxlan(&vxlan);
        let _ = decap::merged_frame_ok(gso, len, Some(mtu));
        let _ = decap::second_datagram_offset(gso, udp.checksum(), len);
        let _ = decap::starts_datagram(&vxlan);
        let _ = ecn::decap_ecn(ip.tos(), ip6.tclass());
        let _ = encap::entropy_port(encap::l2_flow_hash(&eth.dst, &eth.src, eth.ethertype()));
        let template = encap::ipv4_template(eth, ip.src, ip.dst, 4789);
        let mut headers = encap::EncapHeaders::new(&template, len, &eth);
        let _ = headers.outer.fit(gso as u16, ip.tos(), mtu);
        let _ = learn::valid_source(&eth.src);
        if arp::arp_query(&ep, &arp, |_| false).is_ok() {
            let _ = arp::arp_reply_frame(&arp, eth.src);
        }
        let _ = nd::nd_kind(&ep, &ip6, &icmp6);
        let _ = nd::nd_query(&ep, &ip6, &message, Some(&option), |_| false);
        let _ = nd::nd_query(&ep, &ip6, &message, None, |_| false);
        let _ = nd::check_router_solicit(&ep, &ip6, Some(&option));
        let _ = nd::nd_reply(eth.src, &ip6, &message, eth.dst);
        let _ = pmtu::longest_packet(len, gso, ip.header_len() + tcp.header_len());
        let _ = pmtu::icmp_allowed(&eth, &ip, Some(icmp.kind()));
        let _ = pmtu::icmpv6_allowed(&eth, &ip6, Some(icmp6.kind()));
        let _ = pmtu::path_mtu_from_icmp(icmp.next_hop_mtu(), mtu, gso);
        let quote: [u8; 64] = read(&bytes[..64]);
        let what = pmtu::Error { from: ip.dst, kind: 3, code: 4, mtu: mtu as u16 };
        let _ = pmtu::error(&eth, &ip, &what, 64, Sum::new().add_bytes(&quote));
        let _ = pmtu::packet_too_big(&eth, &ip6, mtu, Sum::new().add_bytes(&bytes).add_host_order(len));
    }
}
