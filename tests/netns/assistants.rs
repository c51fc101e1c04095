//! The assistant devices, a vxlan device and a bridge. They exist, they carry no packet, and no
//! packet depends on them.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use aya::programs::TcAttachType;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, Underlay, on_this_machine, programs, wait_until},
    packet::{self, Tunnel, V4},
    sock::{self, Behaviour, Server, Use, container},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{attacks::send_raw, device};

const GRO: &str = "cvgro0";
const ROOM: &str = "cvroom0";
/// Where containers and hosts listen.
const PORT: u16 = 7000;

pub(crate) fn link(netns: &Netns, ifname: &str) -> Value {
    let output = netns.try_run(&format!("ip -d -s -j link show {ifname}"));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    rows[0].clone()
}

pub(crate) fn is_up(link: &Value) -> bool {
    link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"))
}

/// Checks the settings of the vxlan device.
fn gro_is_right(netns: &Netns) -> bool {
    let gro = link(netns, GRO);
    let data = &gro["linkinfo"]["info_data"];
    gro["linkinfo"]["info_kind"] == "vxlan"
        && data["external"].is_null()
        && data["id"] == 0
        && data["port"] == 4789
        && gro["ifalias"] == "culvert-gro"
        && gro["master"] == ROOM
        && is_up(&gro)
}

/// Checks the settings of the bridge.
fn room_is_right(netns: &Netns) -> bool {
    let room = link(netns, ROOM);
    room["linkinfo"]["info_kind"] == "bridge" && room["ifalias"] == "culvert-room" && !is_up(&room)
}

/// The host sides of the containers' device pairs, with the bridge of each.
pub(crate) fn veths(netns: &Netns) -> Vec<(String, String)> {
    let rows: Value = serde_json::from_str(&netns.run("ip -d -j link show")).unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let rows = rows.as_array().unwrap().iter();
    rows.filter(|row| text(row, "ifalias").starts_with("culvert:"))
        .map(|row| (text(row, "ifname"), text(row, "master")))
        .collect()
}

fn all_are_ports(netns: &Netns) -> bool {
    veths(netns).iter().all(|(_, master)| master == ROOM)
}

/// Number of frames that a device has sent and received.
fn frames(netns: &Netns, ifname: &str) -> u64 {
    let link = link(netns, ifname);
    let of = |direction: &str| link["stats64"][direction]["packets"].as_u64().unwrap();
    of("rx") + of("tx")
}

fn any(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
}

