//! Errors of a user with ports, modes and NAT; see `bad_input`.

use std::process::Command;

use culvert_tests::{
    cluster::{Cluster, culvert_binary, unique_name},
    netns::{Netns, Process},
};

use crate::bad_input::refused;

/// An invalid value of `-p` is a usage error. The line shows the right form.
#[test]
#[ignore = "needs root"]
fn malformed_ports() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let name = unique_name("x");
    let adopted = Netns::new("adopted");
    let path = adopted.path().display().to_string();
    for (publish, word) in [
        ("", "malformed"),
        (":", "malformed"),
        ("80:", "malformed"),
        ("abc", "malformed"),
        ("80:abc", "malformed"),
        ("8x:80", "malformed"),
        ("80: 80", "malformed"),
        ("1:2:3:4", "malformed"),
        ("1.2.3:80:80", "1.2.3"),
        ("host:80:80", "host"),
        ("70000:80", "65535"),
        ("80:70000", "65535"),
        ("80:0", "65535"),
        ("0", "65535"),
        ("8000-8002:80-81", "3 ports"),
        ("8000-8002:80", "3 ports"),
        ("8002-8000:80-82", "lower port first"),
        ("8000-8002:82-80", "lower port first"),
        ("1-2000", "1024"),
        ("80:80/sctp", "sctp"),
        ("80:80/", "tcp or udp"),
        ("[::1]:80:80", "IPv6"),
        ("::1:80:80", "IPv6"),
        ("224.0.0.1:80:80", "224.0.0.1"),
    ] {
        let run = ["run", "-d", "--name", &name, "-p", publish, "--", "true"];
        refused(host, 2, &run, &[&format!("'{publish}'"), word]);
        let attach = ["attach", "--name", &name, "--network", "bridge", "--netns", &path];
        refused(host, 2, &[&attach[..], &["-p", publish]].concat(), &[word]);
    }
    assert!(!adopted.succeeds("ip link show eth0"));
}

/// Ports that this host or this container cannot have.
#[test]
#[ignore = "needs root"]
fn ports_that_cannot_be_had() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.ok(&["network", "create", "-d", "bridge", "--internal", "inner"]);
    host.overlay("deep", "10.0.0.0/24", &["--internal"]);
    let (first, name) = (unique_name("first"), unique_name("x"));
    host.run_idle(&first, "bridge", &["-p", "8080:80"]);
    let run = |network: &'static str, ports: &[&'static str]| {
        let mut args = vec!["run", "-d", "--name", &name, "--network", network];
        args.extend(ports.iter().flat_map(|port| ["-p", port]));
        args.extend(["--", "true"]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (network, ports, words) in [
        ("bridge", &["8080:80"][..], &["8080/tcp", first.as_str()][..]),
        ("bridge", &["8079-8081:1-3"], &["8080/tcp", &first]),
        ("bridge", &["127.0.0.1:8080:80"], &["127.0.0.1:8080/tcp", &first]),
        ("bridge", &["9000:1", "9000:2"], &["9000/tcp", "twice"]),
        ("bridge", &["192.0.2.99:9000:1"], &["192.0.2.99", "not an address"]),
        ("inner", &["9000:1"], &["inner", "internal"]),
        ("deep", &["9000:1"], &["deep", "internal"]),
        ("host", &["9000:1"], &["-p", "host"]),
        ("none", &["9000:1"], &["-p", "none"]),
    ] {
        let args = run(network, ports);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(host, 1, &args, words);
    }
    let shared = format!("container:{first}");
    let args = ["run", "-d", "--name", &name, "--network", &shared, "-p", "9000:1", "--", "true"];
    refused(host, 1, &args, &["-p", "container:"]);
}

/// A port below 1024 with an agent that may not bind it.
#[test]
#[ignore = "needs root"]
fn privileged_ports_need_a_capability() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let agent = cluster.hosts[0].agent_command(&[]);
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"])
        .arg(agent.get_program())
        .args(agent.get_args());
    cluster.hosts[0].agent = Some(Process::spawn(command));
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    // The default of a host. The tests' namespaces inherit the value of init_net instead.
    host.netns.run("sysctl -qw net.ipv4.ip_unprivileged_port_start=1024");
    let (name, other) = (unique_name("x"), unique_name("y"));
    let run = ["run", "-d", "--name", &name, "-p", "80:80", "--", "true"];
    host.run_idle(&other, "bridge", &["-p", "1024:80"]);
    refused(host, 1, &run, &["80/tcp", "permission", "CAP_NET_BIND_SERVICE"]);
    let run = ["run", "-d", "--name", &name, "-p", "9000:1", "-p", "53:53/udp", "--", "true"];
    refused(host, 1, &run, &["53/udp", "permission", "CAP_NET_BIND_SERVICE"]);
}

