//! The programs attached to the interfaces of the lab. The cases show what a test run cannot: the
//! target of a redirect, changes of a frame by the kernel, and GSO frames of a type that the kernel
//! knows.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    tc::{SchedClassifierLinkId, TcAttachOptions},
};
use culvert::datapath::Table as _;
use culvert::datapath::entry::{UnderlayPath, VtepInfo, VtepKey};
use culvert_common::abi::{
    Action, Code, Direction, DropReason, FdbKey, Note, programs, stats_index,
};
use culvert_tests::packet::{Arp, Tunnel, V4, V6, ethernet, payload};

use crate::{
    compare::{entropy_port, same},
    interfaces::{Interface, VNET_HDR},
    lab::{Lab, ip, mac},
    world::{
        B, FAR, FARTHER, NOBODY, ONE, OUR_VTEP, PEER, PEER_MAC, ROUTER, ROUTER_MAC, TO_PEER, TWO,
        UPLINK_MAC, endpoint_behind, from_peer, local, to_peer, to_peer2,
    },
};

cases!(
    to_a_local_endpoint_of_the_same_network,
    to_a_vtep,
    to_a_vtep_behind_a_router,
    to_a_vtep_that_only_the_kernel_has_resolved,
    arp_to_a_vtep,
    answers_come_back,
    errors_come_back,
    from_the_tunnel_to_its_network,
    from_the_tunnel_of_every_kind,
    dropped_goes_nowhere,
    short_frames,
    tag_in_the_metadata_of_a_container,
    tag_in_the_metadata_of_the_underlay,
    priority_tag_on_the_underlay,
    gso_stays_whole,
    gso_too_big_is_told,
);

/// How long the kernel may take to run a program.
const PATIENCE: Duration = Duration::from_secs(10);

/// The programs, attached until the case ends.
pub(crate) struct Live<'a> {
    pub(crate) lab: &'a mut Lab,
    attached: Vec<Attached>,
}

/// A program at a tcx hook of a device.
struct Attached {
    program: &'static str,
    device: &'static str,
    hook: TcAttachType,
    link: SchedClassifierLinkId,
}

impl<'a> Live<'a> {
    pub(crate) fn attach(lab: &'a mut Lab) -> Self {
        ip(&format!(
            "link set uplink address {}\n\
             address replace {}/24 dev uplink\n\
             neigh replace {} lladdr {} dev uplink nud permanent\n\
             neigh replace {} lladdr {} dev uplink nud permanent\n",
            mac(UPLINK_MAC),
            std::net::Ipv4Addr::from(OUR_VTEP),
            std::net::Ipv4Addr::from(PEER),
            mac(PEER_MAC),
            std::net::Ipv4Addr::from(ROUTER),
            mac(ROUTER_MAC),
        ));
        let mut attached = Vec::new();
        for port in Interface::ALL {
            let name = match port {
                Interface::Uplink => programs::FROM_UNDERLAY,
                _ => programs::FROM_CONTAINER,
            };
            attached.push(attach(lab, name, port.name(), TcAttachType::Ingress));
        }
        Self { lab, attached }
    }

    /// Attaches the programs for what the host itself sends, too.
    pub(crate) fn attach_host(&mut self) {
        for (name, device, hook) in [
            (programs::FROM_HOST, "gwa", TcAttachType::Egress),
            (programs::FROM_LOOPBACK, "lo", TcAttachType::Ingress),
        ] {
            self.attached.push(attach(self.lab, name, device, hook));
        }
    }

    /// Sends `frame` from the far end of `port`, and waits until it is counted as `code`. Returns
    /// the frames that came out, and where.
    #[track_caller]
    fn send(
        &mut self,
        interface: Interface,
        frame: &[u8],
        code: Code,
    ) -> Vec<(Interface, Vec<u8>)> {
        self.lab.wire(interface).far.send(frame);
        self.counted(interface, code);
        // The program counts the frame before the kernel forwards it. The markers of the first
        // `drain` queue behind the program, those of the second behind the frame.
        let mut frames = self.lab.drain();
        frames.extend(self.lab.drain());
        frames
    }

