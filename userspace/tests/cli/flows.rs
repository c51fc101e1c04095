//! Flows that the agent in memory has.

use culvert::api::types::{FlowProtocol, NatRow};

/// A masqueraded flow and a flow of a published port.
pub(crate) fn rows() -> Vec<NatRow> {
    let masqueraded = NatRow {
        protocol: FlowProtocol::Tcp,
        state: "tcp_established".to_owned(),
        kind: "masquerade".to_owned(),
        network: "bridge".to_owned(),
        vni: 257,
        container: "web1".to_owned(),
        from: "web1".to_owned(),
        src: "172.17.0.2".parse().unwrap(),
        src_port: 40_000,
        dst: "192.0.2.7".parse().unwrap(),
        dst_port: 443,
        nat_src: "192.168.0.1".parse().unwrap(),
        nat_src_port: 40_001,
        nat_dst: "192.0.2.7".parse().unwrap(),
        nat_dst_port: 443,
        timeout_s: 431_990,
        orig_packets: 12,
        orig_bytes: 1_800,
        reply_packets: 9,
        reply_bytes: 64_000,
    };
    let published = NatRow {
        protocol: FlowProtocol::Udp,
        state: "udp_unreplied".to_owned(),
        kind: "published".to_owned(),
        from: "external".to_owned(),
        src: "192.0.2.9".parse().unwrap(),
        src_port: 5_353,
        dst: "192.168.0.1".parse().unwrap(),
        dst_port: 8_053,
        nat_src: "192.0.2.9".parse().unwrap(),
        nat_src_port: 5_353,
        nat_dst: "172.17.0.2".parse().unwrap(),
        nat_dst_port: 53,
        timeout_s: 7,
        orig_packets: 1,
        orig_bytes: 80,
        reply_packets: 0,
        reply_bytes: 0,
        ..masqueraded.clone()
    };
    vec![masqueraded, published]
}
