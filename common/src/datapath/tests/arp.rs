use bytemuck::bytes_of;
use etherparse as ep;
use proptest::prelude::*;

use super::{MAC, OTHER_MAC, endpoint, free_endpoint, no_others, v4};
use crate::abi::{DropReason, EndpointInfo};
use crate::datapath::arp::{ArpQuery, arp_query, arp_reply_frame, arp_request_frame};
use crate::wire::{ARP_REPLY, ARP_REQUEST, ArpIpv4};

const OWN: [u8; 4] = [10, 0, 0, 2];
const PEER: [u8; 4] = [10, 0, 0, 3];
const NONE: [u8; 4] = [0; 4];

fn ask(oper: u16, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Result<ArpQuery, DropReason> {
    arp_query(&endpoint(), &ArpIpv4::new(oper, mac, sender, [0; 6], target), no_others)
}

#[test]
fn what_an_endpoint_may_ask() {
    assert_eq!(OWN, v4("10.0.0.2"));
    let resolve = Ok(ArpQuery::Resolve { target: PEER });
    assert_eq!(ask(ARP_REQUEST, MAC, OWN, PEER), resolve, "request");
    assert_eq!(ask(ARP_REQUEST, MAC, NONE, PEER), resolve, "probe for a peer's address");
    assert_eq!(ask(ARP_REQUEST, MAC, NONE, OWN), Ok(ArpQuery::Absorb), "probe for its own");
    assert_eq!(ask(ARP_REQUEST, MAC, OWN, OWN), Ok(ArpQuery::Absorb), "announcement");
    assert_eq!(ask(ARP_REPLY, MAC, OWN, OWN), Ok(ArpQuery::Absorb), "gratuitous reply");
    assert_eq!(ask(ARP_REPLY, MAC, OWN, PEER), Ok(ArpQuery::Forward), "reply");
}

#[test]
fn what_it_may_not_claim() {
    let spoofed = Err(DropReason::SpoofedArp);
    assert_eq!(ask(ARP_REQUEST, OTHER_MAC, OWN, PEER), spoofed, "another MAC");
    assert_eq!(ask(ARP_REQUEST, MAC, PEER, OWN), spoofed, "another IP");
    assert_eq!(ask(ARP_REQUEST, MAC, PEER, PEER), spoofed, "announcement of another IP");
    assert_eq!(ask(ARP_REQUEST, OTHER_MAC, NONE, PEER), spoofed, "probe with another MAC");
    assert_eq!(ask(ARP_REPLY, MAC, PEER, OWN), spoofed, "reply for another");
    assert_eq!(ask(ARP_REPLY, MAC, NONE, PEER), spoofed, "reply from nobody");
}

#[test]
fn an_endpoint_without_ipv4_asks_nothing_but_probes() {
    let bare = EndpointInfo { ipv4: NONE, ..endpoint() };
    let reply = ArpIpv4::new(ARP_REPLY, MAC, NONE, [0; 6], PEER);
    assert_eq!(arp_query(&bare, &reply, no_others), Err(DropReason::SpoofedArp));
    let probe = ArpIpv4::new(ARP_REQUEST, MAC, NONE, [0; 6], PEER);
    assert_eq!(arp_query(&bare, &probe, no_others), Ok(ArpQuery::Resolve { target: PEER }));
}

#[test]
fn an_additional_address_is_the_endpoint_s_own() {
    let other = v4("10.0.0.100");
    let ask = |oper, mac, sender, target| {
        let packet = ArpIpv4::new(oper, mac, sender, [0; 6], target);
        arp_query(&endpoint(), &packet, |ip| *ip == other)
    };
    assert_eq!(ask(ARP_REQUEST, MAC, other, PEER), Ok(ArpQuery::Resolve { target: PEER }));
    assert_eq!(ask(ARP_REQUEST, MAC, other, other), Ok(ArpQuery::Absorb), "announcement");
    assert_eq!(ask(ARP_REQUEST, MAC, NONE, other), Ok(ArpQuery::Absorb), "probe for its own");
    assert_eq!(ask(ARP_REPLY, MAC, other, PEER), Ok(ArpQuery::Forward));
    assert_eq!(ask(ARP_REPLY, OTHER_MAC, other, PEER), Err(DropReason::SpoofedArp), "its MAC");
    assert_eq!(ask(ARP_REPLY, MAC, PEER, other), Err(DropReason::SpoofedArp), "for another");
    // No endpoint has the address 0.0.0.0.
    let packet = ArpIpv4::new(ARP_REPLY, MAC, NONE, [0; 6], PEER);
    assert_eq!(arp_query(&endpoint(), &packet, |_| true), Err(DropReason::SpoofedArp));
}

#[test]
fn without_anti_spoofing_any_sender_will_do() {
    let free = free_endpoint();
    let foreign = v4("192.0.2.1");
    let request = ArpIpv4::new(ARP_REQUEST, OTHER_MAC, foreign, [0; 6], PEER);
    assert_eq!(arp_query(&free, &request, no_others), Ok(ArpQuery::Resolve { target: PEER }));
    let announcement = ArpIpv4::new(ARP_REQUEST, OTHER_MAC, foreign, [0; 6], foreign);
    assert_eq!(arp_query(&free, &announcement, no_others), Ok(ArpQuery::Absorb));
    let reply = ArpIpv4::new(ARP_REPLY, OTHER_MAC, foreign, MAC, PEER);
    assert_eq!(arp_query(&free, &reply, no_others), Ok(ArpQuery::Forward));
}

#[test]
fn only_requests_and_replies_for_ipv4_over_ethernet() {
    for oper in [0, 3, 4, 8, 9, 0x100, 0xffff] {
        assert_eq!(ask(oper, MAC, OWN, PEER), Err(DropReason::Malformed), "operation {oper}");
    }
    let good = ArpIpv4::new(ARP_REQUEST, MAC, OWN, [0; 6], PEER);
    // htype, ptype, hlen, plen: bytes 0 to 5.
    for byte in 0..6 {
        let mut bytes: [u8; 28] = bytemuck::cast(good);
        bytes[byte] ^= 0x10;
        let bad: ArpIpv4 = bytemuck::cast(bytes);
        assert_eq!(
            arp_query(&endpoint(), &bad, no_others),
            Err(DropReason::Malformed),
            "byte {byte}"
        );
    }
}

#[test]
fn the_request_is_to_all() {
    let frame = arp_request_frame(MAC, OWN, PEER);
    let packet = ep::SlicedPacket::from_ethernet(bytes_of(&frame)).unwrap();
    let Some(ep::LinkSlice::Ethernet2(eth)) = packet.link else { panic!("no Ethernet") };
    assert_eq!((eth.destination(), eth.source()), ([0xff; 6], MAC));
    let Some(ep::NetSlice::Arp(arp)) = packet.net else { panic!("no ARP") };
    assert_eq!(
        arp.to_packet().try_eth_ipv4().unwrap(),
        ep::ArpEthIpv4Packet {
            operation: ep::ArpOperation::REQUEST,
            sender_mac: MAC,
            sender_ipv4: OWN,
            target_mac: [0; 6],
            target_ipv4: PEER,
        }
    );
}

proptest! {
    #[test]
    fn the_reply_answers_the_request(
        asker: [u8; 6], sender: [u8; 4], target: [u8; 4], mac: [u8; 6], ignored: [u8; 6],
    ) {
        let request = ArpIpv4::new(ARP_REQUEST, asker, sender, ignored, target);
        let frame = arp_reply_frame(&request, mac);
        let packet = ep::SlicedPacket::from_ethernet(bytes_of(&frame)).unwrap();
        let Some(ep::LinkSlice::Ethernet2(eth)) = packet.link else { panic!("no Ethernet") };
        prop_assert_eq!(eth.source(), mac);
        prop_assert_eq!(eth.destination(), asker);
        let Some(ep::NetSlice::Arp(arp)) = packet.net else { panic!("no ARP") };
        let arp = arp.to_packet().try_eth_ipv4().unwrap();
        prop_assert_eq!(arp, ep::ArpEthIpv4Packet {
            operation: ep::ArpOperation::REPLY,
            sender_mac: mac,
            sender_ipv4: target,
            target_mac: asker,
            target_ipv4: sender,
        });
    }
}
