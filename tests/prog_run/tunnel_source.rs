//! Sources of frames from the tunnel: a host speaks for its own endpoints and for itself, and no
//! other host of the network can speak for them.

use culvert::datapath::Table as _;
use culvert::datapath::entry::NeighEntry;
use culvert_common::abi::{Action, DropReason, FdbKey, NeighKey, Note};
use culvert_tests::packet::{Arp, Host, SYN, Tunnel, V4, V6, ethernet, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    nd::{
        ADVERT, ALL_NODES, ALL_ROUTERS, OVERRIDE, SOLICITED, SOURCE_OPTION, TARGET_OPTION, advert,
        announce, detect, group_mac, link_layer, message, solicit,
    },
    run::{Left, SHOT, copy, note},
    world::{
        A, FAR, FARTHER, GATEWAY, NOBODY, ONE, OUR_VTEP, PEER, PEER2, SERVER, TWO, US, from_peer,
        learning, remote,
    },
};

cases!(
    an_endpoint_of_another_host,
    a_mac_that_the_store_does_not_have,
    ipv4_of_another,
    ipv6_of_another,
    additional_addresses,
    arp_of_another,
    neighbour_discovery_of_another,
    router_advertisement,
    hidden_neighbour_discovery,
    what_an_endpoint_may_send,
    nothing_of_the_gateway,
    nothing_of_the_gateway_where_hosts_learn,
    a_host_itself,
    an_answer_to_the_host,
    any_other_address_where_hosts_learn,
    a_source_is_part_of_the_pair,
    a_lost_address_is_lost_at_once,
    a_moved_endpoint_speaks_from_its_new_host,
    a_gateway_is_no_pair_where_hosts_learn,
);

#[track_caller]
fn is_refused(lab: &mut Lab, inner: &[u8], reason: DropReason) {
    lab.at_underlay(&from_peer().wrap(inner)).drops(reason);
}

#[track_caller]
fn arrives(lab: &mut Lab, inner: &[u8]) {
    lab.at_underlay(&from_peer().wrap(inner)).delivers(inner, &[]);
}

/// The frame reaches both local endpoints.
#[track_caller]
fn reaches_everyone(lab: &mut Lab, inner: &[u8]) {
    let copies = [copy(Interface::A1, inner), copy(Interface::A2, inner)];
    let notes = [note(Note::FloodLocalCopy).times(2).bytes(2 * inner.len())];
    lab.at_underlay(&from_peer().wrap(inner)).floods(&copies, &notes);
}

/// All endpoints of the network, as a receiver.
const ALL: Host = Host { mac: [0xff; 6], v4: [255; 4], v6: ALL_NODES };
/// A host of the internet, as an address.
const EIGHT: [u8; 4] = [8, 8, 8, 8];

fn hello(from: &Host) -> Vec<u8> {
    V4::udp(from, &ONE, (1000, 2000), b"hello").frame()
}

/// The endpoint behind [`PEER`], with other IPv4 and IPv6 addresses.
const fn far_as(other: &Host) -> Host {
    Host { mac: FAR.mac, ..*other }
}

fn an_endpoint_of_another_host(lab: &mut Lab) {
    for learns in [false, true] {
        if learns {
            learning(&lab.tables);
        }
        // Of another VTEP, and of this host.
        for (host, reason) in
            [(FARTHER, DropReason::ForeignSourceMac), (TWO, DropReason::LocalSourceMac)]
        {
            is_refused(lab, &hello(&host), reason);
            is_refused(lab, &V6::udp(&host, &ONE, (1, 2), b"hello").frame(), reason);
            is_refused(lab, &Arp::reply(&host, &ONE).frame(), reason);
            is_refused(lab, &Arp::request(&host, NOBODY.v4).frame(), reason);
            is_refused(lab, &advert(&host, &ONE).frame(), reason);
            is_refused(lab, &ethernet(ONE.mac, host.mac, 0x88b5, b"hello"), reason);
        }
        // The other VTEP has no right to the endpoint of the first one.
        let of_far = Tunnel { src: PEER2, ..from_peer() }.wrap(&hello(&FAR));
        lab.at_underlay(&of_far).drops(DropReason::ForeignSourceMac);
        arrives(lab, &hello(&FAR));
    }
}

