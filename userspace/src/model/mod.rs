//! What the store holds: validated types, their keys, and the view of the
//! whole cluster that follows from them.
//!
//! Every record carries its schema version, so that an agent can tell a
//! record of a newer Culvert from garbage and skip both by name.
//!
//! * [`Key`]: names of keys. * [`decode`], [`encode`]: records as JSON.
//! * [`View`]: the cluster as the changes of the store have made it.
//! * [`ops`]: pure plans: what a transaction must compare and write.
//! * [`validate`]: refusals in one line.

mod invalid;
mod keys;
mod name;
pub mod ops;
mod ports;
mod record;
#[cfg(test)]
pub(crate) mod testing;
mod types;
pub mod validate;
mod view;

pub use crate::store::StoreMark;
pub use invalid::Invalid;
pub use keys::*;
pub use name::Name;
pub use ports::{Exposed, PortRequest, Publish, overlapping};
pub use record::{Decoded, Record, decode, encode};
pub use types::*;
pub(crate) use view::{Brief, Id};
pub use view::{Claim, Claims, Endpoints, Former, Touched, Versioned, View};
