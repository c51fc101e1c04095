use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::{
    ROOT, SCHEMA,
    testing::{Cluster, change, delete, endpoint, name, network, node},
};

fn two_networks() -> (Network, Network) {
    (network("red", 256, &["10.0.0.0/24"]), network("blue", 257, &["10.1.0.0/24"]))
}

#[test]
fn each_kind_of_record_is_folded_in_and_out_again() {
    let (red, _) = two_networks();
    let ep = endpoint(&red, "0a", "host1", "10.0.0.2");
    let host = node("host1", 1);
    let alive = Alive::new(host.id.clone());
    let owner = VniOwner { schema: SCHEMA, network: red.name.clone() };
    let claim = IpOwner { schema: SCHEMA, endpoint: ep.id.clone() };
    let ip: Ipv4Addr = "192.0.2.9".parse().expect("address");
    let vtep = ForeignVtep { schema: SCHEMA, network: red.name.clone(), ip, port: 4789 };

    let touches_network = Touched { networks: [red.name.clone()].into(), ..Touched::default() };
    let touches_vtep = Touched { vteps: [(red.name.clone(), ip)].into(), ..Touched::default() };
    let touches_node = Touched { nodes: [host.name.clone()].into(), ..Touched::default() };
    let touches_endpoint =
        Touched { endpoints: [(red.name.clone(), ep.id.clone())].into(), ..Touched::default() };
    let changes = [
        (change(Key::network(&red.name), &red, 1), &touches_network),
        (change(Key::vni(red.vni), &owner, 2), &touches_network),
        (change(Key::node(&host.name), &host, 3), &touches_node),
        (change(Key::alive(&host.name), &alive, 4), &touches_node),
        (change(Key::endpoint(&red.name, &ep.id), &ep, 5), &touches_endpoint),
        (
            change(Key::ipam(&red.name, "10.0.0.2".parse().expect("ip")), &claim, 6),
            &touches_endpoint,
        ),
        (change(Key::vtep(&red.name, ip), &vtep, 7), &touches_vtep),
    ];
    let mut view = View::default();
    for (change, expected) in &changes {
        assert_eq!(view.apply(change), **expected, "{}", change.key());
    }
    assert_eq!(view.complaints(), Vec::<String>::new());
    assert_eq!(view.revision, 7);
    assert_eq!(view.networks[&red.name].record, red);
    assert_eq!(view.endpoint(&red.name, "0a").map(|found| found.revision), Some(5));
    assert!(view.is_alive(&host.name) && view.node_at(host.vtep).is_some());
    assert_eq!(view.endpoints_on(&host.name).count(), 1);
    assert!(view.endpoint_of(&red.name, &host.name, &ep.container).is_some());

    // The same update again changes nothing.
    assert!(view.apply(&changes[0].0).is_empty());

    for (revision, (change, expected)) in changes.iter().enumerate() {
        let gone = delete(change.key().to_owned(), 8 + revision as Revision);
        let mut touched = view.apply(&gone);
        // The endpoint's former node, MAC and addresses.
        let had = std::mem::take(&mut touched.former);
        let had: Vec<_> = had.into_iter().map(|(network, had)| (network, had.mac)).collect();
        let is_endpoint = change.key() == Key::endpoint(&red.name, &ep.id);
        assert_eq!(had, is_endpoint.then(|| (red.name.clone(), ep.mac)).as_slice());
        assert_eq!(touched, **expected, "{}", change.key());
        assert!(view.apply(&gone).is_empty());
    }
    assert!(view.is_empty());
    assert_eq!(view.revision, 14);
}

