use bytemuck::bytes_of;
use etherparse as ep;
use proptest::prelude::*;
use proptest::sample::select;

use super::{MAC, OTHER_MAC, endpoint, free_endpoint, v6};
use crate::abi::{DropReason, EndpointInfo};
use crate::datapath::nd::{
    NdKind, NdQuery, check_router_solicit, is_disguised, nd_announcement, nd_kind, nd_query,
    nd_reply,
};
use crate::datapath::source::check_ipv6_headers;
use crate::wire::icmp::{NA_OVERRIDE, NA_SOLICITED};
use crate::wire::ipv6::{NEXT_HOP_BY_HOP, NEXT_ICMPV6};
use crate::wire::{Icmpv6Hdr, Ipv6Hdr, LinkLayerOption, NeighbourHdr};

const NS: u8 = 135;
const NA: u8 = 136;
const SLLA: u8 = 1;
const TLLA: u8 = 2;
const NONCE: u8 = 14;
/// An additional address of the endpoint.
const ADDITIONAL: &str = "fd00::100";

/// A valid neighbour message of a container, for tests to change.
#[derive(Clone, Copy)]
struct Message {
    ep: EndpointInfo,
    src: &'static str,
    dst: &'static str,
    kind: u8,
    flags: u8,
    target: &'static str,
    option: Option<LinkLayerOption>,
    payload_len: u16,
}

/// A solicitation for fd00::3.
fn solicit() -> Message {
    Message {
        ep: endpoint(),
        src: "fd00::2",
        dst: "ff02::1:ff00:3",
        kind: NS,
        flags: 0,
        target: "fd00::3",
        option: Some(LinkLayerOption::new(SLLA, MAC)),
        payload_len: 32,
    }
}

/// An answer to fd00::3.
fn advert() -> Message {
    Message {
        dst: "fd00::3",
        kind: NA,
        flags: NA_SOLICITED | NA_OVERRIDE,
        target: "fd00::2",
        option: Some(LinkLayerOption::new(TLLA, MAC)),
        ..solicit()
    }
}

impl Message {
    fn ask(self) -> Result<NdQuery, DropReason> {
        let ip = Ipv6Hdr::new(v6(self.src), v6(self.dst), NEXT_ICMPV6, self.payload_len, 255);
        let message = NeighbourHdr::new(self.kind, self.flags, v6(self.target));
        assert_eq!(nd_kind(&self.ep, &ip, &message.icmp), Ok(NdKind::Neighbour));
        nd_query(&self.ep, &ip, &message, self.option.as_ref(), |ip| *ip == v6(ADDITIONAL))
    }

    fn without_option(self) -> Self {
        Self { option: None, payload_len: 24, ..self }
    }
}

#[test]
fn what_an_endpoint_may_ask() {
    let resolve = Ok(NdQuery::Resolve { target: v6("fd00::3") });
    assert_eq!(solicit().ask(), resolve);
    assert_eq!(solicit().without_option().ask(), resolve, "no option");
    assert_eq!(Message { dst: "fd00::3", ..solicit() }.ask(), resolve, "unreachability detection");
    assert_eq!(Message { src: "fe80::42:aff:fe00:2", ..solicit() }.ask(), resolve, "link-local");

    let detect = Message { src: "::", ..solicit().without_option() };
    assert_eq!(detect.ask(), resolve, "detection of a duplicate of a peer's address");
    let own = Message { target: "fd00::2", dst: "ff02::1:ff00:2", ..detect };
    assert_eq!(own.ask(), Ok(NdQuery::Absorb), "of its own");
    let link_local = Message { target: "fe80::42:aff:fe00:2", ..own };
    assert_eq!(link_local.ask(), Ok(NdQuery::Absorb), "of its link-local address");
    let nonce = Message {
        option: Some(LinkLayerOption::new(NONCE, [1, 2, 3, 4, 5, 6])),
        payload_len: 32,
        ..own
    };
    assert_eq!(nonce.ask(), Ok(NdQuery::Absorb), "with the nonce of RFC 7527");

    assert_eq!(advert().ask(), Ok(NdQuery::Forward));
    assert_eq!(advert().without_option().ask(), Ok(NdQuery::Forward), "no option");
    let unsolicited = Message { dst: "ff02::1", flags: NA_OVERRIDE, ..advert() };
    assert_eq!(unsolicited.ask(), Ok(NdQuery::Absorb), "unsolicited");
}

