//! ICMP errors about packets of translated flows (RFC 5508 §4).

use culvert_common::abi::{Action, DropReason};
use culvert_tests::packet::{Host, SYN, V4, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    routed::{
        CREATED, CREATED_ELSEWHERE, chosen_port, echo, forget_all, inbound, outbound, publish,
        to_gateway, unsummed,
    },
    run::Left,
    world::{GATEWAY, ONE, SERVER, TWO, US, change_endpoint},
};

cases!(
    from_an_external_router,
    from_an_external_router_with_long_quotes,
    from_a_router_summed_by_the_card,
    from_a_router_with_options,
    about_a_packet_with_options,
    quoted_udp_checksum_of_zero,
    from_the_server,
    from_the_container,
    from_the_container_to_a_client,
    from_the_container_to_another,
    about_a_client_of_a_published_port,
    about_no_flow,
    about_a_flow_of_a_container_that_is_gone,
    about_what_cannot_be_told,
    truncated_at_every_byte,
);

const PORT: u16 = 40_000;
/// A router on the route to the server.
const ROUTER: Host = Host { v4: [198, 51, 100, 77], ..SERVER };
/// Least number of bytes of a packet that an error quotes (RFC 792).
const SHORT: usize = 28;

/// Type, code and second word of the errors: unreachable, fragmentation needed, TTL exceeded,
/// parameter problem.
const ERRORS: [(u8, u8, [u8; 4]); 4] =
    [(3, 1, [0; 4]), (3, 4, [0, 0, 5, 0]), (11, 0, [0; 4]), (12, 0, [8, 0, 0, 0])];

/// Makes a packet from a host and its port to a host and its port.
type Make = fn(&Host, u16, &Host, u16) -> V4;

const KINDS: [Make; 4] = [
    |src, from, dst, to| V4::segment(src, dst, (from, to), SYN, &payload(40)),
    |src, from, dst, to| V4::udp(src, dst, (from, to), &payload(41)),
    |src, from, dst, to| unsummed(V4::udp(src, dst, (from, to), &payload(42))),
    |src, from, dst, to| {
        // The server sends the echo reply.
        if src.v4 == SERVER.v4 { echo(src, dst, 0, to) } else { echo(src, dst, 8, from) }
    },
];

/// The first `len` bytes of `packet` as an error quotes them, after some hops.
fn quoted(packet: &V4, len: usize) -> Vec<u8> {
    let mut quote = V4 { ttl: 3, ..packet.clone() }.packet();
    quote.truncate(len);
    quote
}

/// Begins a flow of `A1` with another external port. Returns that port.
fn begun(lab: &mut Lab, make: Make) -> u16 {
    for protocol in [1, 6, 17] {
        lab.reserve(protocol, PORT);
    }
    forget_all(lab);
    let frame = to_gateway(&make(&ONE, PORT, &SERVER, 80)).frame();
    let run = lab.at_container(Interface::A1, &frame);
    chosen_port(&run.redirects(Action::NatOut, Left::Spent, &CREATED_ELSEWHERE).frame)
}

/// Errors about packets that `A1` sent: as they come in, and as `A1` gets them.
fn about_sent(make: Make, port: u16, len: usize) -> Vec<(V4, V4)> {
    let external = quoted(&make(&US, port, &SERVER, 80), len);
    let internal = quoted(&make(&ONE, PORT, &SERVER, 80), len);
    let pair = |(kind, code, rest)| {
        let came = V4::icmp(&ROUTER, &US, kind, code, rest, &external);
        let went = V4::icmp(&ROUTER, &ONE, kind, code, rest, &internal);
        (came, inbound(&went, &GATEWAY))
    };
    ERRORS.map(pair).to_vec()
}

fn from_an_external_router(lab: &mut Lab) {
    for make in KINDS {
        let port = begun(lab, make);
        for (came, went) in about_sent(make, port, SHORT) {
            lab.at_underlay(&came.frame()).arrives_as(&went, &[]);
        }
    }
}

fn from_an_external_router_with_long_quotes(lab: &mut Lab) {
    for make in KINDS {
        let port = begun(lab, make);
        for len in [30, 36, 38, 39, 52, 1000] {
            for (came, went) in about_sent(make, port, len) {
                lab.at_underlay(&came.frame()).arrives_as(&went, &[]);
            }
        }
    }
}

fn from_a_router_summed_by_the_card(lab: &mut Lab) {
    for make in KINDS {
        let port = begun(lab, make);
        for len in [SHORT, 1000] {
            for (came, went) in about_sent(make, port, len) {
                lab.at_underlay(&came.frame()).summed().arrives_as(&went, &[]);
            }
        }
    }
}

