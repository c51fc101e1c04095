//! What state a flow is in, how long it may be idle in it, and which one has to go
//! first when the table is full.
//!
//! The state follows from what each direction has seen, see [`Flow::seen`](crate::abi::Flow::seen): nothing
//! is kept besides, so that no update can be lost half-way. Two of the states that
//! Linux tells apart cannot be told by that, and need not be: half-closed connections
//! are all `tcp_fin_wait` (Linux: `FIN_WAIT`, 120 s, or `CLOSE_WAIT`, 60 s), fully
//! closed ones all `tcp_time_wait` (Linux: `LAST_ACK`, 30 s, or `TIME_WAIT`, 120 s).

use crate::abi::{coded, seen};
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
    /// State of a flow of `protocol` whose directions have seen `orig` and `reply`.
    /// What is neither TCP nor UDP is ICMP: nothing else is tracked.
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
        // An ACK each way is a connection, however it began; the answer to a SYN alone
        // may be one as well (RFC 5961 §4.2 "challenge ACK").
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

    /// Seconds that a flow lives unused in this state unless configured otherwise: the
    /// defaults of Linux (`Documentation/networking/nf_conntrack-sysctl.rst`).
    /// `tcp_loose` has that of `nf_conntrack_tcp_timeout_unacknowledged`.
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

    /// Which flows go first when the table is full, the least first: those that are
    /// over, then those that nobody has answered, then those that may be in use. `None`:
    /// never, an established connection is not broken for a new one.
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
