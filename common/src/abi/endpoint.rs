//! Values that describe endpoints, networks and uplinks.

use bytemuck::{Pod, Zeroable};

/// An endpoint: its network, its addresses and its limits. Value of
/// [`names::ENDPOINTS`](super::names::ENDPOINTS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct EndpointInfo {
    /// VNI of the endpoint's network.
    pub vni: u32,
    /// 0 or [`EndpointInfo::ALLOW_ANY_SOURCE`].
    pub flags: u32,
    /// The endpoint's MAC address.
    pub mac: [u8; 6],
    /// MTU of the container's interface.
    pub mtu: u16,
    /// The endpoint's primary IPv4 address; all zero if it has none. Additional addresses are in
    /// [`names::NEIGHBOURS`](super::names::NEIGHBOURS) alone, at the endpoint's MAC.
    pub ipv4: [u8; 4],
    /// The endpoint's primary IPv6 address besides the link-local one that follows
    /// from its MAC (RFC 4291 appendix A); all zero if it has none.
    pub ipv6: [u8; 16],
    /// Limit of BUM frames per second that the endpoint may send; 0: no limit.
    pub bum_rate: u32,
    /// Limit of BUM frames that the endpoint may send in one burst.
    pub bum_burst: u32,
    /// Tells this endpoint from earlier and later ones with the same address or
    /// interface index; not 0.
    pub incarnation: u32,
    /// Number of the policy of the endpoint; 0: none. No program reads it yet.
    pub policy: u32,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

impl EndpointInfo {
    /// The network was created with `--opt anti_spoof=false`: the endpoint may send with any
    /// source address, as a bridge with other hosts behind it does.
    pub const ALLOW_ANY_SOURCE: u32 = 1;

    /// No endpoint.
    pub const NONE: Self = Self {
        vni: 0,
        flags: 0,
        mac: [0; 6],
        mtu: 0,
        ipv4: [0; 4],
        ipv6: [0; 16],
        bum_rate: 0,
        bum_burst: 0,
        incarnation: 0,
        policy: 0,
        seal: 0,
    };
}

/// A network. Value of [`names::NETWORKS`](super::names::NETWORKS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct NetworkInfo {
    /// Bits [`LEARNING`](Self::LEARNING), [`COPY_DSCP`](Self::COPY_DSCP),
    /// [`INTERNAL`](Self::INTERNAL), [`HOST_ACCESS`](Self::HOST_ACCESS),
    /// [`BLOCK_HOSTS`](Self::BLOCK_HOSTS).
    pub flags: u32,
    /// Entries of this VNI in the local flood list, at indices `0..local_endpoints`.
    pub local_endpoints: u32,
    /// Entries of this VNI in the remote flood list, at indices `0..remote_vteps`.
    pub remote_vteps: u32,
    /// Interface index of the gateway device; 0: the network has no gateway here.
    pub gateway_ifindex: u32,
    /// The gateway's IPv4 address; all zero if there is none.
    pub gateway_ip: [u8; 4],
    /// The gateway's MAC, the same on every host.
    pub gateway_mac: [u8; 6],
    /// Explicit padding; zero.
    pub pad: [u8; 2],
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
}

impl NetworkInfo {
    /// MAC and IPv4 addresses that are not in the store are learned: those behind VTEPs, and those
    /// of containers that may send from any address. Announcements are flooded.
    pub const LEARNING: u32 = 1;
    /// The inner DSCP is copied to the outer header; otherwise it is zero.
    pub const COPY_DSCP: u32 = 2;
    /// The network has no route to external destinations (`--internal`).
    pub const INTERNAL: u32 = 4;
    /// The gateway device has the gateway's address: containers and the host reach each other.
    /// Clear where another network may have the same addresses.
    pub const HOST_ACCESS: u32 = 8;
    /// Containers begin no flow to an address of this host, or to the VTEP address of another host
    /// (`--opt block_hosts=true`).
    pub const BLOCK_HOSTS: u32 = 16;

    /// No network.
    pub const NONE: Self = Self {
        flags: 0,
        local_endpoints: 0,
        remote_vteps: 0,
        gateway_ifindex: 0,
        gateway_ip: [0; 4],
        gateway_mac: [0; 6],
        pad: [0; 2],
        seal: 0,
    };
}

/// An uplink. Value of [`names::UPLINKS`](super::names::UPLINKS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct UplinkInfo {
    /// MTU of the device, in bytes. No program reads it yet: the programs that send have the MTU of
    /// the route, from [`UnderlayPath::inner_mtu`](super::UnderlayPath::inner_mtu) or from the
    /// kernel's routes.
    pub mtu: u32,
    /// Length of the link header in bytes: 14 for Ethernet, 0 for a device without one (tun,
    /// WireGuard). No program reads it yet. `from_underlay` will, to push an Ethernet header in
    /// front of a frame of such a device.
    pub link_len: u8,
    /// Explicit padding; zero.
    pub pad: u8,
    /// Flags, see the constants.
    pub flags: u16,
}

impl UplinkInfo {
    /// Another socket of the host has the VXLAN port. Frames that are not Culvert's are passed on
    /// to it.
    pub const SHARED_PORT: u16 = 1;
    /// All programs that encapsulate mark what they send
    /// ([`ENCAPSULATED_MARK`](super::ENCAPSULATED_MARK)), so that other VXLAN may be dropped at the
    /// egress. An agent of an earlier version, whose programs do not mark it, clears the flag.
    pub const GUARDED: u16 = 2;
}

/// Per-CPU working space.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Scratch {
    /// Bytes, for headers and quoted packets.
    pub bytes: [u8; 256],
}

const _: () = assert!(size_of::<EndpointInfo>() == 56);
const _: () = assert!(size_of::<NetworkInfo>() == 32);
const _: () = assert!(size_of::<UplinkInfo>() == 8);
const _: () = assert!(size_of::<Scratch>() == 256);
