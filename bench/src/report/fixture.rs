//! A made-up run: the same figures each time. The tests look at its report, and people at its page.

use std::collections::BTreeMap;

use crate::results::{
    ArmInfo, Create, Filled, Machine, Metric, ProgramCost, Regime, Results, Settings,
    SliceSettings, Slices, VERSION,
};
use crate::scale::ColdStart;

/// Rounds.
const ROUNDS: u32 = 10;

/// Arms: id, title, row, throughput as a share of the host's where frames cross whole.
const ARMS: [(&str, &str, Option<char>, f64); 14] = [
    ("host", "host to host", Some('C'), 1.0),
    ("host-again", "host to host, again", None, 1.0),
    ("culvert-overlay", "Culvert overlay", Some('A'), 0.965),
    ("vxlan-docker", "kernel vxlan as Docker's", Some('A'), 0.82),
    ("vxlan-flannel", "kernel vxlan as flannel's", Some('A'), 0.85),
    ("culvert-snat", "Culvert SNAT", None, 0.96),
    ("linux-snat", "iptables MASQUERADE", None, 0.9),
    ("culvert-snat-published", "Culvert SNAT + published port", Some('B'), 0.92),
    ("linux-snat-published", "iptables SNAT + DNAT", Some('B'), 0.8),
    ("culvert-published", "Culvert published port", Some('D'), 0.95),
    ("linux-published", "iptables DNAT", Some('D'), 0.88),
    ("culvert-local", "Culvert, own container", Some('E'), 1.12),
    ("linux-local", "Linux bridge, own container", Some('E'), 1.05),
    ("culvert-host-mode", "Culvert host mode", Some('F'), 1.0),
];

/// A pseudo-random number from 0 to 1.
fn wobble(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Rounds a figure, so that it is the same bit by bit after a conversion to JSON and back.
fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

/// The host's figure.
fn host(metric: Metric) -> f64 {
    match metric {
        Metric::TcpOne => 18.5e9,
        Metric::TcpFour => 21e9,
        Metric::Udp64 => 610e3,
        Metric::Udp1400 => 6.2e9,
        Metric::Udp1400Loss => 0.4,
        Metric::RttP50 => 14_200.0,
        Metric::RttP99 => 26_000.0,
        Metric::RttP999 => 71_000.0,
        Metric::Crr => 21_500.0,
        Metric::CpuPerGbit => 62.0,
        Metric::SoftirqPerGbit => 21.0,
        Metric::NewFlows => 420e3,
    }
}

/// A complete run, whose rounds differ by `spread`, as a share, and depend on `seed`.
pub(crate) fn run(seed: u64, spread: f64) -> Results {
    let mut results = Results {
        version: VERSION,
        machine: Machine {
            date: "2026-01-02".into(),
            cpu: "Example 3000".into(),
            cores: 2,
            memory_mib: 7_900,
            kernel: "6.12.1".into(),
            load_before: 0.1,
            load_after: 1.9,
            culvert: "0.1.0 (1234567)".into(),
        },
        settings: Settings {
            quick: false,
            rounds: ROUNDS,
            seconds: 2.0,
            receive_on_other_core: false,
            slices: Some(SliceSettings { stream_ms: 30.0, round_trips: 64, lead_in_ms: 2.0 }),
        },
        ..Results::default()
    };
    for (index, (id, title, row, share)) in (0_u64..).zip(ARMS) {
        results.arms.push(ArmInfo { id: id.into(), title: title.into(), row });
        for round in 0..u64::from(ROUNDS) {
            // The speed of the machine varies between rounds, for all arms alike.
            let machine = 1.0 + 0.08 * wobble(seed * 1_000 + round);
            for (regime, share) in [(Regime::Intact, share), (Regime::WireLike, share * share)] {
                let mut figures = BTreeMap::new();
                for metric in Metric::ALL {
                    // New flows are measured of the host, and of arms that translate addresses.
                    let tracks = id.contains("snat") || id.starts_with("host");
                    if metric == Metric::NewFlows && !tracks {
                        continue;
                    }
                    let key = seed ^ (index << 32 | round << 16 | (metric as u64) << 4);
                    let noise = machine * (1.0 + spread * (wobble(key + regime as u64) - 0.5));
                    let slow = if metric.less_is_better() { 1.0 / share } else { share };
                    figures.insert(metric, rounded(host(metric) * slow * noise));
                }
                results.add(id, regime, &figures);
                for (load, slices) in [("tcp1", 12), ("tcp4", 12), ("rr", 70)] {
                    let steal = u64::from(round == 3);
                    let count = Slices { slices, thrown: steal + 1, steal, switches: 1 };
                    results.count(id, regime, load, count);
                }
            }
        }
    }
    for (program, ns_per_run, verified_instructions) in
        [("from_container", 96.4, 41_210), ("from_underlay", 88.1, 38_877)]
    {
        for (traffic, runs) in [("TCP, one stream", 1_204_511), ("UDP 64 B", 11_804_220)] {
            let ns_per_run = if runs > 2_000_000 { ns_per_run } else { rounded(ns_per_run * 1.3) };
            results.programs.push(ProgramCost {
                program: program.into(),
                traffic: traffic.into(),
                ns_per_run: Some(ns_per_run),
                // Older results have no test runs: one program is without.
                test_run_ns: (program == "from_container").then(|| rounded(ns_per_run * 0.7)),
                runs,
                verified_instructions,
                jited_bytes: 9_120,
            });
        }
    }
    results.create = Some(Create { endpoints: 50, p50_ms: 11.2, p99_ms: 24.9 });
    for (endpoints, scale) in [(1_000, 1.0), (10_000, 8.5), (100_000, 84.0)] {
        results.cold_start.push(ColdStart {
            endpoints,
            raw_range_ms: 7.0 * scale,
            snapshot_to_maps_ms: 12.0 * scale,
            exec_to_maps_ms: 45.0 + 12.5 * scale,
            kernel_bytes: u64::from(endpoints) * 96,
            agent_rss_bytes: 18_000_000 + u64::from(endpoints) * 330,
        });
    }
    for (what, entries) in ["FDB entries", "NAT flows"]
        .into_iter()
        .flat_map(|what| [10, 1_000, 100_000].map(|entries| (what, entries)))
    {
        let at = |host: f64, extra: u64| {
            let key = |round| seed ^ (u64::from(entries) << 8 | round << 40 | extra);
            let one = |round| rounded(host * (1.0 + spread * (wobble(key(round)) - 0.5)));
            (0..u64::from(ROUNDS)).map(one).collect()
        };
        let (tcp, udp64) = (at(17.9e9, 1), at(590e3, 2));
        results.filled.push(Filled { what: what.into(), entries, tcp, udp64 });
    }
    results
}

/// A complete run.
pub(crate) fn results() -> Results {
    run(1, 0.03)
}

/// The run of [`results`], but with the single TCP stream of `arm` at `share` of its speed.
#[cfg(test)]
pub(crate) fn slower(arm: &str, share: f64) -> Results {
    let mut results = results();
    for series in &mut results.series {
        if series.arm == arm && series.metric == Metric::TcpOne {
            series.samples.iter_mut().for_each(|sample| *sample *= share);
        }
    }
    results
}
