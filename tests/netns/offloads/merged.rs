//! Datagrams of two tenants that the kernel merges: each payload reaches its own network or is
//! dropped.
//!
//! UDP GRO merges datagrams with equal outer headers and a checksum. Culvert sends no outer UDP
//! checksum, but the sender of this test does.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use culvert_tests::{
    cluster::SOON,
    netns::{Netns, Underlay, wait_until},
    sock::within,
    wire,
};
use etherparse::{PacketBuilder, UdpHeader};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    traffic::{Client, Servers, TCP, payload},
    world::{BLUE, RED, Tenant, World, vxlan_socket},
};

/// Port on which the containers receive, port of VXLAN, and source port of its sender.
const SINK: u16 = 93;
const VXLAN: u16 = 4789;
const SENDER: u16 = 50_000;
/// Number of datagrams of each tenant in a burst.
const COUNT: usize = 16;
/// Bytes of payload of each datagram, and bytes of the outer UDP payload with its headers.
const LEN: usize = 1000;
const DATAGRAM: usize = 8 + 14 + 20 + 8 + LEN;
/// Bytes of outer headers of a merged frame.
const OUTER: u64 = 14 + 20 + 8;

/// The payload of a tenant's datagram, which contains the tenant and the number.
fn content(tenant: Tenant, number: usize) -> Vec<u8> {
    let mut content = payload(u64::from(tenant.vni) << 8 | number as u64, LEN);
    content[..2].copy_from_slice(&[tenant.vni as u8, number as u8]);
    content
}

/// A tenant's frame in VXLAN. The tenants' frames differ only in the VNI and the payload.
fn datagram(tenant: Tenant, number: usize) -> Vec<u8> {
    let (from, to) = ([0x02, 0x42, 10, 0, 0, 2], [0x02, 0x42, 10, 0, 0, 3]);
    let frame =
        PacketBuilder::ethernet2(from, to).ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64).udp(7000, SINK);
    let [_, a, b, c] = tenant.vni.to_be_bytes();
    let mut datagram = vec![8, 0, 0, 0, a, b, c, 0];
    frame.write(&mut datagram, &content(tenant, number)).unwrap();
    datagram
}

/// The socket on which a tenant's container receives.
struct Sink {
    tenant: Tenant,
    socket: UdpSocket,
}

impl Sink {
    fn new(world: &World, tenant: Tenant, gro: bool) -> Self {
        let [_, two] = world.pair(tenant);
        let socket = within(&two.netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SINK)));
        let socket = socket.unwrap();
        setsockopt(&socket, sockopt::UdpGroSegment, &gro).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        Self { tenant, socket }
    }

    /// Number of datagrams received. Checks that each came once and belongs to this tenant.
    fn received(&self) -> usize {
        let mut own: BTreeSet<_> = (0..COUNT).map(|number| content(self.tenant, number)).collect();
        let mut buffer = vec![0; 65_536];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            for datagram in buffer[..len].chunks(LEN) {
                let name = self.tenant.network;
                assert!(own.remove(datagram), "{name}: received what is not its own, or twice");
            }
        }
        COUNT - own.len()
    }
}

