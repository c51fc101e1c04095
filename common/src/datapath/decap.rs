//! Checks of the outer headers before decapsulation (RFC 7348).

use crate::abi::DropReason;
use crate::wire::{EthHdr, Ipv4Hdr, UdpHdr, VxlanHdr};

/// Checks the outer IPv4 header of a datagram to the VXLAN port. `l3_len` is the number of bytes
/// of the frame from this header on. Returns the length of the header in bytes.
///
/// A datagram with a TTL of 0 must not exist on a link (RFC 791 §3.2, RFC 1122 §3.2.1.7). Linux
/// delivers such a datagram to a socket; the tunnel does not.
///
/// A fragment that is not the first has no port. Call this for UDP packets that are otherwise
/// known to be VXLAN, or let such fragments pass to the kernel, whose reassembly finds no
/// socket.
#[inline(always)]
pub const fn check_outer_ip(ip: &Ipv4Hdr, l3_len: u32) -> Result<u32, DropReason> {
    let header_len = ip.header_len();
    let tot_len = ip.tot_len() as u32;
    if ip.version() != 4 || header_len < Ipv4Hdr::LEN as u32 || tot_len > l3_len || ip.ttl() == 0 {
        return Err(DropReason::OuterMalformed);
    }
    if ip.is_fragment() {
        return Err(DropReason::OuterFragment);
    }
    if tot_len < header_len + (UdpHdr::LEN + VxlanHdr::LEN + EthHdr::LEN) as u32 {
        return Err(DropReason::OuterMalformed);
    }
    Ok(header_len)
}

/// Checks the outer UDP header. `l4_len` is the length of the outer IP packet without its header.
/// The checksum is not verified (RFC 7348 §5: a receiver may verify a checksum that is not zero;
/// the inner frame has its own).
#[inline(always)]
pub const fn check_outer_udp(udp: &UdpHdr, l4_len: u32) -> Result<(), DropReason> {
    let len = udp.len() as u32;
    if len > l4_len || len < (UdpHdr::LEN + VxlanHdr::LEN + EthHdr::LEN) as u32 {
        return Err(DropReason::OuterMalformed);
    }
    Ok(())
}

/// The VNI, and whether reserved bits are set. The caller counts frames with reserved bits, but
/// does not drop them. Fails with [`DropReason::VniFlagClear`] if the I flag is clear.
#[inline(always)]
pub const fn check_vxlan(vxlan: &VxlanHdr) -> Result<(u32, bool), DropReason> {
    if !vxlan.is_vni_valid() {
        return Err(DropReason::VniFlagClear);
    }
    Ok((vxlan.vni(), vxlan.reserved_bits_set()))
}

/// Whether a received buffer holds one inner frame.
///
/// The kernel has two kinds of merging (GRO). The GRO callbacks of a VXLAN socket merge the
/// segments of an inner TCP flow into one long inner packet. Plain UDP GRO
/// (`rx-udp-gro-forwarding`, `rx-gro-list`) puts whole datagrams one after the other, regardless
/// of their VNI. In the first case the inner IP packet fills the rest of the buffer, in the
/// second it does not.
///
/// `gso_size` is the segment size of the buffer (0: not merged). `remaining_l3_len` is the number
/// of bytes after the inner Ethernet header. `inner_l3_total_len` is the length in the inner IP
/// header (`None`: the frame is not IP; no legitimate merge contains such a frame).
///
/// An inner header with a false length would pass: see [`second_datagram_offset`].
#[inline(always)]
pub const fn merged_frame_ok(
    gso_size: u32,
    remaining_l3_len: u32,
    inner_l3_total_len: Option<u32>,
) -> bool {
    if gso_size == 0 {
        return true;
    }
    match inner_l3_total_len {
        Some(total) => total == remaining_l3_len,
        None => false,
    }
}

/// Offset of a second datagram in a buffer, in bytes from the outer UDP payload, if the kernel
/// merged datagrams as plain UDP; `None` if it cannot have merged any.
///
/// UDP GRO merges only datagrams with a checksum (`udp_gro_receive_segment`); each but the last
/// has `gso_size` bytes. Culvert sends no checksum, so that the frames of Culvert hosts need no
/// further check. If there is an offset, the inner header could claim the next datagrams as its
/// payload: the caller checks the bytes there with [`starts_datagram`].
#[inline(always)]
pub const fn second_datagram_offset(
    gso_size: u32,
    outer_udp_checksum: u16,
    udp_payload_len: u32,
) -> Option<u32> {
    if gso_size == 0 || outer_udp_checksum == 0 || gso_size >= udp_payload_len {
        return None;
    }
    Some(gso_size)
}

/// Whether the bytes could be the VXLAN header of a second, merged datagram. Random payload
/// matches with a probability of 2^-33, and then costs a retransmission.
#[inline(always)]
pub const fn starts_datagram(vxlan: &VxlanHdr) -> bool {
    vxlan.is_vni_valid() && !vxlan.reserved_bits_set()
}
