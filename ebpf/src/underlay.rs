//! `from_underlay`: tcx ingress on an uplink.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::bpf_ktime_get_ns,
    macros::classifier,
    programs::TcContext,
};
use culvert_common::{
    abi::{Action, Direction, DropReason, FdbKey, NetworkInfo, Note, PathMtu, VtepKey},
    datapath::{
        decap,
        ecn::{self, EcnAction},
        learn as decide, pmtu,
    },
    wire::{
        EthHdr, Icmpv4Hdr, Ipv4Hdr, Ipv6Hdr, UdpHdr, VxlanHdr,
        ethernet::{self, ETH_P_IP, ETH_P_IPV6},
        ipv4::{PROTO_ICMP, PROTO_UDP},
    },
};

use crate::{
    encap, fast, flood, learn,
    maps::{FDB, NETWORKS, PATH_MTU, UNDERLAY, VTEP_IP, VTEPS, VXLAN_PORT, lookup},
    outside,
    packet::{
        ETH_LEN, Packet, ensure, gso_size, ifindex, linearise, load, read_protocol,
        redirect_ingress, redirect_peer, resize, store, vlan_id,
    },
    remote_host,
    verdict::{self, note},
};

const DIRECTION: Direction = Direction::FromUnderlay;

/// Offset of the outer UDP header; outer IP options are refused.
const UDP: usize = ETH_LEN + Ipv4Hdr::LEN;
/// Offset of the VXLAN header.
const VXLAN: usize = UDP + UdpHdr::LEN;
/// Offset of the inner Ethernet header.
const INNER: usize = VXLAN + VxlanHdr::LEN;
/// Offset of the inner L3 packet.
pub(crate) const INNER_L3: usize = INNER + ETH_LEN;
/// How long a path MTU that a router reported is believed (RFC 1191 §6.3).
const PATH_MTU_NS: u64 = 600_000_000_000;

/// A frame that arrives on an uplink.
#[classifier]
pub(crate) fn from_underlay(ctx: TcContext) -> i32 {
    // Taken first: the decapsulation changes the length.
    let (port, bytes) = (ifindex(&ctx), ctx.len());
    let known = fast::from_underlay(&ctx, bytes);
    if known != fast::UNKNOWN {
        return known;
    }
    let outcome = handle(&ctx);
    verdict::tc(&ctx, DIRECTION, port, bytes, outcome)
}

/// What the outer headers of a frame say.
pub(crate) enum Outer {
    /// Not VXLAN for us.
    Other,
    /// ICMP for our VTEP address.
    Icmp,
    /// VXLAN for us.
    Vxlan(Tunnelled),
}

/// A VXLAN datagram for us whose headers make sense.
pub(crate) struct Tunnelled {
    /// VTEP that sent it.
    pub(crate) vtep: [u8; 4],
    /// TOS of the outer header.
    pub(crate) tos: u8,
    /// VNI.
    pub(crate) vni: u32,
    /// Checksum of the outer UDP header.
    pub(crate) udp_checksum: u16,
    /// A reserved bit of the VXLAN header is set.
    pub(crate) reserved_bits: bool,
    /// Length of the outer frame without padding behind it.
    pub(crate) frame_len: u32,
}

/// The outer headers of a frame, as far as it has them, if none has options.
pub(crate) trait OuterHeaders {
    /// Ethernet.
    fn eth(&self) -> Option<EthHdr>;
    /// IPv4.
    fn ip(&self) -> Option<Ipv4Hdr>;
    /// UDP.
    fn udp(&self) -> Option<UdpHdr>;
    /// VXLAN.
    fn vxlan(&self) -> Option<VxlanHdr>;
}

impl<P: Packet> OuterHeaders for P {
    #[inline(always)]
    fn eth(&self) -> Option<EthHdr> {
        self.read(0)
    }

    #[inline(always)]
    fn ip(&self) -> Option<Ipv4Hdr> {
        self.read(ETH_LEN)
    }

