//! Probes of the underlay: whether a router on the path to a VTEP refuses a datagram for its size.
//!
//! A probe is a UDP datagram with DF from the VTEP address to the VXLAN port of the other VTEP. Its
//! VXLAN header has no flag set, so every VTEP drops it (RFC 7348 §5, `vni_flag_clear` in Culvert)
//! and none has to answer. An answer is an ICMP "fragmentation needed" of a router. The kernel puts
//! it on the error queue of the socket (`IP_RECVERR` in ip(7)) if it quotes the socket's addresses
//! and ports.
//!
//! Anybody can forge such an error, also without seeing the probes. So the quote must show something
//! that a forger cannot know. Each probe has a random number behind its VXLAN header. Most routers
//! quote it (RFC 1812 §4.3.2.3: as much as fits into 576 bytes). A router that quotes only the eight
//! bytes that RFC 792 demands shows nothing but the source port, and somebody can send an error for
//! each port. So such an error counts only if errors come for each of [`SENDERS`] random ports, none
//! comes for any of [`DECOYS`] other ports from which nothing was sent, and the same happens again
//! with other ports.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use culvert_common::datapath::{encap::LEAST_ENTROPY_PORT, pmtu::MIN_PATH_MTU};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt::Ipv4RecvErr,
    },
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

/// Number of sockets from which each probe is sent: paths may differ by the source port.
const SENDERS: usize = 4;
/// Number of sockets from which nothing is sent.
const DECOYS: usize = 12;
/// Bytes of the IPv4 and UDP headers.
const HEADERS: u16 = 28;
/// Bytes of the VXLAN header, all zero.
const VXLAN: usize = 8;
/// Bytes of the random number behind the VXLAN header.
const NONCE: usize = 16;
/// Bytes of the random number that a quote must show at least.
const SHOWN: usize = 8;
/// Most errors that are read from a socket at once.
const BATCH: usize = 64;
/// Most attempts to find a free port for a socket.
const ATTEMPTS: usize = 16;

/// A probe to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathProbe {
    /// VTEP address and VXLAN port.
    pub to: SocketAddrV4,
    /// Bytes of the IPv4 packet.
    pub len: u16,
}

/// What a probe has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A router has refused the packet, and takes packets of at most this many bytes.
    TooBig(u16),
    /// No router has refused the packet. It has arrived, or was lost.
    Silent,
    /// There were errors, but somebody has forged them.
    Forged,
    /// The kernel has not sent the packet, for this reason.
    Unsent(String),
}

/// Sends probes from the VTEP address `from`, each a few times, and waits up to `wait` for errors,
/// or up to twice that if a router quotes only eight bytes of a probe. Returns the answers in the
/// order of the probes. Blocks.
///
/// # Errors
///
/// No socket can be opened: the host has lost the address, or no open file is left.
pub fn ask(from: Ipv4Addr, probes: &[PathProbe], wait: Duration) -> io::Result<Vec<Answer>> {
    let first = round(from, probes, wait)?;
    let unsure: Vec<PathProbe> = probes
        .iter()
        .zip(&first)
        .filter(|(_, verdict)| matches!(verdict, Verdict::Unsure(_)))
        .map(|(probe, _)| *probe)
        .collect();
    let again = if unsure.is_empty() { Vec::new() } else { round(from, &unsure, wait)? };
    let mut again = again.into_iter();
    let answer = |verdict| match verdict {
        Verdict::Sure(answer) => answer,
        Verdict::Unsure(mtu) => match again.next() {
            Some(Verdict::Sure(answer)) => answer,
            Some(Verdict::Unsure(second)) => Answer::TooBig(mtu.min(second)),
            None => Answer::Silent,
        },
    };
    Ok(first.into_iter().map(answer).collect())
}

/// What a round of probes has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Sure(Answer),
    /// An MTU of errors that quote too little of the probe.
    Unsure(u16),
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketUse {
    /// Sends each probe. The number is less than [`SENDERS`].
    Sender(usize),
    /// Sends nothing.
    Decoy,
}

/// An ICMP "fragmentation needed" on the error queue of a socket.
struct TooBigReport<'a> {
    /// Destination of the quoted datagram.
    to: SocketAddrV4,
    /// The MTU that it tells.
    mtu: u32,
    /// What it quotes of the payload.
    quote: &'a [u8],
}

/// A probe, and the errors about it.
struct Trial {
    probe: PathProbe,
    /// What the payload begins with: the VXLAN header and the random number.
    head: [u8; VXLAN + NONCE],
    /// Smallest MTU of the errors that quote the random number.
    proven: Option<u16>,
    /// Smallest MTU of the errors that do not quote it.
    claimed: Option<u16>,
    /// The senders with such an error.
    claims: [bool; SENDERS],
    /// An error came that no router has sent.
    forged: bool,
    /// Why the last attempt to send the probe failed, if none succeeded.
    unsent: Option<String>,
}

