//! The measurements: iperf3 along the six paths, on two hosts with an underlay between them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::lab::{Etcd, Host, HostPlan, Underlay, path};
use crate::process::{self, Background};
use crate::ui::{self, Progress};

/// How long a server may take until it listens.
const LISTENING: Duration = Duration::from_secs(15);

/// How long a path may take until it carries data, or a server until it is free again.
const OPEN: Duration = Duration::from_secs(10);

/// iperf3's default TCP port.
const PORT: u16 = 5201;

/// TCP port of the second host that is published for its container `web2`.
const PUBLISHED: u16 = 5202;

/// TCP port of the server in host mode. The host's own server has [`PORT`].
const HOST_MODE: u16 = 5203;

/// Figures of one path.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    /// Received TCP payload, bit/s: one figure a round, in the order of the rounds.
    pub(super) tcp: Vec<f64>,
    /// Received UDP payload at iperf3's default rate, bit/s, and lost datagrams, per cent. None if
    /// UDP was not measured.
    pub(super) udp: Option<(f64, f64)>,
}

impl Outcome {
    /// The median of the rounds.
    pub(super) fn median(&self) -> f64 {
        median(self.tcp.clone())
    }

    /// The median of each round's ratio to `base` in the same round: other load of the machine
    /// varies less within a round than over all rounds.
    pub(super) fn ratio(&self, base: &Self) -> f64 {
        median(self.tcp.iter().zip(&base.tcp).map(|(ours, base)| ours / base).collect())
    }

    /// The lowest and the highest TCP figure.
    pub(super) fn range(&self) -> (f64, f64) {
        let low = self.tcp.iter().copied().fold(f64::INFINITY, f64::min);
        (low, self.tcp.iter().copied().fold(0.0, f64::max))
    }
}

/// The median of `figures`: the middle one, or the mean of the middle two.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = |index: usize| figures.get(index).copied().unwrap_or_default();
    f64::midpoint(at(figures.len().saturating_sub(1) / 2), at(figures.len() / 2))
}

/// A path: where its client runs, and the address of its server.
#[derive(Debug)]
struct Route {
    /// Container on the first host; none for the host itself.
    from: Option<&'static str>,
    ip: String,
    port: u16,
    /// Whether the article has a UDP figure of this path.
    udp: bool,
}

/// Measures the rows A to F of the article's table; returns them in this order.
pub(super) fn all(rounds: u32, seconds: u32) -> Result<Vec<Outcome>> {
    let plans = [HostPlan::new(1), HostPlan::new(2)];
    let _underlay = Underlay::make(&plans)?;
    let _etcd = Etcd::start()?;
    let [one, two] = plans.map(Host::start);
    let (mut one, mut two) = (one?, two?);
    one.wait_ready()?;
    two.wait_ready()?;
    let (host1, host2) = (one.plan.clone(), two.plan.clone());
    let (_server, routes) = prepare(&host1, &host2)?;

    let mut tcp = vec![Vec::new(); routes.len()];
    let turns = usize::try_from(rounds)? * routes.len();
    let progress = Progress::start(&format!("{turns} measurements of {seconds} s"));
    for turn in 0..turns {
        // Each round begins with another row, so that other load of the machine is spread over the
        // rows.
        let row = (turn + turn / routes.len()) % routes.len();
        if let (Some(route), Some(figures)) = (routes.get(row), tcp.get_mut(row)) {
            let said = iperf(&host1, route, &["-t", &seconds.to_string()])?;
            figures.push(bits(&said, "/end/sum_received/bits_per_second")?);
        }
        progress.percent(u64::try_from(turn * 100 / turns)?);
    }
    progress.finish(true);
    let mut results = Vec::new();
    for (route, tcp) in routes.iter().zip(tcp) {
        let udp = if route.udp {
            let said = iperf(&host1, route, &["-u", "-t", &seconds.to_string()])?;
            let lost = bits(&said, "/end/sum/lost_percent")?;
            let sent = bits(&said, "/end/sum/bits_per_second")?;
            Some((sent * (1.0 - lost / 100.0), lost))
        } else {
            None
        };
        results.push(Outcome { tcp, udp });
    }
    one.stop()?;
    two.stop()?;
    Ok(results)
}

