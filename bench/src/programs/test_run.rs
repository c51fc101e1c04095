//! Programs of a live agent, run by `BPF_PROG_TEST_RUN`: with the agent's maps, and without the
//! rest of a packet's path.

use std::{net::SocketAddrV4, ops::Range, os::fd::AsFd as _};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use culvert::datapath::test_run::{Hook, Runs, Timed, sk_buff, timed};
use culvert_testbed::underlay::Underlay;
use etherparse::PacketBuilder;
use nix::net::if_::if_nametoindex;
use serde_json::Value;

use super::path::{Path, Place, Traffic};
use crate::{
    load::{
        OWN_THREAD, Peers, Side,
        flows::{Ends, parse_mac},
        join, pin, spawn,
    },
    stats::median,
};

/// `TC_ACT_UNSPEC` of linux/pkt_cls.h: the frame goes on.
pub(super) const PASS: i32 = -1;
/// `TC_ACT_SHOT` of linux/pkt_cls.h.
pub(super) const DROP: i32 = 2;
/// `TC_ACT_REDIRECT` of linux/pkt_cls.h.
const REDIRECT: i32 = 7;

/// Offset of `mark` in `struct __sk_buff` of linux/bpf.h.
const SK_BUFF_MARK: usize = 8;

/// Test runs of a program that changes its packet: one call each, since the changed packet would
/// take another path.
const SINGLE: Runs = Runs { repeat: 1, rounds: 2001 };
/// Test runs on a packet that stays unchanged.
const MANY: Runs = Runs { repeat: 256, rounds: 31 };
/// The first packet of a flow. After it, the caches have the flow's entry.
pub(super) const FIRST: Runs = Runs { repeat: 1, rounds: 1 };
/// Source port of the packets, which no other flow uses.
const SOURCE_PORT: u16 = 40_100;
/// Payload of a TCP segment as long as the tunnel's MTU allows. It stands for a GSO frame of many
/// segments: the kernel does not let a program grow the GSO frame of a test run.
const SEGMENT: usize = 1398;

/// Fields of a frame's `struct sk_buff` at a hook.
#[derive(Clone, Copy)]
pub(super) struct SkbState {
    /// A frame that the host forwards has a device on which it came in, as at ingress.
    pub(super) hook: Hook,
    /// `skb->mark`.
    pub(super) mark: u32,
}

/// The program at a place, a packet that it knows how to judge, and its verdict.
pub(crate) struct Known<'a> {
    place: &'a Place<'a>,
    frame: Vec<u8>,
    state: SkbState,
    verdict: i32,
}

impl<'a> Known<'a> {
    /// The programs and packets at both places of a path.
    pub(super) fn both(path: &'a Path<'_>, traffic: Traffic) -> Result<[Self; 2]> {
        let [first, next] = &path.places;
        if traffic == Traffic::Tcp {
            // Only a SYN begins a flow to a published port.
            first.sends_on(&frame(path.peers, Packet::Syn)?, FIRST)?;
        }
        let sent = frame(path.peers, Packet::Data(traffic))?;
        let arrives = next.receives(first.sends_on(&sent, FIRST)?.frame, path.answered)?;
        next.sends_on(&arrives, FIRST)?;
        if traffic == Traffic::Tcp && path.answered {
            // Acknowledges the answer, which establishes the connection.
            first.sends_on(&sent, FIRST)?;
        }
        Ok([Self::forwarded(first, sent), Self::forwarded(next, arrives)])
    }

    /// A packet of a flow that the program at `place` knows.
    fn forwarded(place: &'a Place<'a>, frame: Vec<u8>) -> Self {
        Self { place, frame, state: place.state(), verdict: REDIRECT }
    }

    /// A packet for which the program at `place` has the verdict `verdict`.
    pub(super) fn judged(
        place: &'a Place<'a>,
        frame: Vec<u8>,
        state: SkbState,
        verdict: i32,
    ) -> Self {
        Self { place, frame, state, verdict }
    }

    /// Time of the program on the packet, ns.
    pub(crate) fn time(&self) -> Result<f64> {
        let extra = self.place.overhead(&self.frame)?;
        let timed = self.place.judges(&self.frame, self.state, self.verdict, SINGLE)?;
        Ok(timed.ns.saturating_sub(extra) as f64)
    }

