//! Facts about the host, read from the kernel.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::is_program_supported;
use ipnetwork::Ipv4Network;
use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    utsname::uname,
};

use super::{
    certificate::{self, CertificateFile, Role},
    translations::{Translations, runs},
};
use crate::{
    datapath::{Leftover, find_leftovers},
    model::PublishedPort,
    netlink::{
        Link, Neighbour, Netlink, default_link,
        sockets::{LocalSocket, Transport, sockets},
    },
    netns::run_in,
    sandbox::{Resolver, endpoint_of, is_room},
};

/// Time within which an agent pins a program that it has attached.
const PINNING: Duration = Duration::from_millis(50);

/// The resources that an agent uses or will use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Uplinks by name.
    pub uplinks: Vec<String>,
    /// UDP port for VXLAN.
    pub vxlan_port: u16,
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Name and MTU (bytes) of each overlay network.
    pub networks: Vec<(String, u16)>,
    /// How far the store's clock is ahead of this host's, in ms. `None`: not known.
    pub clock_offset_ms: Option<i64>,
    /// Alarms of the store.
    pub alarms: Vec<String>,
    /// Files of the certificates of the connection to the store.
    pub certificates: Vec<(Role, PathBuf)>,
    /// Whether the store is an etcd beyond this host without authentication.
    pub open_store: bool,
    /// Whether the agent has found another program's socket on the VXLAN port.
    pub shared_port: bool,
    /// Number of published ports that every external client may use.
    pub open_ports: usize,
    /// Number of published ports that are for other machines, all of them or some.
    pub external_ports: usize,
    /// The published ports, each with the name of its container.
    pub published: Vec<(String, PublishedPort)>,
    /// The agent's ranges of service addresses (`--service-cidr`).
    pub services: Vec<Ipv4Network>,
    /// Whether an agent runs. A socket on the VXLAN port may then be the agent's own.
    pub agent_running: bool,
}

/// All input of [`examine`](super::examine).
#[derive(Clone, Debug)]
pub struct Facts {
    /// Uplinks, UDP port and pins of the agent.
    pub subject: Subject,
    /// Kernel and privileges.
    pub host: HostFacts,
    /// The BPF file system at the directory of the pins.
    pub bpffs: Bpffs,
    /// The uplinks, in the order of the subject.
    pub uplinks: Vec<UplinkFacts>,
    /// The interface of the default route. `None`: there is no default route, or it has several
    /// interfaces.
    pub default_link: Option<Link>,
    /// Programs of Culvert that are attached to interfaces and are not pinned in the agent's BPF
    /// file system.
    pub leftovers: Vec<Leftover>,
    /// UDP sockets of programs on the VXLAN port.
    pub sockets: Vec<LocalSocket>,
    /// Names of kernel vxlan devices on the VXLAN port that the agent did not make.
    pub vxlan_devices: Vec<String>,
    /// Names of interfaces with an IPv4 address that published ports do not serve: they have no
    /// Ethernet header, and are neither tun nor WireGuard (ppp, gre).
    pub unserved: Vec<String>,
    /// Name and queueing discipline of each host side of a container's pair that has one.
    pub shaped: Vec<(String, String)>,
    /// Names of the host sides of containers' pairs that have filters of traffic control.
    pub filtered: Vec<String>,
    /// Names of the firewalls that manage the host's netfilter rules now.
    pub firewalls: Vec<&'static str>,
    /// What translates packets on this host, besides Culvert.
    pub translations: Translations,
    /// The host sides of containers' pairs.
    pub host_sides: HostSides,
    /// The kernel's tables of neighbours. Only the initial network namespace shows them.
    pub neighbours: Vec<NeighbourTable>,
    /// The name servers that the host has for containers.
    pub resolver: Resolver,
    /// The certificates of the connection to the store.
    pub certificates: Vec<CertificateFile>,
    /// The current time, since 1970.
    pub now: Duration,
}

/// Kernel and privileges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Release as `uname -r` prints it.
    pub release: String,
    /// `/sys/kernel/btf/vmlinux` exists.
    pub btf: bool,
    /// Whether a program of the type that tcx runs can be loaded.
    pub bpf: Probe,
    /// `net.core.bpf_jit_enable`. `None` if it cannot be read: it exists only in the initial
    /// network namespace.
    pub jit: Option<u32>,
    /// Effective capabilities, one bit each (linux/capability.h); `None` if they cannot be read.
    pub capabilities: Option<u64>,
}

/// The result of probing a kernel feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The feature works.
    Works,
    /// The kernel does not have the feature.
    Unsupported,
    /// The probe failed, with this error.
    Failed(String),
}

/// State of the BPF file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// Mounted at the directory of the pins.
    Mounted,
    /// The kernel supports it: the agent mounts it.
    Mountable,
    /// The kernel does not support it.
    Missing,
}

