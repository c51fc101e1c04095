//! Sockets of a network namespace, by their local address.
//!
//! TCP and UDP sockets are listed with sock_diag(7). `/proc/net` is read where sock_diag has no
//! handler: for ping sockets (icmp(7)), for which no Linux version has an `inet_diag_handler`, and
//! for TCP and UDP on kernels without the handlers. `CONFIG_INET_TCP_DIAG` and
//! `CONFIG_INET_UDP_DIAG` are modules in most distributions, and a host may forbid loading modules.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use rtnetlink::{
    packet_core::{
        DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ALIGNTO, NetlinkDeserializable,
        NetlinkHeader, NetlinkMessage, NetlinkPayload, Parseable as _,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG},
};

/// Directory of the calling thread's namespace. `/proc/net` is the namespace of the process's first
/// thread.
const TEXT: &str = "/proc/thread-self/net";

/// Size in bytes of the longest part of an answer (`netlink_recvmsg` in the kernel).
const PART: usize = 32 * 1024;

/// The states that `/proc/net/tcp` shows, one bit each, up to `TCP_NEW_SYN_RECV` (12). A socket
/// that is bound but neither listens nor is connected (`TCP_BOUND_INACTIVE`, 13, since Linux 6.8)
/// is in neither list: the agent reserves published ports with such sockets.
const STATES: StateFlags = StateFlags::from_bits_retain((1 << 13) - 1);

/// Protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo requests (icmp(7)). The port is their identifier.
    Ping,
}

impl Transport {
    /// Files below [`TEXT`], of IPv4 and of IPv6 (proc_pid_net(5)).
    const fn files(self) -> [&'static str; 2] {
        match self {
            Self::Tcp => ["tcp", "tcp6"],
            Self::Udp => ["udp", "udp6"],
            Self::Ping => ["icmp", "icmp6"],
        }
    }

    /// Number of the protocol for sock_diag.
    const fn protocol(self) -> Option<u8> {
        match self {
            Self::Tcp => Some(IPPROTO_TCP),
            Self::Udp => Some(IPPROTO_UDP),
            Self::Ping => None,
        }
    }
}

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalSocket {
    /// Local address; `0.0.0.0` or `::` if the socket is not bound to an address.
    pub address: IpAddr,
    /// Local port, or the identifier of its echo requests.
    pub port: u16,
    /// Inode of the socket's file; 0 if no process has it open, as for a connection in TIME_WAIT.
    pub inode: u64,
    /// Whether the socket has a remote port: it serves no other clients.
    pub connected: bool,
}

/// Sockets of the calling thread's network namespace, IPv4 before IPv6. If `port` is given, only
/// sockets with that local port.
///
/// # Errors
/// Neither netlink nor `/proc` can be read.
pub fn sockets(transport: Transport, port: Option<u16>) -> io::Result<Vec<LocalSocket>> {
    transport
        .protocol()
        .and_then(|protocol| diagnosed(protocol, port).ok())
        .map_or_else(|| listed(Path::new(TEXT), transport, port), Ok)
}

/// Lists sockets with sock_diag.
fn diagnosed(protocol: u8, port: Option<u16>) -> io::Result<Vec<LocalSocket>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    // The next part of the answer is ready when a receive call returns.
    socket.set_non_blocking(true)?;
    let mut sockets = Vec::new();
    let mut part = vec![0; PART];
    for family in [AF_INET, AF_INET6] {
        let request = request(family, protocol, port.unwrap_or_default());
        socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
        loop {
            let len = socket.recv(&mut part.as_mut_slice(), 0)?;
            if read(part.get(..len).unwrap_or_default(), &mut sockets)? {
                break;
            }
        }
    }
    Ok(sockets)
}

/// A request for all sockets of a family. If the port is not 0, only for the sockets with that
/// port.
fn request(family: u8, protocol: u8, port: u16) -> Vec<u8> {
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: STATES,
        socket_id: SocketId { source_port: port, ..SocketId::new_v4() },
    };
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Adds the sockets of one part of an answer. Returns whether it was the last part.
fn read(mut part: &[u8], sockets: &mut Vec<LocalSocket>) -> io::Result<bool> {
    while !part.is_empty() {
        let message = NetlinkMessage::<Row>::deserialize(part).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(Row(row)) => sockets.push(LocalSocket {
                address: row.socket_id.source_address,
                port: row.socket_id.source_port,
                inode: row.inode.into(),
                connected: row.socket_id.destination_port != 0,
            }),
            // A kernel without the handler reports the error at the end of an empty list.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.wrapping_neg()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        let len = (message.header.length as usize).next_multiple_of(NLMSG_ALIGNTO.into());
        part = part.get(len..).unwrap_or_default();
    }
    Ok(false)
}

/// A row without its attributes: the agent needs none, and a later kernel may add unknown ones.
struct Row(InetResponseHeader);

impl NetlinkDeserializable for Row {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        InetResponseHeader::parse(payload).map(Self)
    }
}

