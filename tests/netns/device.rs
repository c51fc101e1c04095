//! Device pairs of containers, veth or netkit. On a kernel without netkit the tests cover veth
//! alone.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{path::Path, time::Duration};

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{expects_netkit, wait_until},
    packet::{self, Arp},
    sock::{container, within},
    wire::bind,
};
use nix::{
    libc,
    sys::{
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, socket},
    },
};
use serde_json::Value;

/// The kind of device pair that the agent gives new containers.
pub(crate) fn told(host: &Host) -> String {
    host.json(&["status"])["datapath"]["device"].as_str().unwrap().to_owned()
}

/// The kind of each container's host side.
fn kinds(host: &Host) -> Vec<String> {
    let rows: Value = serde_json::from_str(&host.netns.run("ip -d -j link show")).unwrap();
    let ours =
        |row: &&Value| row["ifalias"].as_str().is_some_and(|alias| alias.starts_with("culvert:"));
    let rows = rows.as_array().unwrap().iter().filter(ours);
    rows.map(|row| row["linkinfo"]["info_kind"].as_str().unwrap().to_owned()).collect()
}

fn has_netkit() -> bool {
    std::fs::read_to_string("/proc/kallsyms")
        .unwrap()
        .lines()
        .any(|line| line.split_whitespace().nth(2) == Some("netkit_link_attach"))
}

/// `auto` chooses netkit if the kernel has it, and `status` shows it. A requested kind is made or
/// refused. A container has the kind shown, with the programs attached to the right hooks.
#[test]
#[ignore = "needs root"]
fn containers_get_what_status_tells() {
    let mut cluster = Cluster::new(1);
    let expected = if has_netkit() { "netkit" } else { "veth" };
    assert!(has_netkit() || !expects_netkit(), "the kernel has no netkit after all");
    let host = &mut cluster.hosts[0];
    assert_eq!(told(host), expected);
    let reason = host.json(&["status"])["datapath"]["device_reason"].clone();
    assert!(reason.as_str().unwrap().starts_with("chosen: the kernel has "), "{reason}");
    let name = unique_name("d");
    host.run_idle(&name, "bridge", &[]);
    assert_eq!(kinds(host), [expected]);

    host.stop_agent(Signal::SIGTERM);
    if expected == "veth" {
        let output = host.agent_command(&["--device", "netkit"]).output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        for words in ["--device netkit", "the kernel has no netkit devices", "--device veth"] {
            assert!(line.contains(words), "{line}");
        }
    }
    for asked in ["veth", expected] {
        host.start_agent(&["--device", asked]);
        host.wait_ready();
        assert_eq!(told(host), asked);
        host.stop_agent(Signal::SIGTERM);
    }
}

/// A container keeps its kind when the agent makes another kind for new containers. Both kinds
/// reach each other, and a purge removes both.
#[test]
#[ignore = "needs root"]
fn a_container_keeps_its_device() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    let names = [unique_name("d"), unique_name("d"), unique_name("d")];
    let mut expected = Vec::new();
    for (name, asked) in names.iter().zip(["veth", "auto", "veth"]) {
        host.start_agent(&["--device", asked]);
        host.wait_ready();
        host.run_idle(name, "bridge", &[]);
        expected.push(told(host));
        assert_eq!(kinds(host), expected);
        host.stop_agent(Signal::SIGTERM);
    }
    host.start_agent(&[]);
    host.wait_ready();
    assert_eq!(kinds(host), expected);
    for from in &names {
        for to in names.iter().filter(|to| *to != from) {
            host.wait_ping(from, &host.ip(to, "bridge"));
        }
    }
    let pins = || host.netns.run(&format!("ls {}/v*/links", host.bpffs().display()));
    let count = |kind: &str| pins().lines().filter(|pin| pin.starts_with(kind)).count();
    let netkit = expected.iter().filter(|kind| *kind == "netkit").count();
    assert_eq!((count("container-"), count("netkit-")), (3, netkit));
    host.ok(&["rm", "-f", &names[1]]);
    wait_until(SOON, "the links to go", || count("container-") == 2 && count("netkit-") == 0);
    host.ok(&["purge"]);
    assert_eq!(kinds(host), Vec::<String>::new());
}

/// Sends a frame by a packet socket whose `protocol` may differ from the frame's EtherType.
fn send_as(netns: &Path, protocol: i32, frame: &[u8]) {
    within(netns, || {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
        let fd = fd.unwrap();
        let ifindex = nix::net::if_::if_nametoindex("eth0").unwrap();
        bind(&fd, ifindex, u16::try_from(protocol).unwrap()).unwrap();
        // An immediate refusal is returned as an error.
        let _ = nix::unistd::write(&fd, frame);
    });
}

fn as_host(host: &Host, name: &str) -> packet::Host {
    let ip: std::net::Ipv4Addr = host.ip(name, "bridge").parse().unwrap();
    let [a, b, c, d] = ip.octets();
    packet::Host { mac: [0x02, 0x42, a, b, c, d], v4: ip.octets(), v6: [0; 16] }
}

/// The receiver of a frame uses its EtherType, not the protocol of the sender's packet socket: an
/// ARP answer with another type is ignored.
#[test]
#[ignore = "needs root"]
fn what_a_packet_socket_says_of_a_frame_counts_for_nothing() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let names = [unique_name("d"), unique_name("d")];
    for name in &names {
        host.run_idle(name, "bridge", &[]);
    }
    let [villain, victim] = names.each_ref().map(|name| as_host(host, name));
    host.wait_ping(&names[1], "172.17.0.1");
    let gateway = || host.in_container(&names[1], "ip neigh show 172.17.0.1");
    let before = gateway();
    assert!(before.contains("lladdr 02:42:ac:11:00:01"), "{before}");

    let poison = Arp { sender_ip: [172, 17, 0, 1], ..Arp::reply(&villain, &victim) }.frame();
    let mut disguised = poison.clone();
    disguised[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
    let counted = |reason: &str| host.counter("from_container", reason);
    for (frame, protocol, kind) in [
        (&poison, libc::ETH_P_ARP, "spoofed_arp"),
        (&disguised, 0x88b5, "deliver"),
        (&disguised, libc::ETH_P_ARP, if told(host) == "netkit" { "malformed" } else { "deliver" }),
    ] {
        let old = counted(kind);
        send_as(&container(&names[0]), protocol, frame);
        wait_until(SOON, kind, || counted(kind) > old);
    }
    // The frame sent last has arrived, if at all.
    std::thread::sleep(Duration::from_millis(50));
    host.wait_ping(&names[1], &host.ip(&names[0], "bridge"));
    assert!(gateway().contains("lladdr 02:42:ac:11:00:01"), "{}", gateway());
}
