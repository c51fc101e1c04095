//! What the tests share besides the [testbed](culvert_testbed), whose modules are here under
//! their own names: frames, sockets, and what needs the `culvert` library.

#![warn(clippy::indexing_slicing)]

pub mod chaos;
pub mod netns;
pub mod packet;
pub mod probe;
pub mod sock;
pub mod verify;
pub mod wire;

pub use culvert_testbed::{certs, cluster, docker, etcd, outside};
