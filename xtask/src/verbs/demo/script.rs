//! The script of the demo: the experiments of the article that Culvert follows, and its overlay
//! chapter.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::modes::ExternalServer;
use super::stage::{LISTENING, Stage, wait_until};
use crate::lab::{Etcd, Host, HostPlan, Underlay};
use crate::process::{self, Background};
use crate::ui;

/// How long each throughput measurement runs.
const MEASURE_S: u32 = 2;

/// Plays the demo.
pub(super) fn play() -> Result<()> {
    let start = Instant::now();
    let mut stage = Stage::default();
    let plans = [HostPlan::new(1), HostPlan::new(2)];

    stage.step("Two hosts on one underlay; a store; an agent on each host")?;
    stage.say("Each host is a network namespace with its own uplink; nothing here reaches the");
    stage.say("machine's own network. 'cargo xtask lab up' leaves the same hosts running, and");
    stage.say("'cargo xtask lab sh host1' is a shell on one, where all of this can be typed.");
    let _underlay = Underlay::make(&plans)?;
    stage.prompt("store", &format!("etcd {} &", Etcd::args().join(" ")));
    let mut etcd = Etcd::start()?;
    for plan in &plans {
        stage.prompt(&plan.node, &format!("culvert {} &", plan.agent_args().join(" ")));
    }
    let [one, two] = plans.map(Host::start);
    let (mut one, mut two) = (one?, two?);
    one.wait_ready()?;
    two.wait_ready()?;
    stage.type_on(&one.plan, "culvert status")?;

    let external = ExternalServer::start(&mut stage)?;
    external.bridge(&mut stage, &one.plan, &two.plan)?;
    external.other_modes(&mut stage, &one.plan)?;
    let mut play = Play { stage, one: one.plan.clone(), two: two.plan.clone() };
    play.network()?;
    let (ip1, ip2) = play.containers()?;
    play.inside_a_container(&ip2)?;
    play.reach(&ip1, &ip2)?;
    external.out_of_the_overlay(&mut play.stage, &play.two, &ip2)?;
    play.tables(&ip1, &ip2)?;
    play.throughput(&ip2)?;
    play.removal()?;
    // The demo fails if a process has ended unnoticed.
    etcd.check()?;
    one.check()?;
    two.check()?;
    external.stop()?;
    play.end(one, two)?;
    etcd.stop()?;

    ui::line(&format!(
        "\n{} {} expectations held in {}. Nothing is left running.",
        ui::green("The demo went as it should:"),
        play.stage.checks(),
        ui::seconds(start.elapsed())
    ));
    Ok(())
}

/// The stage and its two hosts.
struct Play {
    stage: Stage,
    one: HostPlan,
    two: HostPlan,
}

impl Play {
    /// Makes a network on one host and checks that the other host sees it.
    fn network(&mut self) -> Result<()> {
        let Self { stage, one, two } = self;
        stage.step("Mode 5, an overlay network, created on host1 ...")?;
        let id = stage
            .type_on(one, "culvert network create -d overlay --subnet 10.0.0.0/24 overlaynet1")?;
        let id = id.trim().to_owned();
        stage.expect("the network's id", !id.is_empty() && id.lines().count() == 1)?;

        stage.step("... is there on host2, through etcd")?;
        wait_until(two, "overlaynet1 on host2", "culvert network inspect overlaynet1", |_| true)?;
        stage.type_on(two, "culvert network ls")?;
        let said = stage.type_on(two, "culvert network inspect overlaynet1")?;
        let network = first_network(&said)?;
        let subnet = network.pointer("/IPAM/Config/0/Subnet").and_then(Value::as_str);
        stage.expect("the same id", text(&network, "Id") == Some(&id))?;
        stage.expect("the driver overlay", text(&network, "Driver") == Some("overlay"))?;
        stage.expect("the subnet 10.0.0.0/24", subnet == Some("10.0.0.0/24"))
    }

    /// Starts a container with a web server on each host. Returns their addresses.
    fn containers(&mut self) -> Result<(String, String)> {
        let Self { stage, one, two } = self;
        stage.step("A container with a web server on each host")?;
        for (host, name) in [(&*two, "over2"), (&*one, "over1")] {
            stage.type_on(
                host,
                &format!(
                    "mkdir -p /run/culvert-lab/{name} && echo 'Hello from {name}' > \
                     /run/culvert-lab/{name}/index.html"
                ),
            )?;
            stage.type_on(
                host,
                &format!(
                    "culvert run -d --name {name} --network overlaynet1 -- python3 -m http.server \
                     80 --directory /run/culvert-lab/{name}"
                ),
            )?;
        }
        for (host, name) in [(&*one, "over1"), (&*two, "over2")] {
            let probe = format!("culvert exec {name} -- curl -sf http://127.0.0.1/");
            wait_until(host, &format!("{name}'s web server"), &probe, |_| true)?;
        }
        stage.type_on(one, "culvert ps")?;
        let inspect = "culvert network inspect overlaynet1";
        wait_until(one, "both containers in the network", inspect, |said| {
            first_network(said).is_ok_and(|network| {
                address(&network, "over1").is_some() && address(&network, "over2").is_some()
            })
        })?;
        let said = stage.type_on(one, inspect)?;
        let network = first_network(&said)?;
        let ip1 = address(&network, "over1").context("over1 has no address")?;
        let ip2 = address(&network, "over2").context("over2 has no address")?;
        stage.expect("both containers in the network, as host1 sees it", ip1 != ip2)?;
        Ok((ip1, ip2))
    }

