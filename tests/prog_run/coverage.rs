//! Every drop reason and every note has a case that produces it.

use std::collections::{BTreeMap, BTreeSet};

use culvert_common::abi::{Action, Code, Direction, DropReason, Note, stats_index};

use crate::{
    additional, arp, attacks, blocked, client, decap, denied, ecn, encap, fast, fdb, floating,
    flood, flows, fragments, from_host, from_loopback, icmp_errors, inner,
    lab::{self, Case},
    live, live_nat, membership, mtu, nat_in, nat_out, nd, races, random, routing, source, tenants,
    to_host, tunnel_source, underlay_out, xdp,
};

/// The cases of packets by module.
const MODULES: &[(&str, &[Case])] = &[
    ("additional", additional::CASES),
    ("arp", arp::CASES),
    ("attacks", attacks::CASES),
    ("blocked", blocked::CASES),
    ("client", client::CASES),
    ("decap", decap::CASES),
    ("denied", denied::CASES),
    ("ecn", ecn::CASES),
    ("encap", encap::CASES),
    ("fast", fast::CASES),
    ("fdb", fdb::CASES),
    ("floating", floating::CASES),
    ("flood", flood::CASES),
    ("flows", flows::CASES),
    ("fragments", fragments::CASES),
    ("from_host", from_host::CASES),
    ("from_loopback", from_loopback::CASES),
    ("icmp_errors", icmp_errors::CASES),
    ("inner", inner::CASES),
    ("membership", membership::CASES),
    ("mtu", mtu::CASES),
    ("nat_in", nat_in::CASES),
    ("nat_out", nat_out::CASES),
    ("nd", nd::CASES),
    ("routing", routing::CASES),
    ("source", source::CASES),
    ("tenants", tenants::CASES),
    ("to_host", to_host::CASES),
    ("tunnel_source", tunnel_source::CASES),
    ("underlay_out", underlay_out::CASES),
    ("xdp", xdp::CASES),
];

/// Cases that do not count as coverage. They send random bytes, or produce the same codes with the
/// programs attached.
const OTHERS: &[(&str, &[Case])] = &[
    ("live", live::CASES),
    ("live_nat", live_nat::CASES),
    ("races", races::CASES),
    ("random", random::CASES),
];

/// Codes that no case can produce, with the reason.
const UNREACHABLE: &[(Code, &str)] = &[
    (
        Code::Drop(DropReason::HelperFailed),
        "the kernel refuses to rewrite or resize a frame only where it has no memory",
    ),
    (Code::Note(Note::PathMtuLearnt), "earlier versions counted it"),
];

/// Minimum number of cases.
const LEAST: usize = 250;

#[test]
#[ignore = "needs root"]
fn every_code_has_a_case() {
    let mut seen: BTreeMap<Code, &str> = BTreeMap::new();
    for (module, cases) in MODULES {
        for (name, case) in *cases {
            let counted = lab::counted_by(*case);
            assert!(!counted.is_empty() || *module == "xdp", "{module}::{name} counts nothing");
            for code in Code::all() {
                let indices = Direction::ALL.iter().map(|direction| stats_index(*direction, code));
                if indices.into_iter().any(|index| counted.contains(&index)) {
                    seen.entry(code).or_insert(name);
                }
            }
        }
    }
    let all = Action::ALL
        .iter()
        .map(|action| Code::Action(*action))
        .chain(DropReason::ALL.iter().map(|reason| Code::Drop(*reason)))
        .chain(Note::ALL.iter().map(|note| Code::Note(*note)));
    let unreachable: BTreeSet<Code> = UNREACHABLE.iter().map(|(code, _)| *code).collect();
    for code in all {
        match (seen.get(&code), unreachable.contains(&code)) {
            (None, false) => panic!("no case produces {code:?}"),
            (Some(name), true) => panic!("{name} produces {code:?}: it is not unreachable"),
            _ => {}
        }
    }
}

#[test]
fn cases_are_many_and_their_names_differ() {
    let mut names = BTreeSet::new();
    for (module, cases) in MODULES.iter().chain(OTHERS) {
        for (name, _) in *cases {
            assert!(names.insert((module, name)), "{module}::{name} twice");
        }
    }
    assert!(names.len() >= LEAST, "{} cases", names.len());
}