#[test]
fn unreadable_records_are_named_and_take_nothing_down() {
    let (red, blue) = two_networks();
    let mut cluster = Cluster::default();
    cluster.network(&red);
    cluster.network(&blue);
    let good = cluster.view.clone();
    let newer = serde_json::json!({"schema": SCHEMA + 1, "name": "red", "shape": "new"});

    for (value, part) in [
        (newer.to_string().into_bytes(), "newer"),
        (b"{".to_vec(), "not a network record"),
        (Vec::new(), "not a network record"),
        (vec![0xff; 40], "not a network record"),
        (b"{\"schema\":1}".to_vec(), "missing field"),
        (b"{\"schema\":0}".to_vec(), "schema 0"),
        (b"[[[[".repeat(10_000), "not a network record"),
        (crate::model::encode(&blue).expect("JSON"), "\"blue\""),
    ] {
        cluster.raw("/culvert/v1/networks/red", &value);
        let view = &cluster.view;
        let line = view.problem_at("/culvert/v1/networks/red").expect("a problem");
        assert!(line.contains(part) && line.lines().count() == 1 && line.len() < 300, "{line}");
        assert_eq!(view.networks, good.networks);
        assert_eq!(view.complaints().len(), 1);
        assert!(view.problem_below("/culvert/v1/networks/").is_some());
        assert!(view.problem_below("/culvert/v1/endpoints/").is_none());
    }
    // A valid record clears the problem. A deletion clears it too.
    cluster.put("/culvert/v1/networks/red".to_owned(), &red);
    assert!(cluster.view.problems.is_empty());
    cluster.raw("/culvert/v1/networks/red", b"x");
    let touched = cluster.view.apply(&delete("/culvert/v1/networks/red".to_owned(), 99));
    assert_eq!(touched.problems, ["/culvert/v1/networks/red".to_owned()].into());
    assert!(touched.networks.contains(&red.name));
    assert!(cluster.view.problems.is_empty() && !cluster.view.networks.contains_key(&red.name));
}

#[test]
fn keys_of_no_kind_are_named_too() {
    let mut cluster = Cluster::default();
    for key in ["/culvert/v1/colours/red", "/culvert/v1/vnis/007", "/culvert/v1/networks/a b"] {
        cluster.raw(key, b"{}");
        assert!(cluster.view.problem_at(key).is_some(), "{key}");
        let touched = cluster.view.apply(&delete(key.to_owned(), 50));
        assert_eq!(touched.problems, [key.to_owned()].into());
        assert!(cluster.view.problems.is_empty(), "{key}");
    }
    // The view ignores the mark of the store.
    cluster.raw("/culvert/v1/store", b"anything");
    assert!(cluster.view.is_empty());
}

/// However many keys are garbage, a change of one of them concerns that one, and the lines about
/// them are few and short.
#[test]
fn garbage_is_counted_and_its_lines_are_bounded() {
    let (red, _) = two_networks();
    let mut cluster = Cluster::default();
    cluster.network(&red);
    let long = "x".repeat(10_000);
    for number in 0..1000 {
        let key = format!("/culvert/v1/other/{number:04}/{long}");
        let touched = cluster.view.apply(&Change::Put(Entry {
            key: key.clone(),
            value: Vec::new(),
            mod_revision: 9,
        }));
        assert_eq!(touched, Touched { problems: [key].into(), ..Touched::default() });
    }
    for number in 0..100_u8 {
        // The owner in a record may be any text as well.
        let ep = endpoint(&red, &format!("{number:02x}"), "host1", &format!("10.0.0.{number}"));
        cluster.put(Key::endpoint(&red.name, &ep.id), &ep);
        let owner = IpOwner { schema: SCHEMA, endpoint: long.clone() };
        cluster.put(Key::ipam(&red.name, [10, 0, 0, number].into()), &owner);
    }
    let (lines, more) = cluster.view.first_complaints(20);
    assert_eq!((lines.len(), more), (40, 980 + 80));
    assert!(lines.iter().all(|line| line.chars().count() <= 601), "{lines:?}");
    assert!(lines[0].starts_with("/culvert/v1/other/0000/x"), "{}", lines[0]);
    assert_eq!(cluster.view.complaints().len(), 1100);
}

