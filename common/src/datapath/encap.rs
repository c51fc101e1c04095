//! The outer header (RFC 7348 §5).

use bytemuck::{Pod, Zeroable};

use crate::abi::{DropReason, HeaderTemplate};
use crate::wire::{EthHdr, Ipv4Hdr, UdpHdr, VxlanHdr, ipv4::PROTO_UDP};

/// TTL of the outer header.
const OUTER_TTL: u8 = 64;

/// Headers in front of the inner frame on an IPv4 underlay, without the link header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct OuterHeader {
    /// IPv4 header between the VTEPs.
    pub ip: Ipv4Hdr,
    /// UDP header; its source port carries the entropy of the inner flow.
    pub udp: UdpHdr,
    /// VXLAN header.
    pub vxlan: VxlanHdr,
}

impl OuterHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 36;

    /// The header towards a VTEP, for VNI 0 and an empty frame: I flag only, UDP checksum 0, DF,
    /// TTL 64, identification 0. [`EncapHeaders::new`] sets the VNI, and [`Self::fit`] the fields
    /// that differ by frame.
    #[inline(always)]
    pub const fn towards(src_vtep: [u8; 4], dst_vtep: [u8; 4], dst_port: u16) -> Self {
        Self {
            ip: Ipv4Hdr::new(src_vtep, dst_vtep, PROTO_UDP, Self::LEN as u16, 0, OUTER_TTL),
            udp: UdpHdr::new(0, dst_port, (Self::LEN - Ipv4Hdr::LEN) as u16),
            vxlan: VxlanHdr::new(0),
        }
    }

    /// Sets the fields that differ by frame. `inner_frame_len` is the length of the inner frame in
    /// bytes, its Ethernet header included. The header may have been used for another frame before.
    ///
    /// A GSO frame has one header for its whole length; the kernel writes the headers of the
    /// segments.
    ///
    /// # Errors
    ///
    /// [`DropReason::PacketTooBig`] where the length does not fit the 16 bits of the outer
    /// header; the header stays as it was.
    #[inline(always)]
    pub const fn fit(
        &mut self,
        src_port: u16,
        tos: u8,
        inner_frame_len: u32,
    ) -> Result<(), DropReason> {
        if inner_frame_len > u16::MAX as u32 - Self::LEN as u32 {
            return Err(DropReason::PacketTooBig);
        }
        let tot_len = inner_frame_len as u16 + Self::LEN as u16;
        self.ip.set_tos_and_len(tos, tot_len);
        self.udp.set_src_port_and_len(src_port, tot_len - Ipv4Hdr::LEN as u16);
        Ok(())
    }
}

/// A [`HeaderTemplate`] of an IPv4 underlay.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4))]
struct Ipv4Template {
    pad: [u8; 2],
    eth: EthHdr,
    outer: OuterHeader,
    zero: [u8; 20],
}

/// The template of the headers towards a VTEP behind an Ethernet link and IPv4.
pub fn ipv4_template(
    eth: EthHdr,
    src_vtep: [u8; 4],
    dst_vtep: [u8; 4],
    dst_port: u16,
) -> HeaderTemplate {
    let outer = OuterHeader::towards(src_vtep, dst_vtep, dst_port);
    bytemuck::cast(Ipv4Template { pad: [0; 2], eth, outer, zero: [0; 20] })
}

/// The outer header in a template of an IPv4 underlay.
#[inline(always)]
pub fn ipv4_of(template: &HeaderTemplate) -> OuterHeader {
    let template: &Ipv4Template = bytemuck::cast_ref(template);
    template.outer
}

/// All headers of an encapsulated frame up to its L3 packet, written at once. Two bytes of
/// padding in front of them align the IP header to 4 bytes, as in [`HeaderTemplate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct EncapHeaders {
    pad: [u8; 2],
    /// Ethernet header on the underlay.
    pub outer_eth: EthHdr,
    /// IPv4, UDP, VXLAN.
    pub outer: OuterHeader,
    /// Ethernet header of the inner frame.
    pub inner_eth: EthHdr,
    pad2: [u8; 2],
}

impl EncapHeaders {
    /// Bytes on the wire.
    pub const LEN: usize = 64;
    /// Offset in the structure at which the headers begin.
    pub const OFFSET: usize = 2;

    /// The headers of `template` in front of frames of the network `vni` with the Ethernet
    /// header `inner_eth`.
    #[inline(always)]
    pub fn new(template: &HeaderTemplate, vni: u32, inner_eth: &EthHdr) -> Self {
        let mut outer = ipv4_of(template);
        outer.vxlan = VxlanHdr::new(vni);
        Self { pad: [0; 2], outer_eth: template.eth, outer, inner_eth: *inner_eth, pad2: [0; 2] }
    }
}

const _: () = assert!(size_of::<OuterHeader>() == OuterHeader::LEN);
const _: () = assert!(size_of::<EncapHeaders>() == EncapHeaders::OFFSET + EncapHeaders::LEN + 2);
const _: () = assert!(OuterHeader::LEN + EthHdr::LEN == crate::abi::VXLAN_OVERHEAD as usize);

/// Least UDP source port of VXLAN (RFC 7348 §5). The greatest is 65535.
pub const LEAST_ENTROPY_PORT: u16 = 0xc000;

/// Least of the ports from which the agent probes paths, 65024–65535. The programs send from none of
/// them, so no error about a packet of a container is taken for one about a probe.
pub const LEAST_PROBE_PORT: u16 = 0xfe00;

/// UDP source port for a flow of this hash, 49152–65023 (RFC 7348 §5).
///
/// Fewer than 14 bits fit. All 32 bits of the hash are mixed into them: the kernel's hash differs in
/// every bit, but the hash over MAC addresses may differ in few bits.
#[inline(always)]
pub const fn entropy_port(hash: u32) -> u16 {
    let mixed = (hash ^ (hash >> 16)).wrapping_mul(0x9e37_79b1);
    let port = LEAST_ENTROPY_PORT | (mixed >> 18) as u16;
    if port >= LEAST_PROBE_PORT { port ^ 0x200 } else { port }
}

/// Hash of a flow of frames that are not IP, over the Ethernet header.
#[inline(always)]
pub const fn l2_flow_hash(dst: &[u8; 6], src: &[u8; 6], ethertype: u16) -> u32 {
    let hash = mix(0, u32::from_be_bytes([dst[0], dst[1], dst[2], dst[3]]));
    let hash = mix(hash, u32::from_be_bytes([dst[4], dst[5], src[0], src[1]]));
    let hash = mix(hash, u32::from_be_bytes([src[2], src[3], src[4], src[5]]));
    finish(mix(hash, ethertype as u32))
}

/// Hash of an IPv4 flow. `ports` are the first four bytes of the upper layer; zero if it has no
/// ports, and for every fragment, so that all fragments of a datagram have the same hash.
#[inline(always)]
pub const fn ipv4_flow_hash(ip: &Ipv4Hdr, ports: [u8; 4]) -> u32 {
    let hash = mix(0, u32::from_be_bytes(ip.src));
    let hash = mix(hash, u32::from_be_bytes(ip.dst));
    let hash = mix(hash, u32::from_be_bytes(ports));
    finish(mix(hash, ip.protocol() as u32))
}

/// One round of MurmurHash3 (public domain, A. Appleby).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// Finalizer of MurmurHash3.
#[inline(always)]
const fn finish(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}
