//! Keys and values of the forwarding, neighbour, flood and rate maps.

use bytemuck::{Pod, Zeroable};

use super::{MappedAddr, VtepId};

/// Key of [`names::FDB`](super::names::FDB) and
/// [`names::FDB_LEARNED`](super::names::FDB_LEARNED).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FdbKey {
    /// VNI of the network.
    pub vni: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// Explicit padding; zero.
    pub pad: [u8; 2],
}

impl FdbKey {
    /// Key of `mac` in `vni`.
    #[inline(always)]
    pub const fn new(vni: u32, mac: [u8; 6]) -> Self {
        Self { vni, mac, pad: [0; 2] }
    }
}

/// Location of a MAC that the agent has written: a local endpoint (`local`) or a VTEP
/// (`static`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FdbEntry {
    /// Interface index of the host side of a local endpoint; 0 if the MAC is remote.
    pub ifindex: u32,
    /// VTEP of a remote endpoint; [`VtepId::NONE`] if the MAC is local.
    pub vtep: VtepId,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

/// Location where the programs last saw a MAC. Never changed in place: a program writes a new
/// value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LearnedEntry {
    /// Time of `bpf_ktime_get_ns` of the last frame with this source MAC.
    pub last_seen_ns: u64,
    /// Interface index of the host side that the frame came from; 0 if it came from a VTEP.
    pub ifindex: u32,
    /// VTEP that the frame came from; [`VtepId::NONE`] if it came from a local endpoint.
    pub vtep: VtepId,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
    /// Explicit padding; zero.
    pub pad: u32,
}

/// Key of the neighbour map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct NeighKey {
    /// VNI of the network.
    pub vni: u32,
    /// Address of the neighbour.
    pub ip: MappedAddr,
}

impl NeighKey {
    /// Key of an IPv4 neighbour.
    #[inline(always)]
    pub const fn v4(vni: u32, ip: [u8; 4]) -> Self {
        Self { vni, ip: MappedAddr::v4(ip) }
    }

    /// Key of an IPv6 neighbour.
    #[inline(always)]
    pub const fn v6(vni: u32, ip: [u8; 16]) -> Self {
        Self { vni, ip: MappedAddr(ip) }
    }
}

/// The MAC address of a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct NeighEntry {
    /// MAC address.
    pub mac: [u8; 6],
    /// Explicit padding; zero.
    pub pad: [u8; 2],
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

/// The MAC address of an IPv4 address that no endpoint of the store has, learned from ARP. Never
/// changed in place: a program writes a new value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct HeardEntry {
    /// Time of `bpf_ktime_get_ns` of the last ARP packet from this address.
    pub last_seen_ns: u64,
    /// MAC address.
    pub mac: [u8; 6],
    /// Explicit padding; zero.
    pub pad: [u8; 2],
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
    /// Explicit padding; zero.
    pub tail: u32,
}

/// Key of a flood list slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FloodKey {
    /// VNI of the network.
    pub vni: u32,
    /// Slot, counted from 0 without gaps.
    pub index: u32,
}

/// Key of [`names::QUERIERS`](super::names::QUERIERS): a local endpoint or a VTEP from which a
/// query of the members of multicast groups, or a packet of PIM, has come. If `ifindex` is 0 and
/// `vtep` is [`VtepId::NONE`], the key stands for all queriers of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct QuerierKey {
    /// VNI of the network.
    pub vni: u32,
    /// Interface index of the host side of the local endpoint; 0 if the querier is not a local one.
    pub ifindex: u32,
    /// The VTEP; [`VtepId::NONE`] if the querier is not behind a VTEP.
    pub vtep: VtepId,
}

/// Key of [`names::RATES`](super::names::RATES): the kind of a rate limit, and its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct RateKey {
    /// [`Self::BUM`], [`Self::ICMP`], [`Self::MAC_MOVE`], [`Self::ASK`], [`Self::LEARN`],
    /// [`Self::HEAR`] or [`Self::HOLD`].
    pub kind: u32,
    /// Interface index for [`RateKey::BUM`] and [`RateKey::ICMP`], a number below 257 for
    /// [`RateKey::HOLD`], else VNI.
    pub id: u32,
}

impl RateKey {
    /// BUM frames of an endpoint.
    pub const BUM: u32 = 1;
    /// ICMP errors to an endpoint.
    pub const ICMP: u32 = 2;
    /// Moves of learned MACs within a VNI.
    pub const MAC_MOVE: u32 = 3;
    /// ARP requests that a host makes in a VNI.
    pub const ASK: u32 = 4;
    /// MACs that are learned for the first time, or again after they aged, within a VNI.
    pub const LEARN: u32 = 5;
    /// Addresses that are learned from ARP for the first time, or with another MAC, within a VNI.
    pub const HEAR: u32 = 6;
    /// Fragments of a source that are held for the first fragments of their datagrams. The number is
    /// a hash of the source; 256 stands for all external hosts.
    pub const HOLD: u32 = 7;
}

const _: () = assert!(size_of::<FdbKey>() == 12);
const _: () = assert!(size_of::<FdbEntry>() == 12);
const _: () = assert!(size_of::<LearnedEntry>() == 24);
const _: () = assert!(size_of::<NeighKey>() == 20);
const _: () = assert!(size_of::<NeighEntry>() == 12);
const _: () = assert!(size_of::<HeardEntry>() == 24);
const _: () = assert!(size_of::<FloodKey>() == 8);
const _: () = assert!(size_of::<QuerierKey>() == 12);
const _: () = assert!(size_of::<RateKey>() == 8);
