//! The uplinks in `status` and `doctor --datapath`.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use culvert_tests::{
    cluster::{Cluster, Host, SOON},
    netns::wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assistants::{with_gro, without_gro},
    host_routes::has_problem,
};

/// The findings of `doctor --datapath`.
fn faults(host: &Host) -> Vec<String> {
    let findings = host.json(&["doctor", "--datapath"]);
    let findings = findings.as_array().unwrap().iter();
    findings
        .filter(|finding| finding["level"] != "ok")
        .map(|finding| finding["check"].as_str().unwrap().to_owned())
        .collect()
}

fn datapath(host: &Host) -> Value {
    host.json(&["status"])["datapath"].clone()
}

#[test]
#[ignore = "needs root"]
fn what_an_uplink_can_do_is_told() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    let told = datapath(host);
    assert_eq!(told["mode"], "tc");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("up0 is a veth, where native XDP copies every frame"), "{reason}");
    let uplink = &told["uplinks"][0];
    let facts = ["name", "driver", "xdp"].map(|key| uplink[key].as_str().unwrap());
    assert_eq!(facts, ["up0", "veth", "native"]);
    assert_eq!((&uplink["gro"], &uplink["merges_vxlan"]), (&false.into(), &false.into()));
    assert_eq!(faults(host), ["gro"]);

    let is = |host: &Host, gro: bool, merges: bool| {
        let uplink = &datapath(host)["uplinks"][0];
        uplink["gro"] == gro && uplink["merges_vxlan"] == merges
    };
    host.netns.run("ethtool -K up0 gro on");
    wait_until(SOON, "GRO", || is(host, true, true));
    assert_eq!(faults(host), Vec::<String>::new());
    // Merging of datagrams is told as well: the programs drop merged datagrams.
    let words = "up0 has rx-udp-gro-forwarding on: it can merge VXLAN datagrams";
    host.netns.run("ethtool -K up0 rx-udp-gro-forwarding on");
    wait_until(SOON, "the problem", || has_problem(host, words));
    assert!(has_problem(host, "ethtool -K up0 rx-udp-gro-forwarding off"));
    host.netns.run("ethtool -K up0 rx-udp-gro-forwarding off");
    wait_until(SOON, "no problem", || !has_problem(host, words));
    without_gro(&host.netns);
    wait_until(SOON, "no vxlan device", || is(host, true, false));
    assert_eq!(faults(host), ["vxlan"]);
    with_gro(&host.netns);
    wait_until(SOON, "the vxlan device", || is(host, true, true));
    assert!(host.ok(&["status"]).contains("up0 (veth, native XDP, GRO on, VXLAN merged)"));

    // XDP is attached on request, and `status` shows its disadvantages.
    host.stop_agent(Signal::SIGTERM);
    host.start_agent(&["--datapath", "xdp"]);
    host.wait_ready();
    let told = datapath(host);
    assert_eq!(told["mode"], "xdp");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("--datapath xdp") && reason.contains("strips GSO"), "{reason}");
    assert!(faults(host).contains(&"datapath".to_owned()));
}