    #[track_caller]
    fn counted(&mut self, interface: Interface, code: Code) {
        let direction = match interface {
            Interface::Uplink => Direction::FromUnderlay,
            _ => Direction::FromContainer,
        };
        let deadline = Instant::now() + PATIENCE;
        // Notes are counted before the outcome of the frame.
        let mut counts = Vec::new();
        while !counts.iter().any(|(at, _)| at & 0xff < u32::from(Note::ALL[0].code())) {
            assert!(Instant::now() < deadline, "the program has not run");
            counts.extend(self.lab.new_counts());
        }
        let index = stats_index(direction, code);
        assert!(counts.iter().any(|(at, _)| *at == index), "not {code:?} but {counts:?}");
    }

    /// `frame` from `from` comes out of `to`, and of nowhere else, as `wanted`.
    #[track_caller]
    pub(crate) fn moves(
        &mut self,
        from: Interface,
        frame: &[u8],
        action: Action,
        to: Interface,
        wanted: &[u8],
    ) {
        let frames = self.send(from, frame, Code::Action(action));
        let reached: Vec<Interface> = frames.iter().map(|(interface, _)| *interface).collect();
        assert_eq!(reached, [to]);
        let actual = &frames[0].1;
        let mut wanted = wanted.to_vec();
        if action == Action::Encap {
            let port = entropy_port(actual);
            assert!(port >= 49_152, "{port} is no entropy port");
            wanted[34..36].copy_from_slice(&port.to_be_bytes());
        }
        same("frame", actual, &wanted);
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        // A child of another thread has the descriptors of the links until `exec`: meanwhile the
        // programs would count frames of the next case.
        let deadline = Instant::now() + PATIENCE;
        for Attached { program, device, hook, link } in self.attached.drain(..) {
            let program = self.lab.ebpf.program_mut(program).unwrap();
            let program: &mut SchedClassifier = program.try_into().unwrap();
            let _ = program.detach(link);
            while is_attached(device, hook) {
                assert!(Instant::now() < deadline, "a program stays attached to {device}");
                std::thread::yield_now();
            }
        }
    }
}

/// Whether a program is attached at a tcx hook of a device.
fn is_attached(device: &str, hook: TcAttachType) -> bool {
    let (_, attached) = SchedClassifier::query_tcx(device, hook).unwrap();
    !attached.is_empty()
}

/// Attaches a program. The link of the previous case may still exist for a moment, because a child
/// of another thread has its descriptor until `exec`.
fn attach(
    lab: &mut Lab,
    program: &'static str,
    device: &'static str,
    hook: TcAttachType,
) -> Attached {
    let loaded: &mut SchedClassifier = lab.ebpf.program_mut(program).unwrap().try_into().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        match loaded.attach_with_options(device, hook, options) {
            Ok(link) => return Attached { program, device, hook, link },
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == ErrorKind::AlreadyExists =>
            {
                assert!(Instant::now() < deadline, "a program is attached to {device} already");
                std::thread::yield_now();
            }
            Err(error) => panic!("attach to {device}: {error}"),
        }
    }
}

fn to_a_local_endpoint_of_the_same_network(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    for frame in [
        V4::udp(&ONE, &TWO, (1, 2), b"hello").frame(),
        V6::udp(&ONE, &TWO, (1, 2), b"hello").frame(),
        Arp::reply(&ONE, &TWO).frame(),
        ethernet(TWO.mac, ONE.mac, 0x88b5, &payload(50)),
    ] {
        live.moves(Interface::A1, &frame, Action::Deliver, Interface::A2, &frame);
        live.moves(Interface::B1, &frame, Action::Deliver, Interface::B2, &frame);
    }
    let back = V4::udp(&TWO, &ONE, (1, 2), b"hello").frame();
    live.moves(Interface::A2, &back, Action::Deliver, Interface::A1, &back);
    live.moves(Interface::B2, &back, Action::Deliver, Interface::B1, &back);
}