/// `none`, `host` and `container:` with incompatible options.
#[test]
#[ignore = "needs root"]
fn modes() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let [web, side, bare, alone, name] = ["web", "side", "bare", "alone", "x"].map(unique_name);
    host.run_idle(&web, "bridge", &[]);
    host.run_idle(&side, &format!("container:{web}"), &[]);
    host.run_idle(&bare, "host", &[]);
    host.run_idle(&alone, "none", &[]);
    let check = |code: i32, network: &str, options: &[&str], words: &[&str]| {
        let head = ["run", "-d", "--name", &name, "--network", network];
        refused(host, code, &[&head, options, &["--", "true"]].concat(), words);
    };
    check(1, "container:nobody", &[], &["nobody"]);
    check(1, &format!("container:{name}"), &[], &[&name]);
    check(1, &format!("container:{side}"), &[], &[&side, &format!("container:{web}")]);
    check(2, "container:", &[], &["--network", "\"\""]);
    check(2, "container:../x", &[], &["../x"]);
    for mode in ["host", "none", &format!("container:{web}")] {
        check(1, mode, &["--ip", "172.17.0.9"], &["--ip", mode]);
        check(1, mode, &["--mac", "02:00:00:00:00:09"], &["--mac", mode]);
    }
    for network in ["host", "none"] {
        refused(host, 1, &["network", "connect", network, &web], &[network]);
        refused(host, 1, &["network", "disconnect", network, &web], &[network]);
        refused(host, 1, &["network", "rm", network], &[network]);
        refused(host, 1, &["network", "create", network], &[network]);
    }
    for shared in [&bare, &side] {
        refused(host, 1, &["network", "connect", "bridge", shared], &[shared]);
        refused(host, 1, &["network", "disconnect", "bridge", shared], &[shared]);
    }
    refused(host, 1, &["network", "connect", "bridge", &web], &[&web, "bridge"]);
    refused(host, 1, &["network", "disconnect", "bridge", &alone], &[&alone, "bridge"]);
    refused(host, 1, &["network", "connect", "bridge", "nobody"], &["nobody"]);
    refused(host, 1, &["network", "rm", "bridge"], &["bridge"]);
    refused(host, 1, &["rm", &web], &[&side]);
    // A foreign namespace can join a network, but cannot have another mode.
    let adopted = Netns::new("adopted");
    let path = adopted.path().display().to_string();
    let shared = format!("container:{web}");
    for (code, network) in [(1, "none"), (1, "host"), (2, shared.as_str())] {
        let attach = ["attach", "--name", &name, "--netns", &path, "--network", network];
        refused(host, code, &attach, &[network]);
    }
}

/// Impossible options of networks, for both drivers.
#[test]
#[ignore = "needs root"]
fn networks_of_both_drivers() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.netns.run("ip route add 10.44.0.0/16 dev up0");
    for driver in ["bridge", "overlay"] {
        let check = |code: i32, options: &[&str], words: &[&str]| {
            let head = ["network", "create", "-d", driver];
            refused(host, code, &[&head, options, &["x"]].concat(), words);
        };
        check(1, &["--subnet", "10.44.5.0/24"], &["10.44.5.0/24", "10.44.0.0/16", "route"]);
        check(1, &["--subnet", "10.0.0.0/8"], &["10.0.0.0/8", "10.44.0.0/16", "route"]);
        check(1, &["--subnet", "192.0.2.0/25"], &["192.0.2.0/25", "192.0.2.0/24"]);
        check(1, &["--subnet", "10.2.0.0/24", "--gateway", "10.3.0.1"], &["10.3.0.1"]);
        let twice = ["--subnet", "10.2.0.0/24", "--gateway", "10.2.0.1", "--gateway", "10.2.0.2"];
        check(2, &twice, &["--gateway"]);
        check(2, &["--subnet", "10.2.0.0/24", "--gateway", "gate"], &["gate"]);
    }
    refused(host, 1, &["network", "create", "-d", "bridge", "--mtu", "9000", "x"], &["9000"]);
    refused(host, 1, &["network", "create", "-d", "bridge", "--learning", "x"], &["--learning"]);
    refused(host, 2, &["network", "create", "-d", "macvlan", "x"], &["macvlan"]);
}

/// Invalid options of conntrack and of `nat ls`.
#[test]
#[ignore = "needs root"]
fn conntrack_options() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    for (option, value, word) in [
        ("--conntrack-timeout", "nonsense", "STATE=SECONDS"),
        ("--conntrack-timeout", "tcp-established", "STATE=SECONDS"),
        ("--conntrack-timeout", "tcp-estab=5", "tcp-estab"),
        ("--conntrack-timeout", "icmp=soon", "soon"),
        ("--conntrack-timeout", "icmp=0", "0"),
        ("--conntrack-timeout", "icmp=-1", "-1"),
        ("--nat-ports", "nonsense", "LO-HI"),
        ("--nat-ports", "1024", "LO-HI"),
        ("--nat-ports", "2000-1000", "LO-HI"),
        ("--nat-ports", "0-1000", "LO-HI"),
        ("--nat-ports", "1000-70000", "LO-HI"),
        ("--nat-port-share", "19", "20 to 100"),
        ("--nat-port-share", "half", "20 to 100"),
        ("--conntrack-max", "63", "64"),
        ("--conntrack-max", "many", "many"),
        ("--conntrack-max", "8388609", "8388608"),
    ] {
        let agent = host.agent_command(&[&format!("{option}={value}")]);
        let mut command = host.netns.command(culvert_binary());
        command.args(agent.get_args().skip_while(|arg| *arg != "agent"));
        let output = command.output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(2), "{option} {value}: {line}");
        assert_eq!(line.lines().count(), 1, "{option} {value}: {line}");
        assert!(line.contains(option) && line.contains(word), "{option} {value}: {line}");
    }
    refused(host, 2, &["nat", "ls", "--protocol", "sctp"], &["sctp", "tcp"]);
    refused(host, 2, &["nat", "ls", "--address", "everywhere"], &["everywhere"]);
    refused(host, 1, &["nat", "ls", "--container", "nobody"], &["nobody"]);
    refused(host, 2, &["nat", "ls", "--container", "../x"], &["../x"]);
    refused(host, 2, &["nat", "rm"], &["rm"]);
}
