use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use culvert_common::{
    abi::{Flow, FlowKey},
    datapath::conntrack::FlowState,
};
use proptest::prelude::*;

use super::{
    Recent,
    collector::{Collector, Limits},
    expiry::{Criteria, Incarnations},
    testing::{MemoryFlows, SECOND, masqueraded},
};
use crate::config::FlowTimeouts;

const NOW: u64 = 1000 * SECOND;

fn limits() -> Limits {
    Limits { round: 64, nearly_full_round: 256, slice: 16 }
}

fn round(collector: &mut Collector, table: &MemoryFlows, now_ns: u64) {
    let timeouts = FlowTimeouts::default().table();
    let incarnations = Incarnations { live: [1].into(), read_ns: now_ns };
    let criteria = Criteria {
        now_ns,
        timeouts: &timeouts,
        incarnations: Some(&incarnations),
        addresses: None,
    };
    collector.round(table, &criteria).unwrap();
}

fn keys(table: &MemoryFlows) -> BTreeSet<FlowKey> {
    table.state.lock().unwrap().flows.keys().copied().collect()
}

#[test]
fn what_is_over_goes_with_both_halves() {
    let table = MemoryFlows::new(1024);
    table.put(masqueraded(1, NOW - SECOND));
    let kept = keys(&table);
    table.put(masqueraded(2, NOW - 120 * SECOND));
    let of_another = masqueraded(3, NOW - SECOND)
        .map(|(key, flow)| (key, Flow { from_incarnation: flow.from_incarnation * 2, ..flow }));
    table.put(of_another);
    let [half, _] = masqueraded(4, NOW - 6 * SECOND);
    let [_, other_half] = masqueraded(5, NOW - 6 * SECOND);
    table.put([half, other_half]);
    let [young_half, _] = masqueraded(6, NOW - SECOND);
    table.put([young_half]);

    let mut collector = Collector::new(limits());
    round(&mut collector, &table, NOW);
    let mut expected = kept.clone();
    expected.insert(young_half.0);
    assert_eq!(keys(&table), expected);
    let summary = collector.summary(&table);
    assert_eq!((summary.flows, summary.estimated, summary.capacity), (1, false, 1024));
    let tally = summary.states[&FlowState::UdpStream];
    assert_eq!((tally.flows, tally.packets, tally.bytes), (1, 3, 300));

    // An entry whose other direction is missing is removed even while it is in use.
    for seconds in 1..=6 {
        let mut state = table.state.lock().unwrap();
        state.flows.get_mut(&young_half.0).unwrap().last_seen_ns = NOW + seconds * SECOND;
        drop(state);
        round(&mut collector, &table, NOW + seconds * SECOND);
    }
    assert_eq!(keys(&table), kept);
}

/// The number of flows does not wait for the end of a walk through a large table.
#[test]
fn flows_are_counted_while_the_table_is_walked() {
    let table = MemoryFlows::new(1024);
    let mut collector = Collector::new(limits());
    let put = |numbers: std::ops::Range<u32>| {
        numbers.for_each(|number| table.put(masqueraded(number, NOW - SECOND)));
    };
    put(0..100);
    // Runs rounds until the walk has ended. Returns the number of flows after the first round.
    let mut walk = || {
        round(&mut collector, &table, NOW);
        let first = collector.summary(&table);
        assert!(first.estimated, "{first:?}");
        let mut last = first.clone();
        while last.estimated {
            round(&mut collector, &table, NOW);
            last = collector.summary(&table);
        }
        (first.flows, last.flows)
    };
    // A round reads 64 of 200 entries.
    let (first, last) = walk();
    assert!((50..=150).contains(&first) && last == 100, "{first}, {last}");
    put(100..200);
    let (first, last) = walk();
    assert!((120..=300).contains(&first) && last == 200, "{first}, {last}");
}

#[test]
fn a_flow_in_use_of_a_container_that_is_gone_goes_a_walk_later() {
    let table = MemoryFlows::new(1024);
    let use_it = |now_ns: u64| {
        let flows = masqueraded(1, now_ns);
        table.put(flows.map(|(key, flow)| (key, Flow { from_incarnation: 2, ..flow })));
    };
    let mut collector = Collector::new(limits());
    use_it(NOW + 1);
    round(&mut collector, &table, NOW);
    assert_eq!(keys(&table).len(), 2, "it may be of a container that has just come");
    use_it(NOW + SECOND + 1);
    round(&mut collector, &table, NOW + SECOND);
    assert!(keys(&table).is_empty());
}

#[test]
fn a_counter_that_grew_is_recent_for_a_minute() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut recent = Recent::default();
    // Frames that were counted before the first read are not recent.
    assert!(!recent.grew(at(0), 5));
    assert!(!recent.grew(at(1), 5));
    assert!(recent.grew(at(2), 6));
    assert!(recent.grew(at(60), 6));
    assert!(!recent.grew(at(62), 6));
    assert!(!recent.grew(at(200), 6));
    assert!(recent.grew(at(201), 7));
    assert!(recent.history.len() <= 3, "{recent:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A pass reads every entry once, no round exceeds its bound, and the entries of flows that
    /// have not expired remain.
    #[test]
    fn a_pass_sees_everything(
        idle in prop::collection::vec(0_u64..200, 0..300),
        capacity in 200_u32..2000,
    ) {
        let table = MemoryFlows::new(capacity);
        let mut expected = BTreeSet::new();
        for (number, idle) in idle.iter().enumerate() {
            let flow = masqueraded(number as u32, NOW - idle * SECOND);
            if *idle < 120 {
                expected.extend(flow.map(|(key, _)| key));
            }
            table.put(flow);
        }
        let before = keys(&table);
        let mut collector = Collector::new(limits());
        let mut seen = BTreeSet::new();
        let mut rounds = 0;
        // A round may exceed its bound by the rest of one bucket.
        let most = limits().nearly_full_round as usize + 16;
        while !seen.is_superset(&expected) || keys(&table) != expected {
            rounds += 1;
            prop_assert!(rounds <= before.len() / 32 + 2, "not through after {} rounds", rounds);
            table.state.lock().unwrap().slices.clear();
            round(&mut collector, &table, NOW);
            let slices = std::mem::take(&mut table.state.lock().unwrap().slices);
            prop_assert!(slices.iter().map(Vec::len).sum::<usize>() <= most);
            for key in slices.into_iter().flatten() {
                prop_assert!(seen.insert(key), "{:?} is seen twice in a pass", key);
            }
        }
        prop_assert!(seen.is_subset(&before));
    }
}