    /// Runs the program on the packet once.
    pub(crate) fn once(&self) -> Result<()> {
        self.place.judges(&self.frame, self.state, self.verdict, FIRST).map(drop)
    }

    /// The program.
    pub(super) fn program(&self) -> Result<ProgramInfo> {
        self.place.program()
    }

    /// Name of the program.
    pub(crate) fn name(&self) -> Result<String> {
        Ok(self.program()?.name_as_str().unwrap_or_default().to_owned())
    }

    /// Addresses of the machine code of its functions, the entry first.
    pub(crate) fn functions(&self) -> Result<Vec<Range<u64>>> {
        let fd = self.place.program()?.fd()?;
        Ok(culvert::datapath::jited::functions(fd.as_fd())?)
    }
}

/// A packet that the client of a path sends.
#[derive(Clone, Copy)]
pub(super) enum Packet {
    /// The beginning of a TCP connection.
    Syn,
    /// Payload.
    Data(Traffic),
    /// A datagram of 64 bytes from this port.
    From(u16),
}

/// The frame of a packet that the client of a path sends.
pub(super) fn frame(peers: &Peers, kind: Packet) -> Result<Vec<u8>> {
    built(&ends(peers)?, peers.to, kind)
}

/// Addresses of the client of a path, and of its next hop to the server.
pub(super) fn ends(peers: &Peers) -> Result<Ends> {
    let to = *peers.to.ip();
    join(spawn(&peers.client, Side::Client, move || Ends::ask(to))?)
}

/// The frame of a packet to `to`.
pub(super) fn built(ends: &Ends, to: SocketAddrV4, kind: Packet) -> Result<Vec<u8>> {
    let (to, port) = (*to.ip(), to.port());
    let packet =
        PacketBuilder::ethernet2(ends.mac, ends.next_hop).ipv4(ends.ip.octets(), to.octets(), 64);
    let mut frame = Vec::new();
    match kind {
        Packet::Syn => packet.tcp(SOURCE_PORT, port, 0, u16::MAX).syn().write(&mut frame, &[]),
        Packet::Data(Traffic::Udp) => packet.udp(SOURCE_PORT, port).write(&mut frame, &[0x5a; 64]),
        Packet::From(source) => packet.udp(source, port).write(&mut frame, &[0x5a; 64]),
        Packet::Data(Traffic::Tcp) => {
            let segment = packet.tcp(SOURCE_PORT, port, 1, u16::MAX).ack(1);
            segment.write(&mut frame, &[0x5a; SEGMENT])
        }
    }?;
    Ok(frame)
}