/// An uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkFacts {
    /// Name.
    pub name: String,
    /// The interface with its addresses, if it exists.
    pub link: Option<Link>,
    /// Features that are on and should be off.
    pub merging: Vec<&'static str>,
    /// Programs at its tcx ingress, in the order of execution; `None` if the kernel does not report
    /// them.
    pub tcx: Option<Vec<TcxProgram>>,
}

/// A program at tcx ingress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    /// Name, at most 15 bytes.
    pub name: String,
    /// The kernel's identifier of the program.
    pub id: u32,
}

impl Facts {
    /// Reads the facts in the namespace of `netlink`. A fact that cannot be read is absent and not
    /// an error: the doctor runs on broken hosts.
    pub async fn collect(netlink: &Netlink, subject: Subject) -> Self {
        let links = netlink.links().await.unwrap_or_default();
        let uplinks = subject
            .uplinks
            .iter()
            .map(|name| UplinkFacts {
                name: name.clone(),
                link: links.iter().find(|link| link.name == *name).cloned(),
                merging: netlink.merging(name).unwrap_or_default(),
                tcx: run_in(netlink.netns(), || tcx_programs(name)).ok().flatten(),
            })
            .collect();
        let routes = netlink.routes().await.unwrap_or_default();
        let port = subject.vxlan_port;
        let sockets = run_in(netlink.netns(), || sockets(Transport::Udp, Some(port)));
        let host_sides = HostSides::among(&links);
        let exempt = exempt(host_sides.all, &netlink.neighbours().await.unwrap_or_default());
        Self {
            host: HostFacts::collect(),
            bpffs: bpffs(&subject.bpffs),
            uplinks,
            default_link: default_link(&links, &routes).cloned(),
            leftovers: leftovers(netlink, &links, &subject.bpffs).await,
            sockets: sockets
                .into_iter()
                .flatten()
                .flatten()
                // A socket of the kernel has inode 0.
                .filter(|socket| socket.inode != 0)
                .collect(),
            unserved: links
                .iter()
                .filter(|link| link.framing().is_none() && !link.loopback)
                .filter(|link| link.addresses.iter().any(|address| address.is_ipv4()))
                .map(|link| link.name.clone())
                .collect(),
            shaped: links.iter().filter_map(shaped).collect(),
            filtered: filtered(netlink, &links).await,
            vxlan_devices: links
                .iter()
                .filter(|link| link.vxlan_port == Some(port) && !is_ours(link))
                .map(|link| link.name.clone())
                .collect(),
            firewalls: firewalls(Path::new("/")),
            translations: Translations::collect(netlink, &links).await,
            host_sides,
            neighbours: neighbour_tables(Path::new("/"), exempt),
            resolver: Resolver::of_host(),
            certificates: subject
                .certificates
                .iter()
                .map(|(role, path)| CertificateFile::read(*role, path))
                .collect(),
            now: certificate::now(),
            subject,
        }
    }
}

/// Numbers of host sides of containers' pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSides {
    /// All of them.
    pub all: usize,
    /// Those that are ports of none of the bridges that lend headroom.
    pub without_headroom: usize,
}

impl HostSides {
    fn among(links: &[Link]) -> Self {
        let rooms: BTreeSet<u32> =
            links.iter().filter(|link| is_room(link)).map(|link| link.index).collect();
        let sides: Vec<&Link> = links.iter().filter(|link| endpoint_of(link).is_some()).collect();
        let is_port = |link: &Link| link.master.is_some_and(|master| rooms.contains(&master));
        let without_headroom = sides.iter().filter(|link| !is_port(link)).count();
        Self { all: sides.len(), without_headroom }
    }
}

/// A table of neighbours of the kernel. All network namespaces share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourTable {
    /// Family as in the names of the settings: `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Number of entries that count towards the limit.
    pub entries: u64,
    /// The limit: `net.FAMILY.neigh.default.gc_thresh3`.
    pub limit: u64,
    /// How often an entry was refused since the boot.
    pub refused: u64,
}

/// Programs of Culvert that are not the agent's. The search runs twice, [`PINNING`] apart: a link
/// that the agent was about to pin is pinned at the second search.
async fn leftovers(netlink: &Netlink, links: &[Link], bpffs: &Path) -> Vec<Leftover> {
    let find = || run_in(netlink.netns(), || find_leftovers(links, bpffs).ok()).ok().flatten();
    let found = find().unwrap_or_default();
    if found.is_empty() {
        return found;
    }
    tokio::time::sleep(PINNING).await;
    let mut again = find().unwrap_or_default();
    again.retain(|leftover| found.contains(leftover));
    again
}