fn to_a_vtep(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    for frame in [
        V4::udp(&ONE, &FAR, (1, 2), &payload(1422)).frame(),
        V6::udp(&ONE, &FAR, (1, 2), &payload(1402)).frame(),
    ] {
        live.moves(
            Interface::A1,
            &frame,
            Action::Encap,
            Interface::Uplink,
            &to_peer().wrap(&frame),
        );
    }
}

fn to_a_vtep_behind_a_router(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    let frame = V4::udp(&ONE, &FARTHER, (1, 2), b"hello").frame();
    live.moves(Interface::A1, &frame, Action::Encap, Interface::Uplink, &to_peer2().wrap(&frame));
}

fn to_a_vtep_that_only_the_kernel_has_resolved(lab: &mut Lab) {
    let unresolved = UnderlayPath { next_hop_mac: [0; 6], uplink_mac: [0; 6], ..TO_PEER };
    lab.tables.underlay.insert(&PEER, &unresolved).unwrap();
    let mut live = Live::attach(lab);
    for frame in [
        V4::udp(&ONE, &FAR, (1, 2), b"hello").frame(),
        V6::udp(&ONE, &FAR, (1, 2), b"hello").frame(),
    ] {
        live.moves(
            Interface::A1,
            &frame,
            Action::Encap,
            Interface::Uplink,
            &to_peer().wrap(&frame),
        );
    }
}

fn arp_to_a_vtep(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    for frame in [Arp::reply(&ONE, &FAR).frame(), ethernet(FAR.mac, ONE.mac, 0x88b5, &payload(60))]
    {
        live.moves(
            Interface::A1,
            &frame,
            Action::Encap,
            Interface::Uplink,
            &to_peer().wrap(&frame),
        );
    }
}

fn answers_come_back(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    let request = Arp::request(&ONE, FAR.v4).frame();
    let reply = Arp {
        eth_dst: ONE.mac,
        eth_src: FAR.mac,
        operation: 2,
        sender_mac: FAR.mac,
        sender_ip: FAR.v4,
        target_mac: ONE.mac,
        target_ip: ONE.v4,
    };
    live.moves(Interface::A1, &request, Action::ArpReply, Interface::A1, &reply.frame());

    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 9];
    let question = V6::icmp(
        (ONE.mac, [0x33, 0x33, 0xff, 0, 0, 9]),
        (ONE.v6, group),
        (135, 0),
        [0; 4],
        &FAR.v6,
    );
    let option = [&[2, 1], FAR.mac.as_slice()].concat();
    let answer = V6::icmp(
        (FAR.mac, ONE.mac),
        (FAR.v6, ONE.v6),
        (136, 0),
        [0x60, 0, 0, 0],
        &[FAR.v6.as_slice(), &option].concat(),
    )
    .frame();
    live.moves(Interface::A1, &question.frame(), Action::NdReply, Interface::A1, &answer);
}

fn errors_come_back(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    for (frame, len) in [
        (V4::udp(&ONE, &FAR, (1, 2), &payload(1500)).frame(), 14 + 28 + 64),
        (V6::udp(&ONE, &FAR, (1, 2), &payload(1500)).frame(), 14 + 48 + 128),
    ] {
        let frames = live.send(Interface::A1, &frame, Code::Drop(DropReason::PacketTooBig));
        let reached: Vec<(Interface, usize)> =
            frames.iter().map(|(interface, frame)| (*interface, frame.len())).collect();
        assert_eq!(reached, [(Interface::A1, len)]);
    }
}

