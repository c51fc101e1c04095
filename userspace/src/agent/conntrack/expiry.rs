//! Decides whether a flow is kept or removed.

use std::collections::BTreeSet;

use culvert_common::{
    abi::{Flow, FlowKey, MappedAddr, kind, zone},
    datapath::conntrack::{self, FlowState, has_expired},
};

/// Time in ns after which an entry whose other direction is missing is removed. The programs
/// write the two entries of a flow one after the other.
pub(super) const ORPHANED_NS: u64 = 5_000_000_000;

/// Whether a flow is kept or removed, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowStatus {
    /// The flow is kept: it has been idle for less than its timeout.
    Keep(FlowState),
    /// The flow has been idle for its timeout or longer.
    Expired,
    /// The flow's container is gone.
    Stale,
    /// The host has lost the address that external hosts use for the flow.
    Moved,
    /// The other direction has been missing for [`ORPHANED_NS`].
    Orphan,
    /// The other direction is missing. It may be about to be written or removed.
    Half,
}

/// Incarnations of the containers of this host.
#[derive(Clone, Debug, Default)]
pub(super) struct Incarnations {
    /// Incarnations in `ENDPOINTS`.
    pub(super) live: BTreeSet<u32>,
    /// Time in ns of the read. A flow that was used later may belong to a newer container.
    pub(super) read_ns: u64,
}

/// The inputs of [`Criteria::examine`] that are the same for all flows. Times are in ns on the clock of
/// [`Flow::last_seen_ns`].
pub(super) struct Criteria<'a> {
    /// The current time.
    pub(super) now_ns: u64,
    /// Idle times in ns after which flows expire.
    pub(super) timeouts: &'a conntrack::Timeouts,
    /// Incarnations of the containers of this host. `None`: `ENDPOINTS` could not be read. No flow
    /// is [`FlowStatus::Stale`] then.
    pub(super) incarnations: Option<&'a Incarnations>,
    /// Addresses of the host. `None`: they are not known. No flow is [`FlowStatus::Moved`] then.
    pub(super) addresses: Option<&'a BTreeSet<MappedAddr>>,
}

/// Findings of earlier passes about a flow.
#[derive(Clone, Copy, Default)]
pub(super) struct Findings<'a> {
    /// Time in ns at which the other direction was first seen missing. `None`: it was not missing.
    pub(super) missing_ns: Option<u64>,
    /// Incarnations that no container had in the last pass. An endpoint is in `ENDPOINTS` before
    /// its first flow is made: an incarnation that is missing twice belongs to no container.
    pub(super) suspects: Option<&'a BTreeSet<u32>>,
}

impl Criteria<'_> {
    /// Examines the flow that has the entry `flow` under `key`. `other` is the entry of the other
    /// direction, if there is one.
    pub(super) fn examine(
        &self,
        key: &FlowKey,
        flow: &Flow,
        other: Option<&Flow>,
        known: Findings<'_>,
    ) -> FlowStatus {
        let Some(other) = other else {
            let since = known.missing_ns.unwrap_or(u64::MAX).min(flow.last_seen_ns);
            return match self.now_ns.saturating_sub(since) > ORPHANED_NS {
                true => FlowStatus::Orphan,
                false => FlowStatus::Half,
            };
        };
        let last_ns = flow.last_seen_ns.max(other.last_seen_ns);
        let gone = |incarnation: u32| {
            known.suspects.is_some_and(|suspects| suspects.contains(&incarnation))
                || self.incarnations.is_some_and(|incarnations| last_ns < incarnations.read_ns)
        };
        if self.missing(flow).chain(self.missing(other)).any(gone) {
            return FlowStatus::Stale;
        }
        if self.is_moved(key, flow) {
            return FlowStatus::Moved;
        }
        let timeout = |word| self.timeouts.get(word).copied().unwrap_or(u64::MAX);
        if has_expired(key.protocol, flow, other, self.now_ns, timeout) {
            return FlowStatus::Expired;
        }
        FlowStatus::Keep(FlowState::of_flow(key.protocol, flow, other))
    }

    /// Whether the host has lost the address that external hosts use for a flow: the translated
    /// source of an outgoing flow, or the destination of an incoming flow. Linux ends such flows
    /// as well (`nf_nat_masquerade`).
    fn is_moved(&self, key: &FlowKey, flow: &Flow) -> bool {
        let is_external = |at| at == zone::EXTERNAL || zone::client_link(at).is_some();
        let own = match (is_external(key.zone), is_external(flow.zone)) {
            (true, _) => key.tuple.dst,
            (_, true) => flow.to.src,
            _ => return false,
        };
        self.addresses.is_some_and(|addresses| !addresses.contains(&MappedAddr::v4(own)))
    }

    /// Incarnations of a flow that no container has. Empty if `ENDPOINTS` could not be read.
    pub(super) fn missing(&self, flow: &Flow) -> impl Iterator<Item = u32> {
        let of_flow = [flow.from_incarnation, flow.to_incarnation];
        of_flow.into_iter().filter(|incarnation| {
            *incarnation != 0
                && self.incarnations.is_some_and(|known| !known.live.contains(incarnation))
        })
    }
}

