//! Firewalls of the host: the rules of ufw and of firewalld. Packets to published ports pass them
//! by, and `doctor` says so.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{fs, net::Ipv4Addr, process::Command};

use culvert_tests::{
    cluster::{Host, unique_name},
    docker,
    external::External,
    sock::container,
};

use crate::{
    nat::World,
    ports::{echo, exchange, exchange_at},
};

/// A port of a service of the host itself.
const OWN: u16 = 9090;

/// A firewall, with its rules as `iptables -S` shows them, without those that only log.
struct Firewall {
    /// Name, also of its process.
    name: &'static str,
    /// What `/etc/ufw/ufw.conf` contains, if the firewall is ufw.
    settings: Option<&'static str>,
    /// Arguments of iptables. `CLIENT` stands for the address of a client that is refused.
    rules: &'static [&'static str],
    /// Arguments of iptables for the rule that admits containers to port [`OWN`].
    admits: &'static str,
}

/// `ufw allow 22/tcp`, `ufw deny from CLIENT`, `ufw enable`.
const UFW: Firewall = Firewall {
    name: "ufw",
    settings: Some("ENABLED=yes\nLOGLEVEL=low\n"),
    rules: &[
        "-N ufw-before-input",
        "-N ufw-before-forward",
        "-N ufw-not-local",
        "-N ufw-user-input",
        "-N ufw-user-forward",
        "-A ufw-before-input -i lo -j ACCEPT",
        "-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A ufw-before-input -m conntrack --ctstate INVALID -j DROP",
        "-A ufw-before-input -p icmp --icmp-type 8 -j ACCEPT",
        "-A ufw-before-input -j ufw-not-local",
        "-A ufw-before-input -j ufw-user-input",
        "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A ufw-before-forward -j ufw-user-forward",
        "-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN",
        "-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN",
        "-A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN",
        "-A ufw-not-local -j DROP",
        "-A ufw-user-input -p tcp --dport 22 -j ACCEPT",
        "-A ufw-user-input -s CLIENT -j DROP",
        "-A INPUT -j ufw-before-input",
        "-A FORWARD -j ufw-before-forward",
        "-P INPUT DROP",
        "-P FORWARD DROP",
    ],
    admits: "-A ufw-user-input -i cvg+ -p tcp --dport 9090 -j ACCEPT",
};

/// Zone `public` on the uplink, CLIENT in the zone `drop`. By default firewalld makes rules of
/// nftables with the same meaning.
const FIREWALLD: Firewall = Firewall {
    name: "firewalld",
    settings: None,
    rules: &[
        "-N INPUT_ZONES",
        "-N FORWARD_IN_ZONES",
        "-N IN_public",
        "-N IN_drop",
        "-N IN_trusted",
        "-A IN_public -p tcp --dport 22 -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT",
        "-A IN_public -p icmp -j ACCEPT",
        "-A IN_drop -j DROP",
        "-A IN_trusted -j ACCEPT",
        "-A INPUT_ZONES -s CLIENT -g IN_drop",
        "-A INPUT_ZONES -i up0 -g IN_public",
        "-A INPUT_ZONES -g IN_public",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -j INPUT_ZONES",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-A INPUT -j REJECT --reject-with icmp-host-prohibited",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -i lo -j ACCEPT",
        "-A FORWARD -j FORWARD_IN_ZONES",
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
    ],
    admits: "-I INPUT_ZONES -i cvg+ -g IN_trusted",
};

