//! Frames of containers, of external hosts and of the tunnel: the functions of `common` that the
//! programs call for each of their headers.

use bytemuck::{Pod, pod_read_unaligned};
use culvert_common::{
    abi::{EndpointInfo, Flow, NetworkInfo, Tuple, VtepId, kind},
    datapath::{arp, decap, learn, nat, nd, pmtu, segment::TcpSegment, source, tunnel_source},
    wire::{
        ArpIpv4, EthHdr, Icmpv4Hdr, Icmpv6Hdr, Ipv4Hdr, Ipv6Hdr, LinkLayerOption, NeighbourHdr,
        TcpStart, UdpHdr, VxlanHdr,
        checksum::{Sum, is_whole},
        ethernet::{ETH_P_ARP, ETH_P_IP, ETH_P_IPV6},
        ipv4::{PROTO_ICMP, PROTO_TCP, PROTO_UDP},
        ipv6::{NEXT_ICMPV6, extension_len},
    },
};
use culvert_tests::chaos::{self, Random};

use crate::input::{Input, corpus};

/// Frames that are read.
const FEW: u32 = 100_000;
const MANY: u32 = 20_000_000;

/// Length in bytes of the longest frame.
const LONGEST: usize = 2000;

/// Bytes that mean something: versions and lengths of headers, protocols, types.
const BYTES: [u8; 16] = [0, 1, 2, 3, 4, 6, 8, 17, 0x3a, 0x45, 0x46, 0x4f, 0x60, 0x86, 0x87, 0xff];

/// The sender of the frames in the corpus.
const ENDPOINT: EndpointInfo = EndpointInfo {
    vni: 0x00a1_b2c3,
    mac: [0x02, 0x42, 10, 0, 0, 2],
    mtu: 1450,
    ipv4: [10, 0, 0, 2],
    ..EndpointInfo::NONE
};
const NETWORK: NetworkInfo = NetworkInfo {
    gateway_ip: [10, 0, 0, 1],
    gateway_mac: [0x02, 0x42, 10, 0, 0, 1],
    ..NetworkInfo::NONE
};
/// The VTEP address of this host.
const OUR_VTEP: [u8; 4] = [192, 0, 2, 1];

/// A copy of the header at an offset. `None` if the bytes end before.
fn header<T: Pod>(bytes: &[u8], at: usize) -> Option<T> {
    bytes.get(at..)?.get(..size_of::<T>()).map(pod_read_unaligned)
}

/// Reads a frame as the programs do. Returns the number of headers that it has.
pub(crate) fn read(frame: &[u8]) -> u32 {
    frame_in(frame, 2)
}

/// `depth`: how many frames of a tunnel may be inside each other.
fn frame_in(frame: &[u8], depth: u32) -> u32 {
    let Some(eth) = header::<EthHdr>(frame, 0) else { return 0 };
    let _ = source::check_mac(&ENDPOINT, &eth);
    let _ = tunnel_source::identify(&NETWORK, &eth, VtepId(1), None);
    let packet = &frame[EthHdr::LEN..];
    let inside = match eth.ethertype() {
        ETH_P_ARP => arp_packet(&eth, packet),
        ETH_P_IP => ipv4_packet(&eth, packet, depth),
        ETH_P_IPV6 => ipv6_packet(&eth, packet),
        _ => 0,
    };
    1 + inside
}

fn arp_packet(eth: &EthHdr, bytes: &[u8]) -> u32 {
    let Some(packet) = header::<ArpIpv4>(bytes, 0) else { return 0 };
    let _ = tunnel_source::check_host_arp(&NETWORK, eth, &packet);
    let _ = tunnel_source::check_arp(&NETWORK, &ENDPOINT, &packet, |_| false);
    let _ = learn::heard(&packet, 7);
    if arp::arp_query(&ENDPOINT, &packet, |_| false).is_ok() {
        let _ = arp::arp_reply_frame(&packet, eth.dst);
    }
    1
}

