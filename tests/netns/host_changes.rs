//! Addresses, devices, programs and pins that are changed while the agent runs.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use culvert_common::abi::ABI_VERSION;
use culvert_tests::{
    bpf::detach_link,
    cluster::{Cluster, Host, SOON, unique_name},
    external::External,
    netns::{Netns, Process, wait_until},
};
use nix::sys::signal::{Signal, kill};

use crate::{
    device::told,
    host_routes::has_problem,
    lifecycle::{lost, start_pings},
};

/// Within this time a change of a device, a setting, a program or a pin is repaired and
/// reported.
const REPAIR: Duration = Duration::from_secs(2);
/// Within this time the BPF file system is mounted again.
const REMOUNT: Duration = Duration::from_secs(5);

/// The repairs of one kind: their number, and the text of the last one.
pub(crate) fn repairs(host: &Host, kind: &str) -> (u64, String) {
    let status = host.json(&["status"]);
    let rows = status["repairs"].as_array().unwrap();
    let row = rows.iter().find(|row| row["kind"] == kind);
    row.map_or((0, String::new()), |row| {
        (row["count"].as_u64().unwrap(), row["last"].as_str().unwrap().to_owned())
    })
}

/// Runs `breakage`, and waits until the command `whole` succeeds again and the repair is reported
/// with `words`.
pub(crate) fn is_repaired(host: &Host, kind: &str, breakage: &str, words: &str, whole: &str) {
    is_repaired_in(host, &|script| host.netns.succeeds(script), kind, breakage, words, whole);
}

/// As [`is_repaired`], but the commands are run by `run`, which returns whether they succeed.
fn is_repaired_in(
    host: &Host,
    run: &dyn Fn(&str) -> bool,
    kind: &str,
    breakage: &str,
    words: &str,
    whole: &str,
) {
    let (before, _) = repairs(host, kind);
    assert!(run(breakage), "{breakage}");
    wait_until(REPAIR, &format!("{whole:?} after {breakage:?}"), || run(whole));
    wait_until(REPAIR, &format!("a repair of a {kind} after {breakage:?}"), || {
        let (count, last) = repairs(host, kind);
        count > before && last.contains(words)
    });
}

/// The host gets another address, for example by DHCP, or as a resumed VM.
#[test]
#[ignore = "needs root"]
fn a_host_with_a_new_address_is_reached_there() {
    let cluster = Cluster::new(2);
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    one.overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let (first, second) = (unique_name("moved1"), unique_name("moved2"));
    one.run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    two.run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    one.wait_ping(&first, "10.0.0.3");

    let old = two.vtep();
    two.netns.run(&format!("ip addr del {old}/24 dev up0 && ip addr add 192.0.2.77/24 dev up0"));
    // Frames to the old address still arrive for a moment, because the peer has the MAC. So the
    // test also waits for the agent's new address.
    let followed = || {
        let output = two.culvert(&["--format", "json", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["agent"]["vtep_ip"] == "192.0.2.77" && status["store"]["healthy"] == true
    };
    wait_until(Duration::from_secs(5), "traffic to the new address", || {
        followed() && one.try_in_container(&first, "ping -c1 -W1 10.0.0.3").status.success()
    });
    two.in_container(&second, "ping -c1 -W2 10.0.0.2");
    assert!(two.agent_log().contains("192.0.2.77"), "{}", two.agent_log());
}

/// The agent does not replace an address that was given to it.
#[test]
#[ignore = "needs root"]
fn a_lost_vtep_address_that_was_given_is_told() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    let vtep = host.vtep();
    host.start_agent(&["--vtep-ip", &vtep.to_string()]);
    host.wait_ready();
    host.netns.run("ip addr add 192.0.2.77/24 dev up0");
    host.netns.run(&format!("ip addr del {vtep}/24 dev up0"));
    let told = |host: &Host| {
        let problems = host.json(&["status"])["problems"].clone();
        let mut lines = problems.as_array().unwrap().iter();
        lines.any(|line| line.as_str().unwrap().contains(&format!("VTEP address {vtep} is no")))
    };
    wait_until(SOON, "the problem", || told(host));
    host.netns.run(&format!("ip addr add {vtep}/24 dev up0"));
    wait_until(SOON, "no problem", || !told(host));
}

/// At boot the agent may start before the uplink and its address exist.
#[test]
#[ignore = "needs root"]
fn an_agent_waits_for_its_uplink() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    let vtep = host.vtep();
    host.netns.run(&format!("ip addr del {vtep}/24 dev up0 && ip link set up0 name later0"));
    host.start_agent(&[]);
    wait_until(SOON, "the line about the uplink", || host.agent_log().contains("up0"));
    host.netns.run("ip link set later0 down && ip link set later0 name up0 && ip link set up0 up");
    wait_until(SOON, "the line about the address", || host.agent_log().contains("no IPv4 address"));
    host.netns.run(&format!("ip addr add {vtep}/24 dev up0"));
    host.wait_ready();
}