fn from_a_router_with_options(lab: &mut Lab) {
    let make = KINDS[1];
    let port = begun(lab, make);
    for options in [vec![1; 4], vec![1; 40]] {
        for (came, went) in about_sent(make, port, SHORT) {
            let came = V4 { options: options.clone(), ..came };
            let went = V4 { options: options.clone(), ..went };
            lab.at_underlay(&came.frame()).arrives_as(&went, &[]);
        }
    }
}

fn about_a_packet_with_options(lab: &mut Lab) {
    for make in KINDS {
        let port = begun(lab, make);
        let with_options = |packet: V4| V4 { options: vec![0x94, 4, 0, 0], ..packet };
        let external = quoted(&with_options(make(&US, port, &SERVER, 80)), SHORT + 4);
        let internal = quoted(&with_options(make(&ONE, PORT, &SERVER, 80)), SHORT + 4);
        let came = V4::icmp(&ROUTER, &US, 11, 0, [0; 4], &external);
        let went = V4::icmp(&ROUTER, &ONE, 11, 0, [0; 4], &internal);
        lab.at_underlay(&came.frame()).arrives_as(&inbound(&went, &GATEWAY), &[]);
    }
}

fn quoted_udp_checksum_of_zero(lab: &mut Lab) {
    // The word is chosen such that the checksum of the container's datagram would be 0. A 0 means
    // no checksum, so the datagram has all ones (RFC 768).
    let make = |src: &Host, word: u16| V4::udp(src, &SERVER, (PORT, 80), &word.to_be_bytes());
    let word = (0..=u16::MAX).find(|word| make(&ONE, *word).l4[6..8] == [0xff; 2]).unwrap();
    let frame = to_gateway(&make(&ONE, word)).frame();
    lab.at_container(Interface::A1, &frame).leaves_as(&outbound(&make(&US, word)), &CREATED);
    let came = V4::icmp(&ROUTER, &US, 11, 0, [0; 4], &quoted(&make(&US, word), SHORT));
    let went = V4::icmp(&ROUTER, &ONE, 11, 0, [0; 4], &quoted(&make(&ONE, word), SHORT));
    lab.at_underlay(&came.frame()).arrives_as(&inbound(&went, &GATEWAY), &[]);
}

fn from_the_server(lab: &mut Lab) {
    // The server's address is the same before and after the translation.
    for make in KINDS {
        let port = begun(lab, make);
        let external = quoted(&make(&US, port, &SERVER, 80), SHORT);
        let internal = quoted(&make(&ONE, PORT, &SERVER, 80), SHORT);
        let came = V4::icmp(&SERVER, &US, 3, 3, [0; 4], &external);
        let went = V4::icmp(&SERVER, &ONE, 3, 3, [0; 4], &internal);
        lab.at_underlay(&came.frame()).arrives_as(&inbound(&went, &GATEWAY), &[]);
    }
}

fn from_the_container(lab: &mut Lab) {
    // The errors are about packets of the server.
    for make in KINDS {
        let port = begun(lab, make);
        for (len, summed) in [(SHORT, false), (1000, false), (SHORT, true), (1000, true)] {
            let internal = quoted(&make(&SERVER, 80, &ONE, PORT), len);
            let external = quoted(&make(&SERVER, 80, &US, port), len);
            for (kind, code, rest) in ERRORS {
                let came = to_gateway(&V4::icmp(&ONE, &SERVER, kind, code, rest, &internal));
                let went = outbound(&V4::icmp(&US, &SERVER, kind, code, rest, &external));
                let frame = came.frame();
                let run = lab.at_container(Interface::A1, &frame);
                let run = if summed { run.summed() } else { run };
                run.leaves_as(&went, &[]);
            }
        }
    }
}

fn from_the_container_to_a_client(lab: &mut Lab) {
    publish(lab, [0; 4], 17, 8080, Interface::A1, 53);
    let came = V4::udp(&SERVER, &US, (5000, 8080), b"?");
    let went = V4::udp(&SERVER, &ONE, (5000, 53), b"?");
    lab.at_underlay(&came.frame()).arrives_as(&inbound(&went, &GATEWAY), &CREATED);
    let error = to_gateway(&V4::icmp(&ONE, &SERVER, 3, 3, [0; 4], &quoted(&went, SHORT)));
    let left = outbound(&V4::icmp(&US, &SERVER, 3, 3, [0; 4], &quoted(&came, SHORT)));
    lab.at_container(Interface::A1, &error.frame()).leaves_as(&left, &[]);
}