/// Starts the servers and waits until each path is open.
fn prepare(one: &HostPlan, two: &HostPlan) -> Result<(Background, Vec<Route>)> {
    let type_on = |host: &HostPlan, line: &str| -> Result<()> {
        ui::line(&ui::dim(&format!("root@{}:~# {line}", host.node)));
        let said = host.shell(line)?;
        if !said.status.success() {
            bail!("{}: '{line}': {}", host.node, process::last_lines(&said.text, 2));
        }
        Ok(())
    };
    type_on(one, "culvert network create -d overlay --subnet 10.0.0.0/24 overlaynet1")?;
    let seen = "culvert network inspect overlaynet1";
    process::wait_for("overlaynet1 on host2", OPEN, || {
        Ok(two.shell(seen)?.status.success().then_some(()))
    })?;
    let mut command = two.command("iperf3".as_ref());
    let server = Background::start("iperf3", command.arg("-s"), &path("iperf3.log"))?;
    let host_port =
        format!("culvert run -d --name hostc2 --network host -- iperf3 -s -p {HOST_MODE}");
    type_on(two, "culvert run -d --name over2 --network overlaynet1 -- iperf3 -s")?;
    type_on(two, &format!("culvert run -d --name web2 -p {PUBLISHED}:{PORT} -- iperf3 -s"))?;
    type_on(two, &host_port)?;
    type_on(one, "culvert run -d --name over1 --network overlaynet1 -- sleep infinity")?;
    type_on(one, "culvert run -d --name web1 -- iperf3 -s")?;
    for (host, name, port) in
        [(two, "over2", PORT), (two, "web2", PORT), (two, "hostc2", HOST_MODE), (one, "web1", PORT)]
    {
        let line = format!("culvert exec {name} -- ss -Hltn sport = :{port}");
        process::wait_for(&format!("{name}: listening"), LISTENING, || {
            Ok(host.shell(&line)?.text.contains(&format!(":{port}")).then_some(()))
        })?;
    }
    let route = |from, ip: &str, port, udp| Route { from, ip: ip.to_owned(), port, udp };
    let (over2, web1) = (address(two, "over2")?, address(one, "web1")?);
    let routes = vec![
        route(Some("over1"), &over2, PORT, true),
        route(Some("web1"), &two.ip, PUBLISHED, false),
        route(None, &two.ip, PORT, true),
        route(None, &two.ip, PUBLISHED, false),
        route(None, &web1, PORT, false),
        route(None, &two.ip, HOST_MODE, true),
    ];
    for route in &routes {
        // This transfer opens the path. It is not counted.
        iperf(one, route, &["-n", "1M"])?;
    }
    Ok((server, routes))
}

/// A container's address, from the output of `ps`.
fn address(host: &HostPlan, name: &str) -> Result<String> {
    let said = host.shell("culvert --format json ps")?;
    let rows: Value = serde_json::from_str(&said.text).context("'ps' does not say JSON")?;
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name));
    let ip = row.and_then(|row| row.pointer("/networks/0/ip")?.as_str());
    ip.map(str::to_owned).with_context(|| format!("{name}: 'ps' has no address of it"))
}

/// Runs iperf3 along `route` and returns its output.
fn iperf(host: &HostPlan, route: &Route, more: &[&str]) -> Result<Value> {
    let from = route.from.map_or_else(String::new, |name| format!("culvert exec {name} -- "));
    let line = format!("{from}iperf3 -J -c {} -p {} {}", route.ip, route.port, more.join(" "));
    process::wait_for(&format!("{}: '{line}'", host.node), OPEN, || {
        let said = host.shell(&line)?;
        let value: Value = serde_json::from_str(&said.text).unwrap_or_default();
        match value.get("error").and_then(Value::as_str) {
            // The server still serves the last client, or the path is not open yet.
            Some(error) if error.contains("busy") || error.contains("connect") => Ok(None),
            Some(error) => bail!("{}: '{line}': {error}", host.node),
            None if said.status.success() => Ok(Some(value)),
            None => bail!("{}: '{line}': {}", host.node, process::last_lines(&said.text, 2)),
        }
    })
}

/// The number at the JSON pointer `pointer` of iperf3's output.
fn bits(said: &Value, pointer: &str) -> Result<f64> {
    said.pointer(pointer)
        .and_then(Value::as_f64)
        .with_context(|| format!("iperf3: says nothing at {pointer}"))
}

#[cfg(test)]
mod tests {
    use super::{Outcome, median};

    #[test]
    fn the_median_is_the_middle_one() {
        let of = |figures: &[f64]| median(figures.to_vec()).to_bits();
        assert_eq!(of(&[2.0, 9.0, 1.0]), 2.0_f64.to_bits());
        assert_eq!(of(&[9.0, 1.0, 2.0, 4.0]), 3.0_f64.to_bits());
        assert_eq!(of(&[7.0]), 7.0_f64.to_bits());
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let outcome = |tcp: &[f64]| Outcome { tcp: tcp.to_vec(), udp: None };
        // Each figure is half of the base in its round, although the rounds differ.
        let (ours, base) = (outcome(&[4.0, 1.0, 2.0]), outcome(&[8.0, 2.0, 4.0]));
        assert_eq!(ours.ratio(&base).to_bits(), 0.5_f64.to_bits());
        assert_eq!(ours.range(), (1.0, 4.0));
    }
}