/// Starts the agent of a host without `--uplink`, or with another one.
fn start_on(host: &mut Host, uplink: Option<&str>) {
    let whole = host.agent_command(&[]);
    let mut args: Vec<_> = whole.get_args().map(ToOwned::to_owned).collect();
    let at = args.iter().position(|arg| arg == "--uplink").unwrap();
    args.drain(at..at + 2);
    let mut command = std::process::Command::new(whole.get_program());
    command.args(args);
    if let Some(uplink) = uplink {
        command.args(["--uplink", uplink]);
    }
    host.agent = Some(Process::spawn(command));
}

/// At boot the agent is there before the default route, which tells the uplink.
#[test]
#[ignore = "needs root"]
fn an_agent_waits_for_the_default_route() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    start_on(host, None);
    let waits = "no default route tells the uplink";
    wait_until(SOON, "the line about the route", || host.agent_log().contains(waits));
    assert!(host.agent.as_mut().unwrap().is_running(), "{}", host.agent_log());
    host.netns.run("ip route add default via 192.0.2.254 dev up0");
    host.wait_ready();
    let status = host.json(&["status"]);
    assert_eq!(status["agent"]["uplinks"], serde_json::json!(["up0"]), "{status}");
    assert_eq!(status["agent"]["vtep_ip"], "192.0.2.1", "{status}");
    // Once: not with each look.
    assert_eq!(host.agent_log().matches(waits).count(), 1, "{}", host.agent_log());
}

/// What the status says of the uplinks. Null while the agent starts anew.
fn uplinks_of(host: &Host) -> serde_json::Value {
    let output = host.culvert(&["--format", "json", "status"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if status["store"]["healthy"] == true { status["agent"]["uplinks"].clone() } else { ().into() }
}

/// The findings of `doctor` about uplinks that are warnings, with their advice.
fn uplink_warnings(host: &Host) -> String {
    let findings = host.findings();
    let findings = findings.as_array().unwrap().iter();
    let warnings = findings.filter(|row| row["check"] == "uplink" && row["level"] == "warning");
    warnings.map(ToString::to_string).collect()
}

/// The address of the uplink and the default route are moved to a bridge, of which the uplink becomes
/// a port. Containers reach other hosts through the bridge.
#[test]
#[ignore = "needs root"]
fn an_uplink_is_followed_with_the_default_route() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let _external = External::of(&cluster);
    let host = &mut cluster.hosts[0];
    start_on(host, None);
    host.wait_ready();
    assert_eq!(uplinks_of(host), serde_json::json!(["up0"]));
    let name = unique_name("follow");
    host.run_idle(&name, "bridge", &[]);
    host.wait_ping(&name, &External::IP.to_string());

    let vtep = host.vtep();
    host.netns.run(&format!(
        "way=$(ip route show default | sed 's/dev.*//') \
         && ip link add br0 type bridge && ip link set br0 up && ip addr add {vtep}/24 dev br0 \
         && ip link set up0 master br0 && ip addr del {vtep}/24 dev up0 \
         && ip route replace $way dev br0"
    ));
    wait_until(SOON, "the bridge as the uplink", || uplinks_of(host) == serde_json::json!(["br0"]));
    host.wait_ping(&name, &External::IP.to_string());
    assert_eq!(host.json(&["status"])["agent"]["vtep_ip"], vtep.to_string());
    assert!(!has_problem(host, "default route"), "{}", host.ok(&["status"]));
    assert_eq!(uplink_warnings(host), "");
    let words = "the default route leads out of br0 instead of up0";
    assert_eq!(repairs(host, "underlay"), (1, words.to_owned()));
    assert_eq!(host.agent_log().matches(words).count(), 1, "{}", host.agent_log());
    let attached = |name: &str| {
        culvert_tests::netns::programs(&host.netns, name, aya::programs::TcAttachType::Ingress)
    };
    assert_eq!((attached("br0").len(), attached("up0").len()), (1, 0));
}

/// The agent keeps the uplink that was given to it, and says that containers do not reach other hosts
/// by the default route.
#[test]
#[ignore = "needs root"]
fn a_given_uplink_without_the_default_route_is_told() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let _external = External::of(&cluster);
    let host = &mut cluster.hosts[0];
    start_on(host, Some("up0"));
    host.wait_ready();
    assert_eq!(uplink_warnings(host), "");
    let before = host.netns.run("ip route show default").trim().to_owned();
    host.netns.run(
        "ip link add card0 type veth peer name card1 && ip link set card0 up \
         && ip link set card1 up && ip addr add 10.77.0.1/24 dev card0 \
         && ip route replace default via 10.77.0.2",
    );
    let words = "it leads out of card0 now, and no longer out of the uplink up0";
    wait_until(SOON, "the problem", || has_problem(host, words));
    let warnings = uplink_warnings(host);
    assert!(warnings.contains("leads out of card0") && warnings.contains("--uplink card0"));
    assert_eq!(uplinks_of(host), serde_json::json!(["up0"]));
    host.netns.run(&format!("ip route replace {before}"));
    wait_until(SOON, "no problem", || !has_problem(host, words));
    assert_eq!(uplink_warnings(host), "");
    assert_eq!(repairs(host, "underlay").0, 0);
}

