//! VTEPs and how they are reached.

use bytemuck::{Pod, Zeroable};

use crate::wire::EthHdr;

/// A VTEP, numbered by the agent of this host. The number stands for the VTEP's address
/// in every map, so that an address of either family costs a key four bytes. It is never
/// given to another address while the maps are pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct VtepId(pub u32);

impl VtepId {
    /// No VTEP.
    pub const NONE: Self = Self(0);

    /// Whether this is a VTEP.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// Key of [`names::VTEPS`](super::names::VTEPS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct VtepKey {
    /// VNI of the network.
    pub vni: u32,
    /// The VTEP.
    pub vtep: VtepId,
}

/// What precedes the inner frame on the way to a VTEP: link header, IP, UDP, VXLAN. Fields
/// that differ by network or by frame are zero: VNI, TOS, lengths, UDP source port.
///
/// The header begins behind two bytes of padding, so that the IP header behind an Ethernet
/// header is aligned to 4 bytes, like `NET_IP_ALIGN`: BPF has no unaligned access to the
/// stack, and the compiler goes byte by byte where it does not know the alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct HeaderTemplate {
    /// Explicit padding; zero.
    pub pad: [u8; 2],
    /// Ethernet header; zero where the link has none. Its destination is the MAC of the
    /// next hop as the kernel's neighbour table has it, zero while unresolved: used where
    /// `bpf_redirect_neigh` cannot be (frames that are not IP, replicas of flooded frames).
    pub eth: EthHdr,
    /// IP, UDP and VXLAN header: 36 bytes with IPv4, 56 with IPv6; zeroes follow.
    pub outer: [u8; 56],
}

impl HeaderTemplate {
    /// No header.
    pub const EMPTY: Self =
        Self { pad: [0; 2], eth: EthHdr::new([0; 6], [0; 6], 0), outer: [0; 56] };
}

/// How to reach a VTEP, as the kernel's routing table said when the agent asked. Value of
/// [`names::UNDERLAY`](super::names::UNDERLAY).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct UnderlayPath {
    /// Headers towards the VTEP.
    pub template: HeaderTemplate,
    /// Next hop: the VTEP itself when it is on link. An IPv4 address in the first four
    /// bytes, as in the kernel's `struct bpf_redir_neigh`.
    pub next_hop: [u8; 16],
    /// Uplink.
    pub ifindex: u32,
    /// Address family of the underlay: `AF_INET` (2) or `AF_INET6` (10) of linux/socket.h.
    pub family: u16,
    /// UDP port of the VTEP, host order.
    pub port: u16,
    /// Largest inner L3 packet that the route takes: the route's MTU less the bytes that
    /// the template and the inner Ethernet header add to it.
    pub inner_mtu: u16,
    /// Bytes of the template: link header, IP, UDP and VXLAN.
    pub header_len: u8,
    /// Bytes of its link header: 14, or 0 where the uplink has none.
    pub link_len: u8,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

impl UnderlayPath {
    /// [`Self::family`] of an IPv4 underlay.
    pub const AF_INET: u16 = 2;

    /// Bytes that the encapsulation adds to the inner L3 packet: the template without its
    /// link header, and the inner Ethernet header.
    #[inline(always)]
    pub const fn overhead(&self) -> u32 {
        (self.header_len as u32 + EthHdr::LEN as u32).saturating_sub(self.link_len as u32)
    }

    /// An IPv4 next hop, as [`Self::next_hop`] has it.
    #[inline(always)]
    pub const fn next_hop_v4(ip: [u8; 4]) -> [u8; 16] {
        let [a, b, c, d] = ip;
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// What a router on the way to a VTEP said of its MTU (RFC 1191). Never changed in place: a
/// program writes a new value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PathMtu {
    /// `bpf_ktime_get_ns` after which the route's own MTU is tried again.
    pub expires_ns: u64,
    /// Largest inner L3 packet.
    pub inner_mtu: u32,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

const _: () = assert!(size_of::<VtepKey>() == 8);
const _: () = assert!(size_of::<HeaderTemplate>() == 72);
const _: () = assert!(size_of::<UnderlayPath>() == 104);
const _: () = assert!(size_of::<PathMtu>() == 16);