#[test]
fn what_it_may_not_claim() {
    let spoofed = Err(DropReason::SpoofedNd);
    let theirs = |kind| Some(LinkLayerOption::new(kind, OTHER_MAC));
    assert_eq!(Message { option: theirs(SLLA), ..solicit() }.ask(), spoofed, "another's MAC");
    assert_eq!(Message { option: theirs(TLLA), ..advert() }.ask(), spoofed, "another's MAC");
    assert_eq!(Message { target: "fd00::3", ..advert() }.ask(), spoofed, "another's address");
    assert_eq!(Message { target: "fe80::1", ..advert() }.ask(), spoofed, "another's link-local");

    // The endpoint's own option, then another endpoint's after it, or inside a long option.
    assert_eq!(Message { payload_len: 40, ..solicit() }.ask(), spoofed, "two options");
    assert_eq!(Message { payload_len: 40, ..advert() }.ask(), spoofed, "two options");
    let mut long: [u8; 8] = bytemuck::cast(LinkLayerOption::new(NONCE, MAC));
    long[1] = 2;
    let long = Some(bytemuck::cast(long));
    assert_eq!(Message { option: long, ..solicit() }.ask(), spoofed, "a long option");
}

#[test]
fn an_additional_address_is_the_endpoint_s_own() {
    let detect = Message {
        src: "::",
        dst: "ff02::1:ff00:100",
        target: ADDITIONAL,
        ..solicit().without_option()
    };
    assert_eq!(detect.ask(), Ok(NdQuery::Absorb), "duplicate address detection");
    assert_eq!(Message { target: ADDITIONAL, ..advert() }.ask(), Ok(NdQuery::Forward));
    let unsolicited =
        Message { dst: "ff02::1", flags: NA_OVERRIDE, target: ADDITIONAL, ..advert() };
    assert_eq!(unsolicited.ask(), Ok(NdQuery::Absorb), "unsolicited");
}

#[test]
fn what_rfc_4861_calls_invalid() {
    let malformed = Err(DropReason::Malformed);
    assert_eq!(Message { target: "ff02::1", ..solicit() }.ask(), malformed, "multicast target");
    assert_eq!(Message { target: "ff02::1", ..advert() }.ask(), malformed, "multicast target");
    assert_eq!(Message { target: "::", ..solicit() }.ask(), malformed, "no target");
    let from_nobody = Message { src: "::", ..solicit() };
    assert_eq!(from_nobody.ask(), malformed, "source option from ::");
    let unicast = Message { dst: "fd00::3", ..from_nobody.without_option() };
    assert_eq!(unicast.ask(), malformed, "from :: to one host");
    assert_eq!(Message { dst: "ff02::1", ..advert() }.ask(), malformed, "solicited to all");
    assert_eq!(Message { payload_len: 23, ..solicit() }.ask(), malformed, "cut short");
    assert_eq!(Message { payload_len: 31, ..solicit() }.ask(), malformed, "option cut short");
    assert_eq!(Message { option: None, ..solicit() }.ask(), malformed, "frame cut short");
    let mut empty: [u8; 8] = bytemuck::cast(LinkLayerOption::new(SLLA, MAC));
    empty[1] = 0;
    let empty = Some(bytemuck::cast(empty));
    assert_eq!(Message { option: empty, ..solicit() }.ask(), malformed, "option of length 0");
    let wrong = Some(LinkLayerOption::new(TLLA, MAC));
    assert_eq!(Message { option: wrong, ..solicit() }.ask(), malformed, "target in a solicitation");
}

#[test]
fn padding_after_the_message_is_not_an_option() {
    let padded = Message { option: Some(bytemuck::cast([0u8; 8])), payload_len: 24, ..solicit() };
    assert_eq!(padded.ask(), Ok(NdQuery::Resolve { target: v6("fd00::3") }));
}

