//! The BPF programs and their maps: load, pin, attach, read, write.
//!
//! Everything is pinned below `BPFFS/v<ABI_VERSION>/`:
//!
//! * `maps/NAME`: the maps of `culvert_common::abi::names`,
//! * `links/container-IFINDEX`, `links/netkit-IFINDEX`, `links/uplink-IFINDEX`,
//!   `links/uplink-xdp-IFINDEX`, `links/uplink-out-IFINDEX`, `links/client-IFINDEX`,
//!   `links/gateway-IFINDEX`, `links/loopback-IFINDEX`: the attachments,
//! * `programs/NAME`: the programs as last loaded.
//!
//! A pinned link keeps its program running without an agent. A new agent opens
//! the maps that are there, loads its own programs against them, and replaces
//! the program under every link in one step, so that no packet is missed. The
//! agent holds maps and links open: what loses its pin meanwhile is pinned again.

mod attached;
mod batch;
mod bpffs;
pub mod carry;
pub mod entry;
mod epoch;
mod error;
pub mod flows;
mod found;
pub mod jited;
pub mod layout;
mod leftovers;
mod link;
mod links;
mod pins;
pub mod prefixes;
mod price;
mod raw;
mod repair;
mod stats;
mod syscall;
mod table;
mod tables;
pub mod test_run;
mod trace;
pub mod vtep_ids;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray},
    programs::{SchedClassifier, Xdp},
};
use culvert_common::{
    abi::{Counter, FdbKey, HeardEntry, NeighKey, STATS_ENTRIES, globals, names, programs},
    datapath::{conntrack, nat},
};
use ipnetwork::Ipv4Network;

pub use self::{
    carry::Carried,
    error::DatapathError,
    flows::{FlowTable, Flows},
    found::{Changes, Found, Repaired, ip_of},
    leftovers::{
        Leftover, Owner, Retired, detach_xdp as detach_xdp_leftovers, find as find_leftovers,
        remove as remove_leftovers,
    },
    prefixes::{Prefix, PrefixTable},
    price::Price,
    repair::PinCheck,
    table::Table,
    tables::{KernelTable, KernelTables},
};
use self::{
    entry::LearnedEntry,
    links::{Attachment, HeldLinks},
    raw::Bytes,
};

/// The programs, as compiled for this build.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert.bpf.o"));

/// aya-log's level number for trace lines.
const LOG_LEVEL_TRACE: u8 = 5;

/// Interface index of the loopback device: the kernel makes it first in every namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// Directories of the pins.
const DIRS: [&str; 3] = [MAPS, LINKS, PROGRAM_PINS];
const MAPS: &str = "maps";
const LINKS: &str = "links";
const PROGRAM_PINS: &str = "programs";

/// Options of the data plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory where the BPF file system is mounted, or is to be mounted.
    pub bpffs: PathBuf,
    /// VTEP address of this host.
    pub vtep_ip: Ipv4Addr,
    /// UDP port on which this host receives VXLAN.
    pub vxlan_port: u16,
    /// Age after which a learned FDB entry is no longer used.
    pub ageing: Duration,
    /// Number of flows that conntrack has room for. A pinned table keeps its capacity.
    pub max_flows: u32,
    /// The part of these flows that one container may have, in percent.
    pub flow_share: u32,
    /// Idle times after which flows expire.
    pub flow_timeouts: conntrack::Timeouts,
    /// Least and greatest port that masquerading chooses.
    pub nat_ports: (u16, u16),
    /// The part of these ports that one container may always take towards a destination, in percent.
    pub port_share: u32,
    /// Addresses of services: what containers send there goes to the host's stack, whose netfilter
    /// translates it.
    pub services: Vec<Ipv4Network>,
    /// Clients that may not use published ports. [`KernelTables::denied`] changes them later.
    pub denied: Vec<Ipv4Network>,
    /// Ports of the store may be closed to containers ([`KernelTables::blocked`]).
    pub ports_closed: bool,
    /// The programs write trace lines.
    pub trace: bool,
}

