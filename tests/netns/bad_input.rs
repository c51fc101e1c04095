//! Errors of a user: one line, the right exit code, and an unchanged state.

use std::process::Command;

use culvert_tests::{
    cluster::{Cluster, Host, SOON, culvert_binary, unique_name},
    netns::{Netns, Process},
};
use serde_json::Value;

/// Everything that a refused command must not change.
fn state(host: &Host) -> [Value; 6] {
    let mut rows = ["network ls", "ps", "fdb show", "neigh show", "vtep ls", "nat ls"]
        .map(|verb| host.json(&verb.split(' ').collect::<Vec<_>>()));
    // Every row must be equal, but the order of the rows is not promised.
    for row in &mut rows {
        if let Some(rows) = row.as_array_mut() {
            rows.sort_by_key(ToString::to_string);
        }
    }
    rows
}

/// The command is refused with `code` and a line that has every one of `words`, and changes
/// nothing.
pub(crate) fn refused(host: &Host, code: i32, args: &[&str], words: &[&str]) {
    let before = state(host);
    let line = host.refused(code, args);
    for word in words {
        assert!(line.contains(word), "culvert {args:?}: no {word:?} in: {line}");
    }
    assert_eq!(state(host), before, "culvert {args:?} changed the state");
}

#[test]
#[ignore = "needs root"]
fn networks() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let overlay = ["network", "create", "-d", "overlay"];
    let create = |rest: &[&'static str]| [&overlay[..], rest].concat();
    host.ok(&create(&["--subnet", "10.0.0.0/24", "--vni", "300", "net"]));
    let user = unique_name("user");
    host.run_idle(&user, "net", &[]);

    refused(host, 2, &create(&["--subnet", "10.1.0.0/33", "x"]), &["10.1.0.0/33"]);
    refused(host, 2, &create(&["--subnet", "banana", "x"]), &["banana"]);
    for (args, words) in [
        (create(&["--subnet", "10.1.0.5/24", "x"]), vec!["10.1.0.5/24", "10.1.0.0/24"]),
        (create(&["--subnet", "224.0.0.0/24", "x"]), vec!["224.0.0.0/24"]),
        (create(&["--subnet", "10.0.0.0/16", "x"]), vec!["10.0.0.0/16", "net"]),
        (create(&["--subnet", "10.0.0.128/25", "x"]), vec!["10.0.0.128/25", "net"]),
        (create(&["--subnet", "10.2.0.0/24", "--gateway", "10.3.0.1", "x"]), vec!["10.3.0.1"]),
        (create(&["--subnet", "10.2.0.0/24", "--vni", "0", "x"]), vec!["VNI 0"]),
        (create(&["--subnet", "10.2.0.0/24", "--vni", "16777216", "x"]), vec!["16777216"]),
        (create(&["--subnet", "10.2.0.0/24", "--vni", "300", "x"]), vec!["300", "net"]),
        (create(&["--subnet", "10.2.0.0/24", "net"]), vec!["net"]),
        (create(&["--subnet", "10.2.0.0/24", "--mtu", "67", "x"]), vec!["67", "68"]),
        (create(&["--subnet", "10.2.0.0/24", "--mtu", "1451", "x"]), vec!["1451", "1450"]),
        (create(&["--subnet", "10.2.0.0/24", "--opt", "colour=red", "x"]), vec!["colour"]),
        (vec!["network", "rm", "net"], vec!["net", &user]),
        (vec!["network", "rm", "nowhere"], vec!["nowhere"]),
        (vec!["network", "inspect", "nowhere"], vec!["nowhere"]),
        (vec!["vtep", "add", "192.0.2.77", "--network", "nowhere"], vec!["nowhere"]),
        (vec!["vtep", "rm", "192.0.2.77", "--network", "net"], vec!["192.0.2.77"]),
    ] {
        let output = host.culvert(&args);
        let code = output.status.code().unwrap_or(0);
        assert!(code == 1 || code == 2, "culvert {args:?}: exit {code}");
        refused(host, code, &args, &words);
    }
    refused(host, 2, &create(&["--subnet", "10.2.0.0/24", "_bad"]), &["_bad"]);
    refused(host, 2, &create(&["--subnet", "10.2.0.0/24", "sp ace"]), &["sp ace"]);
    refused(host, 2, &["network", "create"], &["NAME"]);
    refused(host, 2, &["no-such-verb"], &["no-such-verb"]);
}

