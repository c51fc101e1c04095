//! VTEPs and the paths to them.

use bytemuck::{Pod, Zeroable};

use crate::wire::EthHdr;

/// Number of a VTEP, given by the agent of this host. It stands for the VTEP's address in every
/// map, so that an address of either family takes four bytes of a key. It is never given to
/// another address while the maps are pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct VtepId(pub u32);

impl VtepId {
    /// No VTEP.
    pub const NONE: Self = Self(0);

    /// Whether this is the number of a VTEP.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// `skb->mark` of a frame that the programs have encapsulated. The program at the egress of the uplink
/// knows such frames by it. Only processes with `CAP_NET_ADMIN` or `CAP_NET_RAW` in the network
/// namespace of the host can set a mark: the kernel clears it where a frame leaves a namespace.
pub const ENCAPSULATED_MARK: u32 = 0x4375_6c76;

/// Key of [`names::VTEPS`](super::names::VTEPS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct VtepKey {
    /// VNI of the network.
    pub vni: u32,
    /// The VTEP.
    pub vtep: VtepId,
}

/// Headers in front of the inner frame towards a VTEP: link header, IP, UDP, VXLAN. Fields that
/// differ by network or by frame are zero: VNI, TOS, lengths, UDP source port.
///
/// Two bytes of padding before the Ethernet header, so that the IP header is 4-byte aligned, like
/// `NET_IP_ALIGN`: BPF has no unaligned access to the stack, and the compiler copies byte by
/// byte where it does not know the alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct HeaderTemplate {
    /// Explicit padding; zero.
    pub pad: [u8; 2],
    /// Ethernet header; zero where the link has none. Its destination is the MAC of the next hop
    /// from the kernel's neighbour table, zero while unresolved. It is used where
    /// `bpf_redirect_neigh` cannot be used: frames that are not IP, replicas of flooded frames.
    pub eth: EthHdr,
    /// IP, UDP and VXLAN header: 36 bytes with IPv4, 56 with IPv6; zeroes follow.
    pub outer: [u8; 56],
}

/// Path to a VTEP, as in the kernel's routing table when the agent last read it. Value of
/// [`names::UNDERLAY`](super::names::UNDERLAY).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct UnderlayPath {
    /// Headers towards the VTEP.
    pub template: HeaderTemplate,
    /// Next hop; the VTEP itself if it is on link. An IPv4 address is in the first four bytes, as
    /// in the kernel's `struct bpf_redir_neigh`.
    pub next_hop: [u8; 16],
    /// Interface index of the uplink.
    pub ifindex: u32,
    /// Address family of the underlay: `AF_INET` (2) or `AF_INET6` (10) of linux/socket.h.
    pub family: u16,
    /// UDP port of the VTEP, host order.
    pub port: u16,
    /// Largest inner L3 packet on the route, in bytes: the route's MTU less
    /// [`Self::overhead`].
    pub inner_mtu: u16,
    /// Length of the template in bytes: link header, IP, UDP and VXLAN.
    pub header_len: u8,
    /// Length of the template's link header in bytes: 14, or 0 if the uplink has none.
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

    /// An IPv4 next hop in the format of [`Self::next_hop`].
    #[inline(always)]
    pub const fn next_hop_v4(ip: [u8; 4]) -> [u8; 16] {
        let [a, b, c, d] = ip;
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// MTU of the path to a VTEP, as a router on it has answered a probe of the agent (RFC 1191). Value
/// of [`names::PATH_MTU`](super::names::PATH_MTU). Never changed in place: the agent writes a new
/// value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PathMtu {
    /// Time of `bpf_ktime_get_ns` after which the route's own MTU is used again.
    pub expires_ns: u64,
    /// Largest inner L3 packet, in bytes.
    pub inner_mtu: u32,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

const _: () = assert!(size_of::<VtepKey>() == 8);
const _: () = assert!(size_of::<HeaderTemplate>() == 72);
const _: () = assert!(size_of::<UnderlayPath>() == 104);
const _: () = assert!(size_of::<PathMtu>() == 16);