fn a_mac_that_the_store_does_not_have(lab: &mut Lab) {
    for inner in [
        hello(&NOBODY),
        V4 { eth_src: NOBODY.mac, ..V4::udp(&FAR, &ONE, (1, 2), b"hello") }.frame(),
        V6::udp(&NOBODY, &ALL, (1, 2), b"hello").frame(),
        Arp::request(&NOBODY, ONE.v4).frame(),
        ethernet([0xff; 6], NOBODY.mac, 0x88b5, b"hello"),
    ] {
        is_refused(lab, &inner, DropReason::ForeignSourceMac);
    }
}

fn ipv4_of_another(lab: &mut Lab) {
    for src in [FARTHER.v4, TWO.v4, NOBODY.v4, EIGHT, PEER, OUR_VTEP, [0; 4], [255; 4]] {
        let to_one = V4 { src, ..V4::udp(&FAR, &ONE, (1, 2), &payload(100)) };
        is_refused(lab, &to_one.frame(), DropReason::SpoofedIp);
        let to_all = V4 { src, ..V4::udp(&FAR, &ALL, (68, 67), &payload(100)) };
        is_refused(lab, &to_all.frame(), DropReason::SpoofedIp);
        let later = V4 { df: false, offset: 9, ..to_one.clone() };
        is_refused(lab, &later.frame(), DropReason::SpoofedIp);
        let options = V4 { options: vec![1; 4], ..to_one.clone() };
        is_refused(lab, &options.frame(), DropReason::SpoofedIp);
        let to_host = V4 { eth_dst: GATEWAY.mac, dst: OUR_VTEP, ..to_one };
        is_refused(lab, &to_host.frame(), DropReason::SpoofedIp);
    }
}

fn ipv6_of_another(lab: &mut Lab) {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 9];
    for src in [FARTHER.v6, TWO.v6, TWO.link_local(), NOBODY.v6, ALL_NODES, mapped] {
        for to in [ONE, ALL] {
            let packet = V6 { src, ..V6::udp(&FAR, &to, (1, 2), b"hello") };
            is_refused(lab, &packet.frame(), DropReason::SpoofedIp);
        }
    }
    let unspecified = V6 { src: [0; 16], ..V6::udp(&FAR, &ONE, (1, 2), b"hello") };
    is_refused(lab, &unspecified.frame(), DropReason::SpoofedIp);
}

fn additional_addresses(lab: &mut Lab) {
    let more = Host { v4: [10, 0, 0, 109], v6: [0xfd; 16], ..FAR };
    let v6 = V6::udp(&more, &ONE, (1, 2), b"hello").frame();
    is_refused(lab, &hello(&more), DropReason::SpoofedIp);
    is_refused(lab, &v6, DropReason::SpoofedIp);
    let keys = [NeighKey::v4(A, more.v4), NeighKey::v6(A, more.v6)];
    for key in keys {
        lab.tables.neighbours.insert(&key, &NeighEntry { mac: FAR.mac }).unwrap();
    }
    arrives(lab, &hello(&more));
    arrives(lab, &v6);
    arrives(lab, &Arp::reply(&more, &ONE).frame());
    arrives(lab, &advert(&more, &ONE).frame());
    // Another endpoint takes the addresses over.
    for key in keys {
        lab.tables.neighbours.insert(&key, &NeighEntry { mac: FARTHER.mac }).unwrap();
    }
    is_refused(lab, &hello(&more), DropReason::SpoofedIp);
    is_refused(lab, &v6, DropReason::SpoofedIp);
}

fn arp_of_another(lab: &mut Lab) {
    for other in [FARTHER, TWO, NOBODY, Host { v4: EIGHT, ..NOBODY }] {
        for arp in [Arp::request(&other, ONE.v4), Arp::reply(&other, &ONE)] {
            // Another address at the own MAC, and another MAC.
            let address = Arp { eth_src: FAR.mac, sender_mac: FAR.mac, ..arp };
            is_refused(lab, &address.frame(), DropReason::SpoofedArp);
            let mac = Arp { eth_src: FAR.mac, sender_ip: FAR.v4, ..arp };
            is_refused(lab, &mac.frame(), DropReason::SpoofedArp);
        }
        // A gratuitous one.
        is_refused(lab, &Arp::request(&far_as(&other), other.v4).frame(), DropReason::SpoofedArp);
    }
    let other_operation = Arp { operation: 3, ..Arp::request(&FAR, ONE.v4) };
    is_refused(lab, &other_operation.frame(), DropReason::Malformed);
}

