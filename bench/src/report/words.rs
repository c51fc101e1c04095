//! Texts of the report on rows, arms and metrics, and the format of figures.

use crate::results::{ArmInfo, Metric, Regime, Results};
use crate::stats::Interval;

/// Placeholder for a missing figure.
pub(crate) const NONE: &str = "–";

/// A row of the article's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Letter of the row, here and in docs/ARTICLE.md.
    pub(super) letter: char,
    /// The path in few words, for a terminal.
    pub(super) brief: &'static str,
    /// The path.
    pub(super) path: &'static str,
    /// The article's ratio to row C. The article does not give the ratio of row E: it is computed
    /// from the article's figures.
    pub(super) ratio: &'static str,
}

/// The article's table.
pub(super) const ROWS: [Row; 6] = [
    Row { letter: 'A', brief: "overlay", path: "container to container, overlay", ratio: "0.44" },
    Row {
        letter: 'B',
        brief: "bridge, two NATs",
        path: "container to container, bridge: out by SNAT, in by a published port",
        ratio: "0.83",
    },
    Row { letter: 'C', brief: "host to host", path: "host to host", ratio: "1.00" },
    Row {
        letter: 'D',
        brief: "published port",
        path: "host to a bridge container of the other host, by a published port",
        ratio: "0.91",
    },
    Row {
        letter: 'E',
        brief: "own container",
        path: "host to a bridge container of its own",
        ratio: "(9.95)",
    },
    Row {
        letter: 'F',
        brief: "host mode",
        path: "host to a container in host mode of the other host",
        ratio: "0.98",
    },
];

/// Place of arms without a row.
pub(super) const FURTHER: Row =
    Row { letter: ' ', brief: "not in the article", path: "not in the article", ratio: "" };

/// Owner of an arm, which decides its colour and whether a change counts as Culvert's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Owner {
    /// Culvert.
    Culvert,
    /// No container network: the base of all ratios.
    Host,
    /// Other systems.
    Other,
}

/// Owner of `arm`.
pub(crate) fn owner(arm: &str) -> Owner {
    match arm {
        crate::results::HOST | crate::results::HOST_AGAIN => Owner::Host,
        _ if arm.starts_with("culvert-") => Owner::Culvert,
        _ => Owner::Other,
    }
}

/// Description of the path of an arm; empty if this version does not know the arm.
pub(super) fn about(arm: &str) -> &str {
    match arm {
        "host" => {
            "From one host's network namespace to the other's over the underlay, without any \
             container network: row C, and the 1 of every ratio."
        }
        "host-again" => {
            "The path of host, set up and measured a second time as if it were another: how far \
             the two differ is what the measurement itself varies by (A/A)."
        }
        "culvert-overlay" => {
            "Container to container on two hosts: Culvert's eBPF programs put the VXLAN header \
             on and take it off."
        }
        "vxlan-docker" => {
            "The kernel's vxlan as Docker wires it: each container on a Linux bridge with a \
             vxlan device (nolearning, proxy, l2miss, l3miss)."
        }
        "vxlan-flannel" => {
            "The kernel's vxlan as flannel wires it: a route to each host's containers over a \
             vxlan device, no bridge between hosts."
        }
        "docker-overlay" => {
            "Docker itself: two daemons in a swarm, and a container of each on its overlay \
             network. Measured if asked for."
        }
        "openvswitch" => {
            "Open vSwitch without its kernel module: a process on each host puts the VXLAN \
             header on and takes it off. Measured if asked for."
        }
        "culvert-snat" => {
            "A container of Culvert's bridge network to the other host, out by the host's \
             address (one NAT)."
        }
        "linux-snat" => {
            "A container on a Linux bridge to the other host, out by iptables MASQUERADE (one NAT)."
        }
        "culvert-snat-published" => {
            "A container out by Culvert's SNAT, to a container of the other host in by a port \
             that Culvert publishes (two NATs)."
        }
        "linux-snat-published" => {
            "A container on a Linux bridge out by iptables SNAT, to a container of the other host in \
             by an iptables DNAT rule (two NATs)."
        }
        "culvert-published" => {
            "The other host to a container by a port that Culvert publishes (one NAT)."
        }
        "linux-published" => "The other host to a container by an iptables DNAT rule (one NAT).",
        "culvert-local" => "A host to a container of its own, on Culvert's bridge network.",
        "linux-local" => "A host to a container of its own, on a Linux bridge.",
        "culvert-host-mode" => {
            "To a container that Culvert runs with the host's own interfaces: nothing is added \
             to row C."
        }
        _ => "",
    }
}