/// Sends a burst to the second host, with the tenants of `order` in turn, as one frame that is to
/// be cut. Returns the datagrams that arrive in each network, and the merged frames and datagrams.
fn burst(world: &World, order: &[Tenant], gro: bool) -> ([usize; 2], u64, u64) {
    let sinks = [RED, BLUE].map(|tenant| Sink::new(world, tenant, gro));
    let hosts = &world.cluster.hosts;
    let merged = || {
        let rows = hosts[1].json(&["stats"]);
        let row =
            rows.as_array().into_iter().flatten().find(|row| row["reason"] == "merged_frames");
        row.map_or((0, 0), |row| (row["packets"].as_u64().unwrap(), row["bytes"].as_u64().unwrap()))
    };
    let before = merged();
    let all: Vec<u8> = (0..COUNT)
        .flat_map(|number| order.iter().map(move |tenant| datagram(*tenant, number)))
        .flatten()
        .collect();
    within(hosts[0].netns.path(), || {
        let from = SocketAddrV4::new(hosts[0].vtep(), SENDER);
        let socket = UdpSocket::bind(from).unwrap();
        setsockopt(&socket, sockopt::UdpGsoSegment, &(DATAGRAM as i32)).unwrap();
        socket.send_to(&all, (hosts[1].vtep(), VXLAN)).unwrap();
    });
    let received = sinks.map(|sink| sink.received());
    let after = merged();
    let frames = after.0 - before.0;
    let datagrams = (after.1 - before.1 - OUTER * frames) / DATAGRAM as u64;
    (received, frames, datagrams)
}

/// Sets the offloads of the second host's uplink, and those of the switch's device towards it.
fn set(world: &World, uplink: &str, switch: &str, vxlan: bool) {
    let (host, port) = world.uplink(1);
    host.run(&format!("ethtool -K {} {uplink}", Underlay::UPLINK));
    world.cluster.switch.run(&format!("ethtool -K {port} {switch}"));
    vxlan_socket(host, vxlan);
}

/// A frame with datagrams of two VNIs is not delivered to one tenant, and is counted. If a GRO that
/// knows VXLAN merges datagrams, it merges only those of one tenant.
#[test]
#[ignore = "needs root"]
fn datagrams_of_two_tenants_are_not_taken_for_one_s() {
    let world = World::new();
    let (whole, cut) = ("tso on tx-udp-segmentation on", "tso off tx-udp-segmentation off");
    let (fwd, list) = ("rx-udp-gro-forwarding", "rx-gro-list");
    let none = format!("gro off {fwd} off {list} off");

    // One frame, as a network card delivers it that merges datagrams itself.
    set(&world, &none, whole, false);
    for order in [[RED, BLUE], [BLUE, RED]] {
        assert_eq!(burst(&world, &order, false), ([0, 0], 1, 2 * COUNT as u64), "{order:?}");
    }
    assert_eq!(burst(&world, &[RED], false), ([0, 0], 1, COUNT as u64));

    // The frame is cut into datagrams, which are not merged.
    set(&world, &none, cut, false);
    assert_eq!(burst(&world, &[RED, BLUE], false), ([COUNT, COUNT], 0, 0));

    // The datagrams are merged again, by every kind of GRO for datagrams.
    for features in [
        format!("gro on {fwd} on {list} off"),
        format!("gro on {fwd} off {list} on"),
        format!("gro on {fwd} on {list} on"),
    ] {
        set(&world, &features, cut, false);
        let ([red, blue], frames, datagrams) = burst(&world, &[RED, BLUE], false);
        assert_eq!(red + blue + datagrams as usize, 2 * COUNT, "{features}: accounted for");
        assert!(frames > 0 && datagrams > frames, "{features}: {frames} frames, {datagrams}");
    }

    // With a VXLAN socket, GRO compares VNI and inner addresses. It merges inner UDP only if that
    // is enabled, too.
    set(&world, &format!("gro on {fwd} off {list} off"), cut, true);
    assert_eq!(burst(&world, &[RED, BLUE], false), ([COUNT, COUNT], 0, 0));
    set(&world, &format!("gro on {fwd} on {list} off"), cut, true);
    assert_eq!(burst(&world, &[RED, BLUE], true), ([COUNT, COUNT], 0, 0));
    // Fragment lists are dropped (`World::merges_udp`), so they do not reach the other tenant.
    set(&world, &format!("gro on {fwd} on {list} on"), cut, true);
    let (_, frames, _) = burst(&world, &[RED, BLUE], true);
    assert_eq!(frames, 0);
}

