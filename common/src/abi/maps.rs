//! Names, keys and values of the BPF maps.

use bytemuck::{Pod, Zeroable};

/// Map names as they stand in the object file and on the BPF file system.
pub mod names {
    /// Host-side interface index → [`EndpointInfo`](super::EndpointInfo).
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// VNI → [`NetworkInfo`](super::NetworkInfo).
    pub const NETWORKS: &str = "NETWORKS";
    /// [`FdbKey`](super::FdbKey) → [`FdbEntry`](super::FdbEntry); written by the agent only.
    pub const FDB: &str = "FDB";
    /// [`FdbKey`](super::FdbKey) → [`LearnedEntry`](super::LearnedEntry); written by the programs, LRU.
    pub const FDB_LEARNED: &str = "FDB_LEARNED";
    /// [`NeighKey`](super::NeighKey) → [`NeighEntry`](super::NeighEntry).
    pub const NEIGHBOURS: &str = "NEIGHBOURS";
    /// [`VtepKey`](super::VtepKey) → [`VtepInfo`](super::VtepInfo): who may speak in a VNI.
    pub const VTEPS: &str = "VTEPS";
    /// VTEP address → [`UnderlayPath`](super::UnderlayPath): how to reach it.
    pub const UNDERLAY: &str = "UNDERLAY";
    /// VTEP address → [`PathMtu`](super::PathMtu): learnt from ICMP, LRU.
    pub const PATH_MTU: &str = "PATH_MTU";
    /// [`FloodKey`](super::FloodKey) → host-side interface index (`u32`).
    pub const FLOOD_LOCAL: &str = "FLOOD_LOCAL";
    /// [`FloodKey`](super::FloodKey) → VTEP address.
    pub const FLOOD_REMOTE: &str = "FLOOD_REMOTE";
    /// [`RateKey`](super::RateKey) → theoretical arrival time in ns (`u64`), LRU.
    pub const RATES: &str = "RATES";
    /// Interface index of a network's gateway device → VNI (`u32`).
    pub const GATEWAYS: &str = "GATEWAYS";
    /// [`FlowKey`](crate::abi::FlowKey) → [`Flow`](crate::abi::Flow): conntrack; written by
    /// the programs, aged by the agent. Its capacity is configured.
    pub const FLOWS: &str = "FLOWS";
    /// Queue of [`Evictable`](crate::abi::Evictable): what may go when `FLOWS` is full.
    pub const EVICTABLE: &str = "EVICTABLE";
    /// [`PublishedKey`](crate::abi::PublishedKey) → [`PublishedEntry`](crate::abi::PublishedEntry).
    pub const PUBLISHED: &str = "PUBLISHED";
    /// Set of the host's own IPv4 addresses (value: `u32`, zero).
    pub const HOST_ADDRS: &str = "HOST_ADDRS";
    /// Set of the uplinks' interface indices (value: `u32`, zero).
    pub const UPLINKS: &str = "UPLINKS";
    /// Array of `u64` words, see [`reserved_bit`](crate::abi::reserved_bit): ports of the
    /// host that masquerading never takes.
    pub const RESERVED_PORTS: &str = "RESERVED_PORTS";
    /// [`FragmentKey`](crate::abi::FragmentKey) → [`FragmentInfo`](crate::abi::FragmentInfo), LRU.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`FragmentKey`](crate::abi::FragmentKey) → [`HeldFragment`](crate::abi::HeldFragment), LRU.
    pub const HELD_FRAGMENTS: &str = "HELD_FRAGMENTS";
    /// Per-CPU array of [`Counter`](crate::abi::Counter), indexed by
    /// [`stats_index`](crate::abi::stats_index).
    pub const STATS: &str = "STATS";
    /// One `u64`: what the programs remember of a pair of endpoints holds as long as this
    /// number is the same. Whoever changes `ENDPOINTS`, `NETWORKS`, `FDB`, `VTEPS`,
    /// `UNDERLAY`, `PATH_MTU`, `GATEWAYS` or `UPLINKS` raises it afterwards.
    pub const GENERATION: &str = "GENERATION";
    /// One [`Scratch`](super::Scratch) per CPU: headers too large for the stack.
    pub const SCRATCH: &str = "SCRATCH";
}