/// Explanation of a metric, for a new reader.
pub(super) fn explain(metric: Metric) -> &'static str {
    match metric {
        Metric::TcpOne => {
            "Payload of one TCP connection that sends as fast as it can: a download, a backup."
        }
        Metric::TcpFour => "Payload of four TCP connections at the same time.",
        Metric::Udp64 => {
            "64-byte datagrams that arrived, of as many as one thread can send. Nothing is \
             merged here, so it is the cost of each packet that shows."
        }
        Metric::Udp1400 => "Payload of 1,400-byte datagrams that arrived.",
        Metric::Udp1400Loss => "Datagrams of 1,400 bytes that were sent and did not arrive.",
        Metric::RttP50 => {
            "One byte there and back over an open TCP connection: half of the exchanges take at \
             most this long."
        }
        Metric::RttP99 => "99 of 100 exchanges of one byte take at most this long.",
        Metric::RttP999 => "999 of 1,000 exchanges of one byte take at most this long.",
        Metric::Crr => {
            "Connections opened, used for one byte each way and closed, one after the other."
        }
        Metric::CpuPerGbit => {
            "Time that all cores work to move one Gbit of TCP payload at a fixed rate."
        }
        Metric::SoftirqPerGbit => {
            "Time in softirq for one Gbit, where the kernel receives packets, by its clock tick: a \
             part of the CPU time."
        }
        Metric::NewFlows => {
            "Datagrams that each begin a new flow and arrived: how fast connections are tracked."
        }
    }
}

/// The arms that have a figure of `metric`, in the order of the report.
pub(super) fn arms_of(results: &Results, metric: Metric) -> Vec<&ArmInfo> {
    let measured = |arm: &&ArmInfo| {
        Regime::ALL.iter().any(|&regime| results.median(&arm.id, regime, metric).is_some())
    };
    results.arms.iter().filter(measured).collect()
}

/// A figure in the metric's unit, without the name of the unit.
pub(super) fn figure(metric: Metric, value: Option<f64>) -> String {
    let (_, _, size, decimals) = metric.show();
    number(value.map(|value| value / size), decimals)
}

/// Heading and unit of a metric.
pub(super) fn heading(metric: Metric) -> String {
    let (name, unit, ..) = metric.show();
    format!("{name}, {unit}")
}

/// A number with so many decimals.
pub(super) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| format!("{value:.decimals$}"))
}