fn from_the_container_to_another(lab: &mut Lab) {
    publish(lab, [0; 4], 17, 8080, Interface::A1, 53);
    let came = V4::udp(&TWO, &US, (5000, 8080), b"?");
    let went = V4::udp(&GATEWAY, &ONE, (5000, 53), b"?");
    let run = lab.at_container(Interface::A2, &to_gateway(&came).frame());
    run.arrives_as(&inbound(&went, &GATEWAY), &CREATED);
    let error = V4::icmp(&ONE, &GATEWAY, 3, 3, [0; 4], &quoted(&went, SHORT));
    let arrived = V4::icmp(&US, &TWO, 3, 3, [0; 4], &quoted(&came, SHORT));
    let run = lab.at_container(Interface::A1, &error.frame());
    run.arrives_as(&inbound(&arrived, &GATEWAY), &[]);
}

fn about_a_client_of_a_published_port(lab: &mut Lab) {
    // A router cannot deliver the container's answer to the client.
    publish(lab, [0; 4], 17, 8080, Interface::A1, 53);
    let came = V4::udp(&SERVER, &US, (5000, 8080), b"?");
    let went = V4::udp(&SERVER, &ONE, (5000, 53), b"?");
    lab.at_underlay(&came.frame()).arrives_as(&inbound(&went, &GATEWAY), &CREATED);
    let external = quoted(&V4::udp(&US, &SERVER, (8080, 5000), b"!"), SHORT);
    let internal = quoted(&V4::udp(&ONE, &SERVER, (53, 5000), b"!"), SHORT);
    let error = V4::icmp(&ROUTER, &US, 3, 1, [0; 4], &external);
    let arrived = V4::icmp(&ROUTER, &ONE, 3, 1, [0; 4], &internal);
    lab.at_underlay(&error.frame()).arrives_as(&inbound(&arrived, &GATEWAY), &[]);
}

fn about_no_flow(lab: &mut Lab) {
    for make in KINDS {
        let external = quoted(&make(&US, PORT, &SERVER, 80), SHORT);
        let error = V4::icmp(&ROUTER, &US, 3, 1, [0; 4], &external);
        lab.at_underlay(&error.frame()).passes(&[]);
        let internal = quoted(&make(&SERVER, 80, &ONE, PORT), SHORT);
        let error = to_gateway(&V4::icmp(&ONE, &SERVER, 3, 3, [0; 4], &internal));
        lab.at_container(Interface::A1, &error.frame()).drops(DropReason::NoFlow);
        // Errors about the host's own flows pass to the host.
        let internal = quoted(&V4::udp(&GATEWAY, &ONE, (1, 2), b"x"), SHORT);
        let error = V4::icmp(&ONE, &GATEWAY, 3, 3, [0; 4], &internal);
        lab.at_container(Interface::A1, &error.frame()).reaches_host();
    }
}

fn about_a_flow_of_a_container_that_is_gone(lab: &mut Lab) {
    let make = KINDS[0];
    let port = begun(lab, make);
    change_endpoint(&lab.tables, Interface::A1, |entry| entry.incarnation += 1);
    for (came, _) in about_sent(make, port, SHORT) {
        lab.at_underlay(&came.frame()).passes(&[]);
    }
    let internal = quoted(&make(&SERVER, 80, &ONE, PORT), SHORT);
    let error = to_gateway(&V4::icmp(&ONE, &SERVER, 3, 3, [0; 4], &internal));
    lab.at_container(Interface::A1, &error.frame()).drops(DropReason::NoFlow);
}

fn about_what_cannot_be_told(lab: &mut Lab) {
    let make = KINDS[1];
    let port = begun(lab, make);
    let sent = make(&US, port, &SERVER, 80);
    let mut other_version = quoted(&sent, SHORT);
    other_version[0] = 0x65;
    let mut short_header = quoted(&sent, SHORT);
    short_header[0] = 0x44;
    for quote in [
        quoted(&V4 { df: false, offset: 7, ..sent.clone() }, SHORT),
        quoted(&V4 { protocol: 47, ..sent.clone() }, SHORT),
        quoted(&V4::icmp(&US, &SERVER, 3, 1, [0; 4], &payload(28)), 48),
        other_version,
        short_header,
    ] {
        let error = V4::icmp(&ROUTER, &US, 3, 1, [0; 4], &quote);
        lab.at_underlay(&error.frame()).passes(&[]);
    }
}

fn truncated_at_every_byte(lab: &mut Lab) {
    let make = KINDS[1];
    let port = begun(lab, make);
    for len in 0..SHORT {
        let external = quoted(&make(&US, port, &SERVER, 80), len);
        let error = V4::icmp(&ROUTER, &US, 3, 1, [0; 4], &external);
        lab.at_underlay(&error.frame()).passes(&[]);
    }
}