fn ipv4_packet(eth: &EthHdr, packet: &[u8], depth: u32) -> u32 {
    let Some(ip) = header::<Ipv4Hdr>(packet, 0) else { return 0 };
    let _ = source::check_ipv4_source(&ENDPOINT, &ip, |_| false);
    let _ = tunnel_source::check_ipv4(&NETWORK, &ENDPOINT, &ip, |_| false);
    let _ = tunnel_source::check_host_ipv4(&NETWORK, eth, &ip, &ip.dst);
    stays_right(&ip);
    let len = packet.len() as u32;
    let Ok(header_len) = source::check_ipv4_shape(&ip, len) else { return 0 };
    // The packet is in the frame, and the header in the packet.
    let upper = &packet[header_len as usize..usize::from(ip.tot_len())];
    if !ip.is_first() {
        return 1;
    }
    let first = header::<[u8; nat::UPPER_LEN]>(upper, 0).unwrap_or_default();
    let _ = nat::upper(ip.protocol(), &first);
    let inside = match ip.protocol() {
        PROTO_TCP => tcp_segment(upper),
        PROTO_UDP => datagram(&ip, packet, depth),
        PROTO_ICMP => icmp_message(eth, &ip, upper),
        _ => 0,
    };
    1 + inside
}

/// A correct checksum of the header stays correct when an address and the hop limit change.
fn stays_right(ip: &Ipv4Hdr) {
    let is_right = |ip: &Ipv4Hdr| {
        let bytes: [u8; Ipv4Hdr::LEN] = bytemuck::cast(*ip);
        is_whole(Sum::new().add_bytes(&bytes))
    };
    let went = nat::readdress(ip, OUR_VTEP, ip.src, ip.ttl() > 0);
    assert!(!is_right(ip) || is_right(&went), "{ip:?} has become {went:?}");
}

fn tcp_segment(upper: &[u8]) -> u32 {
    let Some(start) = header::<TcpStart>(upper, 0) else { return 0 };
    let segment = TcpSegment::new(&start, upper.len() as u32);
    // The segment begins a flow, and is sent again, or comes back.
    let orig = Flow {
        kind: kind::ORIG,
        seen: segment.opening(),
        last_ack: segment.ack,
        first_seq: segment.first(),
        next_seq: segment.end,
        ..Flow::default()
    };
    let reply = Flow { seen: segment.opposite(), ..Flow::default() };
    for (flow, other) in [(&orig, &reply), (&reply, &orig)] {
        let _ = (segment.is_plain(flow), segment.follow(flow, other));
    }
    1
}

/// A datagram, and the frame in it if it is VXLAN.
fn datagram(ip: &Ipv4Hdr, packet: &[u8], depth: u32) -> u32 {
    let upper = &packet[ip.header_len() as usize..];
    let Some(udp) = header::<UdpHdr>(upper, 0) else { return 0 };
    let _ = (pmtu::is_of_tunnel(&OUR_VTEP, ip, &udp), pmtu::could_be_sent(ip, &udp, 1400));
    let Ok(header_len) = decap::check_outer_ip(ip, packet.len() as u32) else { return 1 };
    if decap::check_outer_udp(&udp, u32::from(ip.tot_len()) - header_len).is_err() {
        return 1;
    }
    // The datagram has room for the headers of VXLAN and of a frame.
    let inner = &upper[UdpHdr::LEN + VxlanHdr::LEN..usize::from(udp.len())];
    assert!(inner.len() >= EthHdr::LEN);
    let Some(vxlan) = header::<VxlanHdr>(upper, UdpHdr::LEN) else { return 1 };
    let _ = (pmtu::quoted_vni(&vxlan), decap::starts_datagram(&vxlan));
    if depth == 0 || udp.dst_port() != 4789 || decap::check_vxlan(&vxlan).is_err() {
        return 1;
    }
    2 + frame_in(inner, depth - 1)
}

fn icmp_message(eth: &EthHdr, ip: &Ipv4Hdr, upper: &[u8]) -> u32 {
    let Some(icmp) = header::<Icmpv4Hdr>(upper, 0) else { return 0 };
    let _ = icmp.is_frag_needed();
    let _ = pmtu::icmp_allowed(eth, ip, upper.first().copied());
    let _ = pmtu::path_mtu_from_icmp(icmp.next_hop_mtu(), 1450, 50);
    let Some(quoted) = header::<Ipv4Hdr>(upper, Icmpv4Hdr::LEN) else { return 1 };
    let tuple: Tuple = Tuple { src: quoted.src, dst: quoted.dst, ..Tuple::default() };
    let _ = nat::translate_error(ip, &tuple, &tuple.reversed());
    2
}