/// Lists sockets from the files in `dir`.
fn listed(dir: &Path, transport: Transport, port: Option<u16>) -> io::Result<Vec<LocalSocket>> {
    let mut sockets = Vec::new();
    for file in transport.files() {
        match fs::read_to_string(dir.join(file)) {
            Ok(table) => sockets.extend(
                table
                    .lines()
                    .skip(1)
                    .filter_map(parse)
                    .filter(|socket| port.is_none_or(|port| socket.port == port)),
            ),
            // The kernel has no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

/// A row of `/proc/net/tcp` or a file of the same format. Field 1 (counted from 0) is the local
/// address and port in hexadecimal; field 2 is the remote one, and field 9 is the inode.
fn parse(row: &str) -> Option<LocalSocket> {
    let mut fields = row.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let (_, remote) = fields.next()?.split_once(':')?;
    Some(LocalSocket {
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode: fields.nth(6)?.parse().ok()?,
        connected: u16::from_str_radix(remote, 16).ok()? != 0,
    })
}

/// An address, printed as 32-bit words in the host's byte order.
fn parse_address(digits: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let digits = digits.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd,
    };

    use super::*;

    const TCP4: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21340 1 0000000000000000 100 0 0 10 0
   2: 0200A8C0:D431 07710002:01BB 01 00000000:00000000 02:000A7F5C 00000000  1000        0 99120 2 0000000000000000 20 4 30 10 -1
   3: 0200A8C0:D432 07710002:01BB 06 00000000:00000000 03:00000B2A 00000000     0        0 0 3 0000000000000000
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20011 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20012 1 0000000000000000 100 0 0 10 0
";
    const ICMP4: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
    7: 00000000:0007 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 40001 2 0000000000000000 0
";

    fn socket(address: &str, port: u16, inode: u64) -> LocalSocket {
        LocalSocket { address: address.parse().unwrap(), port, inode, connected: false }
    }

    fn connected(address: &str, port: u16, inode: u64) -> LocalSocket {
        LocalSocket { connected: true, ..socket(address, port, inode) }
    }

    fn inode_of(socket: impl AsFd) -> u64 {
        nix::sys::stat::fstat(socket).unwrap().st_ino
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn text_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [("tcp", TCP4), ("tcp6", TCP6), ("icmp", ICMP4)] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let listed = |transport, port| listed(dir.path(), transport, port).unwrap();
        let all = [
            socket("127.0.0.1", 8080, 21_340),
            connected("192.168.0.2", 54_321, 99_120),
            connected("192.168.0.2", 54_322, 0),
            socket("::1", 80, 20_011),
            socket("::ffff:127.0.0.1", 8080, 20_012),
        ];
        assert_eq!(listed(Transport::Tcp, None), all);
        assert_eq!(listed(Transport::Tcp, Some(8080)), [all[0], all[4]]);
        assert_eq!(listed(Transport::Ping, None), [socket("0.0.0.0", 7, 40_001)]);
        assert_eq!(listed(Transport::Udp, None), []);
    }

    #[test]
    fn other_text_is_no_socket() {
        for row in [
            "",
            "x",
            " 0: nonsense",
            " 1: a:b:",
            " 2: 0:10000",
            "0: 1:2 3",
            "0: zz:1F90 0 0",
            "1: 12:zz a b",
            "1: é0000000:12B5 0 0 0 0 0 0 0 1",
            "1: 0100007F:1F90 0 0 0 0 0 0 0 x",
            "1: 0100007F:1F90 0 0 0 0 0 0 0",
            "1: 0100007F1:1F90 0 0 0 0 0 0 0 1",
        ] {
            assert_eq!(parse(row), None, "{row}");
        }
    }

    /// Compares only the sockets of this test: other tests have sockets at the same time.
    #[test]
    fn both_lists_have_a_socket_of_each_kind() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let client = TcpStream::connect(at).unwrap();
        let (server, _) = listener.accept().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp_at = udp.local_addr().unwrap();
        let port = at.port();
        let of_tcp = [
            socket("127.0.0.1", port, inode_of(&listener)),
            connected("127.0.0.1", port, inode_of(&server)),
            connected("127.0.0.1", client.local_addr().unwrap().port(), inode_of(&client)),
        ];
        let of_udp = socket("127.0.0.1", udp_at.port(), inode_of(&udp));
        let text = |transport| listed(Path::new(TEXT), transport, None).unwrap();
        for sockets in [
            text(Transport::Tcp),
            diagnosed(IPPROTO_TCP, None).unwrap(),
            sockets(Transport::Tcp, None).unwrap(),
        ] {
            assert!(of_tcp.iter().all(|socket| sockets.contains(socket)), "{sockets:?}");
        }
        for sockets in [text(Transport::Udp), diagnosed(IPPROTO_UDP, None).unwrap()] {
            assert!(sockets.contains(&of_udp), "{sockets:?}");
        }
        let mut of_port = diagnosed(IPPROTO_TCP, Some(port)).unwrap();
        of_port.sort_unstable();
        let mut expected = of_tcp[..2].to_vec();
        expected.sort_unstable();
        assert_eq!(of_port, expected);
        assert_eq!(sockets(Transport::Udp, Some(udp_at.port())).unwrap(), [of_udp]);
    }

    #[test]
    fn ipv6_has_sockets_of_its_own() {
        // A host may have no IPv6.
        let Ok(socket) = UdpSocket::bind("[::]:0") else { return };
        let port = socket.local_addr().unwrap().port();
        let listed = sockets(Transport::Udp, Some(port)).unwrap();
        assert_eq!(listed, [self::socket("::", port, inode_of(&socket))]);
    }

    /// [`sockets`] reads `/proc` in this case: the kernel has no sock_diag handler for ICMP.
    #[test]
    fn a_missing_handler_is_an_error_and_not_an_empty_list() {
        let error = diagnosed(netlink_packet_sock_diag::constants::IPPROTO_ICMP, None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOENT), "{error}");
        assert!(sockets(Transport::Ping, None).is_ok());
    }

    #[test]
    fn answers_that_are_cut_are_errors_or_the_end() {
        let bytes = request(AF_INET, IPPROTO_TCP, 0);
        for len in 1..bytes.len() {
            assert!(read(&bytes[..len], &mut Vec::new()).is_err(), "{len}");
        }
        for len in 0..40 {
            let _ = read(&vec![0xff; len], &mut Vec::new());
            let _ = read(&vec![0; len], &mut Vec::new());
        }
        assert!(!read(&[], &mut Vec::new()).unwrap());
    }
}
