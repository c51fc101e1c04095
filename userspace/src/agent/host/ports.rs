//! Ports of the host. The agent holds a port with a bound socket, and finds in `/proc` who
//! has a port that it cannot bind.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
};

use async_trait::async_trait;
use tokio::net::TcpSocket;

use super::{
    Host,
    error::{blocking, netns_refused},
};
use crate::{
    agent::platform::{Holder, PortError, PortHold, Ports},
    api::types::ApiError,
    model::Protocol,
    netns::Netns,
};

/// The first port that needs no capability.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
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

/// Binds a socket to a port, so that no process can have it. The socket does not listen: the
/// programs take its packets before the host's own stack. Without `SO_REUSEADDR` the bind
/// fails if any other socket has the port.
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
        _ => PortError::Other(error.to_string()),
    })
}

fn unprivileged() -> u16 {
    let text = fs::read_to_string(UNPRIVILEGED).unwrap_or_default();
    text.trim().parse().unwrap_or(UNPRIVILEGED_DEFAULT)
}

/// Finds the socket that has a port in the thread's network namespace, and the process that
/// has the socket.
fn holder(ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"],
        Protocol::Udp => ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"],
    };
    let mut ending = false;
    for table in tables {
        let text = fs::read_to_string(table).unwrap_or_default();
        for inode in text.lines().filter_map(|row| inode_of(row, ip, port)) {
            match process_with(inode) {
                Some(process) => return process,
                // A socket of a process that is not to be seen, or none at all.
                None => ending |= inode == 0,
            }
        }
    }
    if ending { Holder::Ending } else { Holder::Unseen }
}

/// Inode of the socket in a row of `/proc/net/tcp` and its like (proc(5)), if its
/// own address is in the way of this one.
fn inode_of(row: &str, ip: Ipv4Addr, port: u16) -> Option<u64> {
    let mut fields = row.split_whitespace();
    let (address, row_port) = fields.nth(1)?.split_once(':')?;
    if u16::from_str_radix(row_port, 16).ok()? != port {
        return None;
    }
    let theirs = address_of(address)?;
    let clash = theirs == ip || theirs.is_unspecified() || ip.is_unspecified();
    // Local address is field 1 from 0, the inode field 9.
    clash.then(|| fields.nth(7)?.parse().ok())?
}

/// The IPv4 address of a row, IPv4-mapped or not; `::` takes every IPv4 address,
/// too. Groups of four bytes are printed as numbers of the host's byte order.
fn address_of(hex: &str) -> Option<Ipv4Addr> {
    let group = |at: usize| {
        let number = u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(number.to_ne_bytes())
    };
    match hex.len() {
        8 => group(0).map(Ipv4Addr::from),
        32 => match [group(0)?, group(1)?, group(2)?, group(3)?] {
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]] => Some(Ipv4Addr::UNSPECIFIED),
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0xff, 0xff], ip] => Some(ip.into()),
            _ => None,
        },
        _ => None,
    }
}

/// The process that has a socket open.
fn process_with(inode: u64) -> Option<Holder> {
    if inode == 0 {
        return None;
    }
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files.find(|file| {
            fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        })?;
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        Some(Holder::Process { name: name.trim_end().to_owned(), pid })
    })
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
        // Nobody listens.
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
    fn rows_of_proc_are_read() {
        let row = "   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100";
        let any = Ipv4Addr::UNSPECIFIED;
        if cfg!(target_endian = "little") {
            assert_eq!(inode_of(row, Ipv4Addr::LOCALHOST, 8080), Some(4242));
            assert_eq!(inode_of(row, [127, 0, 0, 2].into(), 8080), None);
            let mapped = "0000000000000000FFFF00000100007F";
            assert_eq!(address_of(mapped), Some(Ipv4Addr::LOCALHOST));
        }
        assert_eq!(inode_of(row, any, 8080), Some(4242));
        assert_eq!(inode_of(row, any, 8081), None);
        let six = row.replace("0100007F", &"0".repeat(32));
        assert_eq!(inode_of(&six, Ipv4Addr::LOCALHOST, 8080), Some(4242));
        // ::1 is in no IPv4 address's way.
        assert_eq!(address_of("00000000000000000000000001000000"), None);
        for bad in ["", "a", "  sl  local_address rem_address", "0: 1:2 3", "0: zz:1F90 0 0"] {
            assert_eq!(inode_of(bad, any, 8080), None, "{bad}");
        }
    }
}