/// Both devices exist with the right settings, and new containers become ports. The agent repairs a
/// device that was removed or reconfigured, without effect on a container. A purge removes both.
#[test]
#[ignore = "needs root"]
fn they_are_kept_and_purged() {
    let mut cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let netns = &host.netns;
    assert!(gro_is_right(netns), "{}", link(netns, GRO));
    assert!(room_is_right(netns), "{}", link(netns, ROOM));
    for ifname in [GRO, ROOM] {
        assert_eq!(netns.run(&format!("ip -o addr show dev {ifname}")), "", "no address");
    }
    let names = [unique_name("a"), unique_name("b")];
    for name in &names {
        host.run_idle(name, "bridge", &[]);
    }
    assert_eq!(veths(netns).len(), 2);
    assert!(all_are_ports(netns), "{:?}", veths(netns));
    host.wait_ping(&names[0], &host.ip(&names[1], "bridge"));

    let ports = || netns.run("ip -o link show | grep -o '^[0-9]*: cv[0-9a-f]*@'");
    let before = ports();
    let other = host.ip(&names[1], "bridge");
    let mut command = std::process::Command::new("nsenter");
    command.args([&format!("--net=/run/netns/{}", names[0]), "ping", "-i", "0.01", &other]);
    let mut pings = culvert_tests::netns::Process::spawn(command);
    let veth = veths(netns)[0].0.clone();
    for change in [
        format!("ip link del {GRO}"),
        format!("ip link set {GRO} down"),
        format!("ip link set {ROOM} up"),
        format!("ip link del {ROOM}"),
        format!("ip link set {GRO} nomaster"),
        format!("ip link set {veth} nomaster; ip link set {ROOM} up"),
    ] {
        netns.run(&change);
        wait_until(SOON, &change, || {
            gro_is_right(netns) && room_is_right(netns) && all_are_ports(netns)
        });
    }
    pings.stop(Signal::SIGINT, SOON);
    let told = pings.stdout();
    assert!(told.contains(" 0% packet loss"), "{told}");
    assert_eq!(ports(), before, "no veth was made anew");
    assert_eq!([GRO, ROOM].map(|ifname| frames(netns, ifname)), [0, 0]);

    // The devices outlive the agent, and get the agent's new VXLAN port.
    cluster.hosts[0].stop_agent(Signal::SIGKILL);
    assert!(gro_is_right(&cluster.hosts[0].netns));
    cluster.hosts[0].start_agent(&["--vxlan-port", "4790"]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    assert_eq!(link(&host.netns, GRO)["linkinfo"]["info_data"]["port"], 4790);
    host.ok(&["purge"]);
    let gone = || [GRO, ROOM].iter().all(|ifname| link(&host.netns, ifname) == Value::Null);
    assert!(gone());
    // The agent does not make the devices again, not even after events that still arrive.
    cluster.hosts[0].stop_agent(Signal::SIGTERM);
    let host = &cluster.hosts[0];
    assert!([GRO, ROOM].iter().all(|ifname| link(&host.netns, ifname) == Value::Null));
}

/// `--cleanup-on-exit` removes the devices, and so does a purge without an agent.
#[test]
#[ignore = "needs root"]
fn they_go_with_the_agent_that_cleans_up() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let gone =
        |host: &Host| [GRO, ROOM].iter().all(|ifname| link(&host.netns, ifname) == Value::Null);
    let host = &mut cluster.hosts[0];
    host.start_agent(&["--cleanup-on-exit"]);
    host.wait_ready();
    assert!(gro_is_right(&host.netns));
    host.stop_agent(Signal::SIGTERM);
    assert!(gone(host));
    host.start_agent(&[]);
    host.wait_ready();
    host.stop_agent(Signal::SIGTERM);
    assert!(gro_is_right(&host.netns) && room_is_right(&host.netns));
    let state = host.dir().join("state").display().to_string();
    host.ok(&["purge", "--state-dir", &state, "--bpffs", &host.bpffs().display().to_string()]);
    assert!(gone(host));
}

/// The agent cleans up as well when it is stopped before it has reached the store.
#[test]
#[ignore = "needs root"]
fn they_go_with_an_agent_that_has_not_reached_its_store() {
    let mut cluster = Cluster::without_agents(1, 1500);
    cluster.etcd.freeze().unwrap();
    let host = &mut cluster.hosts[0];
    host.start_agent(&["--cleanup-on-exit"]);
    wait_until(SOON, "the agent makes its devices", || gro_is_right(&host.netns));
    wait_until(SOON, "the agent answers", || host.culvert(&["status"]).status.success());
    host.stop_agent(Signal::SIGTERM);
    assert!([GRO, ROOM].iter().all(|ifname| link(&host.netns, ifname) == Value::Null));
    assert_eq!(programs(&host.netns, "up0", TcAttachType::Ingress), [""; 0]);
    assert!(!host.bpffs().exists(), "pins are left");
    cluster.etcd.thaw().unwrap();
}

