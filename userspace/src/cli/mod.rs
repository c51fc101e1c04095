//! The command line.

mod agent_options;

pub use agent_options::{
    AgentOptions, DEFAULT_AGEING_S, DEFAULT_BPFFS, DEFAULT_SOCKET, DEFAULT_STATE_DIR,
    DEFAULT_VXLAN_PORT, DatapathMode, PurgeOptions, StoreAccess,
};
