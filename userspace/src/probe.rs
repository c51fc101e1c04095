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
//! quote it (RFC 1812 §4.3.2.3: as much as fits into 576 bytes). Such an error decides at once.
//!
//! A router that quotes only the eight bytes that RFC 792 demands shows nothing but the source port,
//! and somebody can send an error for each port. Many such routers also limit their errors, some to
//! one in 500 ms or in a second, and there may be several paths of which one is small. So the probe
//! is first sent from `FIRST` ports at once, whose errors count only with the random number, and
//! then from one new random port in each step, for `STEPS` steps. An error that quotes too little
//! counts only if it comes in the step of its port. `NEEDED` of them decide, if no error comes for
//! any of `DECOYS` ports from which nothing is sent.
//!
//! Let a forger hit each port with some probability in each step, which he may choose anew for each
//! step. For the best choice he succeeds with a probability of less than 2 in 10⁸ (the test
//! `a_blind_forger_does_not_succeed` computes it).

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use culvert_common::{
    datapath::{encap::LEAST_PROBE_PORT, pmtu::MIN_PATH_MTU},
    wire::{
        VxlanHdr,
        icmp::{V4_FRAG_NEEDED, V4_UNREACHABLE},
    },
};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt::Ipv4RecvErr,
    },
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use tokio::sync::mpsc::UnboundedSender;

/// Number of sockets from which each probe is sent at first: paths may differ by the source port.
const FIRST: usize = 4;
/// Number of steps after that. In each the probe is sent from one new socket.
const STEPS: usize = 12;
/// Number of steps with an error that decide if the errors do not quote the random number.
const NEEDED: usize = 4;
/// Number of sockets from which nothing is sent.
const DECOYS: usize = 64;
/// Longest time until it is noticed that nobody wants the answers any more.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of the IPv4 and UDP headers.
const HEADERS: u16 = 28;
/// Bytes of the VXLAN header, all zero.
const VXLAN: usize = VxlanHdr::LEN;
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

/// Where answers go: each with its probe, as soon as it is known.
pub type Answers = UnboundedSender<(PathProbe, Answer)>;

