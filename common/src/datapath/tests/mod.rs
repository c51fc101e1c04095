//! Tests of the decisions against the standards, an independent library, and random bytes.

mod arp;
mod conntrack;
mod ecn;
mod membership;
mod nat;
mod nd;
mod pmtu;
mod random;
mod rate;
mod room;
mod segment;
mod tunnel;
mod tunnel_source;

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::ProptestConfig;

use crate::abi::EndpointInfo;

/// Settings of a property that is tried `cases` times, or 100 times as often in the long tests
/// (`CULVERT_TEST_FULL`).
fn cases(cases: u32) -> ProptestConfig {
    let is_full = std::env::var_os("CULVERT_TEST_FULL").is_some();
    let cases = if is_full { cases * 100 } else { cases };
    ProptestConfig { cases, max_global_rejects: cases, ..ProptestConfig::default() }
}

/// MAC of the endpoint under test.
const MAC: [u8; 6] = [0x02, 0x42, 10, 0, 0, 2];
/// MAC of another endpoint.
const OTHER_MAC: [u8; 6] = [0x02, 0x42, 10, 0, 0, 3];

/// The endpoint has no additional IPv4 address.
fn no_others(_: &[u8; 4]) -> bool {
    false
}

fn v4(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().unwrap().octets()
}

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

/// 10.0.0.2, fd00::2.
fn endpoint() -> EndpointInfo {
    EndpointInfo {
        vni: 256,
        mac: MAC,
        mtu: 1450,
        ipv4: v4("10.0.0.2"),
        ipv6: v6("fd00::2"),
        incarnation: 1,
        ..EndpointInfo::NONE
    }
}

/// The endpoint in a network with `anti_spoof=false`.
fn free_endpoint() -> EndpointInfo {
    EndpointInfo { flags: EndpointInfo::ALLOW_ANY_SOURCE, ..endpoint() }
}
