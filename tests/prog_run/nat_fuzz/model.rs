//! The model of the flows: which flows must be alive, which may be, and which cannot be.
//!
//! The model sees what passes the programs, and does not read their table. Where it cannot tell
//! whether a flow is alive, it says so: a flow that may have been evicted, or whose TCP state
//! depends on more than flags.

use culvert_tests::packet::{ACK, FIN, RST, SYN};

use crate::interfaces::Interface;

/// One second in ns.
pub(super) const SECOND: u64 = 1_000_000_000;

/// Near the end of its time a flow may be alive or not: the programs' clock has ticks of some
/// milliseconds, and the model reads its own clock a little earlier.
const SLACK: u64 = 2 * SECOND;

/// Flags of the answer to a SYN.
pub(super) const SYN_ACK: u8 = SYN | ACK;

/// The upper layer of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Udp,
    /// A TCP segment with these flags.
    Tcp(u8),
    /// An ICMP echo request.
    Ask,
    /// An ICMP echo reply.
    Answer,
}

impl What {
    /// Whether it is a SYN without ACK.
    pub(super) const fn opens(self) -> bool {
        matches!(self, Self::Tcp(SYN))
    }
}

/// A flow as its container sees it. An ICMP echo has its identifier as `port`, and 0 as
/// `remote_port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    pub(super) at: Interface,
    pub(super) protocol: u8,
    pub(super) port: u16,
    pub(super) remote: [u8; 4],
    pub(super) remote_port: u16,
}

/// A flow as the external host sees it, with a port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    pub(super) protocol: u8,
    pub(super) port: u16,
    pub(super) remote: [u8; 4],
    pub(super) remote_port: u16,
}

/// Who began a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The container: its source is masqueraded.
    Masquerade,
    /// The external host: it has connected to a published port.
    Published,
}

/// How far the handshake of a TCP connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A SYN alone.
    Begun,
    /// SYN and SYN|ACK.
    Answered,
    /// All three segments, and after them none with SYN.
    Done,
    /// Any other order.
    Unknown,
}

impl Stage {
    /// The stage after a segment.
    const fn after(self, of_orig: bool, flags: u8) -> Self {
        match (self, of_orig, flags) {
            (Self::Begun, false, SYN_ACK) => Self::Answered,
            (Self::Answered, true, ACK) => Self::Done,
            (Self::Done, _, flags) if flags & SYN == 0 => Self::Done,
            _ => Self::Unknown,
        }
    }
}

/// Whether a flow is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It must be.
    Certain,
    /// It may be.
    Doubtful,
    /// It cannot be.
    Gone,
}

/// A flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracked {
    pub(super) inside: Inside,
    pub(super) outside: Outside,
    pub(super) kind: Kind,
    stage: Stage,
    /// A packet has passed in the direction opposite to that of the first one.
    replied: bool,
    fin: bool,
    rst: bool,
    /// Time of the last packet that keeps the flow alive for certain.
    kept: u64,
    /// Time of the last packet.
    last: u64,
    /// It may have been evicted.
    doubtful: bool,
}

impl Tracked {
    /// A flow that the packet `what` has begun between these times.
    pub(super) const fn new(
        inside: Inside,
        outside: Outside,
        kind: Kind,
        what: What,
        (earliest, latest): (u64, u64),
    ) -> Self {
        let rst = matches!(what, What::Tcp(flags) if flags & RST != 0);
        let stage = if what.opens() { Stage::Begun } else { Stage::Unknown };
        Self {
            inside,
            outside,
            kind,
            stage,
            replied: false,
            fin: false,
            rst,
            kept: earliest,
            last: latest,
            doubtful: false,
        }
    }

    /// Whether it is an established connection that nobody has begun to end.
    pub(super) fn is_established(&self) -> bool {
        self.stage == Stage::Done && !self.fin && !self.rst
    }

    /// Whether a packet of the external host (`from_outside`) or of the container has the direction
    /// of the first packet.
    fn is_orig(&self, from_outside: bool) -> bool {
        from_outside == (self.kind == Kind::Published)
    }