    #[inline(always)]
    fn udp(&self) -> Option<UdpHdr> {
        self.read(UDP)
    }

    #[inline(always)]
    fn vxlan(&self) -> Option<VxlanHdr> {
        self.read(VXLAN)
    }
}

/// Tells VXLAN for us from everything else, and checks its headers. The same
/// at tcx and XDP.
#[inline(always)]
pub(crate) fn classify(frame: &impl OuterHeaders, len: u32) -> Result<Outer, DropReason> {
    let Some(eth) = frame.eth() else { return Ok(Outer::Other) };
    if eth.ethertype() != ETH_P_IP {
        return Ok(Outer::Other);
    }
    let Some(ip) = frame.ip() else { return Ok(Outer::Other) };
    if u32::from_ne_bytes(ip.dst) != VTEP_IP.load() {
        return Ok(Outer::Other);
    }
    match ip.protocol() {
        PROTO_UDP => {}
        PROTO_ICMP => return Ok(Outer::Icmp),
        _ => return Ok(Outer::Other),
    }
    // A fragment other than the first has no port to tell it by. It comes to
    // nothing: the first is dropped here.
    if ip.header_len() != Ipv4Hdr::LEN as u32 || !ip.is_first() {
        return Ok(Outer::Other);
    }
    let Some(udp) = frame.udp() else { return Ok(Outer::Other) };
    if udp.dst_port() != VXLAN_PORT.load() {
        return Ok(Outer::Other);
    }
    let header_len = decap::check_outer_ip(&ip, len - ETH_LEN as u32)?;
    decap::check_outer_udp(&udp, u32::from(ip.tot_len()) - header_len)?;
    let vxlan = frame.vxlan().ok_or(DropReason::OuterMalformed)?;
    let (vni, reserved_bits) = decap::check_vxlan(&vxlan)?;
    Ok(Outer::Vxlan(Tunnelled {
        vtep: ip.src,
        tos: ip.tos(),
        vni,
        reserved_bits,
        udp_checksum: udp.checksum(),
        frame_len: u32::from(udp.len()) + UDP as u32,
    }))
}

/// Checks that the VNI is known here and the sender belongs to it.
#[inline(always)]
pub(crate) fn authorise(tunnelled: &Tunnelled) -> Result<&'static NetworkInfo, DropReason> {
    let net = lookup!(NETWORKS, tunnelled.vni).ok_or(DropReason::UnknownVni)?;
    let sender = VtepKey { vni: tunnelled.vni, ip: tunnelled.vtep };
    lookup!(VTEPS, sender).ok_or(DropReason::UnknownVtep)?;
    Ok(net)
}

#[inline(always)]
fn handle(ctx: &TcContext) -> Result<Action, DropReason> {
    if vlan_id(ctx) != 0 {
        // Of another link, whose device the kernel will find.
        return Ok(Action::Pass);
    }
    ensure(ctx, INNER as u32);
    match classify(ctx, ctx.len())? {
        Outer::Other => outside::from_uplink(ctx),
        Outer::Icmp => {
            linearise(ctx);
            learn_path_mtu(ctx);
            outside::from_uplink(ctx)
        }
        Outer::Vxlan(tunnelled) => decapsulate(ctx, &tunnelled),
    }
}

/// Where a decapsulated frame goes.
enum Target {
    /// To one local endpoint.
    Port(u32),
    /// To all local endpoints.
    Flood,
    /// To the host itself: its container elsewhere answers.
    Host,
}

