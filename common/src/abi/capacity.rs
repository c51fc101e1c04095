//! Capacities of the maps, in entries unless another unit is given.

/// Capacity of [`ENDPOINTS`](super::names::ENDPOINTS) and
/// [`FLOOD_LOCAL`](super::names::FLOOD_LOCAL): containers of one host.
pub const MAX_LOCAL_ENDPOINTS: u32 = 16_384;
/// Capacity of [`FDB`](super::names::FDB) and [`NEIGHBOURS`](super::names::NEIGHBOURS):
/// containers of all hosts.
pub const MAX_ENDPOINTS: u32 = 524_288;
/// Capacity of [`FDB_LEARNED`](super::names::FDB_LEARNED).
pub const MAX_LEARNED: u32 = 65_536;
/// Capacity of [`NEIGHBOURS_HEARD`](super::names::NEIGHBOURS_HEARD).
pub const MAX_HEARD: u32 = 16_384;
/// Capacity of [`NETWORKS`](super::names::NETWORKS).
pub const MAX_NETWORKS: u32 = 16_384;
/// Capacity of [`UNDERLAY`](super::names::UNDERLAY), [`VTEP_IDS`](super::names::VTEP_IDS),
/// [`PATH_MTU`](super::names::PATH_MTU) and [`PATH_HINTS`](super::names::PATH_HINTS).
pub const MAX_VTEPS: u32 = 16_384;
/// Capacity of [`VTEPS`](super::names::VTEPS) and
/// [`FLOOD_REMOTE`](super::names::FLOOD_REMOTE): (network, host) pairs.
pub const MAX_VTEP_MEMBERSHIPS: u32 = 262_144;
/// Capacity of [`QUERIERS`](super::names::QUERIERS).
pub const MAX_QUERIERS: u32 = 4_096;
/// Capacity of [`RATES`](super::names::RATES).
pub const MAX_RATES: u32 = 32_768;

/// Longest frame that is held, in bytes.
pub const HELD_FRAME_LEN: usize = 2048;
/// Most fragments of one datagram that are held, the first one not counted.
pub const MAX_HELD: u8 = 48;
/// Capacity of [`HELD_FRAGMENTS`](super::names::HELD_FRAGMENTS).
pub const MAX_HELD_FRAGMENTS: u32 = 512;
/// Capacity of [`FRAGMENTS`](super::names::FRAGMENTS).
pub const MAX_FRAGMENTED: u32 = 8_192;
/// Default number of tracked flows: the default of Linux on a host with 4 GB of memory or more.
/// [`FLOWS`](super::names::FLOWS) has two entries for each.
pub const DEFAULT_FLOWS: u32 = 262_144;
/// Default share of one container in the table of flows, in percent.
pub const DEFAULT_SHARE: u32 = 50;
/// Default share of one container in the ports for masquerading towards a destination, in percent.
pub const DEFAULT_PORT_SHARE: u32 = 50;
/// Capacity of [`FLOW_SHARES`](super::names::FLOW_SHARES): the agent removes the entries of
/// containers that are gone some time later.
pub const MAX_SHARES: u32 = 2 * MAX_LOCAL_ENDPOINTS;
/// Capacity of [`PUBLISHED`](super::names::PUBLISHED).
pub const MAX_PUBLISHED: u32 = 131_072;
/// Capacity of [`HOST_ADDRS`](super::names::HOST_ADDRS).
pub const MAX_HOST_ADDRS: u32 = 65_536;
/// Capacity of [`BLOCKED`](super::names::BLOCKED): an address of the host, its broadcast address, and
/// the ports of two members of the store at it; and the other hosts.
pub const MAX_BLOCKED: u32 = 4 * MAX_HOST_ADDRS + MAX_VTEPS;
/// Capacity of [`UPLINKS`](super::names::UPLINKS).
pub const MAX_UPLINKS: u32 = 256;
/// Capacity of [`CLIENT_LINKS`](super::names::CLIENT_LINKS).
pub const MAX_CLIENT_LINKS: u32 = 1024;
/// Capacity of [`SERVICES`](super::names::SERVICES).
pub const MAX_SERVICES: u32 = 64;

/// Capacity of [`DENIED`](super::names::DENIED).
pub const MAX_DENIED: u32 = 65_536;
/// Capacity of [`SOURCES`](super::names::SOURCES).
pub const MAX_SOURCES: u32 = 131_072;

/// Words of [`RESERVED_PORTS`](super::names::RESERVED_PORTS) for one protocol.
pub const RESERVED_WORDS: u32 = 1024;
/// Entries of [`RESERVED_PORTS`](super::names::RESERVED_PORTS).
pub const RESERVED_ENTRIES: u32 = 3 * RESERVED_WORDS;

/// Bytes that VXLAN over IPv4 adds in front of a frame: Ethernet 14, IPv4 20,
/// UDP 8, VXLAN 8 (RFC 7348 §5).
pub const VXLAN_OVERHEAD: u16 = 50;
