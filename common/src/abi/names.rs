//! Names of maps, globals and programs in the object file and on the BPF file system. The
//! constants of this module itself are the maps.

/// Interface index of a host side → [`EndpointInfo`](super::EndpointInfo).
pub const ENDPOINTS: &str = "ENDPOINTS";
/// VNI → [`NetworkInfo`](super::NetworkInfo).
pub const NETWORKS: &str = "NETWORKS";
/// [`FdbKey`](super::FdbKey) → [`FdbEntry`](super::FdbEntry); written by the agent only.
pub const FDB: &str = "FDB";
/// [`FdbKey`](super::FdbKey) → [`LearnedEntry`](super::LearnedEntry), LRU; written by the programs.
pub const FDB_LEARNED: &str = "FDB_LEARNED";
/// [`NeighKey`](super::NeighKey) → [`NeighEntry`](super::NeighEntry).
pub const NEIGHBOURS: &str = "NEIGHBOURS";
/// [`NeighKey`](super::NeighKey) → [`HeardEntry`](super::HeardEntry): IPv4 addresses that have no
/// endpoint, learned from ARP in networks that learn; written by the programs, LRU.
pub const NEIGHBOURS_HEARD: &str = "NEIGHBOURS_HEARD";
/// Set of [`VtepKey`](super::VtepKey) (value: `u32`, zero): the VTEPs that may send frames of a
/// VNI.
pub const VTEPS: &str = "VTEPS";
/// [`MappedAddr`](super::MappedAddr) of a VTEP → [`SealedU32`](super::SealedU32), its
/// [`VtepId`](super::VtepId). Decapsulation reads it. The entry of `::`, which no host has, is
/// the next number that the agent gives; it has no seal.
pub const VTEP_IDS: &str = "VTEP_IDS";
/// [`VtepId`](super::VtepId) → [`UnderlayPath`](super::UnderlayPath).
pub const UNDERLAY: &str = "UNDERLAY";
/// [`VtepId`](super::VtepId) → [`PathMtu`](super::PathMtu): smaller than the route's MTU, LRU. The
/// agent writes it, after its own probe of the path.
pub const PATH_MTU: &str = "PATH_MTU";
/// [`VtepId`](super::VtepId) → [`SealedU32`](super::SealedU32), a largest inner L3 packet in bytes:
/// what an ICMP error of the underlay says, which anybody may have forged. The programs write it,
/// and only if there is no entry. The agent removes it, and probes the path.
pub const PATH_HINTS: &str = "PATH_HINTS";
/// [`FloodKey`](super::FloodKey) → [`SealedU32`](super::SealedU32), the interface index of a
/// host side.
pub const FLOOD_LOCAL: &str = "FLOOD_LOCAL";
/// [`FloodKey`](super::FloodKey) → [`SealedU32`](super::SealedU32), a [`VtepId`](super::VtepId).
pub const FLOOD_REMOTE: &str = "FLOOD_REMOTE";
/// [`QuerierKey`](super::QuerierKey) → time of the last IGMP or MLD query or PIM packet, in ns of
/// `bpf_ktime_get_coarse_ns` (`u64`), LRU; written by the programs.
pub const QUERIERS: &str = "QUERIERS";
/// [`RateKey`](super::RateKey) → theoretical arrival time in ns (`u64`), LRU.
pub const RATES: &str = "RATES";
/// Interface index of a network's gateway device → [`SealedU32`](super::SealedU32), its VNI.
pub const GATEWAYS: &str = "GATEWAYS";
/// [`FlowKey`](super::FlowKey) → [`Flow`](super::Flow): conntrack; written by
/// the programs, aged by the agent. Its capacity is configured.
pub const FLOWS: &str = "FLOWS";
/// Slot → [`FlowKey`](super::FlowKey) of the `ORIG` direction of a flow. The programs search the
/// slots for flows that may be evicted. A slot is free if `FLOWS` has no such flow, or one that
/// names another slot ([`Flow::slot`](super::Flow::slot)). There are twice as many slots as flows,
/// so that at least half of them are free.
pub const FLOW_SLOTS: &str = "FLOW_SLOTS";
/// Incarnation of a container of this host → [`FlowShare`](super::FlowShare): how many flows it
/// has. Written by the programs, corrected by the agent.
pub const FLOW_SHARES: &str = "FLOW_SHARES";
/// [`PublishedKey`](super::PublishedKey) → [`PublishedEntry`](super::PublishedEntry).
pub const PUBLISHED: &str = "PUBLISHED";
/// [`PublishedKey`](super::PublishedKey) → [`SealedU32`](super::SealedU32), one of the constants of
/// [`blocked`](super::blocked): destinations to which containers begin no flow. Protocol 0 stands
/// for every protocol, and port 0 for every port.
pub const BLOCKED: &str = "BLOCKED";
/// Set of the host's own addresses, as [`MappedAddr`](super::MappedAddr) (value: `u32`, zero).
pub const HOST_ADDRS: &str = "HOST_ADDRS";
/// Interface index of an uplink → [`UplinkInfo`](super::UplinkInfo).
pub const UPLINKS: &str = "UPLINKS";
/// Set of the interface indices of the client links (value: `u32`, zero): interfaces that are
/// neither uplinks nor Culvert's, and that published ports serve as well.
pub const CLIENT_LINKS: &str = "CLIENT_LINKS";
/// Set of IPv4 prefixes (longest match; value: `u32`, zero). A packet of a container to such an
/// address goes to the host's stack, whose netfilter translates the packet (kube-proxy's services).
pub const SERVICES: &str = "SERVICES";
/// Set of prefixes of [`MappedAddr`](super::MappedAddr) (longest match; value: `u32`, zero).
/// Clients with such an address begin no flow to a published port.
pub const DENIED: &str = "DENIED";
/// Prefixes of [`SourceKey`](super::SourceKey) (longest match) → VNI of the container's network:
/// the clients of restricted ports.
pub const SOURCES: &str = "SOURCES";
/// Array of `u64` words, see [`reserved_bit`](super::reserved_bit): ports of the
/// host that masquerading never takes.
pub const RESERVED_PORTS: &str = "RESERVED_PORTS";
/// [`FragmentKey`](super::FragmentKey) → [`FragmentInfo`](super::FragmentInfo), LRU.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// [`FragmentKey`](super::FragmentKey) → [`HeldFragment`](super::HeldFragment), LRU.
pub const HELD_FRAGMENTS: &str = "HELD_FRAGMENTS";
/// Per-CPU array of [`Counter`](super::Counter), indexed by
/// [`stats_index`](super::stats_index).
pub const STATS: &str = "STATS";
/// One `u64`, the epoch: an entry of the flow cache or of the route cache is valid while the epoch
/// is the one in which the entry was made. The agent advances the epoch after it has changed
/// `ENDPOINTS`, `NETWORKS`, `FDB`, `NEIGHBOURS`, `VTEPS`, `VTEP_IDS`, `UNDERLAY`, `PATH_MTU`,
/// `GATEWAYS`, `HOST_ADDRS`, `UPLINKS` or `CLIENT_LINKS`.
pub const EPOCH: &str = "EPOCH";
/// One [`Scratch`](super::Scratch) per CPU: headers too large for the BPF stack of 512 bytes.
pub const SCRATCH: &str = "SCRATCH";