/// An advertisement of `FAR` to `ONE` for another target, or with another MAC.
fn claim(target: [u8; 16], mac: [u8; 6]) -> V6 {
    let option = link_layer(TARGET_OPTION, mac);
    let flags = SOLICITED | OVERRIDE;
    message((FAR.mac, ONE.mac), (FAR.v6, ONE.v6), (ADVERT, flags), target, &option)
}

fn neighbour_discovery_of_another(lab: &mut Lab) {
    for other in [FARTHER, TWO, NOBODY, GATEWAY] {
        is_refused(lab, &advert(&far_as(&other), &ONE).frame(), DropReason::SpoofedIp);
        is_refused(lab, &solicit(&far_as(&other), ONE.v6).frame(), DropReason::SpoofedIp);
        is_refused(lab, &claim(other.v6, FAR.mac).frame(), DropReason::SpoofedNd);
        is_refused(lab, &claim(FAR.v6, other.mac).frame(), DropReason::SpoofedNd);
        let asks = V6 { eth_src: FAR.mac, src: FAR.v6, ..solicit(&other, ONE.v6) };
        is_refused(lab, &asks.frame(), DropReason::SpoofedNd);
    }
    let low = V6 { hop_limit: 254, ..advert(&FAR, &ONE) };
    is_refused(lab, &low.frame(), DropReason::Malformed);
}

fn router_advertisement(lab: &mut Lab) {
    let eth = (FAR.mac, group_mac(ALL_NODES));
    let ip = (FAR.link_local(), ALL_NODES);
    let frame = V6::icmp(eth, ip, (134, 0), [64, 0, 0, 30], &[0; 8]).frame();
    is_refused(lab, &frame, DropReason::SpoofedNd);
    let redirect = V6::icmp(eth, ip, (137, 0), [0; 4], &[0; 32]).frame();
    is_refused(lab, &redirect, DropReason::SpoofedNd);
    // A network that learns may have routers that the store does not have.
    learning(&lab.tables);
    reaches_everyone(lab, &frame);
}

fn hidden_neighbour_discovery(lab: &mut Lab) {
    // Behind hop-by-hop options (PadN), and behind a fragment header.
    let hidden = claim(TWO.v6, FAR.mac).extended(0, &[0, 1, 4, 0, 0, 0, 0]);
    is_refused(lab, &hidden.frame(), DropReason::SpoofedNd);
    let hidden = claim(TWO.v6, FAR.mac).extended(44, &[0; 7]);
    is_refused(lab, &hidden.frame(), DropReason::SpoofedNd);
    let mut many = claim(TWO.v6, FAR.mac);
    for _ in 0..8 {
        many = many.extended(60, &[0, 1, 4, 0, 0, 0, 0]);
    }
    is_refused(lab, &many.frame(), DropReason::Malformed);
}

/// Frames that the sending host accepts from its container pass here.
fn what_an_endpoint_may_send(lab: &mut Lab) {
    arrives(lab, &hello(&FAR));
    arrives(lab, &V4 { df: false, offset: 9, ..V4::udp(&FAR, &ONE, (1, 2), b"later") }.frame());
    arrives(lab, &V4::icmp(&FAR, &ONE, 8, 0, [0, 1, 0, 1], &payload(56)).frame());
    let quote = V4::udp(&ONE, &FAR, (1, 2), b"hello").packet();
    arrives(lab, &V4::icmp(&FAR, &ONE, 3, 3, [0; 4], &quote).frame());
    arrives(lab, &V6::udp(&FAR, &ONE, (1, 2), b"hello").frame());
    let link_local = Host { v6: FAR.link_local(), ..FAR };
    arrives(lab, &V6::udp(&link_local, &ONE, (1, 2), b"hello").frame());
    arrives(lab, &Arp::reply(&FAR, &ONE).frame());
    arrives(lab, &advert(&FAR, &ONE).frame());
    arrives(lab, &advert(&link_local, &ONE).frame());
    arrives(lab, &ethernet(ONE.mac, FAR.mac, 0x88b5, &payload(60)));

    reaches_everyone(lab, &V4::udp(&FAR, &ALL, (1, 2), b"all").frame());
    let group = Host { mac: [1, 0, 0x5e, 0, 0, 0xfb], v4: [224, 0, 0, 251], ..ALL };
    reaches_everyone(lab, &V4::udp(&FAR, &group, (5353, 5353), b"all").frame());
    reaches_everyone(lab, &Arp::request(&FAR, NOBODY.v4).frame());
    reaches_everyone(lab, &Arp::request(&FAR, FAR.v4).frame());
    // Probes and detection of duplicates have no source address yet.
    reaches_everyone(lab, &Arp::request(&Host { v4: [0; 4], ..FAR }, NOBODY.v4).frame());
    reaches_everyone(lab, &detect(&FAR, FAR.v6).frame());
    reaches_everyone(lab, &detect(&FAR, FAR.link_local()).frame());
    reaches_everyone(lab, &solicit(&FAR, NOBODY.v6).frame());
    reaches_everyone(lab, &solicit(&link_local, NOBODY.v6).frame());
    reaches_everyone(lab, &announce(&FAR).frame());
    let (eth, ip) = ((FAR.mac, group_mac(ALL_ROUTERS)), (FAR.link_local(), ALL_ROUTERS));
    let option = link_layer(SOURCE_OPTION, FAR.mac);
    reaches_everyone(lab, &V6::icmp(eth, ip, (133, 0), [0; 4], &option).frame());
    reaches_everyone(lab, &V6::icmp(eth, ([0; 16], ALL_ROUTERS), (133, 0), [0; 4], &[]).frame());
}