#[test]
fn without_anti_spoofing_any_claim_will_do() {
    let free = |message: Message| Message { ep: free_endpoint(), ..message };
    let theirs = Some(LinkLayerOption::new(SLLA, OTHER_MAC));
    assert_eq!(
        free(Message { option: theirs, src: "fd00::7", ..solicit() }).ask(),
        Ok(NdQuery::Resolve { target: v6("fd00::3") })
    );
    assert_eq!(free(Message { target: "fd00::7", ..advert() }).ask(), Ok(NdQuery::Forward));
    assert_eq!(free(Message { payload_len: 40, ..advert() }).ask(), Ok(NdQuery::Forward));
    assert_eq!(free(Message { target: "ff02::1", ..advert() }).ask(), Err(DropReason::Malformed));
}

#[test]
fn kinds() {
    let ip = |hop_limit| Ipv6Hdr::new(v6("fd00::2"), v6("ff02::1"), NEXT_ICMPV6, 24, hop_limit);
    let kind = |kind, code, hop_limit| {
        nd_kind(&endpoint(), &ip(hop_limit), &Icmpv6Hdr::new(kind, code, [0; 4]))
    };
    assert_eq!(kind(133, 0, 255), Ok(NdKind::RouterSolicit));
    assert_eq!(kind(134, 0, 255), Err(DropReason::SpoofedNd));
    assert_eq!(kind(135, 0, 255), Ok(NdKind::Neighbour));
    assert_eq!(kind(136, 0, 255), Ok(NdKind::Neighbour));
    assert_eq!(kind(137, 0, 255), Err(DropReason::SpoofedNd));
    for other in (0..=255).filter(|kind| !(133..=137).contains(kind)) {
        assert_eq!(kind(other, 1, 64), Ok(NdKind::Other), "type {other}");
    }
    for discovery in 133..=137 {
        assert_eq!(kind(discovery, 0, 254), Err(DropReason::Malformed), "forwarded");
        assert_eq!(kind(discovery, 1, 255), Err(DropReason::Malformed), "code");
        assert!(nd_kind(&free_endpoint(), &ip(255), &Icmpv6Hdr::new(discovery, 0, [0; 4])).is_ok());
    }
}

#[test]
fn router_solicitations() {
    let check = |src, payload_len, option: Option<LinkLayerOption>| {
        let ip = Ipv6Hdr::new(v6(src), v6("ff02::2"), NEXT_ICMPV6, payload_len, 255);
        check_router_solicit(&endpoint(), &ip, option.as_ref())
    };
    assert_eq!(check("::", 8, None), Ok(()));
    assert_eq!(check("fe80::42:aff:fe00:2", 16, Some(LinkLayerOption::new(SLLA, MAC))), Ok(()));
    assert_eq!(
        check("fe80::42:aff:fe00:2", 16, Some(LinkLayerOption::new(SLLA, OTHER_MAC))),
        Err(DropReason::SpoofedNd)
    );
    assert_eq!(check("::", 16, Some(LinkLayerOption::new(SLLA, MAC))), Err(DropReason::Malformed));
    assert_eq!(check("::", 4, None), Err(DropReason::Malformed));
}

#[test]
fn disguises() {
    let ip = |next, hop_limit| Ipv6Hdr::new([0; 16], [0; 16], next, 64, hop_limit);
    assert!(is_disguised(&endpoint(), &ip(NEXT_HOP_BY_HOP, 255), NEXT_ICMPV6));
    assert!(!is_disguised(&endpoint(), &ip(NEXT_HOP_BY_HOP, 1), NEXT_ICMPV6), "MLD");
    assert!(!is_disguised(&endpoint(), &ip(NEXT_HOP_BY_HOP, 255), 17), "UDP");
    assert!(!is_disguised(&endpoint(), &ip(NEXT_ICMPV6, 255), NEXT_ICMPV6), "in plain sight");
    assert!(!is_disguised(&free_endpoint(), &ip(NEXT_HOP_BY_HOP, 255), NEXT_ICMPV6));
}

