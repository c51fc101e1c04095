//! Routed packets and their flows, for the cases of routing and address translation.

use culvert::datapath::Table as _;
use culvert_common::abi::{
    EndpointInfo, Flow, FlowKey, MappedAddr, Note, PublishedEntry, PublishedKey, Sealed as _,
    Tuple, kind, seen, zone,
};
use culvert_tests::packet::{Host, V4, payload};

use crate::{
    interfaces::{CLIENT_LINK, Interface},
    lab::{Lab, ip},
    run::{Count, note},
    world::{A, B, GATEWAY, ONE, TWO},
};

/// Destination and source MAC of a frame that the kernel has yet to address.
const UNADDRESSED: [u8; 6] = [0; 6];

/// Notes of a new flow.
pub(crate) const CREATED: [Count; 1] = [note(Note::FlowCreated)];
/// Notes of a new flow with another port.
pub(crate) const CREATED_ELSEWHERE: [Count; 2] = [note(Note::FlowCreated), note(Note::PortChanged)];

/// The packet as a container of network A sends it out of the network.
pub(crate) fn to_gateway(packet: &V4) -> V4 {
    V4 { eth_dst: GATEWAY.mac, ..packet.clone() }
}

/// The packet as it is handed to the kernel, one hop further, to be addressed.
pub(crate) fn outbound(packet: &V4) -> V4 {
    V4 { eth_dst: UNADDRESSED, eth_src: UNADDRESSED, ttl: 62, ..packet.clone() }
}

/// The packet as a container behind `gateway` receives it from elsewhere, one hop
/// further.
pub(crate) fn inbound(packet: &V4, gateway: &Host) -> V4 {
    V4 { eth_src: gateway.mac, ttl: 62, ..packet.clone() }
}

/// A UDP datagram, without its checksum (RFC 768).
pub(crate) fn unsummed(mut datagram: V4) -> V4 {
    datagram.l4[6..8].fill(0);
    datagram
}

/// An ICMP echo request or its reply.
pub(crate) fn echo(src: &Host, dst: &Host, kind: u8, id: u16) -> V4 {
    let [high, low] = id.to_be_bytes();
    V4::icmp(src, dst, kind, 0, [high, low, 0, 9], &payload(56))
}

/// The packet in fragments. `sizes` are the bytes of the upper layer in each fragment; the last one
/// has the rest.
pub(crate) fn fragments(packet: &V4, sizes: &[usize]) -> Vec<V4> {
    let mut rest = packet.l4.as_slice();
    let mut all = Vec::new();
    let mut at = 0;
    for size in sizes.iter().copied().chain([usize::MAX]) {
        let (l4, behind) = rest.split_at(size.min(rest.len()));
        rest = behind;
        let offset = u16::try_from(at / 8).unwrap();
        all.push(V4 { df: false, mf: !rest.is_empty(), offset, l4: l4.to_vec(), ..packet.clone() });
        at += l4.len();
    }
    all
}

/// The key of a packet that comes in from `zone`, or leaves to `zone`.
pub(crate) fn key(zone: u32, packet: &V4) -> FlowKey {
    let l4 = &packet.l4;
    let (src_port, dst_port) = match (packet.protocol, l4[0]) {
        (1, 8) => ([l4[4], l4[5]], [0; 2]),
        (1, 0) => ([0; 2], [l4[4], l4[5]]),
        _ => ([l4[0], l4[1]], [l4[2], l4[3]]),
    };
    let tuple = Tuple { src: packet.src, dst: packet.dst, src_port, dst_port };
    FlowKey { zone, tuple, protocol: packet.protocol, pad: [0; 3] }
}

/// The key of the answer to a packet of this key.
pub(crate) fn answer(key: &FlowKey) -> FlowKey {
    let Tuple { src, dst, src_port, dst_port } = key.tuple;
    let tuple = Tuple { src: dst, dst: src, src_port: dst_port, dst_port: src_port };
    FlowKey { tuple, ..*key }
}

/// A source or destination of packets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// A container.
    At(Interface),
    /// The internet.
    External,
    /// The host itself, over its loopback device.
    Itself,
    /// The host's stack, through a gateway device.
    Stack,
    /// The client link.
    Clients,
}

impl Place {
    fn zone(self) -> u32 {
        match self {
            Self::At(Interface::A1 | Interface::A2) => A,
            Self::At(Interface::B1 | Interface::B2) => B,
            Self::At(Interface::Uplink) | Self::External => zone::EXTERNAL,
            Self::Itself => zone::LOOPBACK,
            Self::Stack => zone::HOST,
            Self::Clients => zone::client(CLIENT_LINK),
        }
    }

    fn dest(self) -> u32 {
        match self {
            Self::At(port) => port.ifindex(),
            Self::External | Self::Itself | Self::Stack | Self::Clients => 0,
        }
    }

    fn endpoint(self, lab: &Lab) -> EndpointInfo {
        let endpoints = lab.tables.endpoints.dump().unwrap();
        endpoints.get(&self.dest()).copied().unwrap_or(EndpointInfo::NONE)
    }
}