/// Sends probes from the VTEP address `from`, and answers each. The first step and the others take
/// `step` each. An error that quotes the random number is answered at once, and other answers take
/// several steps. Blocks, and returns early if the receiver of `answers` is closed.
///
/// # Errors
///
/// No socket can be opened: the host has lost the address, or no open file is left. The probes that
/// have no answer yet get none.
pub fn ask(
    from: Ipv4Addr,
    probes: &[PathProbe],
    step: Duration,
    answers: &Answers,
) -> io::Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..DECOYS {
        // `INTERFACE`: an error for such a socket changes no route of the kernel.
        sockets.push((SocketUse::Decoy, open(from, Ipv4PathMtuDiscovery::INTERFACE)?));
    }
    let mut trials: Vec<Trial> =
        probes.iter().map(|probe| Trial::new(*probe, rand::random())).collect();
    for number in 0..=STEPS {
        let (kind, senders) = match number.checked_sub(1) {
            None => (SocketUse::First, FIRST),
            Some(number) => (SocketUse::Step(number), 1),
        };
        let before = sockets.len();
        for _ in 0..senders {
            sockets.push((kind, open(from, Ipv4PathMtuDiscovery::PROBE)?));
        }
        for trial in &mut trials {
            trial.step = kind;
            send(sockets.iter().skip(before).map(|(_, socket)| socket), trial);
        }
        gather(&sockets, &mut trials, Instant::now() + step, answers)?;
        tell(&mut trials, answers, |trial| trial.verdict(STEPS - number));
        if trials.is_empty() || answers.is_closed() {
            break;
        }
    }
    Ok(())
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketUse {
    /// Sends each probe at first.
    First,
    /// Sends each probe in the step with this number. The number is less than [`STEPS`].
    Step(usize),
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
    /// MTUs of the errors that do not quote it, by step.
    claims: [Option<u16>; STEPS],
    /// Sockets from which the probe was sent last.
    step: SocketUse,
    /// An error came that no router has sent.
    forged: bool,
    /// Why the probe could not be sent at first.
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
            claims: [None; STEPS],
            step: SocketUse::First,
            forged: false,
            unsent: None,
        }
    }

    /// Notes an error that came to a socket.
    fn note(&mut self, socket: SocketUse, report: &TooBigReport<'_>) {
        if report.to != self.probe.to {
            return;
        }
        if socket == SocketUse::Decoy {
            self.forged = true;
            return;
        }
        // A router refuses no datagram that its next link takes.
        let sensible = MIN_PATH_MTU..u32::from(self.probe.len);
        let mtu = u16::try_from(report.mtu).ok().filter(|_| sensible.contains(&report.mtu));
        let begins = report.quote.iter().zip(&self.head).all(|(quoted, sent)| quoted == sent);
        let Some(mtu) = mtu.filter(|_| begins) else {
            self.forged |= !begins;
            return;
        };
        if report.quote.len() >= VXLAN + SHOWN {
            self.proven = Some(self.proven.map_or(mtu, |before| before.min(mtu)));
            return;
        }
        // An error that comes later shows nothing: a forger may hit the ports of all steps at once.
        if let SocketUse::Step(number) = socket
            && socket == self.step
            && let Some(claim) = self.claims.get_mut(number)
        {
            // The probe was sent once from this port, and one router refuses it.
            self.forged |= *claim.get_or_insert(mtu) != mtu;
        }
    }

    fn proof(&self) -> Option<Answer> {
        self.proven.map(Answer::TooBig)
    }

    /// The answer at the end of a step before `left` other steps. `None`: the others decide.
    fn verdict(&self, left: usize) -> Option<Answer> {
        if self.proven.is_some() {
            return self.proof();
        }
        if self.forged {
            return Some(Answer::Forged);
        }
        if let Some(why) = &self.unsent {
            return Some(Answer::Unsent(why.clone()));
        }
        let mut claims: Vec<u16> = self.claims.iter().copied().flatten().collect();
        claims.sort_unstable();
        // At least `NEEDED` errors tell this MTU or a smaller one, so a few forged ones among true
        // ones do not lower it.
        let decided = claims.get(NEEDED - 1).map(|mtu| Answer::TooBig(*mtu));
        decided.or_else(|| (claims.len() + left < NEEDED).then_some(Answer::Silent))
    }
}

/// Reads errors until `end`, and answers trials with a proof at once.
fn gather(
    sockets: &[(SocketUse, UdpSocket)],
    trials: &mut Vec<Trial>,
    end: Instant,
    answers: &Answers,
) -> io::Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || trials.is_empty() || answers.is_closed() {
            return Ok(());
        }
        let mut ready: Vec<PollFd<'_>> = sockets
            .iter()
            // Errors are reported in any case.
            .map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::empty()))
            .collect();
        let timeout = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::ZERO);
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
        tell(trials, answers, Trial::proof);
    }
}

/// Sends the answers that are known, and removes their trials.
fn tell(trials: &mut Vec<Trial>, answers: &Answers, known: impl Fn(&Trial) -> Option<Answer>) {
    trials.retain(|trial| match known(trial) {
        Some(answer) => {
            // `ask` looks whether the receiver is closed.
            let _ = answers.send((trial.probe, answer));
            false
        }
        None => true,
    });
}