/// The queueing discipline of the host side of a container's pair. `None` for other interfaces, and
/// for the kernel's defaults of such a pair.
fn shaped(link: &Link) -> Option<(String, String)> {
    endpoint_of(link)?;
    let qdisc = link.qdisc.as_deref().filter(|qdisc| !matches!(*qdisc, "noqueue" | "noop"))?;
    Some((link.name.clone(), qdisc.to_owned()))
}

/// Names of the host sides of containers' pairs that have filters of traffic control. The programs
/// take received frames before such filters, and deliver frames past the egress of a host side.
async fn filtered(netlink: &Netlink, links: &[Link]) -> Vec<String> {
    let hooks = netlink.filter_hooks().await.unwrap_or_default();
    let mut names = Vec::new();
    for link in links.iter().filter(|link| hooks.contains(&link.index)) {
        let is_side = endpoint_of(link).is_some();
        if is_side && netlink.has_filters(link.index).await.unwrap_or_default() {
            names.push(link.name.clone());
        }
    }
    names
}

/// The firewalls that are active on the host with the root directory `root`: ufw by its own
/// setting, firewalld by its process.
fn firewalls(root: &Path) -> Vec<&'static str> {
    let settings = fs::read_to_string(root.join("etc/ufw/ufw.conf")).unwrap_or_default();
    let ufw = settings.lines().any(|line| {
        let setting = line.trim().split_once('=');
        setting.is_some_and(|(key, value)| {
            key.trim_end() == "ENABLED"
                && value.trim().trim_matches('"').eq_ignore_ascii_case("yes")
        })
    });
    [("ufw", ufw), ("firewalld", runs(root, "firewalld"))]
        .into_iter()
        .filter_map(|(name, active)| active.then_some(name))
        .collect()
}

/// Numbers of IPv4 and IPv6 neighbours that do not count towards the limit: all permanent ones of
/// the host, also those of other programs, and the gateway of each container.
fn exempt(containers: usize, neighbours: &[Neighbour]) -> [u64; 2] {
    let permanent = |is_ipv4: bool| {
        let of_family = neighbours.iter().filter(|neighbour| neighbour.ip.is_ipv4() == is_ipv4);
        of_family.filter(|neighbour| neighbour.permanent).count()
    };
    [(containers + permanent(true)) as u64, permanent(false) as u64]
}

/// The kernel's tables of neighbours on the host with the root directory `root`. The kernel's
/// numbers of entries include those that are `exempt` from the limit (IPv4, IPv6). Read from text:
/// rtnetlink has no request for these tables (RTM_GETNEIGHTBL).
fn neighbour_tables(root: &Path, [ipv4, ipv6]: [u64; 2]) -> Vec<NeighbourTable> {
    [("ipv4", "arp_cache", ipv4), ("ipv6", "ndisc_cache", ipv6)]
        .into_iter()
        .filter_map(|(family, file, exempt)| {
            let stat = fs::read_to_string(root.join("proc/net/stat").join(file)).ok()?;
            let limit = format!("proc/sys/net/{family}/neigh/default/gc_thresh3");
            let limit = fs::read_to_string(root.join(limit)).ok()?.trim().parse().ok()?;
            let mut lines = stat.lines();
            let columns: Vec<&str> = lines.next()?.split_whitespace().collect();
            // A line for each CPU, in hexadecimal. The number of entries is the same in all.
            let rows: Vec<Vec<&str>> =
                lines.map(|line| line.split_whitespace().collect()).collect();
            let column = |name: &str| {
                let at = columns.iter().position(|column| *column == name)?;
                let cells = rows.iter().filter_map(|row| row.get(at));
                cells.map(|cell| u64::from_str_radix(cell, 16).ok()).collect::<Option<Vec<_>>>()
            };
            let entries = *column("entries")?.first()?;
            let refused: u64 = column("table_fulls").unwrap_or_default().iter().sum();
            Some(NeighbourTable { family, entries: entries.saturating_sub(exempt), limit, refused })
        })
        .collect()
}

/// Whether the agent made a device.
fn is_ours(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with("culvert"))
}

impl HostFacts {
    /// Reads the facts.
    pub fn collect() -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self {
            release: uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            bpf: match is_program_supported(ProgramType::SchedClassifier) {
                Ok(true) => Probe::Works,
                Ok(false) => Probe::Unsupported,
                Err(error) => Probe::Failed(innermost(&error)),
            },
            jit: fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
                .ok()
                .and_then(|text| text.trim().parse().ok()),
            capabilities: effective_capabilities(&status),
        }
    }
}

/// The innermost cause of an error, which is the kernel's.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Parses the line `CapEff:` of proc_pid_status(5).
fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

fn bpffs(place: &Path) -> Bpffs {
    // The directory of the pins may not exist yet. Then the nearest existing parent directory
    // determines the file system.
    let mounted = place
        .ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if mounted {
        return Bpffs::Mounted;
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        Bpffs::Mountable
    } else {
        Bpffs::Missing
    }
}

