//! The ways that are compared, each between two hosts of its own: what one brings along
//! (programs on the uplink, iptables rules) costs the others nothing.

mod all;
mod arm;
mod culvert;
mod docker;
mod hosts;
mod iptables;
mod openvswitch;
mod optional;
mod program;
mod vxlan;

pub(crate) use all::Arms;
pub(crate) use arm::{Arm, Load};
pub(crate) use culvert::Culvert;
pub(crate) use hosts::Receive;
pub(crate) use optional::Optional;