/// Checks, decapsulates and delivers.
#[inline(always)]
fn decapsulate(ctx: &TcContext, outer: &Tunnelled) -> Result<Action, DropReason> {
    let vni = outer.vni;
    ensure(ctx, (INNER_L3 + Ipv4Hdr::LEN) as u32);
    if outer.reserved_bits {
        note(DIRECTION, Note::ReservedBits, ctx.len());
    }
    let net = authorise(outer)?;
    let eth: EthHdr = ctx.read(INNER).ok_or(DropReason::OuterMalformed)?;
    if eth.is_vlan() {
        return Err(DropReason::VlanTagged);
    }
    if !decide::valid_source(&eth.src) {
        return Err(DropReason::InvalidSourceMac);
    }
    let source = FdbKey::new(vni, eth.src);
    if lookup!(FDB, source).is_some_and(|known| known.ifindex != 0) {
        return Err(DropReason::LocalSourceMac);
    }
    let inner = inspect(ctx, outer, &eth)?;
    let target = find_target(vni, net, &eth)?;
    if matches!(target, Target::Host) && !inner.is_for(net) {
        return Err(DropReason::UnknownDestination);
    }
    // Another host itself, not a container of its.
    let of_host = eth.src == net.gateway_mac;
    if net.flags & NetworkInfo::LEARNING != 0 && !of_host {
        learn::source(DIRECTION, source, outer.vtep, 0, ctx.len());
    }

    unwrap(ctx, outer, &inner, &eth)?;
    match target {
        Target::Host => {
            redirect_ingress(net.gateway_ifindex);
            Ok(Action::ToHost)
        }
        Target::Port(port) if of_host => remote_host::deliver(ctx, net, outer.vtep, port),
        Target::Port(port) => {
            if net.flags & NetworkInfo::LEARNING == 0 {
                fast::remember_inbound(port);
            }
            hand_over(ctx, port)
        }
        Target::Flood => match flood::local(ctx, DIRECTION, vni, net, 0) {
            0 => Err(DropReason::NoReceiver),
            _ => Ok(Action::Flood),
        },
    }
}

/// Takes the inner frame out of the outer one.
#[inline(always)]
fn unwrap(
    ctx: &TcContext,
    outer: &Tunnelled,
    inner: &Inner,
    eth: &EthHdr,
) -> Result<(), DropReason> {
    if gso_size(ctx) == 0 {
        // What is longer is padding of the link, not part of the frame.
        let len = inner.padded_len(outer.frame_len);
        if ctx.len() != len {
            resize(ctx, len)?;
        }
    }
    strip(ctx, inner)?;
    store(ctx, 0, eth)?;
    if !inner.is_ip() {
        // It still says IPv4, and a netkit device does not look again.
        read_protocol(ctx)?;
    }
    inner.write_ecn(ctx)
}

/// Hands a decapsulated frame to a local endpoint.
#[inline(always)]
fn hand_over(ctx: &TcContext, port: u32) -> Result<Action, DropReason> {
    redirect_peer(ctx, port)?;
    Ok(Action::Deliver)
}

/// Decapsulates an IPv4 packet that is for a local endpoint, and hands it over.
#[inline(always)]
pub(crate) fn deliver(
    ctx: &TcContext,
    outer: &Tunnelled,
    ip: &Ipv4Hdr,
    eth: &EthHdr,
    port: u32,
) -> Result<Action, DropReason> {
    let inner = inspect_ipv4(ctx, outer, ip)?;
    unwrap(ctx, outer, &inner, eth)?;
    hand_over(ctx, port)
}

/// Finds the local endpoint, or endpoints, that a frame from the tunnel is for.
#[inline(always)]
fn find_target(vni: u32, net: &NetworkInfo, eth: &EthHdr) -> Result<Target, DropReason> {
    if ethernet::is_multicast(&eth.dst) {
        return Ok(Target::Flood);
    }
    if eth.dst == net.gateway_mac && net.gateway_ifindex != 0 {
        return Ok(Target::Host);
    }
    let key = FdbKey::new(vni, eth.dst);
    let port = match lookup!(FDB, key) {
        Some(entry) => entry.ifindex,
        // The store knows every endpoint of such a network.
        None if net.flags & NetworkInfo::LEARNING == 0 => {
            return Err(DropReason::UnknownDestination);
        }
        None => match learn::find(key) {
            Some(entry) => entry.ifindex,
            None => return Ok(Target::Flood),
        },
    };
    if port == 0 {
        // Known to be behind the tunnel that it comes out of.
        return Err(DropReason::SplitHorizon);
    }
    Ok(Target::Port(port))
}