fn from_the_tunnel_to_its_network(lab: &mut Lab) {
    lab.tables.vteps.insert(&VtepKey { vni: B, ip: PEER }, &VtepInfo { foreign: 0 }).unwrap();
    lab.tables.fdb.insert(&FdbKey::new(B, NOBODY.mac), &local(Interface::B1)).unwrap();
    endpoint_behind(&lab.tables, B, &FAR, PEER);
    let mut live = Live::attach(lab);
    let inner = V4::udp(&FAR, &TWO, (1, 2), b"hello").frame();
    let in_b = Tunnel { vni: B, ..from_peer() };
    live.moves(
        Interface::Uplink,
        &from_peer().wrap(&inner),
        Action::Deliver,
        Interface::A2,
        &inner,
    );
    live.moves(Interface::Uplink, &in_b.wrap(&inner), Action::Deliver, Interface::B2, &inner);
    let inner = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    live.moves(Interface::Uplink, &in_b.wrap(&inner), Action::Deliver, Interface::B1, &inner);
}

fn from_the_tunnel_of_every_kind(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    for inner in [
        V4::udp(&FAR, &ONE, (1, 2), &payload(1422)).frame(),
        V6::udp(&FAR, &ONE, (1, 2), &payload(1402)).frame(),
        Arp::reply(&FAR, &ONE).frame(),
        ethernet(ONE.mac, FAR.mac, 0x88b5, &payload(50)),
        ethernet(ONE.mac, FAR.mac, 0x88b5, &payload(20)),
    ] {
        let padded = Tunnel { trailer: vec![0; 5], ..from_peer() };
        live.moves(
            Interface::Uplink,
            &from_peer().wrap(&inner),
            Action::Deliver,
            Interface::A1,
            &inner,
        );
        live.moves(Interface::Uplink, &padded.wrap(&inner), Action::Deliver, Interface::A1, &inner);
    }
}

fn dropped_goes_nowhere(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    let spoofed = V4 { src: TWO.v4, ..V4::udp(&ONE, &FAR, (1, 2), b"hello") }.frame();
    assert_eq!(live.send(Interface::A1, &spoofed, Code::Drop(DropReason::SpoofedIp)), []);
    let back = V4::udp(&FAR, &FARTHER, (1, 2), b"hello").frame();
    let outer = from_peer().wrap(&back);
    assert_eq!(live.send(Interface::Uplink, &outer, Code::Drop(DropReason::SplitHorizon)), []);
    let announcement = Arp::request(&ONE, ONE.v4).frame();
    assert_eq!(live.send(Interface::A1, &announcement, Code::Action(Action::Absorb)), []);
}

fn short_frames(lab: &mut Lab) {
    // A test run does not accept frames as short as these.
    let mut live = Live::attach(lab);
    let v4 = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    let v6 = V6::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    let outer = from_peer().wrap(&V4::udp(&FAR, &ONE, (1, 2), b"hello").frame());
    for len in 14..34 {
        assert_eq!(live.send(Interface::A1, &v4[..len], Code::Drop(DropReason::Malformed)), []);
        assert_eq!(live.send(Interface::A1, &v6[..len], Code::Drop(DropReason::Malformed)), []);
        assert_eq!(live.send(Interface::Uplink, &outer[..len], Code::Action(Action::Pass)), []);
    }
    for len in 34..54 {
        assert_eq!(live.send(Interface::A1, &v6[..len], Code::Drop(DropReason::Malformed)), []);
    }
}

/// `frame` with an IEEE 802.1Q tag. The kernel moves the tag into the metadata of the frame before
/// the programs run.
fn tagged(tci: u16, frame: &[u8]) -> Vec<u8> {
    let [high, low] = tci.to_be_bytes();
    let mut frame = frame.to_vec();
    frame.splice(12..12, [0x81, 0x00, high, low]);
    frame
}

fn tag_in_the_metadata_of_a_container(lab: &mut Lab) {
    let mut live = Live::attach(lab);
    let frame = V4::udp(&ONE, &TWO, (1, 2), b"hello").frame();
    for tci in [0, 7] {
        let frame = tagged(tci, &frame);
        assert_eq!(live.send(Interface::A1, &frame, Code::Drop(DropReason::VlanTagged)), []);
    }
}

