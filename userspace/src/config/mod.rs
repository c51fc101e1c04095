//! Options of the agent and of its offline verbs, with their defaults filled in.
//!
//! The command line (`cli`) makes these values; the agent, `choice` and `doctor` read
//! them. Every value is well-formed. Whether it fits the host is for the reader to check.

mod agent;
mod conntrack;

pub use agent::{
    AgentOptions, DEFAULT_AGEING_S, DEFAULT_BPFFS, DEFAULT_SOCKET, DEFAULT_STATE_DIR,
    DEFAULT_VXLAN_PORT, DatapathMode, DeviceMode, PurgeOptions, SeccompMode, StoreAccess,
};
pub use conntrack::{
    ConntrackOptions, DEFAULT_NAT_PORTS, FlowTimeouts, MAX_CONNTRACK, MIN_CONNTRACK,
};