/// An interface without an Ethernet header is refused as an uplink, with why, whether it is named or
/// has the default route.
#[test]
#[ignore = "needs root"]
fn an_uplink_without_an_ethernet_header_is_refused() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    host.netns.run(
        "ip tuntap add tun9 mode tun && ip addr add 10.78.0.1/24 dev tun9 && \
         ip link set tun9 up && ip route add default dev tun9",
    );
    for uplink in [Some("tun9"), None] {
        start_on(host, uplink);
        let mut agent = host.agent.take().unwrap();
        let status = agent.wait(SOON);
        let errors = agent.stderr();
        assert_eq!(status.code(), Some(1), "{errors}");
        let lines: Vec<&str> =
            errors.lines().filter(|line| line.starts_with("culvert: ")).collect();
        let [line] = lines[..] else { unreachable!("one line, not: {errors}") };
        assert!(line.contains("uplink tun9 has no Ethernet header (tun): Culvert sends"), "{line}");
    }
    // Nothing was loaded.
    assert_eq!(host.netns.run("ip -o link show | grep -c 'cv[a-z0-9]*:' || true").trim(), "0");
}

/// Changes of devices and settings as by networkd, NetworkManager or an administrator.
#[test]
#[ignore = "needs root"]
fn changed_devices_are_put_right_and_told() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let name = unique_name("dev");
    host.run_idle(&name, "net", &["--ip", "10.0.0.2", "-p", "8080:80"]);
    host.netns.run("ping -c1 -W2 10.0.0.2");
    let cvg =
        host.netns.run("ip -o link show | grep -o 'cvg[0-9][0-9]*' | head -1").trim().to_owned();
    let port = host.netns.run("ip -o link show | grep -o 'cv[0-9a-f]\\{12\\}' | head -1");
    let port = port.trim();
    assert!(!cvg.is_empty() && !port.is_empty(), "{cvg} {port}");

    for (breakage, words, whole) in [
        ("ip link set CVG down", "was down", "ip link show CVG | grep -q '[<,]UP[,>]'"),
        ("ip link set CVG mtu 1200", "had MTU 1200", "ip link show CVG | grep -q 'mtu 1450'"),
        (
            "ip link set CVG address 02:00:00:00:00:99",
            "had another MAC",
            "ip link show CVG | grep -q 02:42:0a:00:00:01",
        ),
        ("ip addr flush dev CVG", "had lost address", "ip addr show CVG | grep -q 10.0.0.1/24"),
        ("ip route flush dev CVG", "had lost the route", "ip route show 10.0.0.0/24 | grep -q CVG"),
        (
            "ip addr add 10.0.0.200/24 dev CVG",
            "had address 10.0.0.200",
            "! ip addr show CVG | grep -q 10.0.0.200",
        ),
    ] {
        let now = |text: &str| text.replace("CVG", &cvg);
        is_repaired(host, "gateway device", &now(breakage), words, &now(whole));
    }
    // Of all devices only a VRF takes a bridge as a port, and not every kernel has it.
    if host.netns.succeeds("ip link add vrf9 type vrf table 99 && ip link set vrf9 up") {
        is_repaired(
            host,
            "gateway device",
            &format!("ip link set {cvg} master vrf9"),
            "was a port of another device",
            &format!(
                "! ip link show {cvg} | grep -q master && ip route show 10.0.0.0/24 | grep -q {cvg}"
            ),
        );
    }
    for (breakage, words, whole) in [
        ("ip link set PORT down", "was down", "ip link show PORT | grep -q '[<,]UP[,>]'"),
        ("ip link set PORT mtu 1200", "had MTU 1200", "ip link show PORT | grep -q 'mtu 1450'"),
        (
            "ip link set PORT nomaster",
            "was no port of cvroom0",
            "ip link show PORT | grep -q 'master cvroom0'",
        ),
        (
            "ip link add br9 type bridge && ip link set PORT master br9",
            "was a port of br9",
            "ip link show PORT | grep -q 'master cvroom0'",
        ),
    ] {
        let now = |text: &str| text.replace("PORT", port);
        is_repaired(host, "container device", &now(breakage), words, &now(whole));
    }
    for (breakage, words, whole) in [
        (
            "ip link set cvroom0 up",
            "cvroom0 was up",
            "! ip link show cvroom0 | grep -q '[<,]UP[,>]'",
        ),
        (
            "ip link set cvgro0 down",
            "cvgro0 was down",
            "ip link show cvgro0 | grep -q '[<,]UP[,>]'",
        ),
        (
            "ip link set cvgro0 nomaster",
            "cvgro0 was no port of cvroom0",
            "ip link show cvgro0 | grep -q 'master cvroom0'",
        ),
        (
            "ip link del cvroom0",
            "cvroom0 was missing",
            "ip link show PORT | grep -q 'master cvroom0'",
        ),
    ] {
        let whole = whole.replace("PORT", port);
        is_repaired(host, "assistant device", breakage, words, &whole);
    }
    for (breakage, words, whole) in [
        (
            "sysctl -qw net.ipv4.conf.CVG.forwarding=0",
            "had forwarding off",
            "sysctl -n net.ipv4.conf.CVG.forwarding | grep -q 1",
        ),
        (
            "sysctl -qw net.ipv6.conf.CVG.disable_ipv6=0",
            "had disable_ipv6 off",
            "sysctl -n net.ipv6.conf.CVG.disable_ipv6 | grep -q 1",
        ),
        (
            "sysctl -qw net.ipv6.conf.PORT.disable_ipv6=0",
            "had disable_ipv6 off",
            "sysctl -n net.ipv6.conf.PORT.disable_ipv6 | grep -q 1",
        ),
        (
            "sysctl -qw net.ipv4.conf.lo.route_localnet=0",
            "lo had route_localnet off",
            "sysctl -n net.ipv4.conf.lo.route_localnet | grep -qx 67",
        ),
        (
            "sysctl -qw net.ipv4.conf.lo.accept_local=0",
            "lo had accept_local off",
            "sysctl -n net.ipv4.conf.lo.accept_local | grep -qx 67",
        ),
    ] {
        let now = |text: &str| text.replace("CVG", &cvg).replace("PORT", port);
        is_repaired(host, "setting", &now(breakage), words, &now(whole));
    }
    // With a removed gateway device its link goes, too.
    let links = host.bpffs().join(format!("v{ABI_VERSION}/links"));
    let pin = pin_of(&links, "gateway-");
    host.netns.run(&format!("ip link del {cvg}"));
    wait_until(REPAIR, "the link of the removed device", || !pin.exists());
    wait_until(REPAIR, "another gateway device", || {
        host.netns.succeeds(&format!("ip route show 10.0.0.0/24 | grep -q {cvg}"))
    });
    host.netns.run("ping -c1 -W2 10.0.0.2");
    let log = host.agent_log();
    assert!(log.contains(&format!("repaired: {cvg} was down")), "{log}");
}