/// Whether an endpoint is usable does not depend on foreign VTEPs, which somebody may write each
/// second.
#[test]
fn a_foreign_vtep_makes_no_look_at_endpoints() {
    let (red, _) = two_networks();
    let mut cluster = Cluster::default();
    cluster.network(&red);
    cluster.endpoint(&endpoint(&red, "0a", "host1", "10.0.0.2"));
    let looks = |cluster: &mut Cluster| {
        assert_eq!(cluster.view.first_complaints(20), (Vec::new(), 0));
        cluster.view.looks()
    };
    let before = looks(&mut cluster);
    let (network, ip) = (red.name.clone(), [192, 0, 2, 9].into());
    let vtep = ForeignVtep { schema: SCHEMA, network, ip, port: 4789 };
    cluster.put(Key::vtep(&red.name, ip), &vtep);
    assert_eq!(looks(&mut cluster), before);
    // A change of the network concerns all its endpoints.
    cluster.put(Key::network(&red.name), &Network { internal: true, ..red });
    assert!(looks(&mut cluster) > before);
}

/// Garbage of each kind: a further key costs a look at one endpoint at most, a list of what is
/// wrong costs no look if nothing has changed, and the list is short.
#[test]
fn garbage_of_each_kind_costs_what_one_key_costs() {
    const EACH: u32 = 12_500;
    let (red, blue) = two_networks();
    let lost = network("lost", 300, &["10.8.0.0/16"]);
    let mut cluster = Cluster::default();
    cluster.network(&red);
    // A network whose VNI is another's.
    cluster.put(Key::network(&blue.name), &Network { vni: red.vni, ..blue.clone() });
    let all = |cluster: &mut Cluster| cluster.view.first_complaints(20);
    all(&mut cluster);
    for number in 0..EACH {
        let [_, _, high, low] = number.to_be_bytes();
        let (id, ip) = (format!("{number:08x}"), format!("10.0.{high}.{low}"));
        let before = cluster.view.looks();
        cluster.raw(&format!("/culvert/v1/other/{number}"), b"");
        cluster.raw(&format!("/culvert/v1/endpoints/red/{number:016x}"), b"{}");
        cluster.raw(&format!("/culvert/v1/networks/broken{number}"), b"[]");
        cluster.raw(&format!("/culvert/v1/ipam/red/{ip}"), b"\xff");
        // Valid records: without a claim, of a network that does not exist, of one that is not
        // usable, and a network without a VNI of its own.
        cluster.put(Key::endpoint(&red.name, &id), &endpoint(&red, &id, "host1", &ip));
        cluster.put(Key::endpoint(&lost.name, &id), &endpoint(&lost, &id, "host1", &ip));
        cluster.put(Key::endpoint(&blue.name, &id), &endpoint(&blue, &id, "host1", &ip));
        let more = network(&format!("more{number}"), 1000, &["10.7.0.0/16"]);
        cluster.put(Key::network(&more.name), &more);
        assert!(cluster.view.looks() - before <= 3, "the looks at key {number}");
    }
    let looks = cluster.view.looks();
    let (lines, more) = all(&mut cluster);
    assert_eq!(cluster.view.looks(), looks, "a list looks at no endpoint");
    // Keys that are skipped, networks, endpoints: 20 lines of each.
    assert_eq!(lines.len(), 3 * 20);
    let each = EACH as usize;
    assert_eq!(more, (4 * each - 20) + (each + 1 - 20) + (2 * each - 20));
    let bytes: usize = lines.iter().map(String::len).sum();
    assert!(bytes < 16 * 1024, "{bytes} bytes: {lines:?}");
    // One key more. A change of a network is paid for by the next list, once.
    cluster.endpoint(&endpoint(&red, "0f", "host1", "10.0.0.2"));
    assert!(cluster.view.looks() - looks <= 3);
    cluster.network(&lost);
    let looks = cluster.view.looks();
    all(&mut cluster);
    assert_eq!(cluster.view.looks() - looks, each);
    all(&mut cluster);
    assert_eq!(cluster.view.looks() - looks, each);
}