/// The loaded data plane.
pub struct Datapath {
    ebpf: Mutex<Ebpf>,
    pins: PathBuf,
    /// The pinned maps by name, to pin them again.
    maps: Vec<(OsString, OwnedFd)>,
    /// The identifier of the loaded program of each kind of link.
    program_ids: BTreeMap<Attachment, u32>,
    /// The links of what this process has attached and not detached.
    held: Mutex<HeldLinks>,
    /// Programs that another program had detached or replaced, and links whose pins it had removed
    /// or replaced: put right, and not told yet.
    found: Mutex<Changes>,
    /// The inode number of each pin that was found to lead to its object. The kernel gives another
    /// number to each new pin, and no number to two pins.
    files: Mutex<BTreeMap<PathBuf, u64>>,
    tables: KernelTables,
    flows: Flows,
    stats: PerCpuArray<MapData, Bytes<Counter>>,
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the programs, opens the pinned maps or makes them, and replaces
    /// the program under every pinned link.
    ///
    /// # Errors
    ///
    /// If the BPF file system cannot be mounted, or the kernel refuses a map,
    /// a program or a replacement.
    pub fn load(options: &Options) -> Result<Self, DatapathError> {
        bpffs::ensure_mounted(&options.bpffs)?;
        let pins = bpffs::version_dir(&options.bpffs);
        for dir in DIRS {
            bpffs::create_dir(&pins.join(dir))?;
        }
        let mut ebpf = load_object(options, Some(&pins.join(MAPS)))?;
        let datapath = Self {
            flows: Flows::take(&mut ebpf)?,
            tables: KernelTables::take(&mut ebpf, options.vtep_ip)?,
            stats: raw::take_map(&mut ebpf, names::STATS)?,
            maps: pins::open_all(&pins.join(MAPS))?,
            program_ids: links::program_ids(&ebpf)?,
            held: Mutex::default(),
            found: Mutex::default(),
            files: Mutex::default(),
            ebpf: Mutex::new(ebpf),
            pins,
        };
        datapath.pin_programs()?;
        datapath.replace_programs()?;
        Ok(datapath)
    }

    /// The maps that the agent writes.
    pub fn tables(&self) -> &KernelTables {
        &self.tables
    }