/// Frames in the name of the gateway, with its MAC or with its address.
#[track_caller]
fn of_the_gateway(lab: &mut Lab) {
    let mut refused = |inner: Vec<u8>| is_refused(lab, &inner, DropReason::GatewaySource);
    let as_gateway = far_as(&GATEWAY);
    refused(hello(&as_gateway));
    refused(V4::udp(&as_gateway, &ALL, (67, 68), b"offer").frame());
    refused(Arp::reply(&as_gateway, &ONE).frame());
    refused(Arp::request(&as_gateway, GATEWAY.v4).frame());
    refused(Arp { sender_mac: GATEWAY.mac, ..Arp::reply(&FAR, &ONE) }.frame());
    refused(Arp::reply(&GATEWAY, &ONE).frame());
    refused(Arp { sender_ip: FAR.v4, ..Arp::request(&GATEWAY, ONE.v4) }.frame());
    refused(V6::udp(&GATEWAY, &ONE, (1, 2), b"hello").frame());
    refused(advert(&GATEWAY, &ONE).frame());
    refused(ethernet(ONE.mac, GATEWAY.mac, 0x88b5, b"hello"));
    // A host sends to containers, and to one at a time.
    let host = Host { v4: PEER, ..GATEWAY };
    refused(V4::udp(&host, &ALL, (1, 2), b"hello").frame());
    refused(V4 { eth_dst: GATEWAY.mac, ..V4::udp(&host, &US, (1, 2), b"hello") }.frame());
}

fn nothing_of_the_gateway(lab: &mut Lab) {
    of_the_gateway(lab);
    // Only where hosts learn do they ask.
    is_refused(lab, &Arp::request(&GATEWAY, NOBODY.v4).frame(), DropReason::GatewaySource);
}

fn nothing_of_the_gateway_where_hosts_learn(lab: &mut Lab) {
    learning(&lab.tables);
    of_the_gateway(lab);
    let unicast = Arp { eth_dst: ONE.mac, ..Arp::request(&GATEWAY, NOBODY.v4) };
    is_refused(lab, &unicast.frame(), DropReason::GatewaySource);
    reaches_everyone(lab, &Arp::request(&GATEWAY, NOBODY.v4).frame());
    assert_eq!(lab.learned_keys(), []);
}

/// The host behind [`PEER`], as containers see it.
const HOST: Host = Host { mac: GATEWAY.mac, v4: PEER, v6: [0; 16] };