#[test]
#[ignore = "needs root"]
fn containers() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/29", &[]);
    let first = unique_name("first");
    let name = unique_name("x");
    host.run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    let run = |rest: &[&'static str]| {
        let head = ["run", "-d", "--name", name.as_str()];
        [&head[..], rest, &["--", "true"]].concat()
    };
    refused(host, 1, &run(&["--network", "nowhere"]), &["nowhere"]);
    refused(host, 1, &run(&["--network", "net", "--ip", "10.9.9.9"]), &["10.9.9.9", "10.0.0.0/29"]);
    refused(host, 1, &run(&["--network", "net", "--ip", "10.0.0.2"]), &["10.0.0.2", &first]);
    refused(host, 1, &run(&["--network", "net", "--ip", "10.0.0.1"]), &["10.0.0.1"]);
    refused(host, 1, &run(&["--network", "net", "--ip", "10.0.0.7"]), &["10.0.0.7"]);
    refused(host, 2, &run(&["--network", "net", "--ip", "elsewhere"]), &["elsewhere"]);
    refused(host, 2, &run(&["--network", "net", "--mac", "02:42"]), &["02:42"]);
    refused(host, 1, &["run", "-d", "--name", &first, "--network", "net", "--", "true"], &[&first]);
    refused(
        host,
        2,
        &["run", "-d", "--name", "../../etc", "--network", "net", "--", "true"],
        &["../../etc"],
    );

    // Namespaces and pids that do not exist, and names that are taken.
    let attach = |rest: &[&str]| {
        let head = ["attach", "--name", name.as_str(), "--network", "net"];
        [&head, rest].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let check = |rest: &[&str], words: &[&str]| {
        let args = attach(rest);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(host, 1, &args, words);
    };
    check(&["--netns", "/run/netns/nothing-here"], &["/run/netns/nothing-here"]);
    check(&["--netns", "/etc/passwd"], &["/etc/passwd"]);
    check(&["--pid", "4194304"], &["4194304"]);
    let taken = Netns::new("taken");
    taken.run("ip link add br7 type bridge");
    let path = taken.path().display().to_string();
    check(&["--netns", &path, "--ifname", "br7"], &["br7"]);
    let long = attach(&["--netns", &path, "--ifname", "far-too-long-a-name"]);
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    refused(host, 2, &long, &["far-too-long-a-name"]);
    assert!(taken.succeeds("ip link show br7"));
    assert!(!taken.succeeds("ip link show eth0"));

    // The subnet has room for 10.0.0.2 to 10.0.0.6.
    for _ in 0..4 {
        host.run_idle(&unique_name("fill"), "net", &[]);
    }
    refused(host, 1, &run(&["--network", "net"]), &["net", "10.0.0.0/29"]);
    for verb in [
        &["rm", "ghost"][..],
        &["logs", "ghost"],
        &["exec", "ghost", "--", "true"],
        &["detach", "ghost"],
    ] {
        refused(host, 1, verb, &["ghost"]);
    }
}

/// A command without an agent, without privilege, and on a kernel that lacks a required feature.
#[test]
#[ignore = "needs root"]
fn no_agent_no_privilege_no_kernel() {
    let cluster = Cluster::without_agents(1, 1500);
    let host = &cluster.hosts[0];
    let line = host.refused(1, &["ps"]);
    assert!(line.contains("culvert.sock") && line.contains("culvert agent"), "{line}");

    let one_line = |command: &mut Command, words: &[&str]| {
        let output = command.output().unwrap_or_else(|error| unreachable!("{error}"));
        let line = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(1), "{line}");
        let last = line.lines().last().unwrap_or_default();
        for word in words {
            assert!(last.contains(word), "no {word:?} in: {line}");
        }
    };
    let agent = host.agent_command(&[]);
    let args: Vec<_> = agent.get_args().map(ToOwned::to_owned).collect();
    let program = agent.get_program().to_owned();

    // The kernel has tcx since Linux 6.6.
    let mut old = Command::new("setarch");
    old.arg("--uname-2.6").arg(&program).args(&args);
    one_line(&mut old, &["2.6", "6.6"]);
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    let binary = host.dir().join("culvert-copy");
    assert!(std::fs::copy(culvert_binary(), &binary).is_ok());
    Netns::here().run(&format!("chmod 755 {} {}", host.dir().display(), binary.display()));
    let socket = host.socket().display().to_string();
    nobody.arg(&binary).args([
        "--socket",
        &socket,
        "agent",
        "--node",
        "n",
        "--store",
        "file:/tmp/none",
    ]);
    one_line(&mut nobody, &["root"]);

    let mut uplink = host.netns.command(culvert_binary());
    uplink
        .args(["agent", "--node", "n", "--uplink", "nosuch0", "--store-timeout", "1", "--store"])
        .arg(format!("file:{}", host.dir().join("store").display()))
        .arg("--socket")
        .arg(host.socket())
        .arg("--state-dir")
        .arg(host.dir().join("state"))
        .arg("--bpffs")
        .arg(host.bpffs());
    one_line(&mut uplink, &["nosuch0"]);

    // Plaintext beyond loopback needs `--insecure-store`.
    let mut plain = host.netns.command(culvert_binary());
    plain
        .args(["agent", "--node", "n", "--uplink", "up0", "--store", &host.store, "--socket"])
        .arg(host.socket())
        .arg("--state-dir")
        .arg(host.dir().join("state"))
        .arg("--bpffs")
        .arg(host.bpffs());
    one_line(&mut plain, &["192.0.2.254", "--insecure-store"]);
}

/// A second agent on a socket, and a second agent under a node name.
#[test]
#[ignore = "needs root"]
fn second_agents() {
    let mut cluster = Cluster::new(2);
    let socket = cluster.hosts[0].socket().display().to_string();
    let mut second = Process::spawn(cluster.hosts[0].agent_command(&[]));
    assert_eq!(second.wait(SOON).code(), Some(1));
    assert!(second.stderr().contains(&socket), "{}", second.stderr());
    assert!(cluster.hosts[0].healthy());

    cluster.hosts[1].stop_agent(nix::sys::signal::Signal::SIGTERM);
    cluster.hosts[1].node = cluster.hosts[0].node.clone();
    let mut clash = Process::spawn(cluster.hosts[1].agent_command(&[]));
    assert_eq!(clash.wait(SOON).code(), Some(1), "{}", clash.stderr());
    assert!(clash.stderr().contains("node0"), "{}", clash.stderr());
    assert!(cluster.hosts[0].healthy());
}
