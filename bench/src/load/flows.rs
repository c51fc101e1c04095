//! New flows: every datagram is the first of its flow.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg},
};

use super::{Side, Stop, join, spawn, udp::counted};

/// Datagrams that one system call sends.
const BATCH: usize = 64;
/// Least destination port: below it are well-known ones.
const FIRST_PORT: u16 = 2_000;
/// Longest measurement: Linux and Culvert track 262,144 flows by default, and what is to be
/// measured is how they begin, not how they are thrown out.
const LONGEST: Duration = Duration::from_millis(250);

/// Where flows go that differ in their destination only, and where they are counted.
pub(crate) struct Target<'a> {
    /// Namespace of the client.
    pub(crate) client: &'a Path,
    /// Namespace of the host that swallows them.
    pub(crate) server: &'a Path,
    /// Its device on which they arrive.
    pub(crate) device: &'a str,
    /// First of the addresses that the host swallows (RFC 2544's are for such use).
    pub(crate) network: Ipv4Addr,
}

/// The `n`th destination: ports first, then addresses.
fn destination(network: Ipv4Addr, n: u32) -> SocketAddrV4 {
    let ports = u32::from(u16::MAX - FIRST_PORT);
    let ip = Ipv4Addr::from_bits(network.to_bits() + n / ports);
    SocketAddrV4::new(ip, FIRST_PORT + (n % ports) as u16)
}

/// Sends the first datagrams of flows from number `first` on as fast as one thread can.
/// Returns how many arrive in a second, and the number after the last.
pub(crate) fn new_flows(target: &Target<'_>, first: u32, time: Duration) -> Result<(f64, u32)> {
    let stop = Stop::default();
    let (stopping, network) = (stop.clone(), target.network);
    let client = spawn(target.client, Side::Client, move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        send(&socket, network, first, None, &stopping)
    })?;
    let arrived = counted(time.min(LONGEST), || received(target).unwrap_or_default());
    stop.stop();
    Ok((arrived, join(client)?))
}

/// Makes `count` flows from number `first` on, no faster than the host keeps up.
pub(crate) fn make(target: &Target<'_>, first: u32, count: u32) -> Result<u32> {
    let network = target.network;
    let client = spawn(target.client, Side::Client, move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        send(&socket, network, first, Some(first + count), &Stop::default())
    })?;
    join(client)
}

fn send(
    socket: &UdpSocket,
    network: Ipv4Addr,
    first: u32,
    end: Option<u32>,
    stop: &Stop,
) -> Result<u32> {
    let payload = [0x5a_u8; 18];
    let slices: Vec<_> = (0..BATCH).map(|_| [std::io::IoSlice::new(&payload)]).collect();
    let mut addresses: Vec<Option<SockaddrIn>> = vec![None; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut next = first;
    while !stop.stopped() && end.is_none_or(|end| next < end) {
        for (n, address) in (next..).zip(&mut addresses) {
            *address = Some(SockaddrIn::from(destination(network, n)));
        }
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &addresses, [], MsgFlags::empty())
        {
            Ok(sent) => next += u32::try_from(sent.count())?,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => {}
            // What a full table says of a flow is no end of the measurement.
            Err(Errno::EPERM | Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ECONNREFUSED) => {
                next += 1;
            }
            Err(errno) => return Err(errno).context("flows: send"),
        }
    }
    Ok(next)
}

/// Frames that have arrived on the target's device.
fn received(target: &Target<'_>) -> Result<u64> {
    let device = target.device.to_owned();
    join(spawn(target.server, Side::Server, move || frames_received(&device))?)
}

/// `/proc/net/dev` of the thread's own namespace: `/sys` shows the mounter's.
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