fn ipv6_packet(eth: &EthHdr, packet: &[u8]) -> u32 {
    let Some(ip) = header::<Ipv6Hdr>(packet, 0) else { return 0 };
    let _ = source::check_ipv6_source(&ENDPOINT, &ip, |_| false);
    if source::check_ipv6_shape(&ip, packet.len() as u32).is_err() {
        return 0;
    }
    let (mut protocol, mut at) = (ip.next_header(), Ipv6Hdr::LEN);
    for _ in 0..8 {
        let Some([next, length]) = header::<[u8; 2]>(packet, at) else { return 1 };
        let Some(len) = extension_len(protocol, length) else { break };
        (protocol, at) = (next, at + len as usize);
    }
    let _ = source::check_ipv6_headers(&ip, protocol, at as u32);
    let _ = nd::is_disguised(&ENDPOINT, &ip, protocol);
    if protocol != NEXT_ICMPV6 {
        return 1;
    }
    let Some(icmp) = header::<Icmpv6Hdr>(packet, at) else { return 1 };
    let _ = pmtu::icmpv6_allowed(eth, &ip, Some(icmp.kind()));
    let _ = nd::nd_kind(&ENDPOINT, &ip, &icmp);
    let option = header::<LinkLayerOption>(packet, at + NeighbourHdr::LEN);
    let _ = nd::check_router_solicit(&ENDPOINT, &ip, option.as_ref());
    let Some(message) = header::<NeighbourHdr>(packet, at) else { return 2 };
    let _ = nd::nd_query(&ENDPOINT, &ip, &message, option.as_ref(), |_| false);
    let _ = nd::nd_reply(eth.src, &ip, &message, eth.dst);
    3
}

/// The frames of the corpus. A file has the bytes of a frame as hexadecimal digits; lines that
/// begin with `#` say what they are.
pub(crate) fn frames() -> Vec<Input> {
    let frame = |Input { name, bytes }| {
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let bytes = lines.flat_map(str::split_whitespace).map(|byte| {
            u8::from_str_radix(byte, 16).unwrap_or_else(|error| panic!("{name}: {byte}: {error}"))
        });
        let bytes = bytes.collect();
        Input { name, bytes }
    };
    corpus("frames").into_iter().map(frame).collect()
}

/// Changes a frame; `others` are frames from which parts are copied.
pub(crate) fn change(random: &mut Random, frame: &mut Vec<u8>, others: &[Input]) {
    for _ in 0..random.below(5) {
        if frame.is_empty() {
            return;
        }
        let at = random.index(frame.len());
        match random.below(6) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = random.below(256) as u8,
            2 | 3 => frame[at] = *random.pick(&BYTES),
            4 => frame.truncate(at),
            _ => {
                // A part of another frame, at the same offset as there or anywhere.
                let other = &random.pick(others).bytes;
                let start = random.index(other.len());
                let part = &other[start..(start + 1 + random.index(40)).min(other.len())];
                let at = if random.below(2) == 0 { start.min(frame.len()) } else { at };
                frame.splice(at..at, part.iter().copied());
            }
        }
    }
    frame.truncate(LONGEST);
}

#[test]
fn the_corpus_is_read() {
    for Input { name, bytes } in frames() {
        assert!(read(&bytes) > 1, "{name}: no header is read");
    }
}

#[test]
fn no_frame_makes_a_decision_panic() {
    let corpus = frames();
    let mut random = Random::seeded();
    let mut deep = 0;
    let rounds = chaos::rounds(FEW, MANY);
    for _ in chaos::each("mutated headers", rounds) {
        let mut frame = random.pick(&corpus).bytes.clone();
        change(&mut random, &mut frame, &corpus);
        deep += u32::from(read(&frame) > 2);
    }
    // Otherwise the changes would be too coarse to reach the upper layers.
    assert!(deep > rounds / 10, "{deep} frames had three headers");
}
