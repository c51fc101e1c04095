//! doctor.
#![allow(unused_variables, missing_docs, clippy::todo, reason = "signatures first")]
use std::path::PathBuf;
use serde::{Deserialize, Serialize};
use crate::netlink::Netlink;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level { Ok, Warning, Error }
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding { pub check: String, pub level: Level, pub detail: String, /// Empty when ok.
    pub advice: String }
#[derive(Clone, Debug, Default)]
pub struct Subject {
    pub uplinks: Vec<String>,
    pub vxlan_port: u16,
    pub bpffs: PathBuf,
    /// Name and MTU of overlay networks.
    pub networks: Vec<(String, u16)>,
    /// Store's clock less ours in ms, if known.
    pub clock_offset_ms: Option<i64>,
    /// Another agent (ours) holds the port already: its own socket is no clash.
    pub agent_running: bool,
}
#[derive(Clone, Debug, Default)]
pub struct Facts {}
impl Facts { pub async fn collect(netlink: &Netlink, subject: Subject) -> Self { todo!() } }
pub fn examine(facts: &Facts) -> Vec<Finding> { todo!() }
/// Kernel, BTF, BPF and privileges, before anything else works: the first error as one line.
pub fn preflight() -> Result<(), String> { todo!() }