/// What others change in the namespace of a container is put right and told. What they add stays.
#[test]
#[ignore = "needs root"]
fn changes_in_a_container_are_put_right_and_told() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let name = unique_name("inside");
    host.run_idle(&name, "net", &["--ip", "10.0.0.2"]);
    let kind = "container interface";
    assert_eq!(repairs(host, kind).0, 0, "{:?}", repairs(host, kind));
    let run = |script: &str| host.try_in_container(&name, script).status.success();
    assert!(run("ip addr add 10.7.7.7/32 dev eth0 && ip route add 10.9.0.0/16 via 10.0.0.1"));
    let default = "ip route | grep -q '^default via 10.0.0.1 dev eth0'";
    for (breakage, words, whole) in [
        ("ip link set eth0 mtu 1300", "had MTU 1300", "ip link show eth0 | grep -q 'mtu 1450'"),
        (
            "ip link set eth0 address 02:00:00:00:00:99",
            "had another MAC",
            "ip link show eth0 | grep -q 02:42:0a:00:00:02",
        ),
        ("ip route del default", "had lost the route to 0.0.0.0/0", default),
        (
            "ip addr del 10.0.0.2/24 dev eth0",
            "had lost address 10.0.0.2/24",
            "ip addr show eth0 | grep -q 10.0.0.2/24",
        ),
        ("ip link set lo down", "had lo down", "ip link show lo | grep -q '[<,]UP[,>]'"),
    ] {
        is_repaired_in(host, &run, kind, breakage, words, whole);
        let (_, last) = repairs(host, kind);
        assert!(last.starts_with(&format!("container '{name}': eth0 ")), "{last}");
        assert!(run("ip addr show eth0 | grep -q 10.7.7.7/32"), "{breakage}");
    }
    // These take the user's own additions as well.
    for (breakage, words, whole) in [
        ("ip link set eth0 down", "was down", "ip link show eth0 | grep -q '[<,]UP[,>]'"),
        ("ip addr flush dev eth0", "had lost address 10.0.0.2/24", default),
        ("ip route flush dev eth0", "had lost the route to 10.0.0.0/24", default),
        (
            "ip link set eth0 down && ip link set eth0 name eth7",
            "was named eth7",
            "ip link show eth0",
        ),
        (
            "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
            "had disable_ipv6 changed",
            "ip -6 addr show eth0 | grep -q fe80::",
        ),
        ("ip link del eth0", "was missing", default),
    ] {
        is_repaired_in(host, &run, kind, breakage, words, whole);
    }
    host.wait_ping(&name, "10.0.0.1");
    // What the agent itself does in the namespace is no reason to look again and again.
    let (count, _) = repairs(host, kind);
    host.ok(&["rm", "-f", &name]);
    let name = unique_name("inside");
    host.run_idle(&name, "net", &["--ip", "10.0.0.2"]);
    host.wait_ping(&name, "10.0.0.1");
    assert_eq!(repairs(host, kind).0, count, "{:?}", repairs(host, kind));
}