/// The flow that began when `came` from one place went to another as `went`.
pub(crate) struct Began<'a> {
    pub(crate) came: &'a V4,
    pub(crate) from: Place,
    pub(crate) went: &'a V4,
    pub(crate) to: Place,
    /// [`kind::MASQUERADE`], [`kind::PUBLISHED`] or [`kind::HOST`].
    pub(crate) kind: u32,
}

/// The expected values of one direction of a flow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Bits of [`seen`](mod@seen).
    pub(crate) seen: u32,
}

impl Passed {
    /// These frames, with the flags `seen`.
    pub(crate) fn frames(frames: &[&V4], seen: u32) -> Self {
        let bytes = frames.iter().map(|packet| packet.frame().len() as u64).sum();
        Self { packets: frames.len() as u64, bytes, seen: seen::PACKET | seen }
    }
}

impl Began<'_> {
    /// Keys of both directions.
    pub(crate) fn keys(&self) -> (FlowKey, FlowKey) {
        let orig = key(self.from.zone(), self.came);
        (orig, answer(&key(self.to.zone(), self.went)))
    }

    /// Checks every field of both entries.
    #[track_caller]
    pub(crate) fn is_tracked(&self, lab: &Lab, orig: Passed, reply: Passed) {
        let (orig_key, reply_key) = self.keys();
        let (from, to) = (self.from.endpoint(lab), self.to.endpoint(lab));
        let wanted = Flow {
            last_seen_ns: 0,
            packets: orig.packets,
            bytes: orig.bytes,
            to: key(0, self.went).tuple,
            zone: self.to.zone(),
            dest: self.to.dest(),
            from_incarnation: from.incarnation,
            to_incarnation: to.incarnation,
            kind: kind::ORIG | self.kind,
            seen: orig.seen,
            ..Flow::default()
        }
        .sealed(&orig_key);
        assert_eq!(forget_time(flow(lab, &orig_key)), wanted, "orig");
        let wanted = Flow {
            packets: reply.packets,
            bytes: reply.bytes,
            to: answer(&key(0, self.came)).tuple,
            zone: self.from.zone(),
            dest: self.from.dest(),
            from_incarnation: to.incarnation,
            to_incarnation: from.incarnation,
            kind: self.kind,
            seen: reply.seen,
            ..wanted
        }
        .sealed(&reply_key);
        assert_eq!(forget_time(flow(lab, &reply_key)), wanted, "reply");
    }

    /// Checks that one packet has begun the flow.
    #[track_caller]
    pub(crate) fn has_begun(&self, lab: &Lab) {
        let seen = if self.came.protocol == 6 { seen::SYN } else { 0 };
        self.is_tracked(lab, Passed::frames(&[self.came], seen), Passed::default());
    }
}

/// The entry without its time, its TCP numbers and its slot.
fn forget_time(flow: Flow) -> Flow {
    assert_ne!(flow.last_seen_ns, 0);
    Flow { last_seen_ns: 0, last_ack: 0, first_seq: 0, next_seq: 0, slot: 0, ..flow }
}

/// The entry under `key`.
#[track_caller]
pub(crate) fn flow(lab: &Lab, key: &FlowKey) -> Flow {
    match lab.flows.get(*key) {
        Some(flow) => flow,
        None => panic!("no flow {key:?}"),
    }
}

/// Number of entries in the flow table.
pub(crate) fn entries(lab: &Lab) -> usize {
    lab.flows.keys().len()
}

/// Removes all entries of the flow table.
pub(crate) fn forget_all(lab: &mut Lab) {
    for key in lab.flows.keys() {
        lab.flows.remove(key);
    }
}

/// Lets `seconds` pass for all flows.
pub(crate) fn pass_time(lab: &mut Lab, seconds: u64) {
    for key in lab.flows.keys() {
        let entry = flow(lab, &key);
        let last_seen_ns = entry.last_seen_ns.saturating_sub(seconds * 1_000_000_000);
        lab.flows.set(key, Flow { last_seen_ns, ..entry });
    }
}

/// Publishes `port` of the host's address `addr` as the container's `container_port`.
pub(crate) fn publish(
    lab: &Lab,
    addr: [u8; 4],
    protocol: u8,
    port: u16,
    to: Interface,
    container_port: u16,
) {
    let addr = MappedAddr::v4(addr);
    let key = PublishedKey { addr, port: port.to_be_bytes(), protocol, pad: 0 };
    let addr = MappedAddr::v4(match to {
        Interface::A1 | Interface::B1 => ONE.v4,
        _ => TWO.v4,
    });
    let vni = Place::At(to).zone();
    let port = container_port.to_be_bytes();
    let entry = PublishedEntry { addr, vni, ifindex: to.ifindex(), port, flags: 0, seal: 0 };
    lab.tables.published.insert(&key, &entry).unwrap();
}

/// The source port of a translated frame, or its ICMP echo identifier.
pub(crate) fn chosen_port(frame: &[u8]) -> u16 {
    let l4 = 14 + usize::from(frame[14] & 15) * 4;
    let at = if frame[23] == 1 { l4 + 4 } else { l4 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// Runs a case with other routes. A lab whose case fails is not used again.
pub(crate) fn with_routes(lab: &mut Lab, set: &str, unset: &str, case: impl FnOnce(&mut Lab)) {
    ip(set);
    case(lab);
    ip(unset);
}