/// A wire between two devices of a namespace. For VXLAN frames towards the second device, it fills
/// in the outer checksum, and gives all frames the same source port, so that UDP GRO merges them.
struct Cable {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Cable {
    fn new(netns: &Path, from: &str, to: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [(from, to, true), (to, from, false)]
            .map(|(from, to, towards)| {
                let (from, to) = (wire::open(netns, from), wire::open(netns, to));
                let stopped = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut buffer = Vec::new();
                    while !stopped.load(Ordering::Relaxed) {
                        if let Ok(Some(mut frame)) = wire::receive(&from, &mut buffer)
                            && !frame.outgoing
                        {
                            assert_eq!((frame.partial, frame.gso), (None, wire::Gso::None));
                            if towards {
                                one_flow(&mut frame.bytes);
                            }
                            // A full queue drops frames.
                            let _ = wire::send(&to, &frame.bytes);
                        }
                    }
                })
            })
            .into();
        Self { stop, threads }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn one_flow(frame: &mut [u8]) {
    const UDP: usize = 14 + 20;
    let Some((udp, datagram)) = frame.get(UDP..).and_then(|udp| UdpHeader::from_slice(udp).ok())
    else {
        return;
    };
    let is_udp = frame.get(23) == Some(&17) && udp.destination_port == VXLAN;
    if !is_udp {
        return;
    }
    let udp = UdpHeader { source_port: SENDER, ..udp };
    let address = |at: usize| -> [u8; 4] { frame[at..at + 4].try_into().unwrap() };
    let checksum = udp.calc_checksum_ipv4_raw(address(26), address(30), datagram).unwrap();
    frame[UDP..UDP + 8].copy_from_slice(&UdpHeader { checksum, ..udp }.to_bytes());
}

/// Sets how long GRO of a device waits for more frames to merge, in ns.
fn patience(netns: &Netns, ifname: &str, nanoseconds: u32) {
    // `ip netns exec` mounts the namespace's /sys.
    Netns::here().run(&format!(
        "ip netns exec {} sh -c 'cd /sys/class/net/{ifname}; \
         echo 1 >napi_defer_hard_irqs; echo {nanoseconds} >gro_flush_timeout'",
        netns.name()
    ));
}

/// Both tenants use TCP at the same time, through a wire on which UDP GRO merges their segments.
/// Dropped segments are sent again, and no tenant gets data of the other.
#[test]
#[ignore = "needs root"]
fn tcp_makes_up_for_merged_segments() {
    let world = World::new();
    let switch = &world.cluster.switch;
    let off = "tx off tso off gso off tx-udp-segmentation off tx-udp_tnl-segmentation off";
    switch.run(&format!(
        "ip link set p1 nomaster; ip link add r0 type veth peer name r1; \
         ethtool -K r0 {off}; ip link set r0 master br0 up; ip link set r1 up"
    ));
    let _servers = [RED, BLUE].map(|tenant| Servers::new(&world.pair(tenant)[1].netns));
    set(&world, &format!("{off} gro on rx-udp-gro-forwarding on"), off, false);
    let cable = Cable::new(switch.path(), "r1", "p1");
    patience(world.uplink(1).0, Underlay::UPLINK, 30_000);
    let exchange = |tenant: Tenant| {
        let [one, two] = world.pair(tenant);
        let client = Client { netns: one.netns.clone(), seed: tenant.vni.into() };
        client.tcp(SocketAddrV4::new(two.v4, TCP).into(), 400_000)
    };
    let host = &world.cluster.hosts[1];
    let merged = || host.counter("from_underlay", "merged_frames");
    std::thread::scope(|scope| {
        let threads = [RED, BLUE].map(|tenant| scope.spawn(move || exchange(tenant)));
        wait_until(SOON, "segments to be merged", || merged() > 0);
        // `doctor` advises this. Until then little more than one segment at a time is delivered.
        host.netns.run(&format!("ethtool -K {} rx-udp-gro-forwarding off", Underlay::UPLINK));
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
    });
    drop(cable);
}
