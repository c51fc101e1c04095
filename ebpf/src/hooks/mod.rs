//! The programs' entry points, named for where they are attached: read, decide, verdict.

mod client;
mod container;
mod host;
mod loopback;
mod underlay;
mod underlay_xdp;
