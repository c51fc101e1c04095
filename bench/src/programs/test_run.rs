//! Programs of a live agent, run by `BPF_PROG_TEST_RUN`: with the agent's maps, and without the
//! rest of a packet's path.

use std::{ops::Range, os::fd::AsFd as _};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use culvert::datapath::test_run::{Hook, Runs, Timed, sk_buff, timed};
use culvert_testbed::underlay::Underlay;
use etherparse::PacketBuilder;
use nix::net::if_::if_nametoindex;
use serde_json::Value;

use super::path::{Path, Place, Traffic};
use crate::load::{
    OWN_THREAD, Peers, Side,
    flows::{Ends, parse_mac},
    join, pin, spawn,
};

/// `TC_ACT_REDIRECT` of linux/pkt_cls.h.
const REDIRECT: u32 = 7;

/// Test runs of a program that changes its packet: one call each, since the changed packet would
/// take another path.
const SINGLE: Runs = Runs { repeat: 1, rounds: 2001 };
/// Test runs on a packet that stays unchanged.
const MANY: Runs = Runs { repeat: 256, rounds: 31 };
/// The first packet of a flow. After it, the caches have the flow's entry.
const FIRST: Runs = Runs { repeat: 1, rounds: 1 };
/// Source port of the packets, which no other flow uses.
const SOURCE_PORT: u16 = 40_100;
/// Payload of a TCP segment as long as the tunnel's MTU allows. It stands for a GSO frame of many
/// segments: the kernel does not let a program grow the GSO frame of a test run.
const SEGMENT: usize = 1398;

/// The program at a place, and a packet of a flow that it knows.
pub(crate) struct Known<'a> {
    place: &'a Place<'a>,
    frame: Vec<u8>,
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
        Ok([Self { place: first, frame: sent }, Self { place: next, frame: arrives }])
    }

    /// Time of the program on the packet, ns.
    pub(crate) fn time(&self) -> Result<f64> {
        self.place.time(&self.frame)
    }

    /// Runs the program on the packet once.
    pub(crate) fn once(&self) -> Result<()> {
        self.place.sends_on(&self.frame, FIRST).map(drop)
    }

    /// Name of the program.
    pub(crate) fn name(&self) -> Result<String> {
        Ok(self.place.program()?.name_as_str().unwrap_or_default().to_owned())
    }

    /// Addresses of the machine code of its functions, the entry first.
    pub(crate) fn functions(&self) -> Result<Vec<Range<u64>>> {
        let fd = self.place.program()?.fd()?;
        Ok(culvert::datapath::jited::functions(fd.as_fd())?)
    }
}

/// A packet that the client of a path sends.
#[derive(Clone, Copy)]
enum Packet {
    /// The beginning of a TCP connection.
    Syn,
    /// Payload.
    Data(Traffic),
}

/// The frame of a packet that the client of a path sends.
fn frame(peers: &Peers, kind: Packet) -> Result<Vec<u8>> {
    let (to, port) = (*peers.to.ip(), peers.to.port());
    let ends = join(spawn(&peers.client, Side::Client, move || Ends::ask(to))?)?;
    let packet =
        PacketBuilder::ethernet2(ends.mac, ends.next_hop).ipv4(ends.ip.octets(), to.octets(), 64);
    let mut frame = Vec::new();
    match kind {
        Packet::Syn => packet.tcp(SOURCE_PORT, port, 0, u16::MAX).syn().write(&mut frame, &[]),
        Packet::Data(Traffic::Udp) => packet.udp(SOURCE_PORT, port).write(&mut frame, &[0x5a; 64]),
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

    /// Runs the program of the place.
    fn run(&self, frame: &[u8], runs: Runs) -> Result<Timed> {
        let program =
            SchedClassifier::from_program_info(self.program()?, self.device.clone().into())?;
        let hook = match self.hook {
            TcAttachType::Ingress => Hook::Ingress,
            TcAttachType::Egress | TcAttachType::Custom(_) => Hook::Egress,
        };
        culvert::netns::run_in(self.host.fd().as_fd(), || {
            pin(OWN_THREAD, Side::Client.core())?;
            let context = sk_buff(hook, if_nametoindex(self.device.as_str())?, 0, frame.len());
            Ok(timed(&program, frame, Some(&context), runs)?)
        })?
    }

    /// Runs the program on a packet that it must forward.
    fn sends_on(&self, frame: &[u8], runs: Runs) -> Result<Timed> {
        let timed = self.run(frame, runs)?;
        let verdict = timed.verdict.cast_signed();
        ensure!(
            timed.verdict == REDIRECT,
            "{}: verdict {verdict}: the program does not forward the packet",
            self.device
        );
        Ok(timed)
    }

    /// Time of the program on a packet, in ns, minus the overhead of a single run: reading the
    /// clock, and the cold start.
    fn time(&self, frame: &[u8]) -> Result<f64> {
        let refused = refused(frame)?;
        let (single, many) = (self.run(&refused, SINGLE)?, self.run(&refused, MANY)?);
        ensure!(
            many.frame == refused,
            "{}: the program changes a packet that it refuses",
            self.device
        );
        let extra = single.ns.saturating_sub(many.ns);
        let timed = self.sends_on(frame, SINGLE)?;
        Ok(timed.ns.saturating_sub(extra) as f64)
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
