//! sandbox.
#![allow(unused_variables, missing_docs, clippy::todo, reason = "signatures first")]
use std::{io, net::IpAddr, os::fd::{AsFd, BorrowedFd}, path::{Path, PathBuf}};
use ipnetwork::IpNetwork;
use crate::{model::{MacAddr, Name}, netlink::{Netlink, NetlinkError}};

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("sandbox {0} exists already: choose another name, or remove it")]
    Taken(String),
    #[error("{0}: no such network namespace")]
    Missing(PathBuf),
    #[error("pid {0}: no such process")]
    DeadProcess(i32),
    #[error("{0}: not a network namespace")]
    NotNetns(PathBuf),
    #[error("permission denied: {0}")]
    Permission(String),
    #[error("interface name {ifname} is taken in {sandbox}")]
    InterfaceTaken { ifname: String, sandbox: PathBuf },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// dev and inode of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId { pub dev: u64, pub ino: u64 }

#[derive(Debug)]
pub struct Sandbox {}
impl Sandbox {
    /// /run/netns/NAME
    pub fn path_of(name: &Name) -> PathBuf { todo!() }
    pub fn create(name: &Name) -> Result<Self, SandboxError> { todo!() }
    /// Opens it, or creates it if it is gone (after a reboot).
    pub fn ensure(name: &Name) -> Result<Self, SandboxError> { todo!() }
    pub fn open(path: &Path) -> Result<Self, SandboxError> { todo!() }
    pub fn from_pid(pid: i32) -> Result<Self, SandboxError> { todo!() }
    pub fn current() -> Result<Self, SandboxError> { todo!() }
    pub fn exists(name: &Name) -> bool { todo!() }
    /// Tolerates that it is gone.
    pub fn remove(name: &Name) -> Result<(), SandboxError> { todo!() }
    /// Path it was opened by.
    pub fn path(&self) -> &Path { todo!() }
    pub fn id(&self) -> NetnsId { todo!() }
    pub fn netlink(&self) -> Result<Netlink, SandboxError> { todo!() }
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, SandboxError> { todo!() }
}
impl AsFd for Sandbox { fn as_fd(&self) -> BorrowedFd<'_> { todo!() } }
pub fn same_namespace(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> Result<bool, SandboxError> { todo!() }
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> Result<T, SandboxError> { todo!() }

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlugSpec {
    pub endpoint_id: String,
    pub host_ifname: String,
    pub ifname: String,
    pub mac: MacAddr,
    pub mtu: u32,
    pub addrs: Vec<IpNetwork>,
    /// No gateway: on link.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plugged { /// host side
    pub ifindex: u32, /// false: everything was as wanted
    pub changed: bool }
/// "cv" + first 12 hex digits of the endpoint id.
pub fn host_ifname(endpoint_id: &str) -> String { todo!() }
/// "culvert:" + endpoint id.
pub fn alias_of(endpoint_id: &str) -> String { todo!() }
/// endpoint id of a link that is ours.
pub fn endpoint_of(link: &crate::netlink::Link) -> Option<&str> { todo!() }
pub async fn free_ifname(sandbox: &Sandbox, reserved: &[String]) -> Result<String, SandboxError> { todo!() }
pub async fn plug(netlink: &Netlink, spec: &PlugSpec, sandbox: &Sandbox) -> Result<Plugged, SandboxError> { todo!() }
/// Tolerates that it is gone; refuses a link that is not that endpoint's.
pub async fn unplug(netlink: &Netlink, endpoint_id: &str) -> Result<(), SandboxError> { todo!() }

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SuperviseSpec {
    /// Container, for /etc/netns/NAME and messages.
    pub name: String,
    /// None: mode host.
    pub netns: Option<PathBuf>,
    pub command: Vec<String>,
    /// Output goes there; None: inherited.
    pub log: Option<PathBuf>,
}
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExecError { /// 127 not found, 126 not executable, 125 ours
    pub code: i32, pub message: String }
/// Runs it to its end; Ok(exit code), 128 + signal if killed. on_exit is called iff on_start was.
pub async fn supervise(spec: &SuperviseSpec, on_start: impl AsyncFnOnce(i32), on_exit: impl AsyncFnOnce(i32)) -> Result<i32, ExecError> { todo!() }
/// `run -d`: re-executes this binary as `culvert ARGS... __supervise SPEC-AS-JSON` in a session of its
/// own, waits until the command has started, returns its pid.
pub async fn spawn_detached(spec: &SuperviseSpec, args: &[std::ffi::OsString]) -> Result<i32, ExecError> { todo!() }
/// What the hidden subcommand `__supervise JSON` does: `supervise`, and tells spawn_detached through stdout. Exit with the result.
pub async fn supervise_detached(spec: &SuperviseSpec, on_start: impl AsyncFnOnce(i32), on_exit: impl AsyncFnOnce(i32)) -> i32 { todo!() }