impl Place<'_> {
    /// The first program of the place.
    fn program(&self) -> Result<ProgramInfo> {
        let program = self.programs()?.into_iter().next();
        program.with_context(|| format!("{}: no program", self.device))
    }

    /// The fields of a frame that another host, a container or a process of this host has sent.
    pub(super) fn state(&self) -> SkbState {
        let hook = match self.hook {
            TcAttachType::Ingress => Hook::Ingress,
            TcAttachType::Egress | TcAttachType::Custom(_) => Hook::Egress,
        };
        SkbState { hook, mark: 0 }
    }

    /// Runs the program of the place on frames, one after the other.
    fn run(&self, frames: &[Vec<u8>], state: SkbState, runs: Runs) -> Result<Vec<Timed>> {
        let program =
            SchedClassifier::from_program_info(self.program()?, self.device.clone().into())?;
        culvert::netns::run_in(self.host.fd().as_fd(), || {
            pin(OWN_THREAD, Side::Client.core())?;
            let ifindex = if_nametoindex(self.device.as_str())?;
            let one = |frame: &Vec<u8>| -> Result<Timed> {
                let mut context = sk_buff(state.hook, ifindex, 0, frame.len());
                if let Some(mark) = context.get_mut(SK_BUFF_MARK..SK_BUFF_MARK + 4) {
                    mark.copy_from_slice(&state.mark.to_ne_bytes());
                }
                Ok(timed(&program, frame, Some(&context), runs)?)
            };
            frames.iter().map(one).collect()
        })?
    }

    /// Runs the program on a packet for which it must have this verdict.
    fn judges(&self, frame: &[u8], state: SkbState, verdict: i32, runs: Runs) -> Result<Timed> {
        let timed = self.run(&[frame.to_vec()], state, runs)?.pop().context("no run")?;
        self.has_judged(&timed, verdict)?;
        Ok(timed)
    }

    fn has_judged(&self, timed: &Timed, verdict: i32) -> Result<()> {
        let found = timed.verdict.cast_signed();
        ensure!(
            found == verdict,
            "{}: verdict {found}: the verdict for such a packet is {verdict}",
            self.device
        );
        Ok(())
    }

    /// Runs the program on a packet that it must forward.
    pub(super) fn sends_on(&self, frame: &[u8], runs: Runs) -> Result<Timed> {
        self.judges(frame, self.state(), REDIRECT, runs)
    }

    /// Median of the times of the program on packets that it must forward, each of another flow, in
    /// ns.
    pub(super) fn time_of_each(&self, frames: &[Vec<u8>]) -> Result<f64> {
        let extra = self.overhead(frames.first().context("no packets")?)?;
        let all = self.run(frames, self.state(), FIRST)?;
        all.iter().try_for_each(|timed| self.has_judged(timed, REDIRECT))?;
        let times: Vec<f64> =
            all.iter().map(|timed| timed.ns.saturating_sub(extra) as f64).collect();
        Ok(median(&times))
    }

    /// The overhead of a single run in ns: reading the clock, and the cold start.
    fn overhead(&self, frame: &[u8]) -> Result<u64> {
        let refused = [refused(frame)?];
        let [single, many] = [SINGLE, MANY].map(|runs| self.run(&refused, self.state(), runs));
        let single = single?.pop().context("no run")?;
        let many = many?.pop().context("no run")?;
        ensure!(
            refused.contains(&many.frame),
            "{}: the program changes a packet that it refuses",
            self.device
        );
        Ok(single.ns.saturating_sub(many.ns))
    }

    /// The frame that arrives at this place after `sent` has left the place before it: `sent`
    /// itself, or the answer with the same payload if `answered`.
    fn receives(&self, sent: Vec<u8>, answered: bool) -> Result<Vec<u8>> {
        let mut frame = sent;
        if answered {
            answer(&mut frame).context("what is sent on is no packet")?;
        }
        // On the underlay the kernel writes the MACs, after the program.
        if self.device == Underlay::UPLINK {
            let link = self.host.run(&format!("ip -j link show dev {}", self.device));
            let link: Value = serde_json::from_str(&link)?;
            let mac = link.pointer("/0/address").and_then(Value::as_str).unwrap_or_default();
            let dst = frame.first_chunk_mut().context("what is sent on is no frame")?;
            *dst = parse_mac(mac)?;
        }
        Ok(frame)
    }
}

/// A frame that every program refuses: its source is unknown, and its EtherType is for local
/// experiments (IEEE 802).
fn refused(frame: &[u8]) -> Result<Vec<u8>> {
    let mut frame = frame.to_vec();
    let header = frame.get_mut(6..14).context("no frame")?;
    header.copy_from_slice(&[0, 0, 0, 0, 0, 0, 0x88, 0xb5]);
    Ok(frame)
}

/// Makes the answer of an IPv4 packet without options: both sides' MACs, addresses and ports
/// change places, which changes none of the checksums.
fn answer(frame: &mut [u8]) -> Option<()> {
    for (at, len) in [(0, 6), (14 + 12, 4), (14 + 20, 2)] {
        frame.get_mut(at..at + 2 * len)?.rotate_left(len);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use culvert_tests::packet::{Host, V4, payload};

    use super::answer;

    #[test]
    fn an_answer_goes_back() {
        let host = |n| Host { mac: [2, 0, 0, 0, 0, n], v4: [10, 0, 0, n], v6: [0; 16] };
        let (one, two) = (host(1), host(2));
        let mut frame = V4::udp(&one, &two, (1000, 2000), &payload(64)).frame();
        answer(&mut frame).expect("a packet");
        assert_eq!(frame, V4::udp(&two, &one, (2000, 1000), &payload(64)).frame());
        assert!(answer(&mut frame[..20]).is_none());
    }
}
