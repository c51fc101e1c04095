//! The host on a kernel, in namespaces of its own.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Host;
use crate::{
    agent::platform::{Devices as _, Maps as _, Underlay as _},
    choice::device::Device,
    datapath::{Datapath, Options, PinCheck, Repaired, Table},
    model::MacAddr,
    netlink::{Netlink, PairKind, PairSpec},
    sandbox::{self, GatewaySpec},
    testing::in_namespaces,
};

const UPLINK: &str = "up0";
/// The host side of a container's pair.
const PORT: &str = "cv01";
/// MTU of the pairs, in bytes.
const MTU: u16 = 1450;
/// Time that a step of a test may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs a test on a host whose uplink [`UPLINK`] is a bridge. A bridge has no XDP of its own.
fn on_a_host<F: Future<Output = ()>>(xdp: bool, test: impl FnOnce(Host) -> F + Send) {
    in_namespaces(|dir| {
        let options = Options { bpffs: dir.join("bpf"), ..Options::of_a_test() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let netlink = Netlink::new().unwrap();
            netlink.create_bridge(UPLINK, None).await.unwrap();
            let datapath = Datapath::load(&options).unwrap();
            let device = Device { kind: PairKind::Veth, reason: "a test".to_owned() };
            let uplinks = vec![UPLINK.to_owned()];
            let host = Host::new(netlink, datapath, &options, uplinks, xdp, device).unwrap();
            test(host).await;
        });
    });
}

/// Makes a pair with the host side [`PORT`], which is up. Returns its index.
async fn make_port(netlink: &Netlink) -> u32 {
    make_pair(netlink, 1).await
}

/// Makes a pair whose host side has this number in its name, and is up. Returns its index.
async fn make_pair(netlink: &Netlink, number: u8) -> u32 {
    let name = format!("cv{number:02}");
    let pair = PairSpec {
        kind: PairKind::Veth,
        name: &name,
        peer_name: &format!("eth{number}"),
        peer_mac: MacAddr([2, 0x42, 10, 0, 0, number]),
        mtu: MTU.into(),
        peer_netns: netlink.netns(),
    };
    let index = netlink.create_pair(&pair).await.unwrap();
    netlink.set_alias(&name, &sandbox::alias_of(&format!("{number:02}"))).await.unwrap();
    netlink.set_up(&name).await.unwrap();
    index
}

/// What is wrong with a host side.
async fn fault(host: &Host, index: u32) -> Option<String> {
    host.host_sides_differ(&[(index, MTU)].into()).await.unwrap().remove(&index)
}

/// Index of the bridge that has [`PORT`] as a port.
async fn master(netlink: &Netlink) -> Option<u32> {
    netlink.link(PORT).await.unwrap().unwrap().master
}

/// Names of the programs at the ingress of a device. The kernel keeps 15 characters of a name.
fn programs(ifname: &str) -> Vec<String> {
    let (_, programs) = SchedClassifier::query_tcx(ifname, TcAttachType::Ingress).unwrap();
    programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect()
}

/// Another program unmounts the BPF file system. A change of an uplink or of an address comes
/// before the repair: it detaches nothing.
#[test]
#[ignore = "needs root"]
fn a_program_whose_link_cannot_be_pinned_stays_attached() {
    on_a_host(false, |host| async move {
        const CLIENT: &str = "card0";
        host.netlink.create_bridge(CLIENT, None).await.unwrap();
        host.netlink.add_address(CLIENT, "198.51.100.1/24".parse().unwrap()).await.unwrap();
        let change = || async {
            let errors = host.attach_uplinks().await;
            assert!(errors.is_empty(), "{errors:?}");
            let problems = host.serve_client_links(true).await;
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(programs(UPLINK), ["from_underlay"]);
            assert_eq!(programs(CLIENT), ["from_client"]);
        };
        change().await;
        umount2(&host.bpffs, MntFlags::MNT_DETACH).unwrap();
        change().await;
        assert!(
            host.repair_links(PinCheck::Files).failed.is_some(),
            "the repair tells that they have no pins"
        );
        change().await;
        assert_eq!(host.repair_pins(PinCheck::Files).failed, None);
        let repaired = host.repair_links(PinCheck::Files);
        assert_eq!(repaired.failed, None);
        assert_eq!(repaired.found.lines().iter().map(|(number, _)| number).sum::<u64>(), 2);
        change().await;
    });
}

