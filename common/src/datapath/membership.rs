//! Messages about the members of multicast groups: IGMP (RFC 3376) and MLD (RFC 3810).
//!
//! The data that is sent to a group is flooded to all endpoints of the network. So only queriers
//! need to know the members of a group: multicast routers, and switches that forward by group
//! (RFC 4541 §2.1.1).

use crate::wire::{
    icmp::{V6_LISTENER_DONE, V6_LISTENER_QUERY, V6_LISTENER_REPORT, V6_LISTENER_REPORT_V2},
    igmp::{LEAVE, QUERY, REPORT_V1, REPORT_V2, REPORT_V3},
};

/// What a packet says about the members of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// A query, or a message of PIM: its sender is a querier and gets reports.
    Asks,
    /// Its sender has joined groups, is a member of them, or has left one.
    Report,
    /// Nothing. It may be data for a group.
    Other,
}

/// Time in ns for which the sender of a query counts as a querier: the Group Membership Interval
/// with the default values (RFC 3376 §8.4, RFC 3810 §9.4).
pub const ASKED_NS: u64 = 260_000_000_000;

impl Membership {
    /// What an IGMP message of type `kind` says.
    #[inline(always)]
    pub const fn of_igmp(kind: u8) -> Self {
        match kind {
            QUERY => Self::Asks,
            REPORT_V1 | REPORT_V2 | REPORT_V3 | LEAVE => Self::Report,
            _ => Self::Other,
        }
    }

    /// What an ICMPv6 message of type `kind` says.
    #[inline(always)]
    pub const fn of_icmpv6(kind: u8) -> Self {
        match kind {
            V6_LISTENER_QUERY => Self::Asks,
            V6_LISTENER_REPORT | V6_LISTENER_REPORT_V2 | V6_LISTENER_DONE => Self::Report,
            _ => Self::Other,
        }
    }
}

/// Whether a querier whose last query came at `asked_ns` still counts at `now_ns`.
#[inline(always)]
pub const fn wants_reports(asked_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(asked_ns) < ASKED_NS
}