    /// Conntrack.
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// The learned FDB entries, aged ones included.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn learned(&self) -> Result<Vec<(FdbKey, LearnedEntry)>, DatapathError> {
        self.tables.learned.entries()
    }

    /// The MACs of addresses that no endpoint has, as learned from ARP, aged ones included.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn heard(&self) -> Result<Vec<(NeighKey, HeardEntry)>, DatapathError> {
        self.tables.heard.entries()
    }

    /// Removes a learned FDB entry. It is no error if there is none.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn forget(&self, key: &FdbKey) -> Result<(), DatapathError> {
        self.tables.learned.remove(key)
    }

    /// Passes the programs' trace lines on to `tracing`, until the task is
    /// dropped. Does nothing unless they were loaded with [`Options::trace`].
    ///
    /// # Errors
    ///
    /// If the log buffer cannot be read.
    pub fn forward_trace(&self) -> Result<tokio::task::JoinHandle<()>, DatapathError> {
        trace::forward(&mut self.ebpf())
    }

    /// Removes the pins of other ABI versions, once the programs of this version are attached.
    /// The programs of the other version were attached first and have handled the packets until
    /// now, so their flows are copied directly before the removal. Returns the removed versions,
    /// and the result of the copy.
    ///
    /// # Errors
    ///
    /// If the flows cannot be copied or a pin cannot be removed.
    pub fn retire_other_versions(&self) -> Result<Vec<(u32, Carried)>, DatapathError> {
        let mut retired = Vec::new();
        let Some(bpffs) = self.pins.parent() else { return Ok(retired) };
        for dir in bpffs::list(bpffs)? {
            let Some(version) = bpffs::version_of(&dir).filter(|_| dir != self.pins) else {
                continue;
            };
            let carried = match version {
                3 => carry::flows_of_v3(&dir.join("maps"), &self.tables)?,
                4 => carry::flows_of_v4(&dir.join("maps"), &self.tables)?,
                _ => Carried::default(),
            };
            bpffs::remove_tree(&dir)?;
            retired.push((version, carried));
        }
        Ok(retired)
    }

    /// Detaches everything, removes every pin, and unmounts the BPF file
    /// system if it was mounted for Culvert alone.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub fn purge(bpffs: &Path) -> Result<(), DatapathError> {
        if !bpffs::is_mounted(bpffs) {
            return Ok(());
        }
        for dir in bpffs::list(bpffs)? {
            if bpffs::version_of(&dir).is_some() {
                bpffs::remove_tree(&dir)?;
            }
        }
        bpffs::unmount_if_empty(bpffs)
    }

    /// Locks the object. A thread that panicked with the lock held left it usable: it only holds
    /// file descriptors.
    fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::ebpf`]: the map changes in one step.
    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins the programs, in place of the programs of the last agent, so that `bpftool` and
    /// `culvert doctor` find them by name.
    fn pin_programs(&self) -> Result<(), DatapathError> {
        let dir = self.pins.join(PROGRAM_PINS);
        let mut ebpf = self.ebpf();
        for (name, program) in ebpf.programs_mut() {
            let path = dir.join(name);
            bpffs::remove_file(&path)?;
            program.pin(&path).map_err(|source| DatapathError::Load {
                what: format!("pin program {name}"),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }
}

/// Loads the object and its programs; maps are pinned below `maps` if given.
///
/// Tests load it without pins to run single programs.
///
/// # Errors
///
/// If the kernel refuses a map or a program.
pub fn load_object(options: &Options, maps: Option<&Path>) -> Result<Ebpf, DatapathError> {
    load(PROGRAMS, options, maps)
}

/// Loads `object` instead of the object of this binary, without pins: for tests of changed
/// programs.
///
/// # Errors
///
/// If `object` is no object with these programs, or the kernel refuses a map or a program.
pub fn load_other_object(object: &[u8], options: &Options) -> Result<Ebpf, DatapathError> {
    load(object, options, None)
}

/// [`load_object`] with the bytes of the object.
fn load(object: &[u8], options: &Options, maps: Option<&Path>) -> Result<Ebpf, DatapathError> {
    let vtep_ip = u32::from_ne_bytes(options.vtep_ip.octets());
    let ageing_ns = u64::try_from(options.ageing.as_nanos()).unwrap_or(u64::MAX);
    let log_level = if options.trace { LOG_LEVEL_TRACE } else { 0 };
    let loopback = loopback_ifindex();
    let ports_closed = u32::from(options.ports_closed);
    let (port_min, port_max) = options.nat_ports;
    let port_share = nat::port_share(options.port_share);
    // Two entries for each flow, and two slots. A pinned table keeps its size.
    let pinned = maps.and_then(|maps| pinned_entries(maps, names::FLOWS));
    let entries = pinned.unwrap_or(options.max_flows.saturating_mul(2));
    let share = share_of(entries / 2, options.flow_share);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(globals::VTEP_IP, &vtep_ip, true)
        .override_global(globals::VXLAN_PORT, &options.vxlan_port, true)
        .override_global(globals::AGEING_NS, &ageing_ns, true)
        .override_global(globals::LOG_LEVEL, &log_level, true)
        .override_global(globals::NAT_PORT_MIN, &port_min, true)
        .override_global(globals::NAT_PORT_MAX, &port_max, true)
        .override_global(globals::NAT_PORT_SHARE, &port_share, true)
        .override_global(globals::PORTS_CLOSED, &ports_closed, true)
        .override_global(globals::LOOPBACK, &loopback, true)
        .override_global(globals::FLOW_TIMEOUTS, options.flow_timeouts.as_slice(), true)
        .override_global(globals::FLOW_SLOTS_LEN, &entries, true)
        .override_global(globals::FLOW_SHARE, &share, true)
        .map_max_entries(names::FLOWS, entries)
        .map_max_entries(names::FLOW_SLOTS, entries);
    if let Some(maps) = maps {
        retire_smaller_counters(maps)?;
        retire_slots(maps, entries)?;
        retire_others(maps)?;
        for name in PINNED_MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
    }
    let refused = |what: &str, source: Box<dyn std::error::Error + Send + Sync>| {
        tracing::debug!(error = ?source, "{what}");
        DatapathError::Load { what: what.to_owned(), source }
    };
    let mut ebpf = loader.load(object).map_err(|error| refused("load", Box::new(error)))?;
    prefixes::write(&mut ebpf, &options.services, &options.denied)?;
    for name in [
        programs::FROM_CONTAINER,
        programs::FROM_UNDERLAY,
        programs::FROM_HOST,
        programs::FROM_LOOPBACK,
        programs::FROM_CLIENT,
        programs::FROM_CLIENT_L3,
        programs::TO_UNDERLAY,
    ] {
        links::program::<SchedClassifier>(&mut ebpf, name)?
            .load()
            .map_err(|error| refused(&format!("program {name}"), Box::new(error)))?;
    }
    links::program::<Xdp>(&mut ebpf, programs::FROM_UNDERLAY_XDP)?.load().map_err(|error| {
        refused(&format!("program {}", programs::FROM_UNDERLAY_XDP), Box::new(error))
    })?;
    Ok(ebpf)
}

/// The number of flows that one container may have: `percent` of the `capacity` of the table in
/// flows, at least 1.
pub fn share_of(capacity: u32, percent: u32) -> u32 {
    let share = u64::from(capacity) * u64::from(percent) / 100;
    u32::try_from(share).unwrap_or(u32::MAX).max(1)
}

/// About the number of ports in the range `nat_ports` that one container may always take towards a
/// destination, with a share of `percent`. A small range has no shares: each container may take all.
pub fn ports_of(nat_ports: (u16, u16), percent: u32) -> u32 {
    let (min, max) = nat_ports;
    let ports = u32::from(max.saturating_sub(min)) + 1;
    if nat::has_shares(min, max) {
        ports * nat::port_share(percent) / nat::WHOLE_SHARE
    } else {
        ports
    }
}

/// Removes the pin of the counters if the programs of the last agent had fewer counters, because
/// the size of the map has changed. The new counters begin at 0.
fn retire_smaller_counters(maps: &Path) -> Result<(), DatapathError> {
    if pinned_entries(maps, names::STATS).is_some_and(|entries| entries < STATS_ENTRIES) {
        tracing::info!("the counters of 'culvert stats' begin at 0: this version counts more");
        bpffs::remove_file(&maps.join(names::STATS))?;
    }
    Ok(())
}

/// Capacity of a pinned map. `None`: there is no such pin.
fn pinned_entries(maps: &Path, name: &str) -> Option<u32> {
    let info = MapData::from_pin(maps.join(name)).and_then(|map| map.info());
    info.ok().map(|info| info.max_entries())
}

/// Removes the pin of the slots of flows if their number differs from `entries`, the capacity of
/// the flow table. The present flows then have no slots until they end.
fn retire_slots(maps: &Path, entries: u32) -> Result<(), DatapathError> {
    if pinned_entries(maps, names::FLOW_SLOTS).is_some_and(|slots| slots != entries) {
        bpffs::remove_file(&maps.join(names::FLOW_SLOTS))?;
    }
    Ok(())
}

/// Removes the pins of maps that an earlier version had and that this version does not have.
fn retire_others(maps: &Path) -> Result<(), DatapathError> {
    for path in bpffs::list(maps)? {
        let name = path.file_name().and_then(OsStr::to_str);
        if name.is_none_or(|name| !PINNED_MAPS.contains(&name)) {
            tracing::info!("{}: not used by this version, removed", path.display());
            bpffs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Maps that outlive the agent.
const PINNED_MAPS: &[&str] = &[
    names::ENDPOINTS,
    names::NETWORKS,
    names::FDB,
    names::FDB_LEARNED,
    names::NEIGHBOURS,
    names::NEIGHBOURS_HEARD,
    names::VTEPS,
    names::VTEP_IDS,
    names::UNDERLAY,
    names::EPOCH,
    names::PATH_MTU,
    names::FLOOD_LOCAL,
    names::FLOOD_REMOTE,
    names::QUERIERS,
    names::RATES,
    names::STATS,
    names::GATEWAYS,
    names::FLOWS,
    names::FLOW_SLOTS,
    names::FLOW_SHARES,
    names::PUBLISHED,
    names::SOURCES,
    names::BLOCKED,
    names::HOST_ADDRS,
    names::UPLINKS,
    names::CLIENT_LINKS,
    names::RESERVED_PORTS,
    names::FRAGMENTS,
    names::HELD_FRAGMENTS,
];

/// Time on the clock of [`LearnedEntry::last_seen_ns`], in ns.
pub fn now_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_or(0, |since_boot| u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX))
}

/// Interface index of the loopback device of the calling thread's namespace.
fn loopback_ifindex() -> u32 {
    nix::net::if_::if_nametoindex("lo").unwrap_or(LOOPBACK_IFINDEX)
}

#[cfg(test)]
impl Options {
    /// Options for loading the programs in a test.
    pub(crate) fn of_a_test() -> Self {
        Self {
            bpffs: PathBuf::new(),
            vtep_ip: Ipv4Addr::new(192, 0, 2, 1),
            vxlan_port: 4789,
            ageing: Duration::from_secs(300),
            max_flows: 64,
            flow_share: culvert_common::abi::DEFAULT_SHARE,
            flow_timeouts: conntrack::default_timeouts(),
            nat_ports: (1024, 65535),
            port_share: culvert_common::abi::DEFAULT_PORT_SHARE,
            services: Vec::new(),
            denied: Vec::new(),
            ports_closed: false,
            trace: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On failure, prints the verifier's whole log.
    #[test]
    #[ignore = "needs root"]
    fn the_kernel_takes_the_programs() {
        for trace in [false, true] {
            let options = Options { trace, ..Options::of_a_test() };
            if let Err(error) = load_object(&options, None) {
                panic!("trace {trace}: {error}\n{error:?}");
            }
        }
    }
}