    /// Shows the device and the routes of a container.
    fn inside_a_container(&mut self, ip2: &str) -> Result<()> {
        let Self { stage, two, .. } = self;
        stage.step(
            "Inside over2: the device has room for the VXLAN header, and a MAC that follows its IP",
        )?;
        let said = stage.type_on(two, "ip netns exec over2 ip a")?;
        stage.expect("MTU 1450", said.contains("mtu 1450"))?;
        let mac = mac_of(ip2)?;
        stage.expect(&format!("MAC {mac}"), said.contains(&mac))?;
        stage.expect(&format!("address {ip2}/24"), said.contains(&format!("{ip2}/24")))?;
        let said = stage.type_on(two, "ip netns exec over2 ip route")?;
        let route = said.lines().any(|l| l.starts_with("10.0.0.0/24") && l.contains("dev eth0"));
        stage.expect("the overlay's subnet on eth0", route)
    }

    /// Shows ping and HTTP in both directions.
    fn reach(&mut self, ip1: &str, ip2: &str) -> Result<()> {
        let Self { stage, one, two } = self;
        stage.step("They reach each other")?;
        let said = stage.type_on(two, &format!("culvert exec over2 -- ping -c 3 -i 0.2 {ip1}"))?;
        stage.expect("no ping lost", said.contains(" 0% packet loss"))?;
        let said = stage.type_on(two, &format!("culvert exec over2 -- curl -s http://{ip1}/"))?;
        stage.expect("over1's page", said.trim() == "Hello from over1")?;
        let said = stage.type_on(one, &format!("culvert exec over1 -- curl -s http://{ip2}/"))?;
        stage.expect("over2's page", said.trim() == "Hello from over2")
    }

    /// Shows the FDB, the neighbours and the VTEPs of the data plane.
    fn tables(&mut self, ip1: &str, ip2: &str) -> Result<()> {
        let Self { stage, one, two } = self;
        stage.step("The data plane's tables: MAC to interface or VTEP, IP to MAC")?;
        for (host, other, ip) in [(&*one, &two.ip, ip2), (&*two, &one.ip, ip1)] {
            let said = stage.type_on(host, "culvert fdb show")?;
            let mac = mac_of(ip)?;
            let row = said.lines().any(|line| line.contains(&mac) && line.contains(other.as_str()));
            stage.expect(&format!("{mac} behind the VTEP {other}"), row)?;
        }
        stage.type_on(one, "culvert neigh show")?;
        stage.type_on(one, "culvert vtep ls")?;
        Ok(())
    }

    /// Measures TCP throughput between the hosts, and through the overlay.
    fn throughput(&mut self, ip2: &str) -> Result<()> {
        let Self { stage, one, two } = self;
        stage.step("Throughput: host to host, and the same through the overlay")?;
        let direct = measure(stage, one, two, "", "", &two.ip.clone())?;
        let (from, to) = ("culvert exec over1 -- ", "culvert exec over2 -- ");
        let overlay = measure(stage, one, two, from, to, ip2)?;
        ui::line("");
        ui::table(
            &["PATH", "GBIT/S", "OF HOST TO HOST"],
            &[
                vec!["host to host".into(), format!("{direct:.1}"), "1.00".into()],
                vec![
                    "over1 to over2".into(),
                    format!("{overlay:.1}"),
                    format!("{:.2}", overlay / direct),
                ],
            ],
        );
        stage.expect("data through both", direct > 0.0 && overlay > 0.0)?;
        stage.type_on(two, "culvert stats").map(drop)
    }

    /// Removes the containers and the network.
    fn removal(&mut self) -> Result<()> {
        let Self { stage, one, two } = self;
        stage.step("Removal")?;
        stage.type_on(one, "culvert rm -f over1")?;
        stage.type_on(two, "culvert rm -f over2")?;
        stage.type_on(one, "culvert network rm overlaynet1")?;
        wait_until(two, "overlaynet1 gone", "culvert network ls", |said| {
            !said.contains("overlaynet1")
        })?;
        stage.type_on(two, "culvert network ls").map(drop)
    }