/// Names of the load-time globals (read-only data of the object).
pub mod globals {
    /// Our VTEP address, four bytes in network order read as a native `u32`.
    pub const VTEP_IP: &str = "VTEP_IP";
    /// UDP port on which we receive VXLAN, host order, `u16`.
    pub const VXLAN_PORT: &str = "VXLAN_PORT";
    /// Age in ns after which a learned entry is no longer used, `u64`.
    pub const AGEING_NS: &str = "AGEING_NS";
    /// Least port that masquerading chooses, `u16`, host order.
    pub const NAT_PORT_MIN: &str = "NAT_PORT_MIN";
    /// Greatest port that masquerading chooses, `u16`, host order.
    pub const NAT_PORT_MAX: &str = "NAT_PORT_MAX";
    /// Interface index of the loopback device, `u32`.
    pub const LOOPBACK: &str = "LOOPBACK";
    /// Not 0: trace lines are written, `u8`.
    pub const TRACING: &str = "TRACING";
    /// aya-log's own: 0 writes nothing, 5 writes trace lines, `u8`.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}

/// Names of the programs.
pub mod programs {
    /// tcx ingress on the host side of a container's veth.
    pub const FROM_CONTAINER: &str = "from_container";
    /// tcx ingress on an uplink.
    pub const FROM_UNDERLAY: &str = "from_underlay";
    /// tcx egress on a network's gateway device.
    pub const FROM_HOST: &str = "from_host";
    /// tcx ingress on the host's loopback device.
    pub const FROM_LOOPBACK: &str = "from_loopback";
    /// XDP on an uplink.
    pub const FROM_UNDERLAY_XDP: &str = "from_underlay_xdp";
}

/// Capacity of [`names::ENDPOINTS`], [`names::FLOOD_LOCAL`]: containers of one host.
pub const MAX_LOCAL_ENDPOINTS: u32 = 16_384;
/// Capacity of [`names::FDB`] and [`names::NEIGHBOURS`]: containers of all hosts.
pub const MAX_ENDPOINTS: u32 = 524_288;
/// Capacity of [`names::FDB_LEARNED`].
pub const MAX_LEARNED: u32 = 65_536;
/// Capacity of [`names::NETWORKS`].
pub const MAX_NETWORKS: u32 = 16_384;
/// Capacity of [`names::UNDERLAY`] and [`names::PATH_MTU`].
pub const MAX_VTEPS: u32 = 16_384;
/// Capacity of [`names::VTEPS`] and [`names::FLOOD_REMOTE`]: (network, host) pairs.
pub const MAX_VTEP_MEMBERSHIPS: u32 = 262_144;
/// Capacity of [`names::RATES`].
pub const MAX_RATES: u32 = 32_768;

/// Bytes that VXLAN over IPv4 adds in front of a frame: Ethernet 14, IPv4 20,
/// UDP 8, VXLAN 8 (RFC 7348 §5).
pub const VXLAN_OVERHEAD: u16 = 50;

/// What one container attachment may send and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct EndpointInfo {
    /// VNI of the endpoint's network.
    pub vni: u32,
    /// [`EndpointInfo::ALLOW_ANY_SOURCE`].
    pub flags: u32,
    /// The endpoint's MAC address.
    pub mac: [u8; 6],
    /// MTU of the container's interface.
    pub mtu: u16,
    /// The endpoint's IPv4 address; all zero if it has none.
    pub ipv4: [u8; 4],
    /// The endpoint's IPv6 address besides the link-local one that follows
    /// from its MAC (RFC 4291 appendix A); all zero if it has none.
    pub ipv6: [u8; 16],
    /// BUM frames a second that it may send; 0 is without limit.
    pub bum_rate: u32,
    /// BUM frames that it may send in one burst.
    pub bum_burst: u32,
    /// Tells this endpoint from earlier and later ones with the same address or
    /// interface index; not 0.
    pub generation: u32,
}

impl EndpointInfo {
    /// The network was created with `--opt anti_spoof=false`: the endpoint may
    /// send with any source, as a bridge with hosts behind it does.
    pub const ALLOW_ANY_SOURCE: u32 = 1;

    /// No endpoint: the host itself.
    pub const NONE: Self = Self {
        vni: 0,
        flags: 0,
        mac: [0; 6],
        mtu: 0,
        ipv4: [0; 4],
        ipv6: [0; 16],
        bum_rate: 0,
        bum_burst: 0,
        generation: 0,
    };
}

/// What the programs need to know of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct NetworkInfo {
    /// [`NetworkInfo::LEARNING`] and its siblings.
    pub flags: u32,
    /// MTU of the network: the largest inner L3 packet.
    pub mtu: u16,
    /// Explicit padding; zero.
    pub pad: u16,
    /// Entries of this VNI in the local flood list, at indices `0..local_ports`.
    pub local_ports: u32,
    /// Entries of this VNI in the remote flood list, at indices `0..remote_vteps`.
    pub remote_vteps: u32,
    /// Interface index of the gateway device; 0: the network has no gateway here.
    pub gateway_ifindex: u32,
    /// The gateway's IPv4 address; all zero if there is none.
    pub gateway_ip: [u8; 4],
    /// The gateway's MAC, the same on every host.
    pub gateway_mac: [u8; 6],
    /// Explicit padding; zero.
    pub pad2: [u8; 2],
}