/// The level of the finding of `culvert doctor` about firewalls, and its text with the advice.
///
/// `doctor` looks at `/etc/ufw/ufw.conf` and at the names of processes. So it runs with a directory
/// of its own at `/etc`, and in a namespace of processes whose first process has the firewall's
/// name.
fn finding(host: &Host, firewall: &Firewall) -> (String, String) {
    let etc = tempfile::tempdir().unwrap();
    if let Some(settings) = firewall.settings {
        fs::create_dir(etc.path().join("ufw")).unwrap();
        fs::write(etc.path().join("ufw/ufw.conf"), settings).unwrap();
    }
    // ufw has no process.
    let process = if firewall.settings.is_some() { "sh" } else { firewall.name };
    // After 'exit' the shell does not replace itself by the command.
    let script = "mount --bind \"$1\" /etc && printf %s \"$2\" > /proc/$$/comm && shift 2 && \
                  \"$@\"; exit $?";
    let doctor = host.culvert_command(&["--format", "json", "doctor"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"]);
    command.arg(etc.path()).arg(process).arg(doctor.get_program()).args(doctor.get_args());
    command.envs(doctor.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| unreachable!("{error}: {output:?}"));
    let row = rows.as_array().unwrap().iter().find(|row| row["check"] == "firewall").unwrap();
    (row["level"].as_str().unwrap().to_owned(), row.to_string())
}

/// The firewall refuses a client. It protects the host's own services from the client, and from
/// containers, but no published port. `doctor` says so, and names the two ways to refuse a client;
/// both work. Tunnelled and masqueraded packets pass the rules by.
fn check(firewall: &Firewall) {
    let world = World::new(2);
    let host = world.host();
    let (client, vtep) = (&world.external.host, host.vtep());
    let (web, web_ip) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let (private, _) = world.run("bridge", &["-p", "8081:80", "--from", "198.18.0.0/15"]);
    host.overlay("over", "10.9.0.0/24", &[]);
    world.cluster.wait_network("over");
    let (near, _) = world.run("over", &["--ip", "10.9.0.2"]);
    world.cluster.hosts[1].run_idle(&unique_name("far"), "over", &["--ip", "10.9.0.3"]);
    let servers = [echo(&container(&web), "tcp", 80), echo(&container(&web), "udp", 80)];
    let in_private = echo(&container(&private), "tcp", 80);
    let own = echo(host.netns.path(), "tcp", OWN);
    let beyond = echo(client.path(), "tcp", 90);
    assert_eq!(exchange(client, "tcp", vtep, OWN, 10), "ok 10");
    assert_eq!(own.take_clients(), [External::IP.to_string()]);

    let iptables = docker::iptables().unwrap();
    for rule in firewall.rules {
        let rule = rule.replace("CLIENT", &External::IP.to_string());
        host.netns.run(&format!("{iptables} -w {rule}"));
    }
    assert_eq!(exchange(client, "tcp", vtep, OWN, 10), "timeout");
    let from_container =
        |address: Ipv4Addr, port| exchange_at(&container(&web), "tcp", address, port, 10);
    assert_ne!(from_container(vtep, OWN), "ok 10");
    assert_eq!(own.seen(), []);
    host.netns.run(&format!("{iptables} -w {}", firewall.admits));
    assert_eq!(from_container(vtep, OWN), "ok 10");

    for (proto, server) in ["tcp", "udp"].into_iter().zip(&servers) {
        assert_eq!(exchange(client, proto, vtep, 8080, 10), "ok 10", "{proto}");
        assert_eq!(server.take_clients(), [External::IP.to_string()], "{proto}");
    }
    assert_eq!(from_container(External::IP, 90), "ok 10");
    assert_eq!(beyond.take_clients(), [vtep.to_string()]);
    assert_eq!(exchange(&host.netns, "tcp", web_ip, 80, 10), "ok 10");
    host.wait_ping(&near, "10.9.0.3");

    let (level, text) = finding(host, firewall);
    assert_eq!(level, "warning", "{text}");
    for words in [format!("{} is active", firewall.name).as_str(), "--from CIDR", "ports deny CIDR"]
    {
        assert!(text.contains(words), "{words:?}: {text}");
    }

    assert_eq!(exchange(client, "tcp", vtep, 8081, 10), "timeout");
    assert_eq!(exchange(&host.netns, "tcp", vtep, 8081, 10), "ok 10");
    assert_eq!(in_private.seen().len(), 1, "the client got in");
    host.ok(&["ports", "deny", &External::IP.to_string()]);
    for proto in ["tcp", "udp"] {
        assert_eq!(exchange(client, proto, vtep, 8080, 10), "timeout", "{proto}");
    }
    host.ok(&["ports", "allow", &External::IP.to_string()]);
    assert_eq!(exchange(client, "tcp", vtep, 8080, 10), "ok 10");
}

/// See [`check`].
#[test]
#[ignore = "needs root"]
fn rules_of_ufw_do_not_see_published_ports() {
    check(&UFW);
}

/// See [`check`].
#[test]
#[ignore = "needs root"]
fn rules_of_firewalld_do_not_see_published_ports() {
    check(&FIREWALLD);
}