/// The host behind [`PEER`] begins a flow, and sends an ICMP error about the answer.
fn a_host_itself(lab: &mut Lab) {
    let inner = V4::segment(&HOST, &ONE, (5000, 80), SYN, &[]).frame();
    let created = note(Note::FlowCreated).bytes(inner.len());
    let run = lab.at_underlay(&from_peer().wrap(&inner));
    run.redirects(Action::NatDeliver, Left::Spent, &[created]);
    let quote = V4::segment(&ONE, &HOST, (80, 5000), SYN, &[]).packet();
    let error = V4::icmp(&HOST, &ONE, 3, 1, [0; 4], &quote);
    let run = lab.at_underlay(&from_peer().wrap(&error.frame()));
    run.redirects(Action::NatDeliver, Left::Spent, &[]);
    // The host has no other address in the network.
    for src in [GATEWAY.v4, FAR.v4, ONE.v4, EIGHT, PEER2, OUR_VTEP, SERVER.v4] {
        let frame = V4 { src, ..V4::segment(&HOST, &ONE, (5000, 80), SYN, &[]) }.frame();
        is_refused(lab, &frame, DropReason::SpoofedIp);
        is_refused(lab, &V4 { src, ..error.clone() }.frame(), DropReason::SpoofedIp);
        // A MAC that no endpoint has is flooded where hosts learn.
        let unknown = V4 { src, ..V4::udp(&HOST, &NOBODY, (1, 2), b"hello") }.frame();
        is_refused(lab, &unknown, DropReason::SpoofedIp);
    }
    learning(&lab.tables);
    let unknown = V4 { src: EIGHT, ..V4::udp(&HOST, &NOBODY, (1, 2), b"hello") }.frame();
    is_refused(lab, &unknown, DropReason::SpoofedIp);
}

/// A container on another host answers this host.
fn an_answer_to_the_host(lab: &mut Lab) {
    let inner = V4 { eth_dst: GATEWAY.mac, ..V4::udp(&FAR, &US, (80, 5000), b"hello") }.frame();
    let outer = from_peer().wrap(&inner);
    lab.at_underlay(&outer).redirects(Action::ToHost, Left::Frame(inner.clone()), &[]);
    let of_another = Tunnel { src: PEER2, ..from_peer() }.wrap(&inner);
    lab.at_underlay(&of_another).drops(DropReason::ForeignSourceMac);
}

fn any_other_address_where_hosts_learn(lab: &mut Lab) {
    learning(&lab.tables);
    for src in [NOBODY.v4, EIGHT, FARTHER.v4] {
        arrives(lab, &hello(&Host { v4: src, ..FAR }));
        reaches_everyone(lab, &V4 { src, ..V4::udp(&FAR, &ALL, (1, 2), b"all") }.frame());
    }
    let dhcp = V4 { src: [0; 4], ..V4::udp(&FAR, &ALL, (68, 67), &payload(240)) };
    reaches_everyone(lab, &dhcp.frame());
    arrives(lab, &V6::udp(&Host { v6: [0xfd; 16], ..FAR }, &ONE, (1, 2), b"hello").frame());
    arrives(lab, &claim(NOBODY.v6, FAR.mac).frame());
}

/// Fills the flow cache: `delivers` runs the program twice on the frame.
fn warm(lab: &mut Lab) {
    arrives(lab, &hello(&FAR));
}

fn a_source_is_part_of_the_pair(lab: &mut Lab) {
    warm(lab);
    is_refused(lab, &hello(&far_as(&TWO)), DropReason::SpoofedIp);
    is_refused(lab, &hello(&far_as(&GATEWAY)), DropReason::GatewaySource);
    // Every bit of the MAC and of the address counts.
    for at in (50 + 6..50 + 12).chain(50 + 26..50 + 30) {
        for bit in 0..8 {
            let mut frame = from_peer().wrap(&hello(&FAR));
            frame[at] ^= 1 << bit;
            let outcome = lab.at_underlay(&frame).outcome();
            assert_eq!(outcome.verdict, SHOT, "byte {at}, bit {bit}");
        }
    }
    warm(lab);
}

fn a_lost_address_is_lost_at_once(lab: &mut Lab) {
    warm(lab);
    lab.tables.neighbours.remove(&NeighKey::v4(A, FAR.v4)).unwrap();
    is_refused(lab, &hello(&FAR), DropReason::SpoofedIp);
}

fn a_moved_endpoint_speaks_from_its_new_host(lab: &mut Lab) {
    warm(lab);
    lab.tables.fdb.insert(&FdbKey::new(A, FAR.mac), &remote(PEER2)).unwrap();
    is_refused(lab, &hello(&FAR), DropReason::ForeignSourceMac);
    let outer = Tunnel { src: PEER2, ..from_peer() }.wrap(&hello(&FAR));
    lab.at_underlay(&outer).delivers(&hello(&FAR), &[]);
}

fn a_gateway_is_no_pair_where_hosts_learn(lab: &mut Lab) {
    learning(&lab.tables);
    warm(lab);
    arrives(lab, &hello(&Host { v4: EIGHT, ..FAR }));
    is_refused(lab, &hello(&far_as(&GATEWAY)), DropReason::GatewaySource);
}