impl NetworkInfo {
    /// Source addresses of decapsulated frames are learned.
    pub const LEARNING: u32 = 1;
    /// The inner DSCP is copied to the outer header; otherwise it is zero.
    pub const COPY_DSCP: u32 = 2;
    /// No way out of the network (`--internal`).
    pub const INTERNAL: u32 = 4;
    /// The gateway device has the gateway's address: containers and the host reach
    /// each other. Not so where another network may have the same addresses.
    pub const HOST_ACCESS: u32 = 8;
    /// The network ends at this host (driver bridge).
    pub const LOCAL: u32 = 16;
}

/// Key of both FDB maps.
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

/// Where a MAC is, as the agent knows it: a local port (`local`) or a VTEP (`static`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FdbEntry {
    /// Host-side interface index of a local endpoint; 0 if the MAC is remote.
    pub ifindex: u32,
    /// VTEP of a remote endpoint; all zero if the MAC is local.
    pub vtep: [u8; 4],
}

/// Where a MAC was last seen by the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LearnedEntry {
    /// `bpf_ktime_get_ns` when a frame with this source was last seen.
    pub last_seen_ns: u64,
    /// VTEP it came from; all zero if it was a local port.
    pub vtep: [u8; 4],
    /// Host-side interface index of the local port it came from; 0 if a VTEP.
    pub ifindex: u32,
}

/// Key of the neighbour map. IPv4 addresses are IPv4-mapped (`::ffff:a.b.c.d`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct NeighKey {
    /// VNI of the network.
    pub vni: u32,
    /// IPv6 or IPv4-mapped address.
    pub ip: [u8; 16],
}

impl NeighKey {
    /// Key of an IPv4 neighbour.
    #[inline(always)]
    pub const fn v4(vni: u32, ip: [u8; 4]) -> Self {
        Self { vni, ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ip[0], ip[1], ip[2], ip[3]] }
    }

    /// Key of an IPv6 neighbour.
    #[inline(always)]
    pub const fn v6(vni: u32, ip: [u8; 16]) -> Self {
        Self { vni, ip }
    }
}

/// The MAC address of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct NeighEntry {
    /// MAC address.
    pub mac: [u8; 6],
    /// Explicit padding; zero.
    pub pad: [u8; 2],
}

/// Key of [`names::VTEPS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct VtepKey {
    /// VNI of the network.
    pub vni: u32,
    /// VTEP address.
    pub ip: [u8; 4],
}

/// A VTEP that may send frames of a VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct VtepInfo {
    /// Not zero: added by `culvert vtep add`, not a Culvert host.
    pub foreign: u32,
}

/// How to reach a VTEP, as the kernel's routing table said when the agent asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct UnderlayPath {
    /// Uplink.
    pub ifindex: u32,
    /// Next hop: the VTEP itself when it is on link.
    pub next_hop: [u8; 4],
    /// UDP port of the VTEP, host order.
    pub port: u16,
    /// Largest inner L3 packet that the route takes: route MTU less [`VXLAN_OVERHEAD`].
    pub inner_mtu: u16,
    /// MAC of the next hop as the kernel's neighbour table has it; all zero
    /// while unresolved. Used where `bpf_redirect_neigh` cannot be (frames that
    /// are not IP, replicas of flooded frames).
    pub next_hop_mac: [u8; 6],
    /// MAC of the uplink.
    pub uplink_mac: [u8; 6],
}

/// What a router on the way said of its MTU (RFC 1191).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PathMtu {
    /// `bpf_ktime_get_ns` after which the route's own MTU is tried again.
    pub expires_ns: u64,
    /// Largest inner L3 packet.
    pub inner_mtu: u32,
    /// Explicit padding; zero.
    pub pad: u32,
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

/// What a rate limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct RateKey {
    /// One of the associated constants.
    pub kind: u32,
    /// Interface index, or VNI for [`RateKey::MAC_MOVE`].
    pub id: u32,
}

impl RateKey {
    /// BUM frames of an endpoint.
    pub const BUM: u32 = 1;
    /// ICMP errors to an endpoint.
    pub const ICMP: u32 = 2;
    /// Moves of learned MACs within a VNI.
    pub const MAC_MOVE: u32 = 3;
}

/// Per-CPU working space.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Scratch {
    /// Bytes, for headers and quoted packets.
    pub bytes: [u8; 256],
}

/// Asserts at compile time that a type has the size both sides rely on.
macro_rules! assert_size {
    ($($ty:ty = $size:expr),+ $(,)?) => {
        $(const _: () = assert!(core::mem::size_of::<$ty>() == $size);)+
    };
}

assert_size! {
    EndpointInfo = 48,
    NetworkInfo = 32,
    FdbKey = 12,
    FdbEntry = 8,
    LearnedEntry = 16,
    NeighKey = 20,
    NeighEntry = 8,
    VtepKey = 8,
    VtepInfo = 4,
    UnderlayPath = 24,
    PathMtu = 16,
    FloodKey = 8,
    RateKey = 8,
    Scratch = 256,
}