/// A packet of a tun device begins with its IP header. A program that expects an Ethernet header
/// would read the wrong bytes.
#[test]
#[ignore = "needs root"]
fn a_client_link_gets_the_program_for_its_packets() {
    on_a_host(false, |host| async move {
        host.netlink.create_bridge("card0", None).await.unwrap();
        let tun = Command::new("ip").args(["tuntap", "add", "tun9", "mode", "tun"]).status();
        assert!(tun.unwrap().success());
        let links = [("card0", "from_client"), ("tun9", "from_client_l3")];
        for (number, (name, _)) in links.iter().enumerate() {
            let address = format!("198.51.{number}.1/24").parse().unwrap();
            host.netlink.add_address(name, address).await.unwrap();
        }
        for publishes in [true, false, true] {
            let problems = host.serve_client_links(publishes).await;
            assert!(problems.is_empty(), "{problems:?}");
            for (name, program) in links {
                let wanted = if publishes { vec![program] } else { Vec::new() };
                assert_eq!(programs(name), wanted, "{name}");
            }
        }
        assert_eq!(host.client_links().served, ["card0", "tun9"]);
        assert_eq!(host.client_links().unserved, [""; 0]);
    });
}

/// XDP is an addition: that it cannot be attached does not cost the host its traffic.
#[test]
#[ignore = "needs root"]
fn an_uplink_without_xdp_keeps_its_other_program() {
    on_a_host(true, |host| async move {
        for _ in 0..2 {
            let errors = host.attach_uplinks().await;
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert_eq!(programs(UPLINK), ["from_underlay"]);
        }
    });
}

/// A change of an uplink, and a repair, that come after the purge has detached the programs, and
/// before it has removed the pins.
#[test]
#[ignore = "needs root"]
fn nothing_is_attached_during_a_purge() {
    on_a_host(false, |host| async move {
        host.attach_uplinks().await;
        assert_eq!(programs(UPLINK), ["from_underlay"]);
        *host.purged() = true;
        host.datapath.release().unwrap();
        let errors = host.attach_uplinks().await;
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(host.repair_links(PinCheck::Files), Repaired::default());
        assert!(programs(UPLINK).is_empty(), "{:?}", programs(UPLINK));
    });
}

/// The comparison of all maps takes long. Repairs and purges do not wait for it, nor it for them.
#[test]
#[ignore = "needs root"]
fn the_comparison_of_the_maps_needs_no_lock_of_others() {
    on_a_host(false, |host| async move {
        host.attach_uplinks().await;
        let table = &host.datapath.tables().uplinks;
        let written = table.dump().unwrap();
        for ifindex in written.keys() {
            Table::remove(table, ifindex).unwrap();
        }
        let purge_under_way = host.purged();
        thread::scope(|scope| {
            let comparing = scope.spawn(|| host.audit());
            let deadline = Instant::now() + DEADLINE;
            while !comparing.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            let waits = !comparing.is_finished();
            drop(purge_under_way);
            let audit = comparing.join().unwrap();
            assert!(!waits, "the comparison waits for the lock");
            assert_eq!(audit.found.number(), 1);
        });
        assert_eq!(table.dump().unwrap(), written);
    });
}

/// A setting of the bridge cannot be written. The agent still knows the bridge, takes no container
/// out of it, and finds nothing wrong.
#[test]
#[ignore = "needs root"]
fn the_ports_of_a_bridge_that_cannot_be_kept_stay() {
    on_a_host(false, |host| async move {
        const NONE: Option<&str> = None;
        let netlink = &host.netlink;
        host.keep_assistants().await;
        let room = netlink.link(sandbox::ROOM).await.unwrap().unwrap().index;
        let index = make_port(netlink).await;
        host.assistants.settle(netlink, (PORT, index), None).await;
        assert_eq!(master(netlink).await, Some(room));

        fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", sandbox::ROOM), "0").unwrap();
        let settings = "/proc/sys";
        mount(Some(settings), settings, NONE, MsFlags::MS_BIND, NONE).unwrap();
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, settings, NONE, read_only, NONE).unwrap();
        host.keep_assistants().await;
        assert_eq!(fault(&host, index).await, None);
        host.assistants.settle(netlink, (PORT, index), Some(room)).await;
        assert_eq!(master(netlink).await, Some(room));
        umount2(settings, MntFlags::MNT_DETACH).unwrap();

        // Without the bridge nothing is known about masters.
        netlink.delete_link(sandbox::ROOM).await.unwrap();
        netlink.create_bridge(sandbox::ROOM, None).await.unwrap();
        let foreign = netlink.link(sandbox::ROOM).await.unwrap().unwrap().index;
        host.keep_assistants().await;
        netlink.set_controller(PORT, foreign).await.unwrap();
        assert_eq!(fault(&host, index).await, None);
        host.assistants.settle(netlink, (PORT, index), Some(foreign)).await;
        assert_eq!(master(netlink).await, Some(foreign));
    });
}

