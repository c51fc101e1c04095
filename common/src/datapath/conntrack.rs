//! States of flows, their timeouts, and the order of eviction when the table is full.
//!
//! The state follows from the flags of each direction, see
//! [`Flow::seen`](crate::abi::Flow::seen). No other state is kept, so that no update can be done
//! in part. Some states of Linux are not distinguished: a half-closed connection is always
//! `tcp_fin_wait` (Linux: `FIN_WAIT`, 120 s, or `CLOSE_WAIT`, 60 s), a closed one always
//! `tcp_time_wait` (Linux: `LAST_ACK`, 30 s, or `TIME_WAIT`, 120 s).

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
