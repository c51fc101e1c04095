//! Hosts in network namespaces on one underlay, with etcd, an agent each and an external host: for
//! the tests, the benchmarks, and xtask's lab and demo.
//!
//! The crate knows the `culvert` binary by its command line alone and depends on nothing that
//! needs a compiler for BPF: xtask, which installs that compiler, is built with it.
//!
//! A function that can fail on the user's machine (`make`, `sh`, `plug`, ...) returns a `Result`
//! whose error is one line. The tests' fixtures (`Netns::new`, `run`, [`cluster`], ...) panic
//! instead: a test whose fixture cannot be made fails with the cause.

#![warn(clippy::indexing_slicing)]

pub mod agent;
pub mod certs;
pub mod cluster;
pub mod docker;
pub mod etcd;
pub mod external;
pub mod netns;
pub mod process;
pub mod underlay;
pub mod wait;
