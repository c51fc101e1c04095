//! The records of the store: validated types, their keys, and the view of the whole cluster that is
//! computed from them.
//!
//! Every record has a schema version, so that an agent can distinguish the record of a newer
//! Culvert from an invalid one. Both are skipped and reported by key.
//!
//! * [`Key`]: names of keys.
//! * [`decode`], [`encode`]: records as JSON.
//! * [`View`]: the state of the cluster, computed from the changes of the store.
//! * [`ops`]: plans: the compares and writes of one transaction.
//! * [`validate`]: validation with errors of one line.

mod invalid;
mod isolation;
mod keys;
mod name;
pub mod ops;
mod ports;
mod privileges;
mod record;
mod resolver;
mod restart;
mod routes;
mod source;
#[cfg(test)]
pub(crate) mod testing;
mod types;
pub mod validate;
mod view;

pub use crate::store::StoreMark;
pub use invalid::Invalid;
pub use isolation::{Isolation, NamespaceMode, TmpfsMount};
pub use keys::*;
pub use name::Name;
pub use ports::{Exposed, PortRequest, Publish, overlapping};
pub use privileges::{Account, Capabilities, CapabilityOption, Privileges, RunAs, UserOption};
pub use record::{Decoded, StoreRecord, decode, encode};
pub use resolver::{Domain, HostAddress, HostEntry, NameOptions, ResolverOption};
pub use restart::{Pauses, RestartPolicy, SETTLED};
pub use routes::{
    HostRoute, Vtep, bars_gateway, has_vtep, networks_with, not_needed, not_routed, routed,
    vteps_in,
};
pub use source::{ipv4_source, parse_source, spell_source};
pub use types::*;
#[cfg(test)]
pub(crate) use view::decoded;
pub(crate) use view::{Brief, HostPort, Id, host_ports};
pub use view::{Claim, Claims, Endpoints, Former, Touched, Versioned, View};