/// The namespace of another program, which has its own default route. Culvert's rules and its table
/// come back. The namespace ends when its owner removes it.
#[test]
#[ignore = "needs root"]
fn changes_in_an_attached_namespace_are_put_right_and_told() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let (router, inner) = (Netns::new("router"), Netns::new("attached"));
    inner.connect("own0", &router, "peer0", 1500);
    inner.run("ip addr add 10.66.0.2/24 dev own0; ip route add default via 10.66.0.1");
    host.overlay("net", "10.0.0.0/24", &[]);
    let (name, path) = (unique_name("guest"), inner.path().display().to_string());
    host.ok(&["attach", "--name", &name, "--netns", &path, "--network", "net"]);
    let ip = host.ip(&name, "net");
    let run = |script: &str| inner.succeeds(&script.replace("GUEST", &ip));
    let own = "ip route | grep -q '^default via 10.66.0.1 dev own0'";
    let ours = "ip route show table all | grep -q '^default via 10.0.0.1 dev eth0 table'";
    for (breakage, words, whole) in [
        (
            "ip rule del priority 31000",
            "had lost the rule 31000 of GUEST",
            "ip rule | grep -q '^31000:.*from GUEST lookup main'",
        ),
        (
            "ip rule del priority 31001",
            "had lost the rule 31001 of GUEST",
            "ip rule | grep -q '^31001:.*from GUEST'",
        ),
        (
            "ip route flush table $(ip rule | sed -n 's/^31001:.*lookup \\([0-9]*\\).*/\\1/p')",
            "had lost the route of table",
            ours,
        ),
        ("ip link set eth0 down", "was down", ours),
        ("ip link set eth0 mtu 1300", "had MTU 1300", "ip link show eth0 | grep -q 'mtu 1450'"),
        (
            "ip link set eth0 address 02:00:00:00:00:99",
            "had another MAC",
            "ip link show eth0 | grep -q 02:42:0a:00:00",
        ),
        ("ip addr flush dev eth0", "had lost address GUEST/24", "ip addr | grep -q GUEST/24"),
    ] {
        let kind = "container interface";
        is_repaired_in(host, &run, kind, breakage, &words.replace("GUEST", &ip), whole);
        assert!(run(own), "{breakage}");
    }
    // Without its own default route the namespace gets the network's. Its own replaces that again.
    let network = "ip route | grep -q '^default via 10.0.0.1 dev eth0'";
    let words = "had lost the route to 0.0.0.0/0";
    is_repaired_in(host, &run, "container interface", "ip route del default", words, network);
    inner.run("ip route replace default via 10.66.0.1 dev own0");
    let mtu = "ip link show eth0 | grep -q 'mtu 1450'";
    let breakage = "ip link set eth0 mtu 1300";
    is_repaired_in(host, &run, "container interface", breakage, "had MTU 1300", mtu);
    assert!(run(own) && !run(network));

    drop((inner, router));
    wait_until(SOON, "the end of the namespace", || {
        !host.netns.succeeds("ip -o link show | grep -q 'cv[0-9a-f]\\{12\\}'")
    });
}

