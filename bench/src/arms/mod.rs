//! The systems compared, each on two hosts of its own, so that the programs or iptables rules of
//! one system cost the others nothing.

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
pub(crate) use arm::{Arm, Load, Steady, Unit};
pub(crate) use culvert::{Culvert, Device};
pub(crate) use hosts::Receive;
pub(crate) use optional::Optional;