#[test]
fn a_claim_holds_even_if_its_record_is_unreadable() {
    let (red, _) = two_networks();
    let mut cluster = Cluster::default();
    cluster.raw("/culvert/v1/vnis/256", b"garbage");
    cluster.raw("/culvert/v1/ipam/red/10.0.0.2", b"garbage");
    assert!(cluster.view.vnis[&red.vni].owner.is_none());
    let ip = "10.0.0.2".parse().expect("address");
    assert!(cluster.view.ip_claim(&red.name, ip).expect("a claim").owner.is_none());
    assert_eq!(cluster.view.problems.len(), 2);
}

#[test]
fn two_networks_with_one_vni_are_not_both_usable() {
    let (red, mut blue) = two_networks();
    blue.vni = red.vni;
    let mut cluster = Cluster::default();
    cluster.network(&red);
    cluster.put(Key::network(&blue.name), &blue);
    assert!(cluster.view.usable_network(&red.name).is_ok());
    let line = cluster.view.usable_network(&blue.name).expect_err("not usable");
    assert!(line.contains("VNI 256 belongs to network 'red'"), "{line}");
    assert!(cluster.view.usable_network(&name("green")).expect_err("unknown").contains("unknown"));
}

/// A change of a claim to a MAC concerns every endpoint that has the MAC.
#[test]
fn a_claim_to_a_mac_concerns_the_endpoints_that_have_it() {
    let (red, _) = two_networks();
    let mac = MacAddr([0x0e, 0, 0, 0, 0, 1]);
    let mut cluster = Cluster::default();
    cluster.network(&red);
    for (id, ip) in [("0a", "10.0.0.2"), ("0b", "10.0.0.3")] {
        cluster.endpoint(&Endpoint { mac, ..endpoint(&red, id, "host1", ip) });
    }
    cluster.endpoint(&endpoint(&red, "0c", "host1", "10.0.0.4"));
    let both = ["0a", "0b"].map(|id| (red.name.clone(), id.to_owned()));
    let touches = Touched { endpoints: both.into(), ..Touched::default() };
    let owner = MacOwner { schema: SCHEMA, endpoint: "0b".to_owned() };
    let usable = |view: &View| -> Vec<String> {
        let all = view.endpoints_in(&red.name);
        all.filter(|ep| view.usable_endpoint(ep).is_ok()).map(|ep| ep.record.id).collect()
    };
    // An earlier version has claimed nothing.
    assert_eq!(usable(&cluster.view), ["0a", "0b", "0c"]);
    let repeated = cluster.view.complaints();
    assert!(repeated[0].contains("endpoint 0b in network 'red'"), "{repeated:?}");
    assert!(repeated[0].contains("is that of endpoint 0a, too"), "{repeated:?}");
    assert_eq!(repeated.len(), 1);
    let put = change(Key::mac(&red.name, mac), &owner, 50);
    assert_eq!(cluster.view.apply(&put), touches);
    assert_eq!(usable(&cluster.view), ["0b", "0c"]);
    cluster.raw(&Key::mac(&red.name, mac), b"garbage");
    assert_eq!(usable(&cluster.view), ["0c"]);
    let touched = cluster.view.apply(&delete(Key::mac(&red.name, mac), 60));
    assert_eq!(touched.endpoints, touches.endpoints);
    assert_eq!(usable(&cluster.view), ["0a", "0b", "0c"]);
}

