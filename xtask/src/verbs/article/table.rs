//! The table of docs/ARTICLE.md: the measured figures beside the article's.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::measure::Outcome;
use crate::process;

/// The line before the table in docs/ARTICLE.md.
const BEGIN: &str = "<!-- begin: cargo xtask article --write -->";

/// The line after the table.
const END: &str = "<!-- end -->";

/// A row of the article's table.
#[derive(Clone, Copy, Debug)]
struct Row {
    letter: char,
    what: &'static str,
    /// The article's TCP figure, Gbit/s.
    tcp: &'static str,
    /// The article's ratio to row C. The article does not give the ratio of row E: it is computed
    /// from the article's figures.
    ratio: &'static str,
    udp: &'static str,
}

/// The article's table.
const ROWS: [Row; 6] = [
    Row {
        letter: 'A',
        what: "container to container, overlay",
        tcp: "0.913",
        ratio: "0.44",
        udp: "1.05",
    },
    Row {
        letter: 'B',
        what: "container to container, bridge: out by SNAT, in by a published port",
        tcp: "1.73",
        ratio: "0.83",
        udp: "",
    },
    Row { letter: 'C', what: "host to host", tcp: "2.06", ratio: "1.00", udp: "1.05" },
    Row {
        letter: 'D',
        what: "host to a bridge container of the other host, by a published port",
        tcp: "1.88",
        ratio: "0.91",
        udp: "",
    },
    Row {
        letter: 'E',
        what: "host to a bridge container of its own",
        tcp: "20.5",
        ratio: "(9.95)",
        udp: "",
    },
    Row {
        letter: 'F',
        what: "host to a container in host mode of the other host",
        tcp: "2.02",
        ratio: "0.98",
        udp: "1.05",
    },
];

/// Index of the host-to-host row.
const BASE: usize = 2;

/// Machine and date of the measurement.
#[derive(Debug)]
pub(super) struct Machine {
    date: String,
    cores: usize,
    kernel: String,
    load: String,
}

impl Machine {
    /// The current state of this machine.
    pub(super) fn here() -> Result<Self> {
        let date = process::quiet(Command::new("date").args(["-u", "+%F"]))?.trim().to_owned();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let uname = nix::sys::utsname::uname().context("uname failed")?;
        let release = uname.release().to_string_lossy();
        // The text after the version number names the builder, and is left out.
        let kernel = release.split(['-', '+']).next().unwrap_or(&release).to_owned();
        Ok(Self { date, cores, kernel, load: load()? })
    }
}

/// Load average of the last minute.
pub(super) fn load() -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg").context("/proc/loadavg: cannot be read")?;
    Ok(load.split(' ').next().unwrap_or_default().to_owned())
}

/// Converts bit/s to Gbit/s.
fn giga(bits: f64) -> String {
    format!("{:.1}", bits / 1e9)
}

/// The table in Markdown, with machine and date above it.
pub(super) fn render(
    machine: &Machine,
    after: &str,
    rounds: u32,
    seconds: u32,
    results: &[Outcome],
) -> String {
    let Machine { date, cores, kernel, load } = machine;
    let mut text = format!(
        "{date}, {cores} cores, Linux {kernel}, load {load} before and {after} after; both hosts \
         are namespaces of this machine. TCP: median of {rounds} rounds of {seconds} s (lowest to highest), \
         and of the ratios within a round; rounds rotated. UDP: at iperf3's default rate, as in the article.\n\n\
         | | path | TCP, Gbit/s | ratio to C | article: TCP | article: ratio to C | UDP, Mbit/s (lost) | article: UDP |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for (row, result) in ROWS.iter().zip(results) {
        let range = if result.tcp.len() > 1 {
            let (low, high) = result.range();
            format!(" ({} to {})", giga(low), giga(high))
        } else {
            String::new()
        };
        let udp = result
            .udp
            .map_or_else(String::new, |(bits, lost)| format!("{:.2} ({lost:.0} %)", bits / 1e6));
        let Row { letter, what, tcp, ratio, udp: udp_then } = row;
        text.push_str(&format!(
            "| {letter} | {what} | {}{range} | **{:.2}** | {tcp} | {ratio} | {udp} | {udp_then} |\n",
            giga(result.median()),
            results.get(BASE).map_or(f64::NAN, |base| result.ratio(base)),
        ));
    }
    text
}

/// `text` with `table` between its two markers.
pub(super) fn replace(text: &str, table: &str) -> Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let Some((before, after)) = parts else {
        bail!("docs/ARTICLE.md: has no '{BEGIN}' with a '{END}' after it");
    };
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_the_place_of_the_last_one() {
        let text = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let first = replace(&text, "new").expect("has markers");
        assert!(first.starts_with("above\n") && first.ends_with("\nbelow\n"), "{first}");
        assert!(first.contains("\nnew\n") && !first.contains("old"), "{first}");
        assert_eq!(replace(&first, "new").expect("has markers"), first);
        assert!(replace("no markers", "new").is_err());
        assert!(replace(&format!("{END}{BEGIN}"), "new").is_err());
    }

    #[test]
    fn ratios_are_to_the_host_to_host_row() {
        let machine = Machine {
            date: "2026-01-02".into(),
            cores: 4,
            kernel: "6.6.0".into(),
            load: "0.10".into(),
        };
        let results: Vec<_> = [8e9, 7e9, 16e9, 15e9, 32e9, 16e9]
            .into_iter()
            .map(|tcp| Outcome { tcp: vec![tcp], udp: None })
            .collect();
        let table = render(&machine, "1.10", 1, 2, &results);
        let row = |letter: char| {
            table.lines().find(|line| line.starts_with(&format!("| {letter} |"))).unwrap_or("")
        };
        assert!(row('A').contains("| 8.0 | **0.50** | 0.913 | 0.44 |"), "{table}");
        assert!(row('C').contains("| 16.0 | **1.00** |"), "{table}");
        assert!(row('E').contains("| 32.0 | **2.00** | 20.5 |"), "{table}");
    }
}