/// Foreign devices with these names, or on this port, stay unchanged, and the agent works without
/// its own. Once they are gone, the agent makes its own.
#[test]
#[ignore = "needs root"]
fn what_is_not_ours_is_left_alone() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    host.netns.run(&format!(
        "ip link add {GRO} type bridge; ip link add {ROOM} type bridge; ip link set {ROOM} up"
    ));
    host.start_agent(&[]);
    host.wait_ready();
    let names = [unique_name("a"), unique_name("b")];
    for name in &names {
        host.run_idle(name, "bridge", &[]);
    }
    host.wait_ping(&names[0], &host.ip(&names[1], "bridge"));
    assert!(veths(&host.netns).iter().all(|(_, master)| master.is_empty()));
    assert!(is_up(&link(&host.netns, ROOM)) && link(&host.netns, GRO)["ifalias"] == Value::Null);
    for ifname in [GRO, ROOM] {
        let line = format!("interface {ifname} of the host is not the agent's");
        assert!(host.agent_log().contains(&line), "{}", host.agent_log());
    }
    host.netns.run(&format!("ip link del {ROOM}; ip link del {GRO}"));
    wait_until(SOON, "our own", || {
        gro_is_right(&host.netns) && room_is_right(&host.netns) && all_are_ports(&host.netns)
    });

    // A foreign device that has the port keeps it.
    host.stop_agent(Signal::SIGTERM);
    host.netns.run(&format!(
        "ip link del {GRO}; ip link add vx1 type vxlan external dstport 4789; ip link set vx1 up"
    ));
    host.start_agent(&[]);
    host.wait_ready();
    assert_eq!(link(&host.netns, GRO), Value::Null);
    assert!(is_up(&link(&host.netns, "vx1")));
    let log = host.agent_log();
    assert!(log.contains("another program has UDP port 4789"), "{log}");
    let lines = || host.agent_log().matches("another program has").count();
    let looks = lines();
    host.netns.run(&format!("ip link set {} txqueuelen 999", Underlay::UPLINK));
    host.wait_ping(&names[0], &host.ip(&names[1], "bridge"));
    assert_eq!(lines(), looks, "reported once");
    host.ok(&["purge"]);
    assert!(is_up(&link(&host.netns, "vx1")));
}

/// The IPv4 packet of a VXLAN datagram from one container to another.
fn tunnelled(from: Ipv4Addr, to: Ipv4Addr, vni: u32, options: &[u8]) -> Vec<u8> {
    let two = packet::Host { mac: [0x02, 0x42, 10, 0, 0, 3], v4: [10, 0, 0, 3], v6: [0; 16] };
    wrapped((from, to), vni, options, &two)
}

/// The IPv4 packet of a VXLAN datagram with the VNI of the vxlan device and the inner destination `mac`. The inner packet
/// is for the host itself.
fn to_the_device(from: Ipv4Addr, to: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let host = packet::Host { mac, v4: to.octets(), v6: [0; 16] };
    wrapped((from, to), 0, &[], &host)
}

fn wrapped(
    (from, to): (Ipv4Addr, Ipv4Addr),
    vni: u32,
    options: &[u8],
    receiver: &packet::Host,
) -> Vec<u8> {
    let one = packet::Host { mac: [0x02, 0x42, 10, 0, 0, 2], v4: [10, 0, 0, 2], v6: [0; 16] };
    let inner = V4::udp(&one, receiver, (5000, PORT), &[7; 400]).frame();
    let tunnel = Tunnel {
        src_port: 50_000,
        df: false,
        options: options.to_vec(),
        ..Tunnel::new(from.octets(), to.octets(), vni)
    };
    tunnel.wrap(&inner)[14..].to_vec()
}

/// The packet in two fragments.
fn fragments(packet: &[u8], id: u16) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(usize::from(packet[0] & 15) * 4);
    let (first, second) = payload.split_at(64);
    let fragment = |bits: u16, part: &[u8]| {
        let mut packet = [header, part].concat();
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&bits.to_be_bytes());
        packet
    };
    vec![fragment(0x2000, first), fragment(64 / 8, second)]
}

