//! The programs attached to the interfaces of the lab: the destination of routed packets, and the
//! host's own sockets.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use culvert_common::abi::Action;
use culvert_tests::packet::{Host, SYN, V4, payload};

use crate::{
    compare::same,
    interfaces::Interface,
    lab::Lab,
    live::Live,
    routed::{chosen_port, echo, fragments, inbound, publish, to_gateway},
    world::{GATEWAY, ONE, ROUTER_MAC, SERVER, TWO, UPLINK_MAC, US},
};

cases!(
    out_and_back,
    published_and_back,
    from_one_container_to_another,
    fragments_out_of_order_leave_in_order,
    fragments_out_of_order_arrive_in_order,
    the_host_and_a_container,
    the_host_and_its_published_port,
);

const PORT: u16 = 40_000;
/// How long frames and datagrams may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The packet as the uplink sends it to the router, with a TTL that is one less.
fn on_the_wire(packet: &V4) -> V4 {
    V4 { eth_dst: ROUTER_MAC, eth_src: UPLINK_MAC, ttl: 62, ..packet.clone() }
}

/// Waits until `count` frames have come out.
#[track_caller]
fn receive(lab: &mut Lab, count: usize) -> Vec<(Interface, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut frames = lab.drain();
    while frames.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} frames", frames.len());
        frames.extend(lab.drain());
    }
    lab.new_counts();
    frames
}

fn out_and_back(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    type Packet = fn(&Host) -> V4;
    let kinds: [(Packet, Packet); 3] = [
        (
            |from| V4::segment(from, &SERVER, (PORT, 80), SYN, &[]),
            |to| V4::tcp(&SERVER, to, (80, PORT), &payload(1000)),
        ),
        (
            |from| V4::udp(from, &SERVER, (PORT, 53), b"?"),
            |to| V4::udp(&SERVER, to, (53, PORT), b"!"),
        ),
        (|from| echo(from, &SERVER, 8, 7), |to| echo(&SERVER, to, 0, 7)),
    ];
    for (ask, answer) in kinds {
        let (frame, wire) = (to_gateway(&ask(&ONE)).frame(), on_the_wire(&ask(&US)).frame());
        live.moves(Interface::A1, &frame, Action::NatOut, Interface::Uplink, &wire);
        let (frame, arrived) = (answer(&US).frame(), inbound(&answer(&ONE), &GATEWAY).frame());
        live.moves(Interface::Uplink, &frame, Action::NatDeliver, Interface::A1, &arrived);
    }
}

fn published_and_back(lab: &mut Lab) {
    publish(lab, [0; 4], 6, 8080, Interface::A2, 80);
    let mut live = Live::attach(lab);
    let came = V4::segment(&SERVER, &US, (5000, 8080), SYN, &[]);
    let went = inbound(&V4::segment(&SERVER, &TWO, (5000, 80), SYN, &[]), &GATEWAY);
    live.moves(Interface::Uplink, &came.frame(), Action::NatDeliver, Interface::A2, &went.frame());
    let answer = to_gateway(&V4::tcp(&TWO, &SERVER, (80, 5000), b"hello"));
    let wire = on_the_wire(&V4::tcp(&US, &SERVER, (8080, 5000), b"hello"));
    live.moves(Interface::A2, &answer.frame(), Action::NatOut, Interface::Uplink, &wire.frame());
}

fn from_one_container_to_another(lab: &mut Lab) {
    publish(lab, [0; 4], 17, 8080, Interface::A2, 80);
    let mut live = Live::attach(lab);
    for (from, host) in [(Interface::A1, ONE), (Interface::A2, TWO)] {
        let came = to_gateway(&V4::udp(&host, &US, (u16::from(host.v4[3]), 8080), b"?"));
        let port = u16::from(host.v4[3]);
        let went = inbound(&V4::udp(&GATEWAY, &TWO, (port, 80), b"?"), &GATEWAY);
        live.moves(from, &came.frame(), Action::NatDeliver, Interface::A2, &went.frame());
        let answer = V4::udp(&TWO, &GATEWAY, (80, port), b"!");
        let back = inbound(&V4::udp(&US, &host, (8080, port), b"!"), &GATEWAY);
        live.moves(Interface::A2, &answer.frame(), Action::NatDeliver, from, &back.frame());
    }
}

