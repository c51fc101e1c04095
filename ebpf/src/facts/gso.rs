//! Frames that the kernel has merged (GRO), or will cut into segments (GSO).

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::DropReason,
    datapath::{decap, pmtu},
    wire::{
        TcpHdr, UdpHdr, VxlanHdr,
        ipv4::{PROTO_TCP, PROTO_UDP},
    },
};

use super::outer::{INNER_L3, Tunnelled, VXLAN};
use crate::kernel::skb::{ETH_LEN, gso_size, load};

/// Length in bytes of the longest L3 packet after the kernel has cut the frame into segments.
/// `l3_len` is the length of the frame's L3 packet in bytes, and `network_len` that of its IP
/// headers. `protocol` is the protocol of the upper layer.
#[inline(always)]
pub(crate) fn longest_packet(
    ctx: &TcContext,
    l3_len: u32,
    protocol: u8,
    network_len: u32,
) -> Result<u32, DropReason> {
    let gso = gso_size(ctx);
    if gso == 0 {
        return Ok(l3_len);
    }
    let upper_len = match protocol {
        PROTO_TCP => load::<TcpHdr>(ctx, ETH_LEN + network_len as usize)?.header_len(),
        PROTO_UDP => UdpHdr::LEN as u32,
        _ => 0,
    };
    Ok(pmtu::longest_packet(l3_len, gso, network_len + upper_len))
}

/// Refuses datagrams that the kernel merged end to end: they may have different VNIs, and only the
/// VNI of the first one was checked. `inner_len` is the length in the inner IP header in bytes;
/// `None` if the inner frame is not IP.
#[inline(always)]
pub(crate) fn check_not_merged(
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