/// Programs at the tcx ingress of an interface of the calling thread's namespace.
fn tcx_programs(interface: &str) -> Option<Vec<TcxProgram>> {
    let (_revision, programs) =
        SchedClassifier::query_tcx(interface, TcAttachType::Ingress).ok()?;
    Some(
        programs
            .iter()
            .map(|program| TcxProgram {
                name: program.name_as_str().unwrap_or_default().to_owned(),
                id: program.id(),
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_firewalls_are_found() {
        let root = tempfile::tempdir().unwrap();
        let found = || firewalls(root.path());
        assert_eq!(found(), [""; 0]);
        let file = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (text, active) in [
            ("# ENABLED=yes\nENABLED=no\nLOGLEVEL=low\n", false),
            ("ENABLED=\n", false),
            ("ENABLED=yes\n", true),
            ("LOGLEVEL=low\n ENABLED = \"Yes\"\n", true),
        ] {
            file("etc/ufw/ufw.conf", text);
            assert_eq!(found() == ["ufw"], active, "{text:?}");
        }
        file("proc/1/comm", "systemd\n");
        file("proc/meminfo", "");
        assert_eq!(found(), ["ufw"]);
        file("proc/815/comm", "firewalld\n");
        assert_eq!(found(), ["ufw", "firewalld"]);
    }

    #[test]
    fn tables_of_neighbours_are_read() {
        let root = tempfile::tempdir().unwrap();
        let read = || neighbour_tables(root.path(), [2000, 4]);
        assert_eq!(read(), []);
        let file = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("proc/sys/net/ipv4/neigh/default/gc_thresh3", "1024\n");
        let head = "entries  allocs   destroys table_fulls\n";
        let rows = "00000bb8 00004855 000049f2 00000010\n00000bb8 000047db 0000463c 00000001\n";
        file("proc/net/stat/arp_cache", &format!("{head}{rows}"));
        let ipv4 = NeighbourTable { family: "ipv4", entries: 1000, limit: 1024, refused: 17 };
        assert_eq!(read(), std::slice::from_ref(&ipv4));
        file("proc/sys/net/ipv6/neigh/default/gc_thresh3", "2048\n");
        file("proc/net/stat/ndisc_cache", &format!("{head}0000000a 00 00 00\n"));
        let ipv6 = NeighbourTable { family: "ipv6", entries: 6, limit: 2048, refused: 0 };
        assert_eq!(read(), [ipv4, ipv6.clone()]);
        // Of another layout.
        file("proc/net/stat/arp_cache", "allocs\n00000001\n");
        assert_eq!(read(), [ipv6]);
    }

    #[test]
    fn host_sides_are_ports_of_any_of_the_bridges() {
        let link = |index, kind: &str, alias: &str, master| Link {
            index,
            kind: Some(kind.to_owned()),
            alias: Some(alias.to_owned()),
            master,
            ..Link::default()
        };
        let side = |index, master| link(index, "veth", "culvert:0a", master);
        let bridge = |index, alias| link(index, "bridge", alias, None);
        let links = [
            bridge(6, "culvert-room"),
            bridge(7, "culvert-room"),
            bridge(8, "mine"),
            side(20, Some(6)),
            side(21, Some(7)),
            side(22, Some(8)),
            side(23, None),
            link(24, "veth", "mine", None),
        ];
        assert_eq!(HostSides::among(&links), HostSides { all: 4, without_headroom: 2 });
        assert_eq!(HostSides::among(&[]), HostSides::default());
    }

    #[test]
    fn permanent_neighbours_are_exempt() {
        let neighbour = |ip: &str, permanent| Neighbour {
            ifindex: 2,
            ip: ip.parse().unwrap(),
            mac: None,
            valid: true,
            permanent,
            managed: false,
        };
        let link = |alias: &str| Link { alias: Some(alias.to_owned()), ..Link::default() };
        let links = [link("culvert:01"), link("culvert:02"), link("culvert-gateway:256")];
        let containers = HostSides::among(&links).all;
        let neighbours = [
            neighbour("169.254.67.1", true),
            neighbour("10.244.1.0", true),
            neighbour("192.0.2.9", false),
            neighbour("fd00::1", true),
            neighbour("fd00::2", false),
        ];
        assert_eq!(exempt(containers, &neighbours), [4, 1]);
    }

    #[test]
    fn capabilities_are_read() {
        assert_eq!(
            effective_capabilities("CapPrm:\t1\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n"),
            Some(0x1ff_ffff_ffff)
        );
        assert_eq!(effective_capabilities("CapEff:\tnonsense"), None);
        assert_eq!(effective_capabilities(""), None);
    }
}
