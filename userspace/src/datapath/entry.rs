//! The agent's form of keys and values of the maps: with the address of a VTEP where the map
//! has its [`VtepId`](culvert_common::abi::VtepId), and without seals.
//!
//! [`layout`](super::layout) converts them to the form in the maps, and back.

/// Where a MAC is: behind a local host-side interface (`local`) or a VTEP (`static`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Interface index of the host side of a local endpoint; 0 if the MAC is remote.
    pub ifindex: u32,
    /// Address of the VTEP of a remote endpoint; all zero if the MAC is local.
    pub vtep: [u8; 4],
}

/// Where a MAC was last seen by the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LearnedEntry {
    /// `bpf_ktime_get_ns` when a frame with this source was last seen.
    pub last_seen_ns: u64,
    /// Address of the VTEP that the frame came from; all zero if it came from a local endpoint.
    pub vtep: [u8; 4],
    /// Interface index of the host side that the frame came from; 0 if it came from a VTEP.
    pub ifindex: u32,
}

/// The MAC address of a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighEntry {
    /// MAC address.
    pub mac: [u8; 6],
}

/// A VTEP that may send frames of a VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VtepKey {
    /// VNI of the network.
    pub vni: u32,
    /// VTEP address.
    pub ip: [u8; 4],
}

/// Why a VTEP may send frames of a VNI. Only the agent reads it: after a restart the agent
/// finds in the map which VTEPs are nodes of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct VtepInfo {
    /// Not zero: added by `culvert vtep add`, not a Culvert host.
    pub foreign: u32,
}

/// MTU of the path to a VTEP, as a router on it has answered a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathMtu {
    /// Time on the clock of [`LearnedEntry::last_seen_ns`] after which the programs use the route's
    /// own MTU again, in ns.
    pub expires_ns: u64,
    /// Bytes of the largest inner L3 packet.
    pub inner_mtu: u32,
}

/// The path to a VTEP, as in the kernel's routing table when the agent last read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnderlayPath {
    /// Interface index of the uplink.
    pub ifindex: u32,
    /// Next hop: the VTEP itself when it is on link.
    pub next_hop: [u8; 4],
    /// UDP port of the VTEP.
    pub port: u16,
    /// Bytes of the largest inner L3 packet that the route takes: the route's MTU less
    /// [`VXLAN_OVERHEAD`](culvert_common::abi::VXLAN_OVERHEAD).
    pub inner_mtu: u16,
    /// MAC of the next hop as the kernel's neighbour table has it; all zero while unresolved.
    pub next_hop_mac: [u8; 6],
    /// MAC of the uplink.
    pub uplink_mac: [u8; 6],
}
