//! States of flows, when they expire, and the order of eviction when the table is full.
//!
//! The state follows from the flags of each direction, see
//! [`Flow::seen`](crate::abi::Flow::seen). No other state is kept, so that no update can be done
//! in part. Some states of Linux are not distinguished: a half-closed connection is always
//! `tcp_fin_wait` (Linux: `FIN_WAIT`, 120 s, or `CLOSE_WAIT`, 60 s), a closed one always
//! `tcp_time_wait` (Linux: `LAST_ACK`, 30 s, or `TIME_WAIT`, 120 s).

use crate::abi::{Flow, coded, kind, seen};
use crate::wire::ipv4::{PROTO_TCP, PROTO_UDP};

coded! {
    /// State of a flow. Append only.
    FlowState {
        /// TCP: a SYN, not answered.
        TcpSynSent = 0 => "tcp_syn_sent",
        /// TCP: a SYN, answered with another, not yet acknowledged.
        TcpSynRecv = 1 => "tcp_syn_recv",
        /// TCP: both sides have acknowledged.
        TcpEstablished = 2 => "tcp_established",
        /// TCP: one side has closed.
        TcpFinWait = 3 => "tcp_fin_wait",
        /// TCP: both sides have closed.
        TcpTimeWait = 4 => "tcp_time_wait",
        /// TCP: reset.
        TcpClose = 5 => "tcp_close",
        /// TCP: picked up in mid-stream, not yet acknowledged by both sides.
        TcpLoose = 6 => "tcp_loose",
        /// UDP: not answered.
        UdpUnreplied = 7 => "udp_unreplied",
        /// UDP: answered.
        UdpStream = 8 => "udp_stream",
        /// ICMP echo.
        Icmp = 9 => "icmp",
    }
}

impl FlowState {
    /// State of a flow of `protocol`. `orig` and `reply` are [`Flow::seen`](crate::abi::Flow::seen)
    /// of its directions. A protocol other than TCP and UDP is ICMP: no other is tracked.
    pub const fn of(protocol: u8, orig: u32, reply: u32) -> Self {
        match protocol {
            PROTO_TCP => Self::tcp(orig, reply),
            PROTO_UDP if orig & seen::PACKET != 0 && reply & seen::PACKET != 0 => Self::UdpStream,
            PROTO_UDP => Self::UdpUnreplied,
            _ => Self::Icmp,
        }
    }

    const fn tcp(orig: u32, reply: u32) -> Self {
        let (either, both) = (orig | reply, orig & reply);
        if either & seen::RST != 0 {
            return Self::TcpClose;
        }
        if both & seen::FIN != 0 {
            return Self::TcpTimeWait;
        }
        if either & seen::FIN != 0 {
            return Self::TcpFinWait;
        }
        // An ACK in each direction makes a connection, regardless of its beginning. A single ACK
        // in answer to a SYN may be a challenge ACK (RFC 5961 §4.2), which makes none.
        if both & seen::ACK != 0 || (both & seen::SYN != 0 && orig & seen::ACK != 0) {
            return Self::TcpEstablished;
        }
        if both & seen::SYN != 0 {
            return Self::TcpSynRecv;
        }
        if orig & seen::SYN != 0 {
            return Self::TcpSynSent;
        }
        Self::TcpLoose
    }

    /// Default idle time in this state after which a flow expires, in seconds: the default of
    /// Linux (`Documentation/networking/nf_conntrack-sysctl.rst`). `tcp_loose` has the default of
    /// `nf_conntrack_tcp_timeout_unacknowledged`.
    pub const fn default_timeout_s(self) -> u32 {
        match self {
            Self::TcpSynSent | Self::TcpFinWait | Self::TcpTimeWait => 120,
            Self::TcpSynRecv => 60,
            Self::TcpEstablished => 432_000,
            Self::TcpClose => 10,
            Self::TcpLoose => 300,
            Self::UdpUnreplied | Self::Icmp => 30,
            Self::UdpStream => 120,
        }
    }

    /// Order of eviction when the table is full, the least rank first: flows that have ended, then
    /// flows without an answer, then flows that may be in use. `None`: the flow is never evicted,
    /// as an established connection is not broken for a new one.
    pub const fn eviction_rank(self) -> Option<u8> {
        match self {
            Self::TcpClose | Self::TcpTimeWait => Some(0),
            Self::TcpSynSent | Self::TcpSynRecv | Self::TcpLoose => Some(1),
            Self::UdpUnreplied | Self::Icmp => Some(1),
            Self::TcpFinWait | Self::UdpStream => Some(2),
            Self::TcpEstablished => None,
        }
    }
}

impl FlowState {
    /// State of the flow of `protocol` whose two directions are `one` and `other`, in any order.
    #[inline(always)]
    pub const fn of_flow(protocol: u8, one: &Flow, other: &Flow) -> Self {
        if one.kind & kind::ORIG != 0 {
            Self::of(protocol, one.seen, other.seen)
        } else {
            Self::of(protocol, other.seen, one.seen)
        }
    }
}

/// Idle time in ns after which a flow to the host's stack expires that has no forwarded answer. The
/// host itself answers most of these flows, and no program counts its answers.
const UNANSWERED_NS: u64 = 10_000_000_000;