    /// Whether the packet may begin another flow in the place of this one, which has ended.
    pub(super) fn may_begin_anew(&self, what: What, from_outside: bool) -> bool {
        what.opens() && self.is_orig(from_outside) && (self.fin || self.rst)
    }

    /// The packet has passed between these times.
    pub(super) fn passes(
        &mut self,
        what: What,
        from_outside: bool,
        (earliest, latest): (u64, u64),
    ) {
        let of_orig = self.is_orig(from_outside);
        (self.last, self.doubtful) = (latest, false);
        self.replied |= !of_orig;
        if let What::Tcp(flags) = what {
            self.stage = self.stage.after(of_orig, flags);
            self.fin |= flags & FIN != 0;
            self.rst |= flags & RST != 0;
            if !self.is_established() {
                return;
            }
        }
        self.kept = earliest;
    }

    /// The idle time in seconds before which the flow does not expire, and the one after which it
    /// has: the defaults of Linux.
    fn limits(&self) -> (u64, u64) {
        if self.inside.protocol != 6 {
            let limit = if self.inside.protocol == 17 && self.replied { 120 } else { 30 };
            return (limit, limit);
        }
        let least = match (self.rst, self.fin) {
            (true, _) => 10,
            (false, true) => 120,
            (false, false) if self.is_established() => 432_000,
            // A SYN and its answer, without the third segment.
            (false, false) => 60,
        };
        (least, if self.replied { 432_000 } else { 300 })
    }

    pub(super) fn life(&self, now: u64) -> Life {
        let (least, most) = self.limits();
        if now.saturating_sub(self.last) > most * SECOND + SLACK {
            return Life::Gone;
        }
        if self.doubtful || now.saturating_sub(self.kept) + SLACK >= least * SECOND {
            return Life::Doubtful;
        }
        Life::Certain
    }
}

/// The flows.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) flows: Vec<Tracked>,
}

impl Model {
    /// The flow that a container's packet belongs to: its index, and whether it is alive.
    pub(super) fn of_inside(&self, inside: &Inside, now: u64) -> Option<(usize, Life)> {
        self.find(now, |flow| flow.inside == *inside)
    }

    /// As [`Self::of_inside`], for a packet of an external host.
    pub(super) fn of_outside(&self, outside: &Outside, now: u64) -> Option<(usize, Life)> {
        self.find(now, |flow| flow.outside == *outside)
    }

    fn find(&self, now: u64, is_it: impl Fn(&Tracked) -> bool) -> Option<(usize, Life)> {
        let all = self.flows.iter().enumerate().filter(|&(_, flow)| is_it(flow));
        let mut alive = all.map(|(index, flow)| (index, flow.life(now)));
        alive.find(|(_, life)| *life != Life::Gone)
    }

    /// Adds a flow. Fails if another one that is alive has the same addresses and ports inside or
    /// outside. One that may be alive is then not.
    pub(super) fn begin(&mut self, new: Tracked, now: u64) -> Result<(), String> {
        let clashes = |other: &Tracked| other.outside == new.outside || other.inside == new.inside;
        let live = |other: &Tracked| clashes(other) && other.life(now) == Life::Certain;
        if let Some(other) = self.flows.iter().find(|&other| live(other)) {
            return Err(format!("{new:?} has addresses and ports of {other:?}"));
        }
        self.flows.retain(|other| !clashes(other) && other.life(now) != Life::Gone);
        self.flows.push(new);
        Ok(())
    }

    /// A flow may have been evicted: any but an established connection.
    pub(super) fn evicts(&mut self) {
        for flow in self.flows.iter_mut().filter(|flow| !flow.is_established()) {
            flow.doubtful = true;
        }
    }

    /// The container at the interface has been replaced: its flows are not those of the new one.
    pub(super) fn replaces(&mut self, at: Interface) {
        self.flows.retain(|flow| flow.inside.at != at);
    }
}