fn tag_in_the_metadata_of_the_underlay(lab: &mut Lab) {
    // A frame with this tag belongs to a VLAN device, not to the uplink.
    let mut live = Live::attach(lab);
    let outer = from_peer().wrap(&V4::udp(&FAR, &ONE, (1, 2), b"hello").frame());
    let frame = tagged(7, &outer);
    assert_eq!(live.send(Interface::Uplink, &frame, Code::Action(Action::Pass)), []);
}

fn priority_tag_on_the_underlay(lab: &mut Lab) {
    // VLAN 0 is no VLAN (IEEE 802.1Q §9.6).
    let mut live = Live::attach(lab);
    let inner = V4::udp(&FAR, &ONE, (1, 2), b"hello").frame();
    let frame = tagged(5 << 13, &from_peer().wrap(&inner));
    let tags = live.lab.far_socket(Interface::A1);
    tags.tagged_only();
    live.moves(Interface::Uplink, &frame, Action::Deliver, Interface::A1, &inner);
    assert_eq!(tags.try_receive(), None, "the container receives the tag");
    // A second tag is that of a VLAN.
    let twice = tagged(5 << 13, &tagged(7, &from_peer().wrap(&inner)));
    assert_eq!(live.send(Interface::Uplink, &twice, Code::Action(Action::Pass)), []);
}

/// `struct virtio_net_hdr` and a TCP segment of IPv4. The kernel is to fill in its checksum, and to
/// cut it into segments of `size` bytes of payload.
fn cut_into(frame: &[u8], size: u16) -> Vec<u8> {
    const NEEDS_CHECKSUM: u8 = 1;
    const TCPV4: u8 = 1;
    let (tcp, headers) = (14 + 20u16, 14 + 20 + 32u16);
    let mut bytes = vec![NEEDS_CHECKSUM, TCPV4];
    for field in [headers, size, tcp, 16] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend_from_slice(frame);
    bytes
}

fn gso_stays_whole(lab: &mut Lab) {
    let container = lab.far_socket(Interface::A1);
    container.segmentation_headers(true);
    let wire = lab.far_socket(Interface::Uplink);
    wire.segmentation_headers(true);
    let mut live = Live::attach(lab);
    let frame = V4::tcp(&ONE, &FAR, (1000, 80), &payload(60_000)).frame();
    container.send(&cut_into(&frame, 1398));
    live.counted(Interface::A1, Code::Action(Action::Encap));
    let received = wire.receive();
    let (header, outer) = received.split_at(VNET_HDR);
    // The frame is still to be cut into segments of the same size.
    assert_eq!(header[1] & 0x7f, 1, "kind of segments");
    assert_eq!(u16::from_ne_bytes([header[4], header[5]]), 1398);
    let mut wanted = to_peer().wrap(&frame);
    wanted[34..36].copy_from_slice(&entropy_port(outer).to_be_bytes());
    // The inner checksum is left to the network card, so its current value is not checked.
    let checksum = 50 + 14 + 20 + 16;
    wanted[checksum..checksum + 2].copy_from_slice(&outer[checksum..checksum + 2]);
    same("frame", outer, &wanted);
    live.lab.drain();
    live.lab.drain();
}

fn gso_too_big_is_told(lab: &mut Lab) {
    let container = lab.far_socket(Interface::A1);
    container.segmentation_headers(true);
    let mut live = Live::attach(lab);
    let frame = V4::tcp(&ONE, &FAR, (1000, 80), &payload(20_000)).frame();
    container.send(&cut_into(&frame, 1448));
    live.counted(Interface::A1, Code::Drop(DropReason::PacketTooBig));
    let mut frames = live.lab.drain();
    frames.extend(live.lab.drain());
    assert_eq!(frames.len(), 1);
    assert_eq!((frames[0].0, frames[0].1.len()), (Interface::A1, 14 + 28 + 64));
}