/// Idle time in ns after which a flow expires whose client was denied. It must outlive the
/// container's retransmissions, which are at most 120 s apart (`TCP_RTO_MAX` of Linux).
const DENIED_NS: u64 = 300_000_000_000;

/// Number of words of [`Timeouts`]: a power of two.
pub const TIMEOUTS_LEN: usize = 16;
/// Index of the word of [`Timeouts`] that has the least of the other words.
const LEAST: usize = TIMEOUTS_LEN - 1;

/// Idle times in ns after which flows expire: one for each state, at the index [`FlowState::code`],
/// and in the last word the least of them.
pub type Timeouts = [u64; TIMEOUTS_LEN];

/// The table of idle times, with `ns(state)` for each state.
pub fn timeouts(ns: impl Fn(FlowState) -> u64) -> Timeouts {
    let of_word = |word: usize| {
        let state = u8::try_from(word).ok().and_then(FlowState::from_code);
        state.map_or(u64::MAX, &ns)
    };
    let mut timeouts: Timeouts = core::array::from_fn(of_word);
    timeouts[LEAST] = timeouts.iter().copied().fold(UNANSWERED_NS, u64::min);
    timeouts
}

/// The table of the default idle times.
pub fn default_timeouts() -> Timeouts {
    timeouts(|state| u64::from(state.default_timeout_s()) * 1_000_000_000)
}

/// Whether a flow may have expired, by the time of the last packet in one direction. If not, the
/// other direction need not be read. `timeout` returns the word of [`Timeouts`] at an index.
#[inline(always)]
pub fn may_have_expired(last_seen_ns: u64, now_ns: u64, timeout: impl Fn(usize) -> u64) -> bool {
    now_ns.saturating_sub(last_seen_ns) >= timeout(LEAST)
}

/// Whether the flow of `protocol` with the directions `one` and `other`, in any order, has been
/// idle for as long as its state allows. `timeout` returns the word of [`Timeouts`] at an index.
#[inline(always)]
pub fn has_expired(
    protocol: u8,
    one: &Flow,
    other: &Flow,
    now_ns: u64,
    timeout: impl Fn(usize) -> u64,
) -> bool {
    let unanswered = one.kind & kind::HOST != 0 && one.packets.min(other.packets) == 0;
    let denied = (one.kind | other.kind) & kind::DENIED != 0;
    let limit = timeout(FlowState::of_flow(protocol, one, other).code() as usize);
    let limit = match (denied, unanswered) {
        (true, _) => DENIED_NS,
        (false, true) => limit.min(UNANSWERED_NS),
        (false, false) => limit,
    };
    now_ns.saturating_sub(one.last_seen_ns.max(other.last_seen_ns)) >= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn flow(kind: u32, seen: u32, last_s: u64, packets: u64) -> Flow {
        Flow { kind, seen, last_seen_ns: last_s * SECOND, packets, ..Flow::default() }
    }

    #[test]
    fn the_later_direction_and_the_state_decide() {
        let table = default_timeouts();
        let timeout = |word: usize| table[word];
        let both = |now_s, orig: Flow, reply: Flow| {
            let one = has_expired(PROTO_UDP, &orig, &reply, now_s * SECOND, timeout);
            assert_eq!(has_expired(PROTO_UDP, &reply, &orig, now_s * SECOND, timeout), one);
            one
        };
        let orig = flow(kind::ORIG, seen::PACKET, 100, 1);
        // `udp_unreplied`: 30 s. `udp_stream`: 120 s since the later packet.
        assert!(!both(129, orig, flow(0, 0, 100, 0)));
        assert!(both(130, orig, flow(0, 0, 100, 0)));
        assert!(!both(229, orig, flow(0, seen::PACKET, 110, 1)));
        assert!(both(230, orig, flow(0, seen::PACKET, 110, 1)));
        // A flow to the host's stack without an answer: 10 s.
        let to_host = flow(kind::ORIG | kind::HOST, seen::PACKET, 100, 1);
        assert!(!both(109, to_host, flow(kind::HOST, 0, 100, 0)));
        assert!(both(110, to_host, flow(kind::HOST, 0, 100, 0)));
        assert!(!both(110, to_host, flow(kind::HOST, seen::PACKET, 100, 1)));
        // A flow of a denied client: 300 s in any state.
        let denied = flow(kind::ORIG | kind::DENIED, seen::PACKET, 100, 1);
        assert!(!both(399, denied, flow(kind::DENIED, 0, 100, 0)));
        assert!(both(400, denied, flow(kind::DENIED, 0, 100, 0)));
        // The time of the last packet is later than now: it is from another CPU's tick.
        assert!(!both(99, orig, flow(0, 0, 100, 0)));
    }

    #[test]
    fn no_flow_expires_before_the_least_time() {
        let table = default_timeouts();
        let timeout = |word: usize| table[word];
        assert_eq!(table[LEAST], 10 * SECOND);
        assert!(!may_have_expired(100 * SECOND, 109 * SECOND, timeout));
        assert!(may_have_expired(100 * SECOND, 110 * SECOND, timeout));
        assert_eq!(timeouts(|_| SECOND)[LEAST], SECOND);
        assert!(FlowState::ALL.iter().all(|state| usize::from(state.code()) < LEAST));
    }
}
