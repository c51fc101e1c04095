use std::collections::BTreeSet;

use proptest::prelude::*;

use super::cases;
use crate::{
    abi::seen,
    datapath::conntrack::FlowState,
    wire::ipv4::{PROTO_ICMP as ICMP, PROTO_TCP as TCP, PROTO_UDP as UDP},
};

const SYN: u32 = seen::PACKET | seen::SYN;
const ACK: u32 = seen::PACKET | seen::ACK;
const FIN: u32 = seen::PACKET | seen::FIN;
const RST: u32 = seen::PACKET | seen::RST;

#[test]
fn the_life_of_a_connection() {
    let (mut orig, mut reply) = (0, 0);
    let mut states = Vec::new();
    for (from_orig, flags) in [
        (true, SYN),
        (false, SYN),
        (true, ACK),
        (false, ACK),
        (false, ACK | FIN),
        (true, ACK),
        (true, ACK | FIN),
        (false, ACK),
        (false, RST),
    ] {
        if from_orig {
            orig |= flags;
        } else {
            reply |= flags;
        }
        states.push(FlowState::of(TCP, orig, reply).name());
    }
    assert_eq!(
        states,
        [
            "tcp_syn_sent",
            "tcp_syn_recv",
            "tcp_established",
            "tcp_established",
            "tcp_fin_wait",
            "tcp_fin_wait",
            "tcp_time_wait",
            "tcp_time_wait",
            "tcp_close",
        ]
    );
}

#[test]
fn what_is_picked_up_in_mid_stream_is_established_once_both_sides_acknowledge() {
    assert_eq!(FlowState::of(TCP, ACK, 0), FlowState::TcpLoose);
    assert_eq!(FlowState::of(TCP, ACK, ACK), FlowState::TcpEstablished);
    assert_eq!(FlowState::of(TCP, ACK, SYN), FlowState::TcpLoose);
    // A challenge ACK does not make a connection of a SYN.
    assert_eq!(FlowState::of(TCP, SYN, ACK), FlowState::TcpSynSent);
}

#[test]
fn what_has_no_connection_is_told_by_the_answer() {
    assert_eq!(FlowState::of(UDP, seen::PACKET, 0), FlowState::UdpUnreplied);
    assert_eq!(FlowState::of(UDP, seen::PACKET, seen::PACKET), FlowState::UdpStream);
    assert_eq!(FlowState::of(ICMP, seen::PACKET, 0), FlowState::Icmp);
    assert_eq!(FlowState::of(ICMP, seen::PACKET, seen::PACKET), FlowState::Icmp);
}

#[test]
fn timeouts_are_those_of_linux() {
    let timeouts: Vec<_> =
        FlowState::ALL.iter().map(|state| (state.name(), state.default_timeout_s())).collect();
    assert_eq!(
        timeouts,
        [
            ("tcp_syn_sent", 120),
            ("tcp_syn_recv", 60),
            ("tcp_established", 432_000),
            ("tcp_fin_wait", 120),
            ("tcp_time_wait", 120),
            ("tcp_close", 10),
            ("tcp_loose", 300),
            ("udp_unreplied", 30),
            ("udp_stream", 120),
            ("icmp", 30),
        ]
    );
}

#[test]
fn every_state_is_reached_and_numbered_in_order() {
    let mut reached = BTreeSet::new();
    for protocol in [TCP, UDP, ICMP] {
        for orig in 0..32 {
            for reply in 0..32 {
                reached.insert(FlowState::of(protocol, orig, reply));
            }
        }
    }
    assert!(reached.iter().eq(FlowState::ALL), "{reached:?}");
    for (number, state) in FlowState::ALL.iter().enumerate() {
        assert_eq!(usize::from(state.code()), number);
    }
}

proptest! {
    #![proptest_config(cases(2000))]
    /// With any flags, a flow has a state of its own protocol, and only a connection with packets
    /// in both directions is never evicted.
    #[test]
    fn any_flags(protocol: u8, orig: u32, reply: u32) {
        let state = FlowState::of(protocol, orig, reply);
        let prefix = match protocol {
            TCP => "tcp_",
            UDP => "udp_",
            _ => "icmp",
        };
        prop_assert!(state.name().starts_with(prefix));
        let both = orig & reply;
        if state.eviction_rank().is_none() {
            prop_assert_eq!(state, FlowState::TcpEstablished);
            prop_assert_eq!((orig | reply) & (seen::FIN | seen::RST), 0);
            prop_assert!(orig & seen::ACK != 0);
            prop_assert!(both & seen::SYN != 0 || both & seen::ACK != 0);
        }
        // Packets of one direction alone never establish a connection.
        prop_assert!(FlowState::of(protocol, orig, 0) != FlowState::TcpEstablished);
    }
}