/// Whether `flow` under `key` and `other` are the two directions of one flow. `other` is the
/// entry under `key.other(flow)`; in a flow its own other direction is `key` again.
pub(crate) fn are_one_flow(key: &FlowKey, flow: &Flow, other: &Flow) -> bool {
    key.other(flow).other(other) == *key && (flow.kind ^ other.kind) & kind::ORIG != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use culvert_common::abi::seen;

    use super::*;
    use crate::{
        agent::conntrack::testing::{SECOND, masqueraded},
        config::FlowTimeouts,
    };

    const NOW: u64 = 1000 * SECOND;

    fn examine(
        flow: &Flow,
        other: Option<&Flow>,
        missing_ns: Option<u64>,
        incarnations: Option<&Incarnations>,
    ) -> FlowStatus {
        let timeouts = FlowTimeouts::default().table();
        let criteria = Criteria { now_ns: NOW, timeouts: &timeouts, incarnations, addresses: None };
        let known = Findings { missing_ns, ..Findings::default() };
        criteria.examine(&FlowKey { protocol: 17, ..FlowKey::default() }, flow, other, known)
    }

    fn half(seconds_ago: u64, kind: u32, seen: u32) -> Flow {
        Flow { last_seen_ns: NOW - seconds_ago * SECOND, kind, seen, ..Flow::default() }
    }

    #[test]
    fn the_later_direction_keeps_both() {
        let (orig, reply) = (half(500, kind::ORIG, seen::PACKET), half(119, 0, seen::PACKET));
        let keep = FlowStatus::Keep(FlowState::UdpStream);
        assert_eq!(examine(&orig, Some(&reply), None, None), keep);
        assert_eq!(examine(&reply, Some(&orig), None, None), keep);
        let reply = half(120, 0, seen::PACKET);
        assert_eq!(examine(&orig, Some(&reply), None, None), FlowStatus::Expired);
        assert_eq!(examine(&reply, Some(&orig), None, None), FlowStatus::Expired);
    }

    #[test]
    fn each_state_has_its_time() {
        let (orig, reply) = (half(29, kind::ORIG, seen::PACKET), half(40, 0, 0));
        let keep = FlowStatus::Keep(FlowState::UdpUnreplied);
        assert_eq!(examine(&orig, Some(&reply), None, None), keep);
        assert_eq!(
            examine(&half(30, kind::ORIG, 0), Some(&reply), None, None),
            FlowStatus::Expired
        );
        let mut timeouts = FlowTimeouts::default();
        timeouts.set(FlowState::UdpUnreplied, 29);
        let timeouts = timeouts.table();
        let criteria =
            Criteria { now_ns: NOW, timeouts: &timeouts, incarnations: None, addresses: None };
        let key = FlowKey { protocol: 17, ..FlowKey::default() };
        assert_eq!(
            criteria.examine(&key, &orig, Some(&reply), Findings::default()),
            FlowStatus::Expired
        );
    }

    #[test]
    fn a_container_that_is_gone_takes_its_flows_along() {
        let incarnations = Incarnations { live: [7].into(), read_ns: NOW };
        let reply = half(1, 0, seen::PACKET);
        let of = |from, to, seconds_ago| Flow {
            from_incarnation: from,
            to_incarnation: to,
            ..half(seconds_ago, kind::ORIG, seen::PACKET)
        };
        let examined = |flow: &Flow, incarnations| examine(flow, Some(&reply), None, incarnations);
        let keep = FlowStatus::Keep(FlowState::UdpStream);
        assert_eq!(examined(&of(7, 0, 1), Some(&incarnations)), keep);
        assert_eq!(examined(&of(0, 7, 1), Some(&incarnations)), keep);
        assert_eq!(examined(&of(8, 0, 1), Some(&incarnations)), FlowStatus::Stale);
        assert_eq!(examined(&of(7, 8, 1), Some(&incarnations)), FlowStatus::Stale);
        // The incarnations of both directions are checked.
        assert_eq!(
            examine(&reply, Some(&of(8, 0, 1)), None, Some(&incarnations)),
            FlowStatus::Stale
        );
        // `ENDPOINTS` could not be read, or the flow was used after the read, perhaps by a new
        // container.
        assert_eq!(examined(&of(8, 0, 1), None), keep);
        assert_eq!(examined(&of(8, 0, 0), Some(&incarnations)), keep);
    }

    #[test]
    fn a_flow_holds_while_its_address_is_the_hosts() {
        let [(key, orig), (_, reply)] = masqueraded(1, NOW);
        let timeouts = FlowTimeouts::default().table();
        let examined = |addresses: &[[u8; 4]]| {
            let addresses = addresses.iter().copied().map(MappedAddr::v4).collect();
            let criteria = Criteria {
                now_ns: NOW,
                timeouts: &timeouts,
                incarnations: None,
                addresses: Some(&addresses),
            };
            let there = criteria.examine(&key, &orig, Some(&reply), Findings::default());
            let back =
                criteria.examine(&key.other(&orig), &reply, Some(&orig), Findings::default());
            assert_eq!(there, back);
            there
        };
        assert!(matches!(examined(&[[192, 0, 2, 1], [198, 51, 100, 1]]), FlowStatus::Keep(_)));
        assert_eq!(examined(&[[192, 0, 2, 1]]), FlowStatus::Moved);
        // Between containers no address of the host is needed.
        let inner = Flow { zone: 257, ..orig };
        let criteria = Criteria {
            now_ns: NOW,
            timeouts: &timeouts,
            incarnations: None,
            addresses: Some(&BTreeSet::new()),
        };
        let status = criteria.examine(&key, &inner, Some(&reply), Findings::default());
        assert!(matches!(status, FlowStatus::Keep(_)));
    }

    #[test]
    fn half_a_flow_goes_after_a_while() {
        assert_eq!(examine(&half(5, 0, 0), None, None, None), FlowStatus::Half);
        assert_eq!(examine(&half(6, 0, 0), None, None, None), FlowStatus::Orphan);
        // In use, but the other direction is missing.
        assert_eq!(examine(&half(0, 0, 0), None, Some(NOW - 5 * SECOND), None), FlowStatus::Half);
        assert_eq!(examine(&half(0, 0, 0), None, Some(NOW - 6 * SECOND), None), FlowStatus::Orphan);
    }

    #[test]
    fn halves_belong_together_only_if_each_leads_to_the_other() {
        let [(key, orig), (_, reply)] = masqueraded(1, NOW);
        assert!(are_one_flow(&key, &orig, &reply));
        assert!(are_one_flow(&key.other(&orig), &reply, &orig));
        assert!(!are_one_flow(&key, &orig, &orig));
        let [_, (_, stranger)] = masqueraded(2, NOW);
        assert!(!are_one_flow(&key, &orig, &stranger));
    }

    proptest! {
        /// Both directions get the same status, and a flow that was just used does not expire.
        #[test]
        fn both_halves_alike(
            protocol in prop::sample::select(vec![1_u8, 6, 17]),
            orig_seen: u32, reply_seen: u32, orig_ns in 0..2 * NOW, reply_ns in 0..2 * NOW,
            incarnation in 0_u32..3,
        ) {
            let orig = Flow {
                last_seen_ns: orig_ns, kind: kind::ORIG, seen: orig_seen, from_incarnation: incarnation,
                ..Flow::default()
            };
            let reply = Flow {
                last_seen_ns: reply_ns, kind: 0, seen: reply_seen, to_incarnation: incarnation,
                ..Flow::default()
            };
            let (timeouts, incarnations) =
                (FlowTimeouts::default().table(), Incarnations { live: [1].into(), read_ns: NOW });
            let criteria = Criteria {
                now_ns: NOW,
                timeouts: &timeouts,
                incarnations: Some(&incarnations),
                addresses: None,
            };
            let key = FlowKey { protocol, ..FlowKey::default() };
            let status = criteria.examine(&key, &orig, Some(&reply), Findings::default());
            let other = criteria.examine(&key, &reply, Some(&orig), Findings::default());
            prop_assert_eq!(status, other);
            if orig_ns.max(reply_ns) >= NOW {
                prop_assert!(matches!(status, FlowStatus::Keep(_)));
            }
        }
    }
}
