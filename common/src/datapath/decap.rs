//! What an outer header must be before it is stripped (RFC 7348).

use crate::abi::DropReason;
use crate::wire::{EthHdr, Ipv4Hdr, UdpHdr, VxlanHdr};

/// Checks the outer IPv4 header of a datagram for our port; `l3_len` is what the
/// frame holds from this header on. Returns the bytes of the header.
///
/// For a fragment that is not the first the port is unknown: call this where
/// the protocol is UDP and the packet is otherwise known to be VXLAN, or let
/// such fragments pass to the kernel, whose reassembly finds no socket.
#[inline(always)]
pub const fn check_outer_ip(ip: &Ipv4Hdr, l3_len: u32) -> Result<u32, DropReason> {
    let header_len = ip.header_len();
    let tot_len = ip.tot_len() as u32;
    if ip.version() != 4 || header_len < Ipv4Hdr::LEN as u32 || tot_len > l3_len {
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

/// Checks the outer UDP header; `l4_len` is the outer IP packet's length less
/// its header. The checksum is not looked at (RFC 7348 §5: a receiver may
/// verify one that is not zero; the frame carries its own).
#[inline(always)]
pub const fn check_outer_udp(udp: &UdpHdr, l4_len: u32) -> Result<(), DropReason> {
    let len = udp.len() as u32;
    if len > l4_len || len < (UdpHdr::LEN + VxlanHdr::LEN + EthHdr::LEN) as u32 {
        return Err(DropReason::OuterMalformed);
    }
    Ok(())
}

/// The VNI, and whether reserved bits are set (to be counted, else ignored).
#[inline(always)]
pub const fn check_vxlan(vxlan: &VxlanHdr) -> Result<(u32, bool), DropReason> {
    if !vxlan.is_vni_valid() {
        return Err(DropReason::VniFlagClear);
    }
    Ok((vxlan.vni(), vxlan.reserved_bits_set()))
}

/// Whether a received buffer holds one inner frame.
///
/// The kernel merges in two ways: through a VXLAN socket's GRO callbacks, which
/// merge the inner TCP flow into one long inner packet, and as plain UDP
/// (`rx-udp-gro-forwarding`, `rx-gro-list`), which lays whole datagrams end to
/// end whatever their VNI. In the first case the inner IP packet fills the rest
/// of the buffer, in the second it does not. `gso_size` is the buffer's (0: not
/// merged), `remaining_l3_len` what it holds after the inner Ethernet header,
/// `inner_l3_total_len` what the inner IP header says (`None`: not IP, which
/// nothing legitimate merges).
///
/// An inner header that lies about its length would pass: see
/// [`second_datagram_offset`].
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

/// Where in a buffer, counted from the outer UDP payload, a second datagram
/// begins if the kernel merged datagrams as plain UDP; `None` if it cannot have.
///
/// UDP GRO merges only datagrams with a checksum (`udp_gro_receive_segment`
/// leaves those without alone), all but the last of `gso_size` bytes. Culvert
/// sends none, so for its own frames there is nothing to look at. Where this
/// gives an offset, an inner header could claim the following datagrams as its
/// payload: whoever decapsulates looks whether [`starts_datagram`] there.
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

/// Whether the bytes could be the VXLAN header of a second, merged datagram.
/// Payload that looks so by chance (one in 2^33) costs a retransmission.
#[inline(always)]
pub const fn starts_datagram(vxlan: &VxlanHdr) -> bool {
    vxlan.is_vni_valid() && !vxlan.reserved_bits_set()
}