#[test]
fn an_endpoint_with_what_is_not_its_own_is_not_usable() {
    let (red, blue) = two_networks();
    let mut cluster = Cluster::default();
    cluster.network(&red);
    cluster.network(&blue);
    cluster.endpoint(&endpoint(&red, "01", "host1", "10.0.0.2"));
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());

    let mut wrong_vni = endpoint(&red, "02", "host1", "10.0.0.3");
    wrong_vni.vni = blue.vni;
    let outside = endpoint(&red, "03", "host1", "10.1.0.2");
    for (ep, part) in [(wrong_vni, "VNI 257 is not"), (outside, "outside")] {
        cluster.endpoint(&ep);
        let line = cluster.view.usable_endpoint(&ep).expect_err("not usable");
        assert!(line.contains(part), "{line}");
        assert!(cluster.view.complaints().contains(&line));
    }
    let thief = endpoint(&red, "04", "host2", "10.0.0.2");
    cluster.put(Key::endpoint(&red.name, "04"), &thief);
    let line = cluster.view.usable_endpoint(&thief).expect_err("not usable");
    assert!(line.contains("belongs to endpoint 01"), "{line}");
    let squatter = endpoint(&red, "05", "host2", "10.0.0.9");
    cluster.put(Key::endpoint(&red.name, "05"), &squatter);
    let line = cluster.view.usable_endpoint(&squatter).expect_err("not usable");
    assert!(line.contains("not registered"), "{line}");
    assert_eq!(cluster.view.complaints().len(), 4);
}

/// A store that was accepted may have another record of the same revision.
#[test]
fn another_record_of_the_same_revision_is_a_change() {
    let (red, _) = two_networks();
    let ep = endpoint(&red, "0a", "host1", "10.0.0.2");
    let moved = Endpoint { node: name("host2"), ..ep.clone() };
    let mut view = View::default();
    view.apply(&change(Key::network(&red.name), &red, 1));
    view.apply(&change(Key::endpoint(&red.name, &ep.id), &ep, 2));
    assert!(view.apply(&change(Key::endpoint(&red.name, &ep.id), &ep, 2)).is_empty());
    let touched = view.apply(&change(Key::endpoint(&red.name, &ep.id), &moved, 2));
    let expected = [(red.name.clone(), ep.id.clone())];
    assert_eq!(touched.endpoints.into_iter().collect::<Vec<_>>(), expected);
    let former = touched.former.into_iter().map(|(_, had)| had.node);
    assert_eq!(former.collect::<Vec<_>>(), [ep.node]);
    let internal = Network { internal: true, ..red.clone() };
    let touched = view.apply(&change(Key::network(&red.name), &internal, 1));
    assert_eq!(touched.networks.into_iter().collect::<Vec<_>>(), [red.name]);
}

/// The revision goes back with a list: that of a store that was accepted may be of an earlier
/// revision, and a request that waits for a later one must not go on.
#[test]
fn a_list_sets_the_revision() {
    let update = |revision, resync| Update { revision, changes: Vec::new(), resync, listed: None };
    let mut view = View::default();
    view.fold(&update(9, false));
    assert_eq!(view.revision, 9);
    view.fold(&update(5, true));
    assert_eq!(view.revision, 5);
    view.fold(&update(4, false));
    assert_eq!(view.revision, 5);
    view.fold_unseen(&update(3, true));
    assert_eq!(view.revision, 3);
}

/// Writes and deletions of valid records, from so small a set that they collide.
fn history() -> impl Strategy<Value = Vec<(u8, u8, bool)>> {
    proptest::collection::vec((0..8_u8, 0..4_u8, any::<bool>()), 0..60)
}

/// The network of the endpoints, or one without endpoints.
fn title(which: u8) -> String {
    if which == 0 { "red".to_owned() } else { format!("n{which}") }
}