impl Trial {
    fn new(probe: PathProbe, nonce: [u8; NONCE]) -> Self {
        let mut head = [0; VXLAN + NONCE];
        for (to, from) in head.iter_mut().skip(VXLAN).zip(nonce) {
            *to = from;
        }
        Self {
            probe,
            head,
            proven: None,
            claimed: None,
            claims: [false; SENDERS],
            forged: false,
            unsent: None,
        }
    }

    /// Notes an error that came to a socket.
    fn note(&mut self, socket: SocketUse, report: &TooBigReport<'_>) {
        if report.to != self.probe.to {
            return;
        }
        let SocketUse::Sender(sender) = socket else {
            self.forged = true;
            return;
        };
        // A router refuses no datagram that its next link takes.
        let sensible = MIN_PATH_MTU..u32::from(self.probe.len);
        let mtu = u16::try_from(report.mtu).ok().filter(|_| sensible.contains(&report.mtu));
        let begins = report.quote.iter().zip(&self.head).all(|(quoted, sent)| quoted == sent);
        let Some(mtu) = mtu.filter(|_| begins) else {
            self.forged |= !begins;
            return;
        };
        let least = |before: Option<u16>| Some(before.map_or(mtu, |before| before.min(mtu)));
        if report.quote.len() >= VXLAN + SHOWN {
            self.proven = least(self.proven);
        } else if let Some(claim) = self.claims.get_mut(sender) {
            *claim = true;
            self.claimed = least(self.claimed);
        }
    }

    fn verdict(&self) -> Verdict {
        if let Some(mtu) = self.proven {
            return Verdict::Sure(Answer::TooBig(mtu));
        }
        if self.forged {
            return Verdict::Sure(Answer::Forged);
        }
        match (self.claimed, &self.unsent) {
            (Some(mtu), _) if self.claims.iter().all(|claim| *claim) => Verdict::Unsure(mtu),
            (_, Some(why)) => Verdict::Sure(Answer::Unsent(why.clone())),
            _ => Verdict::Sure(Answer::Silent),
        }
    }
}

/// Sends the probes from new ports, and gathers errors until each probe has a proven answer, or for
/// `wait`.
fn round(from: Ipv4Addr, probes: &[PathProbe], wait: Duration) -> io::Result<Vec<Verdict>> {
    let mut sockets = Vec::new();
    for number in 0..SENDERS {
        sockets.push((SocketUse::Sender(number), open(from, Ipv4PathMtuDiscovery::PROBE)?));
    }
    for _ in 0..DECOYS {
        // `INTERFACE`: an error for such a socket changes no route of the kernel.
        sockets.push((SocketUse::Decoy, open(from, Ipv4PathMtuDiscovery::INTERFACE)?));
    }
    let mut trials: Vec<Trial> =
        probes.iter().map(|probe| Trial::new(*probe, rand::random())).collect();
    for trial in &mut trials {
        send(&sockets, trial);
    }
    let end = Instant::now() + wait;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || trials.iter().all(|trial| trial.proven.is_some()) {
            return Ok(trials.iter().map(Trial::verdict).collect());
        }
        let mut ready: Vec<PollFd<'_>> = sockets
            .iter()
            // Errors are reported in any case.
            .map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::empty()))
            .collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut ready, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for ((kind, socket), ready) in sockets.iter().zip(&ready) {
            if ready.any() == Some(true) {
                read(socket, |report| {
                    trials.iter_mut().for_each(|trial| trial.note(*kind, report));
                });
            }
        }
    }
}

/// A socket with a random port of the range of VXLAN's source ports, as a firewall on the path may
/// let no others through.
fn open(from: Ipv4Addr, discovery: Ipv4PathMtuDiscovery) -> io::Result<UdpSocket> {
    let mut failed = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let port = rand::random_range(LEAST_ENTROPY_PORT..=u16::MAX);
        match UdpSocket::bind((from, port)) {
            Ok(socket) => {
                set_ip_mtu_discover(&socket, discovery)?;
                setsockopt(&socket, Ipv4RecvErr, &true)?;
                socket.set_write_timeout(Some(Duration::from_millis(100)))?;
                return Ok(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => failed = error,
            Err(error) => return Err(error),
        }
    }
    Err(failed)
}

/// Sends a probe from each sender.
fn send(sockets: &[(SocketUse, UdpSocket)], trial: &mut Trial) {
    let mut payload = trial.head.to_vec();
    payload.resize(usize::from(trial.probe.len.saturating_sub(HEADERS)).max(payload.len()), 0);
    let (mut sent, mut failed) = (false, None);
    for (kind, socket) in sockets {
        if *kind == SocketUse::Decoy {
            continue;
        }
        let attempt = || socket.send_to(&payload, trial.probe.to);
        // The first attempt may return the error about a probe to another VTEP.
        match attempt().or_else(|_| attempt()) {
            Ok(_) => sent = true,
            Err(error) => failed = Some(error.to_string()),
        }
    }
    trial.unsent = failed.filter(|_| !sent);
}

/// Reads the error queue of a socket.
fn read(socket: &UdpSocket, mut note: impl FnMut(&TooBigReport<'_>)) {
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    for _ in 0..BATCH {
        let mut payload = [0; VXLAN + NONCE];
        let mut parts = [io::IoSliceMut::new(&mut payload)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let fd = socket.as_raw_fd();
        let Ok(message) = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut space), flags) else {
            break;
        };
        let (len, to) = (message.bytes, message.address);
        let mut mtu = None;
        for part in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::Ipv4RecvErr(error, _) = part
                && error.ee_origin == libc::SO_EE_ORIGIN_ICMP
                && (error.ee_type, error.ee_code) == FRAG_NEEDED
            {
                mtu = Some(error.ee_info);
            }
        }
        let (Some(mtu), Some(to)) = (mtu, to) else { continue };
        let to = SocketAddrV4::new(to.ip(), to.port());
        note(&TooBigReport { to, mtu, quote: payload.get(..len).unwrap_or(&payload) });
    }
    // The kernel may set the error of the socket after the queue was read. It would make each poll
    // return at once.
    let _ = socket.take_error();
}

