//! Faults of the store, of its contents, and of the agents themselves.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

mod chaos;
mod leaks;
mod store;
mod traffic;

use std::time::Duration;

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::wait_until,
};
use etcd_client::{CompactionOptions, DeleteOptions, GetOptions};
use nix::sys::signal::Signal;

use crate::store::as_client;

/// The store is stopped and started again. Traffic continues, and the agent reports the outage and
/// then catches up.
#[test]
#[ignore = "needs root"]
fn an_outage_of_the_store_stops_nothing() {
    let mut cluster = Cluster::new(2);
    let (first, second) = (unique_name("fault"), unique_name("fault"));
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    cluster.hosts[0].run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    cluster.hosts[1].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
    cluster.etcd.stop();
    let host = &cluster.hosts[0];
    wait_until(SOON, "the outage to be noticed", || !host.healthy());
    host.in_container(&first, "ping -c3 -i0.1 -W9 10.0.0.3");
    let line = host.refused(1, &["network", "create", "-d", "overlay", "later"]);
    assert!(line.contains("store"), "{line}");
    // No entry was removed.
    assert_eq!(host.json(&["fdb", "show"]).as_array().map(Vec::len), Some(2));
    assert!(cluster.etcd.resume().is_ok());
    wait_until(Duration::from_secs(40), "the agents to recover", || {
        cluster.hosts.iter().all(Host::healthy)
    });
    let third = unique_name("life3");
    cluster.hosts[1].run_idle(&third, "net", &["--ip", "10.0.0.9"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.9");
}

/// A command waits for the election of a leader. One member after the other is killed, so that one of
/// them was the leader.
#[test]
#[ignore = "needs root"]
fn a_command_waits_for_a_new_leader() {
    let mut cluster = Cluster::with_members(1, 1500, &[]);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    cluster.hosts[0].ok(&["network", "create", "-d", "overlay", "net"]);
    for number in 0..cluster.servers().len() {
        cluster.servers().remove(number).stop();
        let name = unique_name("elected");
        cluster.hosts[0].run_idle(&name, "net", &[]);
        cluster.hosts[0].ok(&["rm", "-f", &name]);
        cluster.servers().remove(number).resume().unwrap();
    }
}

/// An agent that starts without a store keeps trying and reports this. With `--store-timeout` it
/// gives up.
#[test]
#[ignore = "needs root"]
fn a_store_that_is_not_there_yet() {
    let mut cluster = Cluster::without_agents(1, 1500);
    cluster.etcd.stop();
    let host = &mut cluster.hosts[0];
    host.start_agent(&["--store-timeout", "2"]);
    let Some(mut agent) = host.agent.take() else { unreachable!() };
    let status = agent.wait(SOON);
    assert_eq!(status.code(), Some(1), "{}", agent.stderr());
    assert!(agent.stderr().contains("store"), "{}", agent.stderr());

    host.start_agent(&[]);
    wait_until(SOON, "the agent to say that it has no store", || {
        host.agent_log().contains("store") && host.culvert(&["status"]).status.success()
    });
    assert!(!host.healthy());
    assert!(cluster.etcd.resume().is_ok());
    cluster.hosts[0].wait_ready();
}

/// Writes below our prefix.
fn put(cluster: &Cluster, records: &[(&str, &[u8])]) {
    as_client(cluster, async |mut client| {
        for (key, value) in records {
            client.put(format!("/culvert/v1/{key}"), *value, None).await.unwrap();
        }
    });
}

/// Invalid records and records of a newer Culvert are under Culvert's keys. The agent skips and
/// names them, and all other records have effect.
#[test]
#[ignore = "needs root"]
fn garbage_in_the_store() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    put(
        &cluster,
        &[
            ("networks/broken", b"not json {"),
            ("networks/newer", br#"{"schema":99,"name":"newer"}"#),
            ("endpoints/net/strange", br#"{"schema":1,"id":3}"#),
            ("nodes/other", b"\xff\xfe"),
            ("what/is/this", b"x"),
            ("vnis/banana", b"{}"),
        ],
    );
    wait_until(SOON, "the problems to be named", || {
        let problems = host.json(&["status"])["problems"].to_string();
        ["networks/broken", "networks/newer", "endpoints/net/strange", "nodes/other"]
            .iter()
            .all(|key| problems.contains(key))
    });
    let (first, second) = (unique_name("ok"), unique_name("ok"));
    host.run_idle(&first, "net", &[]);
    host.run_idle(&second, "net", &[]);
    let ip = host.ip(&second, "net");
    host.wait_ping(&first, &ip);
    let networks = host.json(&["network", "ls"]).to_string();
    assert!(!networks.contains("broken") && !networks.contains("newer"), "{networks}");
}

/// An etcd that is empty after a restart is reported as replaced. No entry is removed.
#[test]
#[ignore = "needs root"]
fn a_wiped_store_deletes_nothing() {
    let mut cluster = Cluster::new(1);
    let (first, second) = (unique_name("wipe"), unique_name("wipe"));
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.hosts[0].run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    cluster.hosts[0].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
    assert!(cluster.etcd.wipe().is_ok() && cluster.etcd.resume().is_ok());
    let unmoved = |host: &Host| {
        wait_until(Duration::from_secs(40), "the agent to notice", || {
            host.json(&["status"])["store"]["error"].to_string().contains("replaced")
        });
        host.in_container(&first, "ping -c2 -i0.1 -W9 10.0.0.3");
        assert_eq!(host.json(&["fdb", "show"]).as_array().map(Vec::len), Some(2));
    };
    unmoved(&cluster.hosts[0]);
    // The same holds after a restart of the agent.
    cluster.hosts[0].stop_agent(Signal::SIGKILL);
    cluster.hosts[0].start_agent(&[]);
    wait_until(SOON, "the agent to answer", || {
        cluster.hosts[0].culvert(&["status"]).status.success()
    });
    unmoved(&cluster.hosts[0]);
    let problems = cluster.hosts[0].json(&["status"])["problems"].to_string();
    assert!(problems.contains("culvert store accept"), "{problems}");
    cluster.hosts[0].ok(&["store", "accept"]);
    cluster.hosts[0].wait_ready();
    // The agent is ready before it has written the maps.
    wait_until(SOON, "the entries to go", || {
        cluster.hosts[0].json(&["fdb", "show"]) == serde_json::json!([])
    });
}

/// Writes keys of another program until the store has more than `revisions` new revisions. Then
/// removes its history.
fn outgrow(cluster: &Cluster, revisions: u32) {
    as_client(cluster, async |mut client| {
        let mut last = 0;
        for number in 0..=revisions {
            let put = client.put("/filler", number.to_string(), None).await.unwrap();
            last = put.header().unwrap().revision();
        }
        client.compact(last, None).await.unwrap();
    });
}

/// A host joins, and its agent is started again within a minute. Meanwhile etcd was restored from a
/// backup that does not have the host, has grown past the revision that the agent has seen, and has
/// compacted the history that would tell. No entry is removed.
#[test]
#[ignore = "needs root"]
fn a_store_that_was_rolled_back_deletes_nothing() {
    let mut cluster = Cluster::without_agents(2, 1500);
    // Another host has written the mark of the store.
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    assert!(cluster.etcd.back_up().is_ok() && cluster.etcd.resume().is_ok());
    wait_until(Duration::from_secs(40), "the agent to recover", || cluster.hosts[0].healthy());

    cluster.hosts[1].start_agent(&[]);
    cluster.hosts[1].wait_ready();
    let (first, second) = (unique_name("back"), unique_name("back"));
    cluster.hosts[1].overlay("net", "10.0.0.0/24", &[]);
    cluster.hosts[1].run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    cluster.hosts[1].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[1].wait_ping(&first, "10.0.0.3");
    let known = cluster.hosts[1].dir().join("state/store-mark");
    let known = || -> serde_json::Value {
        let text = std::fs::read(&known).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    };
    // Its own key, and the last one of the containers, are on the disk.
    let seen = cluster.hosts[1].json(&["status"])["store"]["revision"].as_i64().unwrap();
    wait_until(SOON, "the store to be remembered", || {
        let known = known();
        known["own"].is_object() && known["revision"].as_i64() >= Some(seen)
    });
    cluster.hosts[1].stop_agent(Signal::SIGKILL);

    assert!(cluster.etcd.roll_back().is_ok() && cluster.etcd.resume().is_ok());
    outgrow(&cluster, u32::try_from(seen).unwrap());
    cluster.hosts[1].start_agent(&[]);
    let host = &cluster.hosts[1];
    wait_until(SOON, "the agent to notice", || {
        let status = host.culvert(&["--format", "json", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["store"]["error"].to_string().contains("rolled back")
    });
    host.in_container(&first, "ping -c2 -i0.1 -W9 10.0.0.3");
    assert_eq!(host.json(&["fdb", "show"]).as_array().map(Vec::len), Some(2));
    let problems = host.json(&["status"])["problems"].to_string();
    assert!(problems.contains("culvert store accept"), "{problems}");
}

/// `--cleanup-on-exit` of an agent whose store is replaced cleans up the host, and leaves the store
/// alone.
#[test]
#[ignore = "needs root"]
fn an_agent_whose_store_is_replaced_cleans_up_its_host() {
    let mut cluster = Cluster::without_agents(1, 1500);
    cluster.hosts[0].start_agent(&["--cleanup-on-exit"]);
    cluster.hosts[0].wait_ready();
    let name = unique_name("clean");
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.hosts[0].run_idle(&name, "net", &["--ip", "10.0.0.2"]);
    assert!(cluster.etcd.wipe().is_ok() && cluster.etcd.resume().is_ok());
    let host = &mut cluster.hosts[0];
    wait_until(Duration::from_secs(40), "the agent to notice", || {
        host.json(&["status"])["store"]["error"].to_string().contains("replaced")
    });
    host.stop_agent(Signal::SIGTERM);
    assert!(!host.bpffs().exists(), "pins are left");
    assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "a sandbox is left");
    assert_eq!(host.netns.run("ip -o link show | grep -c 'cv[a-z0-9]*:' || true").trim(), "0");
    let keys = as_client(&cluster, async |mut client| {
        let all = GetOptions::new().with_prefix().with_count_only();
        client.get("/culvert/", Some(all)).await.unwrap().count()
    });
    assert_eq!(keys, 0);
}

/// Prefix of keys that take the room in a store.
const FILLER: &str = "/filler/";

/// Writes until etcd refuses. It then sets the alarm by itself.
fn fill(cluster: &Cluster) {
    as_client(cluster, async |mut client| {
        for number in 0..64 {
            let key = format!("{FILLER}{number}");
            if let Err(error) = client.put(key, vec![b'x'; 512 << 10], None).await {
                return assert!(error.to_string().contains("space exceeded"), "{error}");
            }
        }
        unreachable!("a store without a limit");
    });
}

/// What an administrator does about a full etcd.
fn make_room(cluster: &Cluster) {
    as_client(cluster, async |mut client| {
        let all = DeleteOptions::new().with_prefix();
        let deleted = client.delete(FILLER, Some(all)).await.unwrap();
        let revision = deleted.header().unwrap().revision();
        let physical = CompactionOptions::new().with_physical();
        client.compact(revision, Some(physical)).await.unwrap();
        client.defragment().await.unwrap();
    });
    store::end_full(cluster);
}

/// An etcd that has reached its quota takes no writes. Traffic flows on, `status` and `doctor` name the
/// alarm, changes are refused with the reason, and an agent that is restarted meanwhile has its
/// endpoints, although its node cannot be entered. All is well once the alarm is disarmed.
#[test]
#[ignore = "needs root"]
fn a_full_store_is_told_by_its_alarm_and_stops_nothing() {
    let mut cluster = Cluster::with_store(2, 1500, &["--quota-backend-bytes", "8388608"]);
    for host in &mut cluster.hosts {
        host.start_agent(&[]);
    }
    for host in &mut cluster.hosts {
        host.wait_ready();
    }
    let (first, second) = (unique_name("full1"), unique_name("full2"));
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    cluster.hosts[0].run_idle(&first, "net", &["--ip", "10.0.0.2", "-p", "8080:80"]);
    cluster.hosts[1].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
    let fdb = cluster.hosts[0].json(&["fdb", "show"]);

    fill(&cluster);
    let problems = |host: &Host| host.json(&["status"])["problems"].to_string();
    for host in &cluster.hosts {
        wait_until(SOON, "the alarm in status", || problems(host).contains("alarm NOSPACE"));
        assert_eq!(host.json(&["status"])["store"]["alarms"], serde_json::json!(["NOSPACE"]));
        let found = host.culvert(&["doctor", "--format", "json"]);
        let rows: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
        let mut rows = rows.as_array().unwrap().iter();
        let is_told = |row: &serde_json::Value| {
            row["level"] == "error" && row["detail"].to_string().contains("alarm NOSPACE")
        };
        assert!(rows.any(is_told), "{}", String::from_utf8_lossy(&found.stdout));
    }
    let host = &mut cluster.hosts[0];
    let line = host.refused(1, &["network", "create", "-d", "overlay", "later"]);
    assert!(line.contains("space exceeded"), "{line}");
    host.in_container(&first, "ping -c3 -i0.1 -W1 10.0.0.3");

    host.stop_agent(Signal::SIGKILL);
    host.start_agent(&[]);
    host.wait_ready();
    let entry = format!("node {}: not entered in the store yet", host.node);
    wait_until(SOON, "the missing entry to be told", || problems(host).contains(&entry));
    wait_until(SOON, "the alarm again", || problems(host).contains("alarm NOSPACE"));
    wait_until(SOON, "its endpoints", || {
        let counts = &host.json(&["status"])["counts"];
        counts["local_endpoints"] == 1 && counts["endpoints"] == 2
    });
    assert_eq!(host.json(&["fdb", "show"]), fdb);
    assert_eq!(host.ip(&first, "net"), "10.0.0.2");
    host.in_container(&first, "ping -c3 -i0.1 -W1 10.0.0.3");
    host.netns.run("ping -c1 -W2 10.0.0.2");

    make_room(&cluster);
    for host in &cluster.hosts {
        wait_until(Duration::from_secs(40), "the end of the problems", || {
            let problems = problems(host);
            !problems.contains("alarm") && !problems.contains("not entered")
        });
    }
    let third = unique_name("full3");
    cluster.hosts[1].run_idle(&third, "net", &["--ip", "10.0.0.9"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.9");
}

/// The configuration changes while an agent is killed repeatedly. Both hosts reach the same state.
#[test]
#[ignore = "needs root"]
fn killed_in_the_middle_of_churn() {
    let mut cluster = Cluster::new(2);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let keeper = unique_name("keep");
    cluster.hosts[0].run_idle(&keeper, "net", &["--ip", "10.0.0.2"]);
    let mut last = String::new();
    for round in 0..3 {
        let name = unique_name("churn");
        cluster.hosts[1].run_idle(&name, "net", &["--ip", &format!("10.0.0.{}", 10 + round)]);
        cluster.hosts[0].stop_agent(Signal::SIGKILL);
        if round < 2 {
            cluster.hosts[1].ok(&["rm", "-f", &name]);
        }
        cluster.hosts[0].start_agent(&[]);
        cluster.hosts[0].wait_ready();
        last = name;
    }
    cluster.hosts[0].wait_ping(&keeper, "10.0.0.12");
    let macs = |host: &Host| {
        let mut macs: Vec<String> = host
            .json(&["fdb", "show"])
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| Some(row["mac"].as_str()?.to_owned()))
            .collect();
        macs.sort();
        macs
    };
    wait_until(SOON, "both hosts to have the same FDB", || {
        macs(&cluster.hosts[0]) == macs(&cluster.hosts[1]) && macs(&cluster.hosts[0]).len() == 2
    });
    cluster.hosts[1].ok(&["rm", "-f", &last]);
}