/// Names of the load-time globals (read-only data of the object).
pub mod globals {
    /// VTEP address of this host: the four bytes in network order, read as a native `u32`.
    pub const VTEP_IP: &str = "VTEP_IP";
    /// UDP port on which this host receives VXLAN, host order, `u16`.
    pub const VXLAN_PORT: &str = "VXLAN_PORT";
    /// Age in ns after which a learned entry is no longer used, `u64`.
    pub const AGEING_NS: &str = "AGEING_NS";
    /// Least port that masquerading chooses, `u16`, host order.
    pub const NAT_PORT_MIN: &str = "NAT_PORT_MIN";
    /// Greatest port that masquerading chooses, `u16`, host order.
    pub const NAT_PORT_MAX: &str = "NAT_PORT_MAX";
    /// Share of the ports that one container may always take towards a destination, `u32`, see
    /// [`port_share`](crate::datapath::nat::port_share).
    pub const NAT_PORT_SHARE: &str = "NAT_PORT_SHARE";
    /// Idle times in ns after which flows expire,
    /// [`Timeouts`](crate::datapath::conntrack::Timeouts).
    pub const FLOW_TIMEOUTS: &str = "FLOW_TIMEOUTS";
    /// Number of slots in [`FLOW_SLOTS`](super::FLOW_SLOTS), `u32`.
    pub const FLOW_SLOTS_LEN: &str = "FLOW_SLOTS_LEN";
    /// Number of flows that one container may have in [`FLOWS`](super::FLOWS), `u32`.
    pub const FLOW_SHARE: &str = "FLOW_SHARE";
    /// Whether [`BLOCKED`](super::BLOCKED) may have ports of the store, `u32`: 1 or 0.
    pub const PORTS_CLOSED: &str = "PORTS_CLOSED";
    /// Interface index of the loopback device, `u32`.
    pub const LOOPBACK: &str = "LOOPBACK";
    /// Log level of aya-log, `u8`: 0 writes nothing, 5 writes trace lines.
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
    /// tcx ingress on a client link.
    pub const FROM_CLIENT: &str = "from_client";
    /// tcx ingress on a client link whose packets have no Ethernet header.
    pub const FROM_CLIENT_L3: &str = "from_client_l3";
    /// tcx egress on an uplink.
    pub const TO_UNDERLAY: &str = "to_underlay";
    /// XDP on an uplink.
    pub const FROM_UNDERLAY_XDP: &str = "from_underlay_xdp";
}
