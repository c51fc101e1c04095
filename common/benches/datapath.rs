//! What one packet's decisions cost on this machine's processor: `cargo bench -p culvert-common`.
//!
//! The programs in the kernel are the same functions compiled for another machine, so these
//! figures show whether a change is faster or slower, not what a packet costs: that is
//! `cargo xtask bench`.

use std::hint::black_box;

use bytemuck::{bytes_of, pod_read_unaligned};
use criterion::{Criterion, criterion_group, criterion_main};
use culvert_common::{
    abi::{EndpointInfo, Flow, FlowKey, LearnedEntry, Sealed as _, Tuple, VtepId, seen, zone},
    datapath::{
        conntrack::FlowState,
        decap::{check_outer_ip, check_outer_udp, check_vxlan, merged_frame_ok},
        ecn::{decap_ecn, encap_tos},
        encap::{EncapHeaders, entropy_port, ipv4_flow_hash, ipv4_template, l2_flow_hash},
        learn::learn,
        nat,
        pmtu::{Error, QUOTE_V4_LEN, error, longest_packet},
        rate::{gcra, interval_ns},
        segment::TcpSegment,
        source::{check_ipv4_shape, check_ipv4_source, check_mac},
    },
    wire::{
        EthHdr, Ipv4Hdr, VxlanHdr,
        checksum::{Sum, update_u16},
        ethernet::ETH_P_IP,
        ipv4::{PROTO_TCP, PROTO_UDP},
        tcp,
    },
};

const ONE: [u8; 4] = [10, 0, 0, 1];
const TWO: [u8; 4] = [10, 0, 0, 2];
const HOST: [u8; 4] = [192, 0, 2, 1];
const PEER: [u8; 4] = [192, 0, 2, 2];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// From the Ethernet header on, as most frames of a bulk transfer.
const FRAME: u32 = 1464;
const VNI: u32 = 4242;
const PORT: u16 = 4789;
const SECOND: u64 = 1_000_000_000;

fn inner() -> Ipv4Hdr {
    Ipv4Hdr::new(ONE, TWO, PROTO_TCP, 1450, 0b10, 64)
}

/// As a packet goes out, and as one comes in from the same peer.
fn tuples() -> (Tuple, Tuple) {
    let (src_port, dst_port) = (40_000_u16.to_be_bytes(), 443_u16.to_be_bytes());
    let own = Tuple { src: ONE, dst: PEER, src_port, dst_port };
    (own, Tuple { src: HOST, src_port: 40_001_u16.to_be_bytes(), ..own })
}

fn vxlan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("vxlan");
    group.bench_function("header_encode", |b| b.iter(|| VxlanHdr::new(black_box(VNI))));
    let header = VxlanHdr::new(VNI);
    group.bench_function("header_decode", |b| b.iter(|| check_vxlan(black_box(&header))));
    let link = EthHdr::new(PEER_MAC, MAC, ETH_P_IP);
    let template = ipv4_template(link, HOST, PEER, PORT);
    let encap = |frame: u32| {
        let mut headers = EncapHeaders::new(black_box(&template), black_box(VNI), &link);
        let port = entropy_port(black_box(0x1234_5678));
        headers.outer.fit(port, encap_tos(Some(2), false), frame).map(|()| headers.outer)
    };
    group.bench_function("outer_encode", |b| b.iter(|| encap(black_box(FRAME))));
    let Ok(outer) = encap(FRAME) else { return };
    let l3 = FRAME + 36;
    group.bench_function("outer_decode", |b| {
        b.iter(|| {
            let outer = black_box(&outer);
            let len = check_outer_ip(&outer.ip, l3)?;
            check_outer_udp(&outer.udp, u32::from(outer.ip.tot_len()) - len)?;
            check_vxlan(&outer.vxlan)
        });
    });
    group.bench_function("merged", |b| {
        b.iter(|| merged_frame_ok(black_box(1398), black_box(64_000), black_box(Some(64_000))));
    });
    group.bench_function("longest_packet", |b| {
        b.iter(|| longest_packet(black_box(64_000), black_box(1398), black_box(52)));
    });
    group.finish();
}