/// A socket with a random port of those for probes. They are in the range of VXLAN's source ports, as a
/// firewall on the path may let no others through.
fn open(from: Ipv4Addr, discovery: Ipv4PathMtuDiscovery) -> io::Result<UdpSocket> {
    let mut failed = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let port = rand::random_range(LEAST_PROBE_PORT..=u16::MAX);
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

/// Sends a probe from each of the sockets.
fn send<'a>(senders: impl Iterator<Item = &'a UdpSocket>, trial: &mut Trial) {
    let mut payload = trial.head.to_vec();
    payload.resize(usize::from(trial.probe.len.saturating_sub(HEADERS)).max(payload.len()), 0);
    let (mut sent, mut failed) = (false, None);
    for socket in senders {
        let attempt = || socket.send_to(&payload, trial.probe.to);
        // The first attempt may return the error about a probe to another VTEP.
        match attempt().or_else(|_| attempt()) {
            Ok(_) => sent = true,
            Err(error) => failed = Some(error.to_string()),
        }
    }
    if trial.step == SocketUse::First {
        trial.unsent = failed.filter(|_| !sent);
    }
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
const FRAG_NEEDED: (u8, u8) = (V4_UNREACHABLE, V4_FRAG_NEEDED);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 4789);
    const PROBE: PathProbe = PathProbe { to: TO, len: 1500 };

    fn trial() -> Trial {
        Trial::new(PROBE, [7; NONCE])
    }

    fn report(mtu: u32, quote: &[u8]) -> TooBigReport<'_> {
        TooBigReport { to: TO, mtu, quote }
    }

    /// The answer after the steps for which `error` says what MTU an error of eight quoted bytes
    /// tells, and the number of these steps.
    fn steps(trial: &mut Trial, error: impl Fn(usize) -> Option<u32>) -> (Option<Answer>, usize) {
        assert_eq!(trial.verdict(STEPS), None);
        for number in 0..STEPS {
            trial.step = SocketUse::Step(number);
            if let Some(mtu) = error(number) {
                trial.note(trial.step, &report(mtu, &[]));
            }
            let answer = trial.verdict(STEPS - 1 - number);
            if answer.is_some() {
                return (answer, number + 1);
            }
        }
        (None, STEPS)
    }

    #[test]
    fn an_error_that_quotes_the_random_number_is_proof() {
        for shown in [VXLAN + SHOWN, VXLAN + NONCE] {
            let mut trial = trial();
            let head = trial.head;
            trial.note(SocketUse::First, &report(1400, &head[..shown]));
            trial.note(SocketUse::Step(0), &report(1450, &head[..shown]));
            // A forger who tries all ports does not refute it.
            trial.note(SocketUse::Decoy, &report(600, &[]));
            assert_eq!(trial.proof(), Some(Answer::TooBig(1400)));
            assert_eq!(trial.verdict(STEPS), Some(Answer::TooBig(1400)));
        }
    }

    #[test]
    fn a_wrong_number_another_vtep_and_a_senseless_mtu_prove_nothing() {
        let mut wrong = trial();
        let mut head = wrong.head;
        head[VXLAN] ^= 1;
        wrong.note(SocketUse::First, &report(1400, &head));
        assert_eq!(wrong.verdict(STEPS), Some(Answer::Forged));

        for mtu in [0, 1, 551, 1500, 1501, 65_535, 65_536, u32::MAX] {
            let mut trial = trial();
            let head = trial.head;
            trial.note(SocketUse::First, &report(mtu, &head));
            let (answer, _) = steps(&mut trial, |_| Some(mtu));
            assert_eq!(answer, Some(Answer::Silent), "{mtu}");
        }

        let mut other = trial();
        let head = other.head;
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 3), 4789);
        other.note(SocketUse::First, &TooBigReport { to, mtu: 1400, quote: &head });
        other.note(SocketUse::Decoy, &TooBigReport { to, mtu: 1400, quote: &head });
        assert_eq!(steps(&mut other, |_| None), (Some(Answer::Silent), 9));
    }

    /// A router with a limit answers some steps only, and so does one of several paths.
    #[test]
    fn a_router_that_quotes_eight_bytes_and_limits_its_errors_is_found() {
        // All, every second, every third, and only the last ones.
        for (every, after, taken) in [(1, 0, 4), (2, 0, 7), (3, 0, 10), (1, 8, 12)] {
            let refused =
                |number: usize| (number >= after && number.is_multiple_of(every)).then_some(1400);
            let answer = steps(&mut trial(), refused);
            assert_eq!(answer, (Some(Answer::TooBig(1400)), taken), "{every} {after}");
        }
        let few = |number: usize| (number < NEEDED - 1).then_some(1400);
        assert_eq!(steps(&mut trial(), few), (Some(Answer::Silent), STEPS));
    }

    #[test]
    fn of_two_small_paths_the_mtu_that_enough_errors_tell_counts() {
        let mtus = |number: usize| Some(if number == 1 { 600 } else { 1400 });
        assert_eq!(steps(&mut trial(), mtus), (Some(Answer::TooBig(1400)), 4));
    }

    #[test]
    fn short_quotes_count_once_in_their_step_and_for_no_decoy() {
        let mut trial = trial();
        let head = trial.head;
        for _ in 0..STEPS {
            trial.note(SocketUse::First, &report(1400, &[]));
        }
        trial.step = SocketUse::Step(NEEDED);
        for number in 0..STEPS {
            trial.note(SocketUse::Step(number), &report(1400, &head[..VXLAN + SHOWN - 1]));
        }
        assert_eq!(trial.claims.iter().flatten().count(), 1);
        assert_eq!(trial.verdict(NEEDED), None);
        trial.note(trial.step, &report(1400, &[]));
        assert_eq!(trial.verdict(NEEDED), None);
        trial.note(SocketUse::Decoy, &report(1400, &[]));
        assert_eq!(trial.verdict(NEEDED), Some(Answer::Forged));
    }

    #[test]
    fn two_mtus_in_a_step_are_forged() {
        let mut trial = trial();
        trial.step = SocketUse::Step(0);
        trial.note(trial.step, &report(1400, &[]));
        trial.note(trial.step, &report(600, &[]));
        assert_eq!(trial.verdict(STEPS - 1), Some(Answer::Forged));
    }

    /// Chance of a forger who chooses for each step the best probability to hit a port, even if he
    /// knew how many errors have counted.
    #[test]
    fn a_blind_forger_does_not_succeed() {
        let decoys = i32::try_from(DECOYS).unwrap();
        let mut chances = [0.0; NEEDED + 1];
        chances[NEEDED] = 1.0;
        for _ in 0..STEPS {
            let after = chances;
            for (counted, chance) in chances.iter_mut().enumerate().take(NEEDED) {
                let of = |hit: f64| {
                    let then = hit * after[counted + 1] + (1.0 - hit) * after[counted];
                    (1.0 - hit).powi(decoys) * then
                };
                *chance = (0..1000).map(|hit| of(f64::from(hit) / 4000.0)).fold(0.0, f64::max);
            }
        }
        assert!(chances[0] < 2e-8, "{}", chances[0]);
    }

    #[test]
    fn a_probe_that_was_not_sent_says_why() {
        let mut trial = trial();
        trial.unsent = Some("no".to_owned());
        assert_eq!(trial.verdict(STEPS), Some(Answer::Unsent("no".to_owned())));
    }

    /// Nobody answers on the loopback device.
    #[test]
    fn nobody_refuses_on_loopback() {
        let probes =
            [1472, 576].map(|len| PathProbe { to: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9), len });
        let (answers, mut answered) = mpsc::unbounded_channel();
        ask(Ipv4Addr::LOCALHOST, &probes, Duration::from_millis(5), &answers).unwrap();
        for probe in probes {
            assert_eq!(answered.try_recv(), Ok((probe, Answer::Silent)));
        }
    }

    /// An agent that stops does not wait for the answers.
    #[test]
    fn nobody_is_probed_for_nobody() {
        let probe = PathProbe { to: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9), len: 576 };
        let (answers, answered) = mpsc::unbounded_channel();
        drop(answered);
        let start = Instant::now();
        ask(Ipv4Addr::LOCALHOST, &[probe], Duration::from_secs(3600), &answers).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
