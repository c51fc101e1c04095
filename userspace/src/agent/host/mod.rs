//! The real host: netlink, sandboxes and the loaded data plane. Each trait of
//! `agent::platform` is implemented in a file of its own.

mod assist;
pub(super) mod chosen;
mod clients;
mod closed;
mod commands;
mod devices;
mod differences;
mod error;
pub(super) mod facts;
mod inside;
mod kept;
mod maps;
mod nat;
mod ports;
#[cfg(test)]
mod tests;
mod underlay;
mod uplinks;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Mutex;

pub(super) use self::commands::find as find_commands;
use crate::{
    api::types::ApiError,
    choice::{Uplink, device::Device},
    datapath::{self, Carried, Datapath, DatapathError, Leftover, Price, Retired},
    netfilter,
    netlink::{Monitor, Netlink, NetlinkError},
};

/// The host that the agent runs on.
pub(crate) struct Host {
    netlink: Netlink,
    monitor: Mutex<Monitor>,
    inside: inside::Insides,
    datapath: Datapath,
    bpffs: PathBuf,
    uplinks: Vec<String>,
    ageing: Duration,
    /// `from_underlay_xdp` is attached to the uplinks besides `from_underlay`.
    xdp: bool,
    /// The kind of device pair that new containers get, and the reason.
    device: Device,
    vxlan_port: u16,
    vtep_ip: Ipv4Addr,
    /// Locked while the host's addresses are read and written to the maps.
    closed: Mutex<closed::Closed>,
    assistants: assist::Assistants,
    kept: kept::KeptMaps,
    /// Facts about the uplinks, as they were last read.
    known: std::sync::Mutex<Vec<Uplink>>,
    price: std::sync::OnceLock<Price>,
    /// Names of the interfaces through which published ports are not reached.
    unserved: std::sync::Mutex<Vec<String>>,
    /// The rules of the host's netfilter.
    rules: netfilter::RulesReader,
    /// The next hops of the VTEPs in use.
    hops: std::sync::Mutex<underlay::Hops>,
    /// Whether all programs that send VXLAN are of this agent.
    are_all_ours: std::sync::atomic::AtomicBool,
    /// The pins are removed for good: nothing is repaired any more.
    purged: std::sync::Mutex<bool>,
}

impl Host {
    /// A host whose data plane is loaded.
    ///
    /// # Errors
    /// No socket for the events of netlink can be opened.
    pub(crate) fn new(
        netlink: Netlink,
        datapath: Datapath,
        options: &datapath::Options,
        uplinks: Vec<String>,
        xdp: bool,
        device: Device,
    ) -> Result<Self, NetlinkError> {
        // Then the last agent has found that no program of an earlier version is left.
        let guarded = datapath.attached_uplinks_out().is_ok_and(|uplinks| !uplinks.is_empty());
        Ok(Self {
            monitor: Mutex::new(netlink.monitor()?),
            inside: inside::Insides::new(&netlink)?,
            netlink,
            datapath,
            bpffs: options.bpffs.clone(),
            uplinks,
            ageing: options.ageing,
            xdp,
            device,
            vxlan_port: options.vxlan_port,
            vtep_ip: options.vtep_ip,
            closed: Mutex::default(),
            assistants: assist::Assistants::default(),
            kept: kept::KeptMaps::new(options),
            known: std::sync::Mutex::default(),
            price: std::sync::OnceLock::new(),
            unserved: std::sync::Mutex::default(),
            rules: netfilter::RulesReader::default(),
            hops: std::sync::Mutex::default(),
            are_all_ours: guarded.into(),
            purged: std::sync::Mutex::default(),
        })
    }

    /// Closes the addresses and ports of these members of the store to containers. No others are
    /// closed if these `are_all`; otherwise those of the last agent stay closed, too.
    ///
    /// # Errors
    ///
    /// The addresses of the host cannot be read, or the map cannot be written.
    pub(crate) async fn close_store(
        &self,
        members: Vec<SocketAddrV4>,
        are_all: bool,
    ) -> Result<(), ApiError> {
        self.close(|closed| (closed.members, closed.are_all) = (members, are_all)).await
    }

    /// Changes what is known of the closed destinations, and writes the maps.
    async fn close(&self, change: impl FnOnce(&mut closed::Closed)) -> Result<(), ApiError> {
        let mut closed = self.closed.lock().await;
        change(&mut closed);
        self.note_addresses(&closed).await
    }

    /// Forwards the programs' trace lines to the log.
    pub(crate) fn forward_trace(&self) -> Result<tokio::task::JoinHandle<()>, DatapathError> {
        self.datapath.forward_trace()
    }

    /// Removes the pins of other ABI versions.
    pub(crate) fn retire_other_versions(&self) -> Result<Vec<(u32, Carried)>, DatapathError> {
        self.datapath.retire_other_versions()
    }

    /// Retires the programs of an earlier agent with another BPF file system, and removes the pins of
    /// `unpinned`, which an earlier attempt has detached.
    pub(crate) async fn retire_leftovers(
        self: &Arc<Self>,
        unpinned: Vec<Leftover>,
    ) -> Result<Retired, ApiError> {
        let links = self.netlink.links().await.map_err(error::refused)?;
        let host = Arc::clone(self);
        let retire = move || host.datapath.retire_leftovers(&links, &unpinned);
        error::blocking(retire).await?.map_err(error::broken)
    }

    fn hops(&self) -> MutexGuard<'_, underlay::Hops> {
        self.hops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn purged(&self) -> MutexGuard<'_, bool> {
        self.purged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_hop(&self, ifindex: u32, ip: IpAddr) -> bool {
        self.hops().contains_key(&(ifindex, ip))
    }
}