fn hash(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    let (ip, ports) = (inner(), [0x9c, 0x40, 0x01, 0xbb]);
    group.bench_function("ipv4_flow", |b| {
        b.iter(|| ipv4_flow_hash(black_box(&ip), black_box(ports)));
    });
    group.bench_function("l2_flow", |b| {
        b.iter(|| l2_flow_hash(black_box(&PEER_MAC), black_box(&MAC), black_box(ETH_P_IP)));
    });
    group.bench_function("source_port", |b| b.iter(|| entropy_port(black_box(0x1234_5678))));
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let ip = inner();
    group.bench_function("update_u16", |b| {
        b.iter(|| update_u16(black_box(0x1234), black_box(80), black_box(8080)));
    });
    let eth = EthHdr::new(PEER_MAC, MAC, ETH_P_IP);
    group.bench_function("icmp_frag_needed", |b| {
        let what = Error { from: ONE, kind: 3, code: 4, mtu: 1450 };
        b.iter(|| error(black_box(&eth), black_box(&ip), &what, QUOTE_V4_LEN as u16, Sum::new()));
    });
    group.finish();
}

fn nat(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nat");
    let (from, to) = tuples();
    group.bench_function("reversed", |b| b.iter(|| black_box(&from).reversed()));
    group.bench_function("key", |b| {
        b.iter(|| FlowKey::new(black_box(zone::LOOPBACK), PROTO_TCP, black_box(from)));
    });
    group.bench_function("seal", |b| {
        let key = FlowKey::new(zone::EXTERNAL, PROTO_TCP, from);
        let flow = Flow { to, ..Flow::default() }.sealed(&key);
        b.iter(|| black_box(&flow).is_of(black_box(&key)));
    });
    let header: [u8; nat::UPPER_LEN] = [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1];
    group.bench_function("upper", |b| {
        b.iter(|| nat::upper(black_box(PROTO_TCP), black_box(&header)));
    });
    group.bench_function("translate_checksum", |b| {
        b.iter(|| {
            let (from, to) = (black_box(&from), black_box(&to));
            let ports = nat::port_difference(PROTO_UDP, from, to);
            let difference = nat::add(nat::address_difference(from, to), ports);
            nat::update_upper(PROTO_UDP, black_box([0x12, 0x34]), difference)
        });
    });
    let ip = inner();
    group.bench_function("readdress", |b| {
        b.iter(|| nat::readdress(black_box(&ip), black_box(HOST), black_box(PEER), true));
    });
    group.bench_function("candidate", |b| {
        b.iter(|| {
            let (index, tries) = (black_box(1), black_box(nat::PORT_TRIES));
            nat::candidate(index, tries, 40_000, black_box(0xdead_beef), 1024, 65_535)
        });
    });
    group.bench_function("tcp_state", |b| {
        let segment = TcpSegment { flags: tcp::ACK, seq: 1000, end: 2000, ack: 500 };
        let flow = Flow { seen: seen::PACKET | seen::ACK, next_seq: 1000, ..Flow::default() };
        let other = Flow { next_seq: 500, ..flow };
        b.iter(|| {
            let (flow, other) = (black_box(&flow), black_box(&other));
            let orig = black_box(&segment).follow(flow, other).seen;
            FlowState::of(PROTO_TCP, orig, black_box(orig))
        });
    });
    group.bench_function("icmp_error", |b| {
        b.iter(|| nat::translate_error(black_box(&ip), black_box(&from), black_box(&to)));
    });
    group.finish();
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decisions");
    group.bench_function("ecn_decap", |b| {
        b.iter(|| decap_ecn(black_box(0b11), black_box(0b10)));
    });
    let seen =
        LearnedEntry { last_seen_ns: 5 * SECOND, vtep: VtepId(1), ..LearnedEntry::default() };
    for (name, known) in [
        ("learn_new", None),
        ("learn_current", Some(seen)),
        ("learn_moved", Some(LearnedEntry { vtep: VtepId(2), ..seen })),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| learn(black_box(known.as_ref()), black_box(&seen), 300 * SECOND));
        });
    }
    let endpoint = EndpointInfo { vni: VNI, mac: MAC, ipv4: ONE, mtu: 1450, ..EndpointInfo::NONE };
    let frame = [bytes_of(&EthHdr::new(PEER_MAC, MAC, ETH_P_IP)), bytes_of(&inner())].concat();
    group.bench_function("source", |b| {
        b.iter(|| {
            let (eth, ip) = black_box(&frame[..]).split_at(EthHdr::LEN);
            let (eth, ip): (EthHdr, Ipv4Hdr) = (pod_read_unaligned(eth), pod_read_unaligned(ip));
            check_mac(black_box(&endpoint), &eth)?;
            check_ipv4_shape(&ip, FRAME - EthHdr::LEN as u32)?;
            check_ipv4_source(&endpoint, &ip, |_| false)
        });
    });
    group.bench_function("rate", |b| {
        b.iter(|| gcra(black_box(SECOND), black_box(SECOND + 5), interval_ns(black_box(1000)), 64));
    });
    group.finish();
}

criterion_group!(benches, vxlan, hash, checksum, nat, decisions);
criterion_main!(benches);