/// Sends the fragments of `came` from the far end of a port, the first fragment last. They come out
/// of another port as the fragments of `went`, the first fragment first.
#[track_caller]
fn come_out_in_order(
    live: &mut Live<'_>,
    (from, came): (Interface, &V4),
    (to, went): (Interface, &V4),
) {
    let sizes = [1000, 800];
    for fragment in fragments(came, &sizes).iter().rev() {
        live.lab.wire(from).far.send(&fragment.frame());
    }
    let frames = receive(live.lab, 3);
    let reached: Vec<Interface> = frames.iter().map(|(interface, _)| *interface).collect();
    assert_eq!(reached, [to; 3]);
    let [first, second, third] = fragments(went, &sizes).try_into().unwrap();
    // The other fragments keep the order in which they were sent.
    for ((_, frame), wanted) in frames.iter().zip([first, third, second]) {
        same("fragment", frame, &wanted.frame());
    }
}

fn fragments_out_of_order_leave_in_order(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    let make = |from: &Host| V4::udp(from, &SERVER, (PORT, 53), &payload(2500));
    let (came, went) = (to_gateway(&make(&ONE)), on_the_wire(&make(&US)));
    come_out_in_order(&mut live, (Interface::A1, &came), (Interface::Uplink, &went));
}

fn fragments_out_of_order_arrive_in_order(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    let ask = |from: &Host| V4::udp(from, &SERVER, (PORT, 53), b"?");
    let (frame, wire) = (to_gateway(&ask(&ONE)).frame(), on_the_wire(&ask(&US)).frame());
    live.moves(Interface::A1, &frame, Action::NatOut, Interface::Uplink, &wire);
    let answer = |to: &Host| V4::udp(&SERVER, to, (53, PORT), &payload(2500));
    let arrived = inbound(&answer(&ONE), &GATEWAY);
    come_out_in_order(&mut live, (Interface::Uplink, &answer(&US)), (Interface::A1, &arrived));
}

fn socket(address: &str) -> (UdpSocket, u16) {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// The datagram that the socket receives, and its sender.
#[track_caller]
fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

fn the_host_and_a_container(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    live.attach_host();
    let (socket, port) = socket("10.0.0.1:0");
    let question = V4::udp(&ONE, &GATEWAY, (PORT, port), b"?");
    live.lab.wire(Interface::A1).far.send(&question.frame());
    assert_eq!(received(&socket), (b"?".to_vec(), "10.0.0.2:40000".parse().unwrap()));
    socket.send_to(b"hello", "10.0.0.2:40000").unwrap();
    let [(to, frame)] = receive(live.lab, 1).try_into().unwrap();
    assert_eq!((to, &frame[..6], &frame[6..12]), (Interface::A1, &ONE.mac[..], &GATEWAY.mac[..]));
    // The kernel chooses identification and DF, and whether it or the device computes the checksum.
    assert_eq!((&frame[26..34], &frame[42..]), (&[10, 0, 0, 1, 10, 0, 0, 2][..], &b"hello"[..]));
}

fn the_host_and_its_published_port(lab: &mut Lab) {
    publish(lab, [0; 4], 17, 8080, Interface::A1, 53);
    let mut live = Live::attach(lab);
    live.attach_host();
    for address in ["127.0.0.1", "192.0.2.1"] {
        let (socket, _) = socket(&format!("{address}:0"));
        socket.connect((address, 8080)).unwrap();
        socket.send(b"?").unwrap();
        let [(to, frame)] = receive(live.lab, 1).try_into().unwrap();
        assert_eq!(
            (to, &frame[..6], &frame[6..12]),
            (Interface::A1, &ONE.mac[..], &GATEWAY.mac[..])
        );
        assert_eq!(
            (&frame[26..34], &frame[36..38]),
            (&[10, 0, 0, 1, 10, 0, 0, 2][..], &[0, 53][..])
        );
        assert_eq!(&frame[42..], b"?");
        let answer = V4::udp(&ONE, &GATEWAY, (53, chosen_port(&frame)), b"hello");
        live.lab.wire(Interface::A1).far.send(&answer.frame());
        let (bytes, from) = received(&socket);
        assert_eq!(
            (bytes.as_slice(), from),
            (&b"hello"[..], SocketAddr::new(address.parse().unwrap(), 8080))
        );
    }
}
