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
    /// Hash of the frame's flow; 0 if the kernel is to compute it from the packet.
    pub(crate) hash: u32,
}

impl Default for Inner {
    #[inline(always)]
    fn default() -> Self {
        Self { eth: EthHdr::new([0; 6], [0; 6], 0), tos: None, l3_len: 0, segment_len: 0, hash: 0 }
    }
}

/// The hash of an IPv4 flow: the hash of the socket if the skb has it, else a hash over the
/// addresses, the protocol and `ports`. The kernel's flow dissector would take more time than the
/// rest of the encapsulation.
#[inline(always)]
pub(crate) fn ipv4_hash(ctx: &TcContext, ip: &Ipv4Hdr, ports: [u8; 4]) -> u32 {
    match hash(ctx) {
        0 => encap::ipv4_flow_hash(ip, ports),
        known => known,
    }
}

/// The outer UDP source port, which spreads flows over paths and queues (RFC 7348 §5). It follows
/// from the hash of the flow: addresses, protocol and ports; no ports for fragments. If the frame
/// is not IP, it follows from the MACs and the EtherType.
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
