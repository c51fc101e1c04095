//! Keys and values of published ports; bits of the ports that the host uses.

use bytemuck::{Pod, Zeroable};

use super::{capacity::RESERVED_WORDS, family::MappedAddr};
use crate::wire::ipv4::{PROTO_ICMP, PROTO_TCP, PROTO_UDP};

/// Why containers begin no flow to a destination: values of
/// [`names::BLOCKED`](super::names::BLOCKED).
pub mod blocked {
    /// The store of this host's agent, which has no authentication.
    pub const STORE: u32 = 1;
    /// The gateway of a network. The containers of that network may reach it.
    pub const GATEWAY: u32 = 2;
    /// The broadcast address of a subnet to which the host is connected.
    pub const BROADCAST: u32 = 3;
    /// The VTEP address of another host. Only containers of networks with
    /// [`NetworkInfo::BLOCK_HOSTS`](super::super::NetworkInfo::BLOCK_HOSTS) are kept from it.
    pub const HOST: u32 = 4;
}

/// Key of [`names::PUBLISHED`](super::names::PUBLISHED), where the address is one of the host, and of
/// [`names::BLOCKED`](super::names::BLOCKED).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PublishedKey {
    /// Address; in `PUBLISHED`, `::ffff:0.0.0.0` stands for every IPv4 address of the host.
    pub addr: MappedAddr,
    /// Port, network order; 0 in `BLOCKED` stands for every port.
    pub port: [u8; 2],
    /// IP protocol: TCP or UDP; 0 in `BLOCKED` stands for every protocol.
    pub protocol: u8,
    /// Explicit padding; zero.
    pub pad: u8,
}

/// Container port of a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PublishedEntry {
    /// Address of the container.
    pub addr: MappedAddr,
    /// VNI of the container's network.
    pub vni: u32,
    /// Interface index of the container's host side.
    pub ifindex: u32,
    /// Port of the container, network order.
    pub port: [u8; 2],
    /// Bits: [`Self::RESTRICTED`].
    pub flags: u16,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

impl PublishedKey {
    /// All ports and protocols of an address.
    #[inline(always)]
    pub const fn whole(addr: MappedAddr) -> Self {
        Self { addr, port: [0; 2], protocol: 0, pad: 0 }
    }
}

impl PublishedEntry {
    /// Only the container's clients in [`names::SOURCES`](super::names::SOURCES) may use the port.
    pub const RESTRICTED: u16 = 1;
}

/// Key of [`names::SOURCES`](super::names::SOURCES): clients of the published ports of a container.
/// A prefix has all bits of `ifindex`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct SourceKey {
    /// Interface index of the container's host side.
    pub ifindex: u32,
    /// Address of the client.
    pub addr: MappedAddr,
}

impl SourceKey {
    /// Bits of a key whose address is whole.
    pub const BITS: u32 = u32::BITS + MappedAddr::BITS;
}

/// Index of the word in [`names::RESERVED_PORTS`](super::names::RESERVED_PORTS), and bit in the
/// word, of a port of the host (or an ICMP identifier); `None` for other protocols.
#[inline(always)]
pub const fn reserved_bit(protocol: u8, port: u16) -> Option<(u32, u64)> {
    let class = match protocol {
        PROTO_TCP => 0,
        PROTO_UDP => 1,
        PROTO_ICMP => 2,
        _ => return None,
    };
    Some((class * RESERVED_WORDS + (port as u32 >> 6), 1 << (port & 63)))
}

const _: () = assert!(size_of::<PublishedKey>() == 20);
const _: () = assert!(size_of::<PublishedEntry>() == 32);
const _: () = assert!(size_of::<SourceKey>() * 8 == SourceKey::BITS as usize);
