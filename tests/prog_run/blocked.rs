//! Destinations that containers must not reach through their gateway: gateways of other networks,
//! broadcast addresses, a store without authentication, and hosts.

use culvert::datapath::Table as _;
use culvert_common::abi::{DropReason, MappedAddr, NetworkInfo, Note, PublishedKey, blocked};
use culvert_tests::packet::{ACK, Host, SYN, Tunnel, V4, payload};

use crate::{
    interfaces::Interface,
    lab::{Lab, alone_with},
    routed::{
        CREATED, echo, entries, forget_all, fragments, inbound, outbound, publish, to_gateway,
    },
    routing::{error, is_told},
    world::{
        A, FARTHER, GATEWAY, ONE, PEER, PEER2, SECOND, SERVER, TWO, US, US_TO_CLIENTS,
        change_network, from_peer, to_peer2,
    },
};

cases!(
    the_gateway_of_another_network,
    the_own_gateway,
    a_broadcast_address,
    the_store,
    the_store_beside_other_ports,
    the_store_on_this_host,
    a_header_that_ends_in_the_next_fragment,
    the_store_after_a_flow_began,
    hosts,
    hosts_in_fragments,
    answers_to_the_host,
    answers_to_another_host,
    other_hosts_stay_open,
    published_ports_of_a_closed_host,
    a_route_to_nowhere_is_no_way_to_the_host,
);

const PORT: u16 = 40_000;
/// Port of the store.
const STORE: u16 = 2379;

/// Closes an address, or one port of it.
pub(crate) fn close(lab: &Lab, host: &Host, port: Option<u16>, why: u32) {
    let whole = PublishedKey::whole(MappedAddr::v4(host.v4));
    let key = match port {
        None => whole,
        Some(port) => PublishedKey { port: port.to_be_bytes(), protocol: 6, ..whole },
    };
    lab.tables.blocked.insert(&key, &why).unwrap();
}

/// Closes network A towards hosts, of which the agent knows two others.
pub(crate) fn close_hosts(lab: &Lab) {
    for peer in [PEER, PEER2] {
        close(lab, &vtep(peer), None, blocked::HOST);
    }
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::BLOCK_HOSTS);
}

fn syn(dst: &Host, port: u16) -> V4 {
    to_gateway(&V4::segment(&ONE, dst, (PORT, port), SYN, &[]))
}

fn udp(dst: &Host) -> V4 {
    to_gateway(&V4::udp(&ONE, dst, (PORT, 53), &payload(40)))
}

fn ping(dst: &Host) -> V4 {
    to_gateway(&echo(&ONE, dst, 8, 7))
}

fn gre(dst: &Host) -> V4 {
    to_gateway(&V4 { protocol: 47, l4: payload(40), ..V4::new(&ONE, dst) })
}

#[track_caller]
fn drops(lab: &mut Lab, packet: &V4, reason: DropReason) {
    lab.at_container(Interface::A1, &packet.frame()).drops(reason);
    assert_eq!(entries(lab), 0);
}

/// The container is told that its packet is prohibited.
#[track_caller]
fn is_blocked(lab: &mut Lab, packet: &V4) {
    let told = error(packet, 3, 13, 0);
    is_told(lab, packet, DropReason::Blocked, Note::IcmpUnreachableSent, &told);
}

fn the_gateway_of_another_network(lab: &mut Lab) {
    close(lab, &SECOND, None, blocked::GATEWAY);
    for packet in [udp(&SECOND), syn(&SECOND, 22), ping(&SECOND), gre(&SECOND)] {
        drops(lab, &packet, DropReason::Isolated);
    }
    // Not even a port that is published at all addresses.
    publish(lab, [0; 4], 6, 8080, Interface::A2, 80);
    drops(lab, &syn(&SECOND, 8080), DropReason::Isolated);
    // An ICMP error about no packet of a flow.
    let quoted = &V4::udp(&SECOND, &ONE, (53, PORT), b"!").packet()[..28];
    let unreachable = to_gateway(&V4::icmp(&ONE, &SECOND, 3, 3, [0; 4], quoted));
    drops(lab, &unreachable, DropReason::Isolated);
}

fn the_own_gateway(lab: &mut Lab) {
    close(lab, &GATEWAY, None, blocked::GATEWAY);
    for packet in [udp(&GATEWAY), syn(&GATEWAY, 22), ping(&GATEWAY)] {
        lab.at_container(Interface::A1, &packet.frame()).begins_to_host();
    }
    lab.at_container(Interface::A1, &gre(&GATEWAY).frame()).reaches_host();
}

