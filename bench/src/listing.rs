//! `culvert nat ls` of a full table.

use std::{
    io::{BufRead as _, BufReader, Read},
    net::Ipv4Addr,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use culvert_testbed::cluster::{Cluster, Host, unique_name};
use nix::unistd::Pid;

use crate::{
    results::FlowListing,
    scale::{FlowMaps, peak, resident},
};

/// Formats of the output.
const FORMATS: [&str; 2] = ["table", "json"];
/// Interval at which the memory is read.
const EVERY: Duration = Duration::from_millis(5);

/// Writes `flows` established connections of one container into the table of an agent, which has
/// the default size, and lists them in each format.
pub(crate) fn measure(flows: u32) -> Result<Vec<FlowListing>> {
    let cluster = Cluster::new(1);
    let host = cluster.hosts.first().context("cluster: no host")?;
    let name = unique_name("listed");
    host.run_idle(&name, "bridge", &[]);
    let ip =
        host.ip(&name, "bridge").parse::<Ipv4Addr>().context("the container has no address")?;
    let mut maps = FlowMaps::open(&host.bpffs())?;
    let owner = maps.owner(ip)?;
    let written = maps.fill(&owner, host.vtep(), 0..flows)?;
    FORMATS.iter().map(|format| list(host, format, written)).collect()
}

/// Lists the `written` flows.
fn list(host: &Host, format: &str, written: u32) -> Result<FlowListing> {
    let agent = host.agent.as_ref().context("no agent")?.pid();
    let before = resident(agent)?;
    let mut command = host.culvert_command(&["--format", format, "nat", "ls"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().context("culvert nat ls")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let output = child.stdout.take().context("culvert nat ls: no output")?;
    let word = if format == "json" { "\"protocol\":" } else { "tcp_established" };
    let reader = thread::spawn(move || {
        let rows = rows(output, word);
        rows.map(|rows| (rows, start.elapsed()))
    });
    let (mut cli, mut most) = (0, before);
    while !reader.is_finished() {
        // A process that has ended has no memory.
        cli = cli.max(peak(pid).unwrap_or_default());
        let now = resident(agent).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        most = most.max(now);
        thread::sleep(EVERY);
    }
    let read = reader.join().map_err(|_| anyhow!("the reader of the output ended early"))?;
    let (flows, elapsed) = read.context("culvert nat ls: output")?;
    let status = child.wait().context("culvert nat ls")?;
    ensure!(status.success(), "culvert nat ls: {status}");
    ensure!(flows >= u64::from(written), "culvert nat ls: {flows} of {written} flows are listed");
    Ok(FlowListing {
        format: format.to_owned(),
        flows,
        seconds: elapsed.as_secs_f64(),
        cli_peak_bytes: cli,
        agent_bytes: before,
        agent_growth_bytes: most - before,
    })
}

/// Number of lines with `word`.
fn rows(output: impl Read, word: &str) -> std::io::Result<u64> {
    let mut output = BufReader::new(output);
    let (mut line, mut rows) = (String::new(), 0);
    while output.read_line(&mut line)? > 0 {
        rows += u64::from(line.contains(word));
        line.clear();
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::{measure, rows};

    #[test]
    #[ignore = "needs root and etcd"]
    fn every_page_is_listed_in_each_format() {
        // A page has about 4,000 flows.
        let listings = measure(20_000).expect("listed");
        let flows: Vec<_> = listings.iter().map(|it| (it.format.as_str(), it.flows)).collect();
        assert_eq!(flows, [("table", 20_000), ("json", 20_000)]);
        assert!(listings.iter().all(|it| it.cli_peak_bytes > 0 && it.agent_bytes > 0));
    }

    #[test]
    fn each_flow_is_a_row() {
        let table = "PROTO   STATE\ntcp     tcp_established   one\ntcp     tcp_established   two\n";
        assert_eq!(rows(table.as_bytes(), "tcp_established").expect("read"), 2);
        let json = "[\n  {\n    \"protocol\": \"tcp\",\n    \"state\": \"tcp_close\"\n  }\n]\n";
        assert_eq!(rows(json.as_bytes(), "\"protocol\":").expect("read"), 1);
        assert_eq!(rows(&b""[..], "tcp").expect("read"), 0);
    }
}