    /// Stops the agents and checks that they have left nothing.
    fn end(&mut self, one: Host, two: Host) -> Result<()> {
        let stage = &mut self.stage;
        stage.step("The agents are stopped; with --cleanup-on-exit they leave nothing")?;
        one.stop()?;
        two.stop()?;
        for host in [&self.one, &self.two] {
            let said = stage.type_on(host, "ip -brief link")?;
            let strays: Vec<_> = said
                .lines()
                .filter_map(|line| line.split([' ', '@']).next())
                .filter(|name| *name != "lo" && *name != host.uplink)
                .collect();
            let what = format!("{} with no device but lo and {}", host.node, host.uplink);
            stage.expect(&what, strays.is_empty())?;
            stage.expect(&format!("{} with nothing pinned", host.node), pins(host) == 0)?;
        }
        Ok(())
    }
}

/// Number of pins in the host's bpffs, without the two files that the kernel puts into every bpffs.
fn pins(host: &HostPlan) -> usize {
    let Ok(entries) = std::fs::read_dir(host.bpffs()) else {
        // The agent has removed it, or unmounted it and removed the directory.
        return 0;
    };
    entries.flatten().filter(|e| !e.file_name().to_string_lossy().ends_with(".debug")).count()
}

/// Runs iperf3 from `one` to `two`, where `from` and `to` are the command prefixes that enter the
/// containers, and returns the received rate, Gbit/s.
fn measure(
    stage: &mut Stage,
    one: &HostPlan,
    two: &HostPlan,
    from: &str,
    to: &str,
    ip: &str,
) -> Result<f64> {
    let line = format!("{to}iperf3 -s -1");
    stage.prompt(&two.node, &format!("{line} &"));
    let mut command: Command = two.command("sh".as_ref());
    let log = crate::lab::path("iperf3.log");
    let mut server = Background::start("iperf3 -s", command.args(["-c", &line]), &log)?;
    let probe = format!("{to}ss -Hltn sport = :5201");
    process::wait_for("iperf3 -s: listening", LISTENING, || {
        server.check()?;
        Ok(two.shell(&probe)?.text.contains(":5201").then_some(()))
    })?;
    let said = stage.type_on(one, &format!("{from}iperf3 -c {ip} -t {MEASURE_S} -f g"))?;
    server.stop()?;
    received(&said).with_context(|| format!("iperf3 -c {ip}: does not say what arrived"))
}

/// Rate in iperf3's line of the receiver, Gbit/s.
fn received(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.trim_end().ends_with("receiver"))?;
    let mut before = "";
    for word in line.split_whitespace() {
        if word == "Gbits/sec" {
            return before.parse().ok();
        }
        before = word;
    }
    None
}

/// The first element of the output of `network inspect`.
fn first_network(said: &str) -> Result<Value> {
    let mut all: Vec<Value> =
        serde_json::from_str(said).context("'network inspect' does not say a JSON array")?;
    if all.is_empty() {
        bail!("'network inspect' says an empty array");
    }
    Ok(all.swap_remove(0))
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

/// Address of the container `name` in an element of `network inspect`, without prefix length.
fn address(network: &Value, name: &str) -> Option<String> {
    let containers = network.get("Containers")?.as_object()?;
    let container = containers.values().find(|c| text(c, "Name") == Some(name))?;
    let ip = text(container, "IPv4Address")?;
    Some(ip.split('/').next().unwrap_or(ip).to_owned())
}

/// The MAC that an endpoint with `ip` has: `02:42:` and the address.
fn mac_of(ip: &str) -> Result<String> {
    let ip: std::net::Ipv4Addr =
        ip.parse().with_context(|| format!("{ip}: not an IPv4 address"))?;
    let [a, b, c, d] = ip.octets();
    Ok(format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_follows_its_ip() {
        assert_eq!(mac_of("10.0.0.3").expect("an address"), "02:42:0a:00:00:03");
        assert!(mac_of("ten").is_err());
    }

    #[test]
    fn iperf3_is_read_where_the_receiver_speaks() {
        let said = "[  5]   0.00-2.00   sec  3.90 GBytes  16.7 Gbits/sec    0             sender\n\
                    [  5]   0.00-2.00   sec  3.90 GBytes  16.6 Gbits/sec                  receiver\n";
        assert_eq!(received(said), Some(16.6));
        assert_eq!(received("iperf3: error"), None);
    }

    #[test]
    fn addresses_are_found_by_the_containers_name() {
        let network = serde_json::json!({ "Containers": {
            "abc": { "Name": "over1", "IPv4Address": "10.0.0.3/24" },
        }});
        assert_eq!(address(&network, "over1").as_deref(), Some("10.0.0.3"));
        assert_eq!(address(&network, "over2"), None);
    }
}