fn a_broadcast_address(lab: &mut Lab) {
    // The kernel has no unicast route to it: the program would hand it to the host's stack, which
    // delivers it to sockets of the host.
    let all = Host { v4: [192, 0, 2, 255], ..SERVER };
    close(lab, &all, None, blocked::BROADCAST);
    for packet in [udp(&all), syn(&all, 22), ping(&all)] {
        drops(lab, &packet, DropReason::Unroutable);
    }
    drops(lab, &gre(&all), DropReason::ProtocolUnsupported);
}

fn the_store(lab: &mut Lab) {
    close(lab, &SERVER, Some(STORE), blocked::STORE);
    is_blocked(lab, &syn(&SERVER, STORE));
    // A segment that opens no connection would begin a flow, too.
    let ack = to_gateway(&V4::segment(&ONE, &SERVER, (PORT, STORE), ACK, b"x"));
    is_blocked(lab, &ack);
}

fn the_store_beside_other_ports(lab: &mut Lab) {
    close(lab, &SERVER, Some(STORE), blocked::STORE);
    let left = outbound(&V4::segment(&US, &SERVER, (PORT, STORE + 1), SYN, &[]));
    lab.at_container(Interface::A1, &syn(&SERVER, STORE + 1).frame()).leaves_as(&left, &CREATED);
    let left = outbound(&V4::udp(&US, &SERVER, (PORT, STORE), b"x"));
    let packet = to_gateway(&V4::udp(&ONE, &SERVER, (PORT, STORE), b"x"));
    lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, &CREATED);
}

fn the_store_on_this_host(lab: &mut Lab) {
    close(lab, &US, Some(STORE), blocked::STORE);
    close(lab, &GATEWAY, Some(STORE), blocked::STORE);
    close(lab, &GATEWAY, None, blocked::GATEWAY);
    for host in [US, GATEWAY] {
        is_blocked(lab, &syn(&host, STORE));
    }
    // An acknowledgement of a SYN cookie begins a connection.
    for flags in [ACK, SYN | ACK] {
        is_blocked(lab, &to_gateway(&V4::segment(&ONE, &GATEWAY, (PORT, STORE), flags, &[])));
        let answer = to_gateway(&V4::segment(&ONE, &GATEWAY, (80, PORT), flags, &[]));
        lab.at_container(Interface::A1, &answer.frame()).reaches_host();
    }
    assert_eq!(entries(lab), 0);
    lab.at_container(Interface::A1, &syn(&GATEWAY, 22).frame()).begins_to_host();
}

/// A first fragment has 8 bytes of TCP, and padding in which the flags seem to be those of an answer.
/// The host takes the flags from the next fragment: there they are those of a SYN.
#[track_caller]
fn hides_no_flags(lab: &mut Lab, dst: &Host, port: u16) {
    for id in [7, 8] {
        let packet = V4 { id, ..syn(dst, port) };
        let [first, later] = fragments(&packet, &[8]).try_into().unwrap();
        let flags = if id == 7 { ACK } else { SYN | ACK };
        let padded = [first.frame(), vec![0, 0, 0, 0, 0x50, flags]].concat();
        lab.at_container(Interface::A1, &padded).drops(DropReason::Malformed);
        lab.at_container(Interface::A1, &later.frame()).holds(&[]);
    }
    assert_eq!(entries(lab), 0);
}

fn a_header_that_ends_in_the_next_fragment(lab: &mut Lab) {
    close(lab, &GATEWAY, Some(STORE), blocked::STORE);
    hides_no_flags(lab, &GATEWAY, STORE);
    close_hosts(lab);
    hides_no_flags(lab, &US, 22);
}

/// Where no port of the store is closed, answers to the host are not looked up.
#[test]
#[ignore = "needs root"]
fn answers_to_the_host_where_no_store_is_closed() {
    alone_with(
        |options| options.ports_closed = false,
        |lab| {
            close(lab, &GATEWAY, Some(STORE), blocked::STORE);
            is_blocked(lab, &syn(&GATEWAY, STORE));
            for flags in [ACK, SYN | ACK] {
                let answer = to_gateway(&V4::segment(&ONE, &GATEWAY, (80, STORE), flags, &[]));
                lab.at_container(Interface::A1, &answer.frame()).reaches_host();
            }
            assert_eq!(entries(lab), 0);
            hides_no_flags(lab, &GATEWAY, STORE);
        },
    );
}