/// A counter of `/proc/net/snmp`.
fn snmp(netns: &Netns, protocol: &str, name: &str) -> u64 {
    let text = netns.run("cat /proc/net/snmp");
    let mut rows = text.lines().filter(|line| line.starts_with(&format!("{protocol}: ")));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let at = names.split(' ').position(|each| each == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Number of programs at the uplink.
fn attached(host: &Host) -> usize {
    programs(&host.netns, Underlay::UPLINK, TcAttachType::Ingress).len()
}

/// Removes the pins of attachments, which detaches the programs.
fn detach(host: &Host, what: &str) {
    let pins = host.bpffs().join("v*/links").display().to_string();
    host.netns.run(&format!("rm -f {pins}/{what}-*"));
}

/// VXLAN that reaches the kernel's own socket is dropped, also with the VNI of a network and from
/// the address of a VTEP. It comes in fragments, with IP options, to another address of the host,
/// and while no program is attached.
#[test]
#[ignore = "needs root"]
fn what_reaches_the_kernel_s_socket_gets_nowhere() {
    let cluster = Cluster::new(2);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &["--vni", "700"]);
    cluster.wait_network("net");
    let names = [unique_name("a"), unique_name("b")];
    for (host, name) in cluster.hosts.iter().zip(&names) {
        let ip = format!("10.0.0.{}", host.index + 2);
        host.run_idle(name, "net", &["--ip", &ip]);
    }
    cluster.hosts[0].wait_ping(&names[0], "10.0.0.3");
    let second = Ipv4Addr::new(192, 0, 2, 77);
    cluster.hosts[1].netns.run(&format!("ip addr add {second}/32 dev up0"));
    let server = Server::udp(&container(&names[1]), any(PORT));
    let on_host = Server::udp(cluster.hosts[1].netns.path(), any(PORT));
    let (from, to) = (cluster.hosts[0].vtep(), cluster.hosts[1].vtep());
    let send = |packets: &[Vec<u8>]| {
        for packet in packets {
            let to: [u8; 4] = packet[16..20].try_into().unwrap();
            send_raw(cluster.hosts[0].netns.path(), to.into(), std::slice::from_ref(packet));
        }
    };
    // This datagram shows that the path works.
    send(&[tunnelled(from, to, 700, &[])]);
    wait_until(SOON, "the datagram", || server.seen().len() == 1);

    let mut id = 1000;
    let options: [&[u8]; 2] = [&[], &[1, 1, 1, 1]];
    let mut all = |host: &Netns, expected: u64| {
        let before = (snmp(host, "Ip", "ReasmOKs"), snmp(host, "Ip", "InDelivers"));
        for (to, options) in [to, second].into_iter().flat_map(|to| options.map(|o| (to, o))) {
            let packet = tunnelled(from, to, 700, options);
            id += 1;
            send(std::slice::from_ref(&packet));
            send(&fragments(&packet, id));
        }
        wait_until(SOON, "reassembly", || snmp(host, "Ip", "ReasmOKs") == before.0 + expected);
        assert!(snmp(host, "Ip", "InDelivers") >= before.1 + 2 * expected);
    };
    let nothing = |host: &Host| {
        assert_eq!(server.seen().len(), 2);
        assert_eq!(on_host.seen().len(), 0);
        assert_eq!([GRO, ROOM].map(|ifname| frames(&host.netns, ifname)), [0, 0]);
    };
    // The unfragmented datagram to the VTEP address is delivered as before. Only the first of its
    // fragments has a port.
    all(&cluster.hosts[1].netns, 3);
    nothing(&cluster.hosts[1]);
    assert_eq!(cluster.hosts[1].counter("from_underlay", "outer_fragment"), 1);

    // The closures above borrow `cluster`.
    let agent = cluster.hosts[1].agent.as_ref().unwrap().pid();
    nix::sys::signal::kill(agent, Signal::SIGKILL).unwrap();
    detach(&cluster.hosts[1], "uplink");
    // The agent holds its links open until its process has ended.
    wait_until(SOON, "the program to go", || attached(&cluster.hosts[1]) == 0);
    all(&cluster.hosts[1].netns, 4);
    nothing(&cluster.hosts[1]);

    // The bridge drops frames with the VNI of the device: to the device's MAC, and to groups that a
    // bridge hands to the host's stack by default.
    cluster.hosts[1]
        .netns
        .run("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done");
    let group = |last| [0x01, 0x80, 0xc2, 0, 0, last];
    let macs = [[0x02, 0x43, 0x56, 0x47, 0x52, 0x4f], group(0x00), group(0x02), group(0x0e)];
    for (id, mac) in (900..).zip(macs) {
        let packet = to_the_device(from, to, mac);
        send(&[std::slice::from_ref(&packet), &fragments(&packet, id)].concat());
    }
    wait_until(SOON, "the device to receive", || frames(&cluster.hosts[1].netns, GRO) == 8);
    assert_eq!((on_host.seen().len(), frames(&cluster.hosts[1].netns, ROOM)), (0, 0));

    // A device for all VNIs receives the frames.
    let netns = &cluster.hosts[1].netns;
    netns.run(&format!(
        "ip link del {GRO}; ip link add vx1 type vxlan external dstport 4789; ip link set vx1 up"
    ));
    all(netns, 4);
    // The device may also receive packets that the other host's stack sends by itself.
    let came = link(netns, "vx1")["stats64"]["rx"]["packets"].as_u64();
    assert!(came >= Some(8), "{came:?}");
}

/// A container without its program reaches neither the host nor another container.
#[test]
#[ignore = "needs root"]
fn a_container_without_its_program_is_cut_off() {
    let mut cluster = Cluster::new(1);
    let names = [unique_name("a"), unique_name("b")];
    for name in &names {
        cluster.hosts[0].run_idle(name, "bridge", &[]);
    }
    let host = &mut cluster.hosts[0];
    let (gateway, neighbour) = (Ipv4Addr::new(172, 17, 0, 1), host.ip(&names[1], "bridge"));
    let neighbour: Ipv4Addr = neighbour.parse().unwrap();
    let servers =
        [Server::udp(host.netns.path(), any(PORT)), Server::udp(&container(&names[1]), any(PORT))];
    let seen = || servers.each_ref().map(|server| server.seen().len());
    host.wait_ping(&names[0], &neighbour.to_string());
    let netkit = device::told(host) == "netkit";
    host.stop_agent(Signal::SIGKILL);
    for what in ["container", "netkit"] {
        detach(host, what);
    }
    let inside = container(&names[0]);
    let run = |script: &str| host.in_container(&names[0], script);
    // Every host's stack accepts these frames: their MAC is that of the interface they come in on.
    let veths = veths(&host.netns);
    let peer = run("ip -o link show eth0");
    let number = peer.split("@if").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
    let outer = host.netns.run(&format!("ip -o link | grep '^{number}: '"));
    let outer = outer.split([':', '@']).nth(1).unwrap().trim().to_owned();
    let mac = link(&host.netns, &outer)["address"].as_str().unwrap().to_owned();
    // In a netkit pair the sending side drops frames without a program.
    let received = || {
        if netkit {
            let tx = run("ip -s -j link show eth0");
            let tx: Value = serde_json::from_str(&tx).unwrap();
            return tx[0]["stats64"]["tx"]["dropped"].as_u64().unwrap();
        }
        link(&host.netns, &outer)["stats64"]["rx"]["packets"].as_u64().unwrap()
    };
    let send = || {
        for to in [gateway, host.vtep(), neighbour] {
            run(&format!("ip neigh replace {gateway} lladdr {mac} dev eth0 nud permanent"));
            run(&format!("ip neigh replace {neighbour} lladdr {mac} dev eth0 nud permanent"));
            let before = received();
            sock::within(&inside, || {
                let socket = std::net::UdpSocket::bind(any(0)).unwrap();
                socket.send_to(b"x", SocketAddrV4::new(to, PORT)).unwrap();
            });
            wait_until(SOON, "the frame to leave", || received() > before);
        }
    };
    assert!(veths.iter().any(|(name, master)| *name == outer && master == ROOM));
    send();
    // The host would answer ARP on any device.
    let output = host.try_in_container(&names[0], "arping -c2 -w1 -I eth0 172.17.0.1");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(seen(), [0, 0]);

    if netkit {
        return;
    }
    // The host accepts the frames if the device is not a port of the bridge.
    host.netns.run(&format!("ip link set {outer} nomaster; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{outer}.rp_filter=0"));
    send();
    wait_until(SOON, "the host to take them", || seen()[0] > 0);
}

/// On a wire each TCP frame has at most one MTU. With the vxlan device, GRO merges the frames
/// before they are decapsulated. While a foreign interface has the device's name, GRO does not
/// merge them.
#[test]
#[ignore = "needs root"]
fn frames_of_tcp_are_merged_before_they_are_decapsulated() {
    let cluster = Cluster::new(2);
    let hosts = &cluster.hosts;
    hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let names = [unique_name("a"), unique_name("b")];
    for (host, name) in hosts.iter().zip(&names) {
        host.run_idle(name, "net", &["--ip", &format!("10.0.0.{}", host.index + 2)]);
    }
    hosts[0].wait_ping(&names[0], "10.0.0.3");
    for host in hosts {
        host.netns.run(&format!(
            "ethtool -K {0} tso off gso off tx-udp_tnl-segmentation off gro on; \
             tc qdisc replace dev {0} root pfifo limit 10000",
            Underlay::UPLINK
        ));
        let port = format!("p{}", host.index);
        // A veth passes frames to GRO only if its peer does no segmentation itself.
        cluster.switch.run(&format!(
            "ethtool -K {port} tso off; tc qdisc replace dev {port} root pfifo limit 10000"
        ));
    }
    let _server = Server::tcp(&container(&names[1]), any(80), Behaviour::Count);
    let counted = || {
        let rows = hosts[1].json(&["stats"]);
        let rows = rows.as_array().unwrap().iter();
        let mut rows = rows.filter(|row| row["direction"] == "from_underlay");
        let row = rows.find(|row| row["reason"] == "deliver").unwrap();
        (row["packets"].as_u64().unwrap(), row["bytes"].as_u64().unwrap())
    };
    const LEN: usize = 8_000_000;
    let average = || {
        let before = counted();
        let to = SocketAddrV4::new([10, 0, 0, 3].into(), 80);
        assert_eq!(
            sock::tcp(&container(&names[0]), to, 0, Use::HalfClose(LEN)),
            format!("ok {LEN}")
        );
        let after = counted();
        assert!(after.1 - before.1 > LEN as u64);
        (after.1 - before.1) / (after.0 - before.0)
    };
    let merged = average();
    assert!(merged > 3 * 1500, "{merged} bytes a frame");
    without_gro(&hosts[1].netns);
    let single = average();
    assert!(single <= 1514, "{single} bytes a frame");
    let netns = &hosts[1].netns;
    with_gro(netns);
    let merged = average();
    assert!(merged > 3 * 1500, "{merged} bytes a frame");
}

/// Replaces the vxlan device by another interface of its name, so the agent cannot make its own.
/// The agent may make its device between the two steps. Then both steps are repeated.
pub(crate) fn without_gro(netns: &Netns) {
    let script = format!("link del {GRO}\nlink add {GRO} type bridge\n");
    let start = Instant::now();
    while !netns.succeeds(&format!("printf '{script}' | ip -batch -")) {
        assert!(start.elapsed() < on_this_machine(SOON), "{GRO} cannot be replaced");
    }
}

/// Lets the agent make its vxlan device again.
pub(crate) fn with_gro(netns: &Netns) {
    if !gro_is_right(netns) {
        netns.try_run(&format!("ip link del {GRO}"));
        wait_until(SOON, "the vxlan device", || gro_is_right(netns));
    }
}
