//! Ports of the host. The agent holds a port with a bound socket, and finds the process that has
//! a port that it cannot bind.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
};

use async_trait::async_trait;
use nix::{
    errno::Errno,
    libc,
    sys::resource::{Resource, getrlimit},
};
use tokio::net::TcpSocket;

use super::{
    Host,
    error::{blocking, netns_refused},
};
use crate::{
    agent::platform::{Files, Holder, PortError, PortHold, Ports},
    api::types::ApiError,
    limits::name_limit,
    model::{Protocol, PublishedPort},
    netfilter::Rules,
    netlink::sockets::{LocalSocket, Transport, sockets},
    netns::Netns,
};

/// File with the first port that needs no capability (ip-sysctl.rst of the kernel).
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// File with the first and the last port that the kernel chooses for connections of the host.
const OWN_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Open files that published ports leave to the agent: for requests, containers and programs.
const OTHER_FILES: usize = 1024;
/// Most ports that are looked up one by one. For more of them all sockets are listed once.
const MOST_LOOKUPS: usize = 8;
/// Default of [`UNPRIVILEGED`].
const UNPRIVILEGED_DEFAULT: u16 = 1024;

#[async_trait]
impl Ports for Host {
    fn hold_port(
        &self,
        ip: Ipv4Addr,
        port: u16,
        protocol: Protocol,
    ) -> Result<PortHold, PortError> {
        hold(ip, port, protocol)
    }

    fn port_holder(&self, ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder {
        holder(ip, port, protocol)
    }

    fn served(&self, ports: &[PublishedPort]) -> BTreeSet<PublishedPort> {
        served(ports)
    }

    fn files(&self) -> Files {
        let now = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(now, _)| now);
        let now = usize::try_from(now).unwrap_or(usize::MAX);
        let open = fs::read_dir("/proc/self/fd").map_or(now, Iterator::count);
        Files {
            spare: now.saturating_sub(open).saturating_sub(OTHER_FILES),
            limit: name_limit(Errno::EMFILE.into()).to_string(),
        }
    }

    fn own_ports(&self) -> Option<(u16, u16)> {
        let text = fs::read_to_string(OWN_PORTS).ok()?;
        let (first, last) = text.trim().split_once(char::is_whitespace)?;
        let (first, last) = (first.parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some((first, last))
    }

    fn netfilter_is_active(&self) -> bool {
        // No thread of the runtime leaves the agent's namespace, so this is the host's number of
        // tracked connections. The file is absent without the module.
        fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")
            .is_ok_and(|count| count.trim() != "0")
    }

    async fn rules(&self) -> Rules {
        self.rules.read(self.netlink.netns()).await
    }

    async fn port_holder_in(
        &self,
        netns: &Path,
        port: u16,
        protocol: Protocol,
    ) -> Result<Holder, ApiError> {
        let path = netns.to_owned();
        let holder = move || {
            let sandbox = Netns::open(&path)?;
            sandbox.run(|| holder(Ipv4Addr::UNSPECIFIED, port, protocol))
        };
        blocking(holder).await?.map_err(|error| netns_refused(&error))
    }
}

/// Binds a socket to a port, so that no process can bind the port. The socket does not listen: the
/// BPF programs take the packets to the port before the host's own stack. Without `SO_REUSEADDR`
/// the bind fails if any other socket has the port.
fn hold(ip: Ipv4Addr, port: u16, protocol: Protocol) -> Result<PortHold, PortError> {
    let address = SocketAddrV4::new(ip, port);
    let bound: io::Result<PortHold> = match protocol {
        Protocol::Tcp => TcpSocket::new_v4().and_then(|socket| {
            socket.bind(address.into())?;
            Ok(Box::new(socket) as PortHold)
        }),
        Protocol::Udp => UdpSocket::bind(address).map(|socket| Box::new(socket) as PortHold),
    };
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => PortError::InUse,
        io::ErrorKind::PermissionDenied => PortError::Denied { from: unprivileged() },
        io::ErrorKind::AddrNotAvailable => PortError::NoSuchAddress,
        _ => {
            let (errno, why) = (error.raw_os_error(), name_limit(error).to_string());
            match errno {
                Some(libc::EMFILE | libc::ENFILE) => PortError::NoFiles(why),
                _ => PortError::Other(why),
            }
        }
    })
}

/// The ports of `ports` at which a socket of the calling thread's network namespace serves clients.
fn served(ports: &[PublishedPort]) -> BTreeSet<PublishedPort> {
    let mut all: HashMap<(Protocol, u16), Vec<LocalSocket>> = HashMap::new();
    if ports.len() > MOST_LOOKUPS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for socket in sockets(transport(protocol), None).unwrap_or_default() {
                all.entry((protocol, socket.port)).or_default().push(socket);
            }
        }
    }
    let is_served = |port: &&PublishedPort| {
        let PublishedPort { host_ip, host_port, protocol, .. } = **port;
        let serves = |socket: &LocalSocket| !socket.connected && conflicts(socket.address, host_ip);
        if ports.len() > MOST_LOOKUPS {
            return all.get(&(protocol, host_port)).is_some_and(|found| found.iter().any(serves));
        }
        sockets_at(host_port, protocol).iter().any(serves)
    };
    ports.iter().filter(is_served).copied().collect()
}

fn unprivileged() -> u16 {
    let text = fs::read_to_string(UNPRIVILEGED).unwrap_or_default();
    text.trim().parse().unwrap_or(UNPRIVILEGED_DEFAULT)
}