fn record_change(kind: u8, which: u8, revision: Revision) -> Change {
    let red = network("red", 256, &["10.0.0.0/24"]);
    let owner = VniOwner { schema: SCHEMA, network: name(&title(which)) };
    let ep = endpoint(&red, &format!("{which:02x}"), "host1", &format!("10.0.0.{}", which + 2));
    match kind {
        0 => {
            let net = network(&title(which), 256 + u32::from(which), &["10.0.0.0/24"]);
            change(Key::network(&net.name), &net, revision)
        }
        1 => {
            change(Key::vni(Vni::try_from(256 + u32::from(which)).expect("VNI")), &owner, revision)
        }
        2 => {
            let host = node(&format!("h{which}"), which + 1);
            change(Key::node(&host.name), &host, revision)
        }
        3 => change(Key::endpoint(&red.name, &ep.id), &ep, revision),
        4 => {
            let claim = IpOwner { schema: SCHEMA, endpoint: ep.id };
            let ip = IpAddr::from([10, 0, 0, which + 2]);
            change(Key::ipam(&red.name, ip), &claim, revision)
        }
        5 => {
            let claim = MacOwner { schema: SCHEMA, endpoint: ep.id };
            change(Key::mac(&red.name, MacAddr([0x0e, 0, 0, 0, 0, which])), &claim, revision)
        }
        6 => {
            let alive = Alive::new("00".to_owned());
            change(Key::alive(&name(&format!("h{which}"))), &alive, revision)
        }
        _ => {
            let ep = Endpoint { mac: MacAddr([0x0e, 0, 0, 0, 0, which % 2]), ..ep };
            change(Key::endpoint(&red.name, &ep.id), &ep, revision)
        }
    }
}

proptest! {
    /// After any history of a store, the view equals the view of its snapshot.
    #[test]
    fn folding_changes_gives_what_the_snapshot_gives(history in history()) {
        let mut view = View::default();
        let mut held: BTreeMap<String, Entry> = BTreeMap::new();
        let mut revision = 0;
        for (kind, which, gone) in history {
            revision += 1;
            let change = match record_change(kind, which, revision) {
                Change::Put(entry) if gone => {
                    held.remove(&entry.key);
                    Change::Delete { key: entry.key, revision }
                }
                Change::Put(entry) => {
                    held.insert(entry.key.clone(), entry.clone());
                    Change::Put(entry)
                }
                other => other,
            };
            view.apply(&change);
            if revision % 7 == 0 {
                // What is wrong is kept from here on.
                let _ = view.first_complaints(1);
            }
        }
        let snapshot = Snapshot { revision, entries: held.into_values().collect() };
        prop_assert_eq!(view.first_complaints(usize::MAX), (view.complaints(), 0));
        prop_assert_eq!(view, View::from_snapshot(&snapshot));
    }

    /// Any bytes under any key are skipped and reported.
    #[test]
    fn nothing_in_the_store_makes_the_view_panic(
        kind in "(networks|vnis|nodes|alive|endpoints|ipam|macs|vteps|store|other)",
        name in "[a-z0-9./: ]{0,12}",
        value in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut cluster = Cluster::default();
        let key = format!("{ROOT}{kind}/{name}");
        cluster.raw(&key, &value);
        prop_assert!(cluster.view.problem_at(&key).is_some());
        let _ = cluster.view.complaints();
    }

    /// The same property for JSON of the right shape with arbitrary values.
    #[test]
    fn no_json_in_the_store_makes_the_view_panic(
        mtu: i64, vni: i64, prefix in 0..200_u32, text in "\\PC{0,20}", schema in 0..3_u32,
    ) {
        let json = serde_json::json!({
            "schema": schema, "name": "red", "id": text, "driver": "overlay", "vni": vni, "mtu": mtu,
            "subnets": [{"subnet": format!("10.0.0.0/{prefix}"), "gateway": "10.0.0.1"}],
            "internal": false, "learning": true, "options": {text.clone(): text}, "labels": {},
        });
        let mut cluster = Cluster::default();
        cluster.raw("/culvert/v1/networks/red", json.to_string().as_bytes());
        let known = cluster.view.networks.contains_key(&name("red"));
        prop_assert_eq!(known, cluster.view.problems.is_empty());
        let _ = cluster.view.complaints();
    }
}