/// Kinds of links on a host of which all programs are attached.
fn kinds(host: &Host) -> Vec<&'static str> {
    let all =
        ["container-", "uplink-xdp-", "uplink-out-", "uplink-", "gateway-", "loopback-", "client-"];
    let netkit = (told(host) == "netkit").then_some("netkit-");
    all.into_iter().chain(netkit).collect()
}

/// Path of a pinned link of a kind.
fn pin_of(links: &Path, kind: &str) -> PathBuf {
    let all = std::fs::read_dir(links).unwrap();
    all.filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.strip_prefix(kind).is_some_and(|index| index.parse::<u32>().is_ok())
        })
        .unwrap()
}

/// Pins of links, maps and programs, all pins at once, and the BPF file system itself. The agent
/// holds what was pinned: nobody loses a packet. A program whose link is detached by force is
/// attached again.
#[test]
#[ignore = "needs root"]
fn removed_pins_are_put_back_and_told() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let gateway = Cluster::ETCD.to_string();
    let host = &mut cluster.hosts[0];
    host.start_agent(&["--datapath", "xdp"]);
    host.wait_ready();
    host.ok(&["network", "create", "--subnet", "10.5.0.0/24", "lan"]);
    // A client link.
    host.netns.run(
        "ip link add card0 type veth peer name card1; ip link set card0 up; \
         ip link set card1 up; ip addr add 198.51.100.1/24 dev card0",
    );
    let name = unique_name("pin");
    host.run_idle(&name, "lan", &["--ip", "10.5.0.2", "-p", "8080:80"]);
    host.netns.run("ping -c1 -W2 10.5.0.2");
    host.wait_ping(&name, &gateway);
    let pins = host.bpffs().join(format!("v{ABI_VERSION}"));
    let links = pins.join("links");
    let kinds = kinds(host);
    wait_until(SOON, "the client link", || {
        std::fs::read_dir(&links).unwrap().count() >= kinds.len()
    });

    let outward = start_pings(&name, &gateway);
    let inward = host.netns.spawn("ping", &["-i", "0.01", "-W", "1", "10.5.0.2"]);
    let told_after = |kind: &str, before: u64, words: &str| {
        wait_until(REPAIR, &format!("the repair: {words}"), || {
            let (count, last) = repairs(host, kind);
            count > before && last.contains(words)
        });
    };
    for kind in &kinds {
        let pin = pin_of(&links, kind);
        let (before, _) = repairs(host, "program");
        std::fs::remove_file(&pin).unwrap();
        wait_until(REPAIR, &format!("{}", pin.display()), || pin.exists());
        told_after("program", before, "had lost its pin");
    }
    for pin in [pins.join("maps/FDB"), pins.join("programs/from_container")] {
        let (before, _) = repairs(host, "pin");
        std::fs::remove_file(&pin).unwrap();
        wait_until(REPAIR, &format!("{}", pin.display()), || pin.exists());
        told_after("pin", before, "was missing");
    }
    // Another object is pinned in place of a link or a map, without a moment in which there is none.
    for (kind, pin, words) in [
        ("program", pin_of(&links, "container-"), "had another object at its pin"),
        ("program", pin_of(&links, "uplink-"), "had another object at its pin"),
        ("pin", pins.join("maps/NETWORKS"), "led to another object"),
        ("pin", pins.join("programs/from_host"), "led to another object"),
    ] {
        let (before, _) = repairs(host, kind);
        let other = pins.join("other");
        std::fs::hard_link(pins.join("maps/VTEPS"), &other).unwrap();
        std::fs::rename(&other, &pin).unwrap();
        told_after(kind, before, words);
    }
    let come_back = |before: u64| {
        // The agent looks at the uplinks before it looks for pins.
        host.netns.run("ip link set up0 alias changed");
        wait_until(REMOUNT, "the pins", || {
            pins.join("maps/FLOWS").exists()
                && std::fs::read_dir(&links).is_ok_and(|links| links.count() >= kinds.len())
        });
        wait_until(REMOUNT, "the repairs", || {
            repairs(host, "program").0 >= before + kinds.len() as u64
        });
        let last = repairs(host, "pin").1;
        assert!(last.starts_with("was missing, ") && last.ends_with(" more"), "{last}");
    };
    // The whole file system is unmounted. The agent still holds the maps, and so the flows.
    let (before, _) = repairs(host, "program");
    nix::mount::umount2(&host.bpffs(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    come_back(before);
    // The file system is emptied. The agent is stopped meanwhile, or it would put back one pin
    // while the next one is removed.
    let (before, _) = repairs(host, "program");
    let agent = host.agent.as_ref().unwrap().pid();
    kill(agent, Signal::SIGSTOP).unwrap();
    std::fs::remove_dir_all(&pins).unwrap();
    kill(agent, Signal::SIGCONT).unwrap();
    come_back(before);
    assert_eq!((lost(outward), lost(inward)), (0, 0));

    for kind in &kinds {
        let (before, _) = repairs(host, "program");
        detach_link(&pin_of(&links, kind));
        told_after("program", before, "was detached");
    }
    host.netns.run("ping -c1 -W2 10.5.0.2");
    host.wait_ping(&name, &gateway);
    // A restarted agent finds the pins.
    let host = &mut cluster.hosts[0];
    host.stop_agent(Signal::SIGKILL);
    host.in_container(&name, &format!("ping -c5 -i0.05 -W1 {gateway}"));
    host.start_agent(&["--datapath", "xdp"]);
    host.wait_ready();
    host.netns.run("ping -c1 -W2 10.5.0.2");
}

/// A removed pin does not keep a program attached after its interface has been given up: the agent
/// holds the link, and lets it go.
#[test]
#[ignore = "needs root"]
fn what_was_held_without_a_pin_is_detached() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.netns.run(
        "ip link add card0 type veth peer name card1; ip link set card0 up; \
         ip link set card1 up; ip addr add 198.51.100.1/24 dev card0",
    );
    let name = unique_name("held");
    host.run_idle(&name, "bridge", &["-p", "8080:80"]);
    let programs = |ifname: &str| {
        culvert_tests::netns::programs(&host.netns, ifname, aya::programs::TcAttachType::Ingress)
    };
    wait_until(SOON, "the client link", || programs("card0") == ["from_client"]);
    let links = host.bpffs().join(format!("v{ABI_VERSION}/links"));
    for kind in ["client-", "loopback-"] {
        std::fs::remove_file(pin_of(&links, kind)).unwrap();
    }
    host.ok(&["rm", "-f", &name]);
    for ifname in ["card0", "lo"] {
        wait_until(SOON, ifname, || programs(ifname).is_empty());
    }
    std::fs::remove_file(pin_of(&links, "uplink-")).unwrap();
    host.ok(&["purge"]);
    assert!(programs("up0").is_empty(), "{:?}", programs("up0"));
}