/// Finds the socket that has a port in the calling thread's network namespace, and the process
/// that has the socket open.
fn holder(ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder {
    let sockets = sockets_at(port, protocol);
    let inodes: Vec<u64> = sockets
        .iter()
        .filter(|socket| conflicts(socket.address, ip))
        .map(|socket| socket.inode)
        .collect();
    let process = process_with(&inodes);
    process.unwrap_or(if inodes.contains(&0) { Holder::Ending } else { Holder::Unseen })
}

/// The sockets with a port in the calling thread's network namespace.
fn sockets_at(port: u16, protocol: Protocol) -> Vec<LocalSocket> {
    sockets(transport(protocol), Some(port)).unwrap_or_default()
}

const fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

/// Whether a socket that is bound to `bound` prevents a bind to `ip`. `::` covers every IPv4
/// address.
fn conflicts(bound: IpAddr, ip: Ipv4Addr) -> bool {
    match bound.to_canonical() {
        IpAddr::V4(bound) => bound == ip || bound.is_unspecified() || ip.is_unspecified(),
        IpAddr::V6(bound) => bound.is_unspecified(),
    }
}

/// A process that has one of these sockets open. If there are several, a process that has the
/// earliest socket in `inodes`. Reads the open files of each process at most once.
fn process_with(inodes: &[u64]) -> Option<Holder> {
    let wanted: HashMap<OsString, usize> = inodes
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, inode)| **inode != 0)
        .map(|(place, inode)| (format!("socket:[{inode}]").into(), place))
        .collect();
    let first = *wanted.values().min()?;
    let place_of = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).ok()?.flatten();
        let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.filter_map(|target| wanted.get(target.as_os_str()).copied()).min()
    };
    let mut found = None;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some((pid, place)) = pid.zip(place_of(&process.path())) else { continue };
        if found.is_none_or(|(_, before)| place < before) {
            found = Some((pid, place));
        }
        if place == first {
            break;
        }
    }
    let (pid, _) = found?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Holder::Process { name: name.trim_end().to_owned(), pid })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn own_process() -> i32 {
        std::process::id().try_into().unwrap()
    }

    #[tokio::test]
    async fn a_port_is_held_until_it_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for ip in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
            assert_eq!(hold(ip, port, Protocol::Tcp).map(drop), Err(PortError::InUse), "{ip}");
            let holder = holder(ip, port, Protocol::Tcp);
            assert!(
                matches!(&holder, Holder::Process { pid, name }
                    if *pid == own_process() && !name.is_empty()),
                "{holder:?}"
            );
        }
        drop(listener);
        let held = hold(Ipv4Addr::LOCALHOST, port, Protocol::Tcp).unwrap();
        let error = TcpListener::bind(("127.0.0.1", port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        // No socket listens.
        let error = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        drop(held);
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[tokio::test]
    async fn udp_ports_are_their_own() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let ip = Ipv4Addr::LOCALHOST;
        assert_eq!(hold(ip, port, Protocol::Udp).map(drop), Err(PortError::InUse));
        assert!(matches!(holder(ip, port, Protocol::Udp), Holder::Process { .. }));
        drop(socket);
        let held = hold(ip, port, Protocol::Udp).unwrap();
        let error = UdpSocket::bind(("127.0.0.1", port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(held);
        UdpSocket::bind(("127.0.0.1", port)).unwrap();
    }

    #[tokio::test]
    async fn an_address_that_the_host_does_not_have_is_told() {
        let ip = Ipv4Addr::new(192, 0, 2, 77);
        let held = hold(ip, 40_000, Protocol::Tcp).map(drop);
        assert_eq!(held, Err(PortError::NoSuchAddress));
    }

    #[test]
    fn a_socket_conflicts_by_its_address() {
        let any = Ipv4Addr::UNSPECIFIED;
        let local = Ipv4Addr::LOCALHOST;
        for (bound, ip, expected) in [
            ("127.0.0.1", local, true),
            ("127.0.0.2", local, false),
            ("127.0.0.2", any, true),
            ("0.0.0.0", local, true),
            ("::ffff:127.0.0.1", local, true),
            ("::ffff:127.0.0.2", local, false),
            ("::", local, true),
            // A socket on another IPv6 address does not prevent a bind to an IPv4 address.
            ("::1", local, false),
            ("::1", any, false),
        ] {
            assert_eq!(conflicts(bound.parse().unwrap(), ip), expected, "{bound} {ip}");
        }
    }

    /// Many ports are compared with one list of all sockets.
    #[tokio::test]
    async fn ports_at_which_somebody_serves_clients_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let served_port = listener.local_addr().unwrap().port();
        let bound = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let _bound = hold(Ipv4Addr::LOCALHOST, bound, Protocol::Tcp).unwrap();
        let at = |host_port| PublishedPort {
            host_ip: Ipv4Addr::LOCALHOST,
            host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
            count: 1,
        };
        let few = vec![at(served_port), at(bound)];
        let many = [few.clone(), (1..=2 * MOST_LOOKUPS as u16).map(at).collect()].concat();
        for ports in [few, many] {
            let found = served(&ports);
            assert!(found.contains(&at(served_port)), "{} ports", ports.len());
            assert!(!found.contains(&at(bound)), "{} ports", ports.len());
        }
    }

    #[test]
    fn a_connection_that_no_process_has_is_ending() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(at).unwrap();
        let (server, _) = listener.accept().unwrap();
        // The side that closes first waits in TIME_WAIT.
        drop(server);
        drop(client);
        drop(listener);
        assert_eq!(holder(Ipv4Addr::LOCALHOST, at.port(), Protocol::Tcp), Holder::Ending);
    }
}
