//! The entry points of the programs. A module is named after the interface that its program is
//! attached to. A program reads the frame, decides, and returns a verdict.

mod client;
mod container;
mod host;
mod loopback;
mod underlay;
mod underlay_out;
mod underlay_xdp;