/// The inner packet and what is to change in it.
enum Inner {
    V4 { dst: [u8; 4], ecn: EcnAction },
    V6 { ecn: EcnAction },
    Other,
}

/// As [`inspect`], of an IPv4 packet.
#[inline(always)]
fn inspect_ipv4(ctx: &TcContext, outer: &Tunnelled, ip: &Ipv4Hdr) -> Result<Inner, DropReason> {
    let ecn = ecn::decap_ecn(outer.tos, ip.tos())?;
    check_not_merged(ctx, outer, Some(ip.tot_len().into()))?;
    Ok(Inner::V4 { dst: ip.dst, ecn })
}

/// Looks at the inner packet: is it one frame, and what does the outer ECN
/// field do to it?
#[inline(always)]
fn inspect(ctx: &TcContext, outer: &Tunnelled, eth: &EthHdr) -> Result<Inner, DropReason> {
    let (inner, total_len) = match eth.ethertype() {
        ETH_P_IP => {
            let ip: Ipv4Hdr = ctx.read(INNER_L3).ok_or(DropReason::Malformed)?;
            return inspect_ipv4(ctx, outer, &ip);
        }
        ETH_P_IPV6 => {
            ensure(ctx, (INNER_L3 + Ipv6Hdr::LEN) as u32);
            let ip: Ipv6Hdr = ctx.read(INNER_L3).ok_or(DropReason::Malformed)?;
            let ecn = ecn::decap_ecn(outer.tos, ip.tclass())?;
            (Inner::V6 { ecn }, Some(u32::from(ip.payload_len()) + Ipv6Hdr::LEN as u32))
        }
        _ => (Inner::Other, None),
    };
    check_not_merged(ctx, outer, total_len)?;
    Ok(inner)
}

/// Refuses datagrams that the kernel laid end to end: they may be of different
/// VNIs, and only the first one's was looked at.
#[inline(always)]
fn check_not_merged(
    ctx: &TcContext,
    outer: &Tunnelled,
    inner_len: Option<u32>,
) -> Result<(), DropReason> {
    let gso = gso_size(ctx);
    if gso == 0 {
        return Ok(());
    }
    let l3_len = outer.frame_len.wrapping_sub(INNER_L3 as u32);
    if !decap::merged_frame_ok(gso, l3_len, inner_len) {
        return Err(DropReason::MergedFrames);
    }
    let payload_len = outer.frame_len - VXLAN as u32;
    if let Some(next) = decap::second_datagram_offset(gso, outer.udp_checksum, payload_len) {
        let vxlan: VxlanHdr = load(ctx, VXLAN + next as usize)?;
        if decap::starts_datagram(&vxlan) {
            return Err(DropReason::MergedFrames);
        }
    }
    Ok(())
}

impl Inner {
    /// The packet is for this host itself, whose containers of the network it may talk to.
    #[inline(always)]
    fn is_for(&self, net: &NetworkInfo) -> bool {
        match self {
            Self::V4 { dst, .. } => {
                net.flags & NetworkInfo::HOST_ACCESS != 0
                    && u32::from_ne_bytes(*dst) == VTEP_IP.load()
            }
            Self::V6 { .. } | Self::Other => false,
        }
    }

    #[inline(always)]
    fn is_ip(&self) -> bool {
        !matches!(self, Self::Other)
    }

    /// Length of the outer frame around an inner one that the kernel takes: it
    /// leaves none shorter than an IPv4 header, so such a frame is padded as a
    /// network card would have done (IEEE 802.3 §4.2.3.3).
    #[inline(always)]
    fn padded_len(&self, frame_len: u32) -> u32 {
        const LEAST: u32 = (INNER_L3 + Ipv4Hdr::LEN) as u32;
        const PADDED: u32 = INNER_L3 as u32 + 46;
        if self.is_ip() || frame_len >= LEAST { frame_len } else { PADDED }
    }

