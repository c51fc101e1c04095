//! New flows: every datagram is the first of its flow.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_tests::wire;
use etherparse::PacketBuilder;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use serde_json::Value;

use super::{Side, Stop, batch::Batches, join, spawn, udp::counted, units::batches};

/// Least destination port: the ports below it include the well-known ones.
const FIRST_PORT: u16 = 2_000;
/// Longest measurement: Linux and Culvert track 262,144 flows by default, and the measurement is of
/// their creation, not of their eviction.
const LONGEST: Duration = Duration::from_millis(150);
/// Largest number of flows of one measurement.
const MOST: u32 = 150_000;
/// Source port of all flows.
const SOURCE_PORT: u16 = 40_000;
/// How long the resolution of the next hop's MAC may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// Target of flows that differ only in their destination.
pub(crate) struct Target<'a> {
    /// Namespace of the client.
    pub(crate) client: &'a Path,
    /// Namespace of the host that discards the datagrams.
    pub(crate) server: &'a Path,
    /// The host's device on which the datagrams arrive.
    pub(crate) device: &'a str,
    /// First of the addresses whose packets the host discards (RFC 2544's are for such use).
    pub(crate) network: Ipv4Addr,
}

/// The destination of flow `n`: each port of an address, then the next address.
pub(crate) fn destination(network: Ipv4Addr, n: u32) -> SocketAddrV4 {
    let ports = u32::from(u16::MAX - FIRST_PORT);
    let ip = Ipv4Addr::from_bits(network.to_bits() + n / ports);
    SocketAddrV4::new(ip, FIRST_PORT + (n % ports) as u16)
}

/// Sends the first datagrams of flows from number `first` on as fast as one thread can.
/// Returns how many arrive in a second, and the number after the last.
pub(crate) fn new_flows(target: &Target<'_>, first: u32, time: Duration) -> Result<(f64, u32)> {
    let time = time.min(LONGEST);
    // Built in advance, so that sending is the only work of the sender.
    let frames = Frames::make(target, first, MOST)?;
    let stop = Stop::default();
    let stopping = stop.clone();
    let client = spawn(target.client, Side::Client, move || frames.send(&stopping))?;
    let arrived = counted(time, || received(target).unwrap_or_default());
    stop.stop();
    Ok((arrived, first + join(client)?))
}

/// Makes `count` flows from number `first` on. Returns the number after the last.
pub(crate) fn make(target: &Target<'_>, first: u32, count: u32) -> Result<u32> {
    let frames = Frames::make(target, first, count)?;
    let client = spawn(target.client, Side::Client, move || frames.send(&Stop::default()))?;
    Ok(first + join(client)?)
}

/// Sends the first datagrams of `count` flows, from number `first` on, batch by batch. Returns the
/// time of each, ns, and the number after the last.
pub(crate) fn units(target: &Target<'_>, first: u32, count: u32) -> Result<(Vec<u64>, u32)> {
    let frames = Frames::make(target, first, count)?;
    let before = received(target)?;
    let client = spawn(target.client, Side::Client, move || frames.send_batches())?;
    let (taken, sent) = join(client)?;
    let arrived = received(target)? - before;
    // Frames of other traffic, such as ARP, may arrive, too.
    ensure!(arrived >= u64::from(sent), "flows: {arrived} of {sent} have arrived");
    Ok((taken, first + count))
}

/// Frames as the client's own stack would send them, one for each flow.
struct Frames {
    device: u32,
    all: Vec<Vec<u8>>,
}

/// Sender and receiver of the frames.
pub(crate) struct Ends {
    /// Address of the client.
    pub(crate) ip: Ipv4Addr,
    /// MAC of the client.
    pub(crate) mac: [u8; 6],
    /// MAC of the gateway, or of the server if it is on the same link.
    pub(crate) next_hop: [u8; 6],
    device: u32,
}

impl Frames {
    fn make(target: &Target<'_>, first: u32, count: u32) -> Result<Self> {
        let network = target.network;
        let ends = join(spawn(target.client, Side::Client, move || Ends::ask(network))?)?;
        let all = (first..first + count).map(|n| ends.frame(destination(network, n)));
        Ok(Self { device: ends.device, all: all.collect::<Result<_>>()? })
    }