/// A time or a size: with a decimal only for small values.
pub(super) fn amount(value: f64) -> String {
    if value.abs() < 1e3 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// A median with its interval, as `0.82 (0.81 to 0.83)`; without the interval if it is a single
/// value.
pub(super) fn interval(value: Option<Interval>, decimals: usize) -> String {
    let Some(Interval { median, low, high }) = value else {
        return NONE.to_owned();
    };
    if low.total_cmp(&high).is_eq() {
        return format!("{median:.decimals$}");
    }
    format!("{median:.decimals$} ({low:.decimals$} to {high:.decimals$})")
}

/// What a headline may claim of a ratio to the figure of `base`, and how it goes on: the interval,
/// whose ends are rounded outward, or that the two figures are not distinguishable if the interval
/// has 1 in it.
pub(super) fn claim(ratio: Option<Interval>, base: &str, what: &str) -> (String, String) {
    let Some(Interval { low, high, .. }) = ratio else {
        return (NONE.to_owned(), format!("not measured: {base}'s {what}"));
    };
    let (range, kind) = if low.total_cmp(&high).is_eq() {
        (format!("{:.0} %", low * 100.0), "one figure, no interval")
    } else {
        // The tolerance is for ends that are a whole number of per cent.
        let (low, high) = ((low * 100.0 + 1e-9).floor(), (high * 100.0 - 1e-9).ceil());
        (format!("{low:.0} to {high:.0} %"), "95 % interval")
    };
    if low <= 1.0 && high >= 1.0 {
        let text = format!("from {base}: {range} of its {what} ({kind})");
        return ("not distinguishable".to_owned(), text);
    }
    (range, format!("of {base}'s {what} ({kind})"))
}

/// A share, as `1.2 %`.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| NONE.to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// A whole number with commas, as `100,000`.
pub(crate) fn whole(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as MiB.
pub(super) fn mebi(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Between which figures the ratios of a TCP stream are taken.
pub(super) fn pairs(results: &Results) -> &'static str {
    if results.settings.slices.is_some() { "of neighbouring slices" } else { "within a round" }
}

/// Machine, date and duration, in a sentence.
pub(super) fn circumstances(results: &Results) -> String {
    let (machine, settings) = (&results.machine, &results.settings);
    let memory = machine.memory_mib as f64 / 1024.0;
    let core = if settings.receive_on_other_core { ", received on the other core" } else { "" };
    let quick = if settings.quick { " (--quick)" } else { "" };
    let slices = settings.slices.as_ref().map_or_else(String::new, |slices| {
        format!(", in slices of {} ms or {} round trips", slices.stream_ms, slices.round_trips)
    });
    format!(
        "{}, {}, {} cores, {memory:.0} GiB, Linux {}, load {:.2} before and {:.2} after; {} \
         rounds of {} s{quick}{slices}{core}",
        machine.date,
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.load_before,
        machine.load_after,
        settings.rounds,
        settings.seconds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!(whole(0), "0");
        assert_eq!(whole(999), "999");
        assert_eq!(whole(1_234_567), "1,234,567");
        assert_eq!(figure(Metric::TcpOne, Some(15.349e9)), "15.35");
        assert_eq!(figure(Metric::TcpOne, None), NONE);
        let it = Interval { median: 0.823, low: 0.811, high: 0.829 };
        assert_eq!(interval(Some(it), 2), "0.82 (0.81 to 0.83)");
        assert_eq!(interval(Some(Interval { low: 0.823, high: 0.823, ..it }), 2), "0.82");
        assert_eq!(interval(Some(it), 1), "0.8 (0.8 to 0.8)");
        assert_eq!(percent(Some(0.0123)), "1.2 %");
        assert_eq!([amount(99.96), amount(1095.2)], ["100.0", "1095"]);
    }

    #[test]
    fn a_headline_claims_no_more_than_its_interval() {
        let says = |median, low, high| {
            let ratio = Some(Interval { median, low, high });
            let (figure, text) = claim(ratio, "the host", "throughput");
            format!("{figure} {text}")
        };
        assert_eq!(
            says(1.02, 0.67, 1.05),
            "not distinguishable from the host: 67 to 105 % of its throughput (95 % interval)"
        );
        assert_eq!(says(0.97, 0.966, 0.978), "96 to 98 % of the host's throughput (95 % interval)");
        assert_eq!(says(2.0, 1.95, 2.05), "195 to 205 % of the host's throughput (95 % interval)");
        assert_eq!(
            says(1.0, 0.999, 0.9995),
            "99 to 100 % of the host's throughput (95 % interval)"
        );
        assert_eq!(says(0.9, 0.9, 0.9), "90 % of the host's throughput (one figure, no interval)");
        assert_eq!(claim(None, "the host", "throughput").0, NONE);
    }
}