    /// Writes the ECN field into the decapsulated packet.
    #[inline(always)]
    fn write_ecn(&self, ctx: &TcContext) -> Result<(), DropReason> {
        match self {
            Self::V4 { ecn: EcnAction::Set(tos), .. } => {
                note(DIRECTION, Note::EcnMarked, ctx.len());
                let mut ip: Ipv4Hdr = load(ctx, ETH_LEN)?;
                ip.set_tos(*tos);
                // The header sums to the same as before: skb->csum stays right.
                store(ctx, ETH_LEN, &ip)
            }
            Self::V6 { ecn: EcnAction::Set(tclass) } => {
                note(DIRECTION, Note::EcnMarked, ctx.len());
                let mut ip: Ipv6Hdr = load(ctx, ETH_LEN)?;
                ip.set_tclass(*tclass);
                ctx.store(ETH_LEN, &ip, u64::from(BPF_F_RECOMPUTE_CSUM))
                    .map_err(|_| DropReason::HelperFailed)
            }
            Self::V4 { ecn: EcnAction::Keep, .. }
            | Self::V6 { ecn: EcnAction::Keep }
            | Self::Other => Ok(()),
        }
    }
}

/// Removes the outer header. GSO frames stay whole.
#[inline(always)]
fn strip(ctx: &TcContext, inner: &Inner) -> Result<(), DropReason> {
    let l3 = match inner {
        Inner::V4 { .. } => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        Inner::V6 { .. } => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        Inner::Other => 0,
    };
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO) | u64::from(l3);
    ctx.adjust_room(-(INNER as i32), BPF_ADJ_ROOM_MAC, flags).map_err(|_| DropReason::DecapFailed)
}

/// Takes note of an ICMP fragmentation-needed about a datagram that we sent to
/// a VTEP. The kernel does not: it has no socket to tell.
#[inline(always)]
fn learn_path_mtu(ctx: &TcContext) {
    const QUOTED: usize = ETH_LEN + Ipv4Hdr::LEN + Icmpv4Hdr::LEN;
    // One at a time: read together, the compiler copies headers that are not there.
    let Some(ip) = ctx.read::<Ipv4Hdr>(ETH_LEN) else { return };
    let Some(icmp) = ctx.read::<Icmpv4Hdr>(ETH_LEN + Ipv4Hdr::LEN) else { return };
    let Some(quoted) = ctx.read::<Ipv4Hdr>(QUOTED) else { return };
    let Some(udp) = ctx.read::<UdpHdr>(QUOTED + Ipv4Hdr::LEN) else { return };
    let ours = ip.header_len() == Ipv4Hdr::LEN as u32
        && !ip.is_fragment()
        && icmp.is_frag_needed()
        && quoted.header_len() == Ipv4Hdr::LEN as u32
        && quoted.protocol() == PROTO_UDP
        && u32::from_ne_bytes(quoted.src) == VTEP_IP.load();
    if !ours {
        return;
    }
    let Some(path) = lookup!(UNDERLAY, quoted.dst) else { return };
    if udp.dst_port() != path.port {
        return;
    }
    let Some(inner_mtu) = pmtu::path_mtu_from_icmp(icmp.next_hop_mtu(), path.inner_mtu.into())
    else {
        return;
    };
    let before = encap::path_mtu(&quoted.dst, path);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let expires_ns = now + PATH_MTU_NS;
    if PATH_MTU.insert(quoted.dst, PathMtu { expires_ns, inner_mtu, pad: 0 }, 0).is_ok() {
        // What is remembered with a smaller one is judged anew where that is not enough.
        if inner_mtu < before {
            fast::forget_all(now);
        }
        note(DIRECTION, Note::PathMtuLearnt, ctx.len());
    }
}