    /// Sends the frames in their order until `stop` is set. Returns how many were sent.
    fn send(&self, stop: &Stop) -> Result<u32> {
        let socket = packet_socket(self.device)?;
        let mut out = Batches::new();
        let mut next = 0;
        while !stop.stopped() && next < self.all.len() {
            match out.send(&socket, self.all.get(next..).unwrap_or_default()) {
                Ok(sent) => next += sent,
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno).context("flows: send"),
            }
        }
        Ok(u32::try_from(next)?)
    }

    /// Sends the frames batch by batch. Returns the time of each, ns, and how many were sent.
    fn send_batches(&self) -> Result<(Vec<u64>, u32)> {
        let socket = packet_socket(self.device)?;
        let (mut out, mut sent) = (Batches::new(), 0);
        let taken = batches(&self.all, |batch| {
            let count = out.send(&socket, batch)?;
            ensure!(count == batch.len(), "flows: {count} of {} were sent", batch.len());
            sent += count;
            Ok(())
        })?;
        Ok((taken, u32::try_from(sent)?))
    }
}

impl Ends {
    /// Looks up the route of this thread's namespace to `network`. Sends datagrams to resolve the
    /// MAC of the next hop.
    pub(crate) fn ask(network: Ipv4Addr) -> Result<Self> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect((network, FIRST_PORT))?;
        let SocketAddr::V4(own) = socket.local_addr()? else { bail!("flows: not IPv4") };
        let route = said(&format!("ip -j route get {network}"))?;
        let on_link = network.to_string();
        let via = route.pointer("/0/gateway").and_then(Value::as_str).unwrap_or(&on_link);
        let device = route.pointer("/0/dev").and_then(Value::as_str).context("flows: no route")?;
        let link = said(&format!("ip -j link show dev {device}"))?;
        let mac = link.pointer("/0/address").and_then(Value::as_str).unwrap_or_default();
        let mac = parse_mac(mac)?;
        let flags = link.pointer("/0/flags").and_then(Value::as_array);
        // A device without ARP takes every frame itself: its own MAC is the next hop.
        let noarp = flags.is_some_and(|flags| flags.iter().any(|flag| flag == "NOARP"));
        let next_hop = if noarp { mac } else { neighbour(&socket, via, device)? };
        let device = nix::net::if_::if_nametoindex(device)?;
        Ok(Self { ip: *own.ip(), mac, next_hop, device })
    }

    fn frame(&self, to: SocketAddrV4) -> Result<Vec<u8>> {
        let payload = [0x5a_u8; 18];
        let mut frame = Vec::with_capacity(60);
        PacketBuilder::ethernet2(self.mac, self.next_hop)
            .ipv4(self.ip.octets(), to.ip().octets(), 64)
            .udp(SOURCE_PORT, to.port())
            .write(&mut frame, &payload)?;
        Ok(frame)
    }
}

/// The MAC of the neighbour `ip`: the destination of `socket`, or the gateway to it. Sends
/// datagrams until the MAC is resolved.
fn neighbour(socket: &UdpSocket, ip: &str, device: &str) -> Result<[u8; 6]> {
    let end = Instant::now() + PATIENCE;
    loop {
        match socket.send(b"?") {
            // "Connection refused" is an answer, too.
            Err(error) if error.kind() != ErrorKind::ConnectionRefused => {
                return Err(error).context("flows: send");
            }
            _ => {}
        }
        let neighbours = said(&format!("ip -j neigh show {ip} dev {device}"))?;
        match neighbours.pointer("/0/lladdr").and_then(Value::as_str) {
            Some(mac) => return parse_mac(mac),
            None if Instant::now() > end => bail!("{ip}: no neighbour"),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Output of a command of iproute2, in this thread's namespace.
fn said(line: &str) -> Result<Value> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().context("ip")?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{line}: says no JSON"))
}

/// A MAC as iproute2 writes it.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("{text}: no MAC"))
}

/// A socket that sends whole frames on a device of this thread's namespace.
fn packet_socket(device: u32) -> Result<OwnedFd> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    // Protocol 0: the socket receives nothing.
    wire::bind(&fd, device, 0)?;
    Ok(fd)
}

/// Number of frames that have arrived on the target's device.
fn received(target: &Target<'_>) -> Result<u64> {
    let device = target.device.to_owned();
    join(spawn(target.server, Side::Server, move || frames_received(&device))?)
}

/// Received frames of a device, from `net/dev` of the thread's own namespace. `/sys` shows the
/// namespace of the process that mounted it.
fn frames_received(device: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    text.lines()
        .filter_map(|line| line.trim().split_once(':'))
        .find(|(name, _)| *name == device)
        .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok())
        .with_context(|| format!("{device}: no such device"))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::Ipv4Addr};

    use super::destination;

    #[test]
    fn no_flow_comes_twice() {
        let network = Ipv4Addr::new(198, 18, 0, 0);
        let all: HashSet<_> = (0..200_000).map(|n| destination(network, n)).collect();
        assert_eq!(all.len(), 200_000);
        assert!(all.iter().all(|to| to.port() >= 2_000));
    }
}