/// A change concerns new flows alone.
fn the_store_after_a_flow_began(lab: &mut Lab) {
    let left = outbound(&V4::segment(&US, &SERVER, (PORT, STORE), SYN, &[]));
    lab.at_container(Interface::A1, &syn(&SERVER, STORE).frame()).leaves_as(&left, &CREATED);
    close(lab, &SERVER, Some(STORE), blocked::STORE);
    lab.at_container(Interface::A1, &syn(&SERVER, STORE).frame()).leaves_as(&left, &[]);
    forget_all(lab);
    is_blocked(lab, &syn(&SERVER, STORE));
}

/// The VTEP with the address `v4`, as a destination behind the gateway.
fn vtep(v4: [u8; 4]) -> Host {
    Host { v4, ..SERVER }
}

fn hosts(lab: &mut Lab) {
    close_hosts(lab);
    for host in [US, SECOND, GATEWAY, vtep(PEER), vtep(PEER2)] {
        for packet in [udp(&host), syn(&host, 22), ping(&host)] {
            is_blocked(lab, &packet);
        }
    }
    for host in [US, SECOND] {
        drops(lab, &gre(&host), DropReason::Blocked);
    }
    // A segment that opens no connection would begin a masqueraded flow to another host.
    is_blocked(lab, &to_gateway(&V4::tcp(&ONE, &vtep(PEER), (PORT, 22), b"x")));
}

fn hosts_in_fragments(lab: &mut Lab) {
    close_hosts(lab);
    let [first, later] =
        fragments(&to_gateway(&V4::udp(&ONE, &US, (PORT, 53), &payload(900))), &[400])
            .try_into()
            .unwrap();
    is_blocked(lab, &first);
    drops(lab, &later, DropReason::Blocked);
}

fn answers_to_the_host(lab: &mut Lab) {
    close_hosts(lab);
    for packet in [
        V4::segment(&ONE, &US, (80, PORT), SYN | ACK, &[]),
        V4::tcp(&ONE, &US, (80, PORT), b"x"),
        echo(&ONE, &US, 0, 7),
    ] {
        lab.at_container(Interface::A1, &to_gateway(&packet).frame()).reaches_host();
    }
    assert_eq!(entries(lab), 0);
}

/// Another host has begun a flow through the tunnel. The answers go back through it.
fn answers_to_another_host(lab: &mut Lab) {
    close_hosts(lab);
    let far_host = Host { mac: GATEWAY.mac, v4: PEER2, ..FARTHER };
    let request = V4::udp(&far_host, &ONE, (PORT, 53), b"?");
    let outer = Tunnel { src: PEER2, ..from_peer() };
    let outcome = lab.at_underlay(&outer.wrap(&request.frame())).outcome();
    assert!(!outcome.frame.is_empty());
    assert_eq!(entries(lab), 2);
    let answer = to_gateway(&V4::udp(&ONE, &far_host, (53, PORT), b"!"));
    let went = V4 { ttl: answer.ttl - 1, ..answer.clone() };
    let run = lab.at_container(Interface::A1, &answer.frame());
    run.encaps(to_peer2().wrap(&went.frame()), &[]);
}

fn other_hosts_stay_open(lab: &mut Lab) {
    close_hosts(lab);
    let packet = udp(&SERVER);
    let left = outbound(&V4::udp(&US, &SERVER, (PORT, 53), &payload(40)));
    lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, &CREATED);
}

fn published_ports_of_a_closed_host(lab: &mut Lab) {
    publish(lab, [0; 4], 6, 8080, Interface::A2, 80);
    let came = syn(&US, 8080);
    let went = inbound(&V4::segment(&GATEWAY, &TWO, (PORT, 80), SYN, &[]), &GATEWAY);
    lab.at_container(Interface::A1, &came.frame()).arrives_as(&went, &CREATED);
    forget_all(lab);
    close_hosts(lab);
    is_blocked(lab, &came);
}

/// The host's stack answers for a destination without a route, and for an address of the host that
/// the agent has not yet written to the map.
fn a_route_to_nowhere_is_no_way_to_the_host(lab: &mut Lab) {
    lab.tables.host_addrs.remove(&MappedAddr::v4(US.v4)).unwrap();
    lab.at_container(Interface::A1, &syn(&US, 22).frame()).reaches_host();
    close_hosts(lab);
    // The VTEP address of this host is known without the map, too.
    is_blocked(lab, &syn(&US, 22));
    let loopback = Host { v4: [127, 0, 0, 2], ..US };
    drops(lab, &syn(&loopback, 22), DropReason::Unroutable);
    lab.tables.host_addrs.remove(&MappedAddr::v4(US_TO_CLIENTS.v4)).unwrap();
    drops(lab, &syn(&US_TO_CLIENTS, 22), DropReason::Blocked);
}
