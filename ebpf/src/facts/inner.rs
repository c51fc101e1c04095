//! The frame that is to be encapsulated.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    datapath::encap,
    wire::{EthHdr, Ipv4Hdr},
};

use crate::kernel::skb::{dissected_hash, hash};

/// What the encapsulation needs to know of the inner frame.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    /// Ethernet header.
    pub(crate) eth: EthHdr,
    /// TOS or traffic class; `None` if the frame is not IP.
    pub(crate) tos: Option<u8>,
    /// Bytes of the L3 packet.
    pub(crate) l3_len: u32,
    /// Bytes of the longest L3 packet once a GSO frame is cut into segments.
    pub(crate) segment_len: u32,
    /// Hash of its flow; 0 if the kernel is to dissect the packet.
    pub(crate) hash: u32,
}

impl Default for Inner {
    #[inline(always)]
    fn default() -> Self {
        Self { eth: EthHdr::new([0; 6], [0; 6], 0), tos: None, l3_len: 0, segment_len: 0, hash: 0 }
    }
}

/// The hash of an IPv4 flow: that of the socket, if the kernel has noted it in the skb, else
/// one over addresses, protocol and `ports`. The kernel's flow dissector would cost more
/// than the rest of the encapsulation.
#[inline(always)]
pub(crate) fn ipv4_hash(ctx: &TcContext, ip: &Ipv4Hdr, ports: [u8; 4]) -> u32 {
    match hash(ctx) {
        0 => encap::ipv4_flow_hash(ip, ports),
        known => known,
    }
}

/// The UDP source port that spreads flows over paths and queues: from the hash of the
/// flow (addresses, protocol and ports; no ports for fragments), from the MACs if the
/// frame is not IP (RFC 7348 §5).
#[inline(always)]
pub(crate) fn entropy_port(ctx: &TcContext, inner: &Inner) -> u16 {
    let hash = if inner.hash != 0 {
        inner.hash
    } else if inner.tos.is_some() {
        dissected_hash(ctx)
    } else {
        encap::l2_flow_hash(&inner.eth.dst, &inner.eth.src, inner.eth.ethertype())
    };
    encap::entropy_port(hash)
}