/// RFC 7112 §5: the headers end within the packet, not in the padding of the frame.
#[test]
fn all_headers_are_in_the_packet() {
    let ip = |payload_len| Ipv6Hdr::new([1; 16], [2; 16], 44, payload_len, 255);
    for (protocol, upper_len) in [(6, 20), (17, 8), (58, 4), (59, 0), (132, 0)] {
        let check = |payload_len| check_ipv6_headers(&ip(payload_len), protocol, 40 + 16);
        assert_eq!(check(16 + upper_len), Ok(()), "{protocol}");
        assert_eq!(check(15 + upper_len), Err(DropReason::Malformed), "{protocol}");
        assert_eq!(check(1), Err(DropReason::Malformed), "{protocol}");
        assert_eq!(check(0), Ok(()), "a jumbogram of protocol {protocol}");
    }
}

proptest! {
    #[test]
    fn the_reply_answers_the_solicitation(
        asker: [u8; 6], src: [u8; 16], target: [u8; 16], mac: [u8; 6], detect: bool,
    ) {
        let src = if detect { [0; 16] } else { src };
        let ip = Ipv6Hdr::new(src, v6("ff02::1:ff00:3"), NEXT_ICMPV6, 32, 255);
        let frame = nd_reply(asker, &ip, &NeighbourHdr::new(NS, 0, target), mac);
        let packet = ep::SlicedPacket::from_ethernet(bytes_of(&frame)).unwrap();

        let probe = src == [0; 16];
        let Some(ep::LinkSlice::Ethernet2(eth)) = packet.link else { panic!("no Ethernet") };
        prop_assert_eq!(eth.source(), mac);
        prop_assert_eq!(eth.destination(), if probe { [0x33, 0x33, 0, 0, 0, 1] } else { asker });
        let Some(ep::NetSlice::Ipv6(ip)) = packet.net else { panic!("no IPv6") };
        let ip = ip.header();
        let dst = if probe { v6("ff02::1") } else { src };
        prop_assert_eq!((ip.source(), ip.destination()), (target, dst));
        prop_assert_eq!((ip.hop_limit(), ip.payload_length()), (255, 32));
        let Some(ep::TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
        prop_assert!(icmp.is_checksum_valid(target, dst));
        let ep::Icmpv6Type::NeighborAdvertisement(flags) = icmp.icmp_type() else {
            panic!("no advertisement")
        };
        prop_assert_eq!((flags.router, flags.solicited, flags.r#override), (false, !probe, true));
        prop_assert_eq!(icmp.payload(), &[&target[..], &[2, 1], &mac[..]].concat()[..]);
        if probe {
            // Such an answer is an announcement.
            prop_assert_eq!(nd_announcement(target, mac), frame);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    /// The checks refuse every claim to another endpoint's MAC or address.
    #[test]
    fn nothing_spoofed_passes(
        target in select(vec!["fd00::2", "fe80::42:aff:fe00:2", "fd00::3", "ff02::1", "::"]),
        src in select(vec!["fd00::2", "fe80::42:aff:fe00:2", "::"]),
        dst in select(vec!["fd00::3", "ff02::1", "ff02::1:ff00:3"]),
        mac in select(vec![MAC, OTHER_MAC, [0; 6]]),
        kind in select(vec![SLLA, TLLA, NONCE, 0, 3]),
        payload_len in select(vec![8u16, 23, 24, 31, 32, 33, 40, 48, 65_535]),
        flags: u8,
        solicit: bool,
    ) {
        let ep = endpoint();
        let ip = Ipv6Hdr::new(v6(src), v6(dst), NEXT_ICMPV6, payload_len, 255);
        let message = NeighbourHdr::new(if solicit { NS } else { NA }, flags, v6(target));
        let option = LinkLayerOption::new(kind, mac);
        if let Ok(query) = nd_query(&ep, &ip, &message, Some(&option), |_| false) {
            let own = target == "fd00::2" || target == "fe80::42:aff:fe00:2";
            prop_assert!(solicit || own);
            prop_assert!(payload_len == 24 || payload_len == 32);
            prop_assert!(payload_len == 24 || !option.is_link_layer() || mac == MAC);
            prop_assert_eq!(matches!(query, NdQuery::Resolve { .. }), solicit && !own);
        }
    }
}