/// Type and code of an ICMP "fragmentation needed" (RFC 792).
const FRAG_NEEDED: (u8, u8) = (3, 4);

#[cfg(test)]
mod tests {
    use super::*;

    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 4789);
    const PROBE: PathProbe = PathProbe { to: TO, len: 1500 };

    fn trial() -> Trial {
        Trial::new(PROBE, [7; NONCE])
    }

    fn report(mtu: u32, quote: &[u8]) -> TooBigReport<'_> {
        TooBigReport { to: TO, mtu, quote }
    }

    #[test]
    fn an_error_that_quotes_the_random_number_is_proof() {
        for shown in [VXLAN + SHOWN, VXLAN + NONCE] {
            let mut trial = trial();
            let head = trial.head;
            trial.note(SocketUse::Sender(2), &report(1400, &head[..shown]));
            trial.note(SocketUse::Sender(0), &report(1450, &head[..shown]));
            // A forger who tries all ports does not refute it.
            trial.note(SocketUse::Decoy, &report(600, &[]));
            assert_eq!(trial.verdict(), Verdict::Sure(Answer::TooBig(1400)));
        }
    }

    #[test]
    fn a_wrong_number_another_vtep_and_a_senseless_mtu_prove_nothing() {
        let mut wrong = trial();
        let mut head = wrong.head;
        head[VXLAN] ^= 1;
        wrong.note(SocketUse::Sender(0), &report(1400, &head));
        assert_eq!(wrong.verdict(), Verdict::Sure(Answer::Forged));

        for mtu in [0, 1, 551, 1500, 1501, 65_535, 65_536, u32::MAX] {
            let mut trial = trial();
            let head = trial.head;
            trial.note(SocketUse::Sender(0), &report(mtu, &head));
            assert_eq!(trial.verdict(), Verdict::Sure(Answer::Silent), "{mtu}");
        }

        let mut other = trial();
        let head = other.head;
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 3), 4789);
        other.note(SocketUse::Sender(0), &TooBigReport { to, mtu: 1400, quote: &head });
        other.note(SocketUse::Decoy, &TooBigReport { to, mtu: 1400, quote: &head });
        assert_eq!(other.verdict(), Verdict::Sure(Answer::Silent));
    }

    #[test]
    fn short_quotes_count_only_for_all_ports_and_no_decoy() {
        let mut trial = trial();
        let head = trial.head;
        for sender in 0..SENDERS {
            assert_eq!(trial.verdict(), Verdict::Sure(Answer::Silent), "{sender} errors");
            let quote = &head[..if sender == 0 { VXLAN + SHOWN - 1 } else { 0 }];
            trial.note(SocketUse::Sender(sender), &report(1400, quote));
        }
        assert_eq!(trial.verdict(), Verdict::Unsure(1400));
        trial.note(SocketUse::Decoy, &report(1400, &[]));
        assert_eq!(trial.verdict(), Verdict::Sure(Answer::Forged));
    }

    #[test]
    fn a_probe_that_was_not_sent_says_why() {
        let mut trial = trial();
        trial.unsent = Some("no".to_owned());
        assert_eq!(trial.verdict(), Verdict::Sure(Answer::Unsent("no".to_owned())));
    }

    /// Nobody answers on the loopback device.
    #[test]
    fn nobody_refuses_on_loopback() {
        let probes =
            [1472, 576].map(|len| PathProbe { to: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9), len });
        let answers = ask(Ipv4Addr::LOCALHOST, &probes, Duration::from_millis(50)).unwrap();
        assert_eq!(answers, [Answer::Silent, Answer::Silent]);
    }
}
