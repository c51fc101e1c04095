//! The host on a kernel, in namespaces of its own.

use std::{
    future::Future,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::mount::{MntFlags, umount2};

use super::Host;
use crate::{
    agent::platform::{Devices as _, Maps as _},
    choice::device::Device,
    datapath::{Datapath, Options, PinCheck, Repaired, Table},
    netlink::{Netlink, PairKind},
    testing::in_namespaces,
};

const UPLINK: &str = "up0";
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
            host.repair_links(PinCheck::Names).failed.is_some(),
            "the repair tells that they have no pins"
        );
        change().await;
        assert_eq!(host.repair_pins(PinCheck::Names).failed, None);
        let repaired = host.repair_links(PinCheck::Names);
        assert_eq!(repaired.failed, None);
        assert_eq!(repaired.found.lines().iter().map(|(number, _)| number).sum::<u64>(), 2);
        change().await;
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
        assert_eq!(host.repair_links(PinCheck::Names), Repaired::default());
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