/// A device that does not let its port go. Here the name of the port is a wrong one, as no common
/// device refuses.
#[test]
#[ignore = "needs root"]
fn a_master_that_cannot_be_left_is_told_once() {
    on_a_host(false, |host| async move {
        let netlink = &host.netlink;
        host.keep_assistants().await;
        let index = make_port(netlink).await;
        let foreign = netlink.create_bridge("br9", None).await.unwrap();
        netlink.set_controller(PORT, foreign).await.unwrap();
        let differs = || fault(&host, index);
        assert_eq!(differs().await.as_deref(), Some("cv01 was a port of br9"));
        host.assistants.settle(netlink, ("cv02", index), Some(foreign)).await;
        let line = host.host_side_problem(index).unwrap();
        assert!(line.starts_with("cv02 stays a port of br9: remove it there: "), "{line}");
        assert_eq!(differs().await, None, "it is told by the problem");
        host.assistants.settle(netlink, (PORT, index), Some(foreign)).await;
        assert_eq!((host.host_side_problem(index), differs().await), (None, None));
        assert_ne!(master(netlink).await, Some(foreign));
    });
}

/// The agent that starts takes a host side out of the bridge of another program only when it has
/// told so.
#[test]
#[ignore = "needs root"]
fn a_port_of_another_bridge_stays_there_until_it_is_told() {
    on_a_host(false, |host| async move {
        let netlink = &host.netlink;
        let index = make_port(netlink).await;
        let foreign = netlink.create_bridge("br9", None).await.unwrap();
        netlink.set_controller(PORT, foreign).await.unwrap();
        host.keep_assistants().await;
        assert_eq!(master(netlink).await, Some(foreign));
        let found = fault(&host, index).await;
        assert_eq!(found.as_deref(), Some("cv01 was a port of br9"));
        // A port of nobody is nobody's change.
        netlink.set_controller(PORT, 0).await.unwrap();
        host.keep_assistants().await;
        let room = netlink.link(sandbox::ROOM).await.unwrap().unwrap().index;
        assert_eq!(master(netlink).await, Some(room));
    });
}

/// Few interfaces are read one by one, many at once. The result is the same.
#[test]
#[ignore = "needs root"]
fn devices_are_compared_whatever_their_number() {
    on_a_host(false, |host| async move {
        let netlink = &host.netlink;
        host.keep_assistants().await;
        let foreign = netlink.create_bridge("br9", None).await.unwrap();
        let (mut mtus, mut specs) = (BTreeMap::new(), Vec::new());
        for number in 1..=20_u8 {
            let index = make_pair(netlink, number).await;
            netlink.set_controller(&format!("cv{number:02}"), foreign).await.unwrap();
            mtus.insert(index, MTU);
            let address = format!("10.0.{number}.1/24").parse().unwrap();
            let mac = MacAddr([2, 0x42, 10, 0, number, 1]);
            let vni = 256 + u32::from(number);
            let spec = GatewaySpec { vni, mac, mtu: MTU, address: Some(address), source: None };
            sandbox::plug_gateway(netlink, &spec).await.unwrap();
            sandbox::open_gateway(netlink, &spec).await.unwrap();
            specs.push(spec);
        }
        assert!(host.gateways_differ(&specs).await.unwrap().is_empty());
        let removed = netlink.link("cv01").await.unwrap().unwrap().index;
        netlink.delete_link("cv01").await.unwrap();
        let gone = specs[0].clone();
        netlink.delete_link(&sandbox::gateway_ifname(gone.vni)).await.unwrap();
        let bare = specs[1].clone();
        let device = sandbox::gateway_ifname(bare.vni);
        netlink.delete_address(&device, bare.address.unwrap()).await.unwrap();

        let found_at_once = host.host_sides_differ(&mtus).await.unwrap();
        assert_eq!(found_at_once.len(), mtus.len() - 1, "{found_at_once:?}");
        assert!(!found_at_once.contains_key(&removed));
        assert!(found_at_once.values().all(|line| line.ends_with(" was a port of br9")));
        let mut found_singly = BTreeMap::new();
        for (index, mtu) in &mtus {
            found_singly.extend(host.host_sides_differ(&[(*index, *mtu)].into()).await.unwrap());
        }
        assert_eq!(found_singly, found_at_once);

        let all = host.gateways_differ(&specs).await.unwrap();
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!(all[&gone.vni], "cvg257 was removed");
        assert!(all[&bare.vni].starts_with("cvg258 had lost address 10.0.2.1/24"), "{all:?}");
        let few = host.gateways_differ(&specs[..3]).await.unwrap();
        assert_eq!(few, all);
    });
}
