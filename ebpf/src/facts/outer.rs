//! The outer headers of a frame on an uplink. The same code serves tcx and XDP.

use culvert_common::{
    abi::{DropReason, NetworkInfo, VtepId, VtepKey},
    datapath::decap,
    wire::{
        EthHdr, Ipv4Hdr, UdpHdr, VxlanHdr,
        ethernet::ETH_P_IP,
        ipv4::{PROTO_ICMP, PROTO_UDP},
    },
};

use crate::{
    globals::{VTEP_IP, VXLAN_PORT},
    kernel::skb::{ETH_LEN, Packet},
    maps::{VTEPS, has, network, vtep_id},
};

/// Offset of the outer UDP header; outer IP options are refused.
const UDP: usize = ETH_LEN + Ipv4Hdr::LEN;
/// Offset of the VXLAN header.
pub(crate) const VXLAN: usize = UDP + UdpHdr::LEN;
/// Offset of the inner Ethernet header.
pub(crate) const INNER: usize = VXLAN + VxlanHdr::LEN;
/// Offset of the inner L3 packet.
pub(crate) const INNER_L3: usize = INNER + ETH_LEN;

/// Kind of a frame, by its outer headers.
pub(crate) enum Outer {
    /// Not VXLAN for our VTEP address and port.
    Other,
    /// ICMP for our VTEP address.
    Icmp,
    /// VXLAN for us.
    Vxlan(Tunnelled),
}

/// A VXLAN datagram for us whose headers are consistent.
pub(crate) struct Tunnelled {
    /// Address of the VTEP that sent it.
    pub(crate) vtep: [u8; 4],
    /// TOS of the outer header.
    pub(crate) tos: u8,
    /// VNI.
    pub(crate) vni: u32,
    /// Checksum of the outer UDP header.
    pub(crate) udp_checksum: u16,
    /// Whether a reserved bit of the VXLAN header is set.
    pub(crate) reserved_bits: bool,
    /// Bytes of the outer frame without the link's padding.
    pub(crate) frame_len: u32,
}

/// The outer headers of a frame without IP options. A header is `None` if the frame ends before it.
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

/// Classifies a frame by its outer headers, and checks the headers of VXLAN for this host. `len` is
/// the length of the frame in bytes.
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
    // A fragment other than the first has no port. It is harmless: the first fragment is
    // dropped here, so the datagram is never reassembled.
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

/// Checks that the VNI is known here and that the sender belongs to it. Returns the network
/// and the sender.
#[inline(always)]
pub(crate) fn authorise(
    tunnelled: &Tunnelled,
) -> Result<(&'static NetworkInfo, VtepId), DropReason> {
    let net = network(tunnelled.vni).ok_or(DropReason::UnknownVni)?;
    let vtep = vtep_id(tunnelled.vtep);
    let member = VtepKey { vni: tunnelled.vni, vtep };
    if !vtep.is_some() || !has(&VTEPS, &member) {
        return Err(DropReason::UnknownVtep);
    }
    Ok((net, vtep))
}
