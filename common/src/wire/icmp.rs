//! ICMP (RFC 792), ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861).

use bytemuck::{Pod, Zeroable};

/// ICMPv4 echo reply.
pub const V4_ECHO_REPLY: u8 = 0;
/// ICMPv4 destination unreachable.
pub const V4_UNREACHABLE: u8 = 3;
/// ICMPv4 source quench.
pub const V4_SOURCE_QUENCH: u8 = 4;
/// ICMPv4 redirect.
pub const V4_REDIRECT: u8 = 5;
/// ICMPv4 echo request.
pub const V4_ECHO_REQUEST: u8 = 8;
/// ICMPv4 time exceeded.
pub const V4_TIME_EXCEEDED: u8 = 11;
/// ICMPv4 parameter problem.
pub const V4_PARAMETER_PROBLEM: u8 = 12;
/// Code of [`V4_UNREACHABLE`]: host unreachable.
pub const V4_HOST_UNREACHABLE: u8 = 1;
/// Code of [`V4_UNREACHABLE`]: prohibited by the administrator (RFC 1812 §5.2.7.1).
pub const V4_PROHIBITED: u8 = 13;
/// Code of [`V4_UNREACHABLE`]: fragmentation needed and DF set.
pub const V4_FRAG_NEEDED: u8 = 4;

/// ICMPv6 packet too big.
pub const V6_PACKET_TOO_BIG: u8 = 2;
/// ICMPv6 router solicitation.
pub const V6_ROUTER_SOLICIT: u8 = 133;
/// ICMPv6 router advertisement.
pub const V6_ROUTER_ADVERT: u8 = 134;
/// ICMPv6 neighbour solicitation.
pub const V6_NEIGHBOUR_SOLICIT: u8 = 135;
/// ICMPv6 neighbour advertisement.
pub const V6_NEIGHBOUR_ADVERT: u8 = 136;
/// ICMPv6 redirect.
pub const V6_REDIRECT: u8 = 137;

/// Option: link-layer address of the source (RFC 4861 §4.6.1).
pub const OPT_SOURCE_LINK_LAYER: u8 = 1;
/// Option: link-layer address of the target (RFC 4861 §4.6.1).
pub const OPT_TARGET_LINK_LAYER: u8 = 2;

/// Flag of an advertisement: it answers a solicitation (RFC 4861 §4.4).
pub const NA_SOLICITED: u8 = 0x40;
/// Flag of an advertisement: the receiver replaces its cached entry (RFC 4861 §4.4).
pub const NA_OVERRIDE: u8 = 0x20;

/// ICMPv4 header: type, code, checksum and four bytes that depend on the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Icmpv4Hdr {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    /// Rest of the header.
    pub rest: [u8; 4],
}

wire_header!(Icmpv4Hdr = 8);

impl Icmpv4Hdr {
    /// Header with a checksum of 0.
    #[inline(always)]
    pub const fn new(kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self { kind, code, checksum: [0; 2], rest }
    }

    /// Sets the checksum.
    #[inline(always)]
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = checksum.to_be_bytes();
    }

    /// Next-hop MTU of a "fragmentation needed" (RFC 1191 §4).
    #[inline(always)]
    pub const fn next_hop_mtu(&self) -> u16 {
        u16::from_be_bytes([self.rest[2], self.rest[3]])
    }

    /// Whether type and code say "fragmentation needed and DF set".
    #[inline(always)]
    pub const fn is_frag_needed(&self) -> bool {
        self.kind == V4_UNREACHABLE && self.code == V4_FRAG_NEEDED
    }
}

/// Fields that only tests read.
#[cfg(test)]
impl Icmpv4Hdr {
    /// Type.
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// Code.
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// Checksum in the header, not verified.
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes(self.checksum)
    }
}

/// ICMPv6 header: type, code, checksum and four bytes that depend on the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Icmpv6Hdr {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    /// Rest of the header.
    pub rest: [u8; 4],
}

wire_header!(Icmpv6Hdr = 8);

impl Icmpv6Hdr {
    /// Header with a checksum of 0.
    #[inline(always)]
    pub const fn new(kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self { kind, code, checksum: [0; 2], rest }
    }

    /// Type.
    #[inline(always)]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// Code.
    #[inline(always)]
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// Sets the checksum.
    #[inline(always)]
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = checksum.to_be_bytes();
    }

    /// Whether the type is one of neighbour discovery's (RFC 4861 §4).
    #[inline(always)]
    pub const fn is_neighbour_discovery(&self) -> bool {
        matches!(self.kind, V6_ROUTER_SOLICIT..=V6_REDIRECT)
    }
}

/// A field that only tests read.
#[cfg(test)]
impl Icmpv6Hdr {
    /// Checksum in the header, not verified.
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes(self.checksum)
    }
}

/// Fixed part of a neighbour solicitation or advertisement (RFC 4861 §4.3 and
/// §4.4, which share their layout): ICMPv6 header, flags, target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NeighbourHdr {
    /// ICMPv6 header; the first byte of its rest holds the flags.
    pub icmp: Icmpv6Hdr,
    /// Target address: the address that is asked for or advertised.
    pub target: [u8; 16],
}

wire_header!(NeighbourHdr = 24);

impl NeighbourHdr {
    /// Message of type `kind` with a checksum of 0; `flags` are [`NA_SOLICITED`]
    /// and [`NA_OVERRIDE`], 0 in a solicitation.
    #[inline(always)]
    pub const fn new(kind: u8, flags: u8, target: [u8; 16]) -> Self {
        Self { icmp: Icmpv6Hdr::new(kind, 0, [flags, 0, 0, 0]), target }
    }

    /// Flags of an advertisement.
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        self.icmp.rest[0]
    }
}

/// First eight bytes of a neighbour discovery option: a whole link-layer
/// address option where the layer is Ethernet (RFC 4861 §4.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LinkLayerOption {
    kind: u8,
    units: u8,
    /// Link-layer address.
    pub mac: [u8; 6],
}

wire_header!(LinkLayerOption = 8);

impl LinkLayerOption {
    /// Option of type [`OPT_SOURCE_LINK_LAYER`] or [`OPT_TARGET_LINK_LAYER`].
    #[inline(always)]
    pub const fn new(kind: u8, mac: [u8; 6]) -> Self {
        Self { kind, units: 1, mac }
    }

    /// Type.
    #[inline(always)]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// Length of the option in bytes, from its length field; 0 is invalid (RFC 4861 §4.6).
    #[inline(always)]
    pub const fn option_len(&self) -> u32 {
        self.units as u32 * 8
    }

    /// Whether the option carries a link-layer address.
    #[inline(always)]
    pub const fn is_link_layer(&self) -> bool {
        matches!(self.kind, OPT_SOURCE_LINK_LAYER | OPT_TARGET_LINK_LAYER)
    }
}
