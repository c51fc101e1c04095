//! Code that the tests share: frames, sockets, and helpers that need the `culvert` library. Modules
//! of the [testbed](culvert_testbed) are re-exported here under their own names.

#![warn(clippy::indexing_slicing)]

pub mod attack;
pub mod bpf;
pub mod chaos;
pub mod netns;
pub mod packet;
pub mod probe;
pub mod sock;
pub mod tun;
pub mod verify;
pub mod wire;

pub use culvert_testbed::{certs, cluster, docker, etcd, external};
