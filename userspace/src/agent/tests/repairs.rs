//! Changes by other programs that the agent repairs and reports.

use std::{collections::BTreeMap, time::Instant};

use crate::datapath::entry::FdbEntry;
use culvert_common::abi::FdbKey;

use super::fake::{DEADLINE, Paper, Running, World, eventually, name, two_hosts};
use crate::{
    agent::{
        platform::{HostEvent, PlugError},
        state::Repair,
    },
    api::{Backend as _, types::ErrorKind},
};

const VNI: u32 = 256;

/// MAC of the endpoint with the address 10.0.1.N.
fn mac(n: u8) -> [u8; 6] {
    [0x02, 0x42, 10, 0, 1, n]
}

/// The repairs of one kind: how many, and what was found at the last.
fn repairs(running: &Running, kind: &str) -> (u64, String) {
    let all = running.shared.shown.repairs.all();
    all.get(kind).map_or((0, String::new()), |Repair { count, last, .. }| (*count, last.clone()))
}

/// Makes `web` on host 1 and `db` on host 2, and waits until host 1 has written all about `db`. Returns
/// its key.
async fn knows_db(one: &Running, two: &Running) -> FdbKey {
    one.run("web", "blue").await.unwrap();
    two.run("db", "blue").await.unwrap();
    let db = FdbKey::new(VNI, mac(3));
    // The length of the flood list is written last.
    one.eventually("host 1 knows db and its host", |state| {
        state.tables.fdb.contains_key(&db) && state.tables.networks[&VNI].remote_vteps == 1
    })
    .await;
    db
}

/// Each entry that another program removes, changes or adds is put right, counted once, and named:
/// entries of networks, of VNIs that nobody has, of paths, and of the maps that are written as a
/// whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn map_entries_that_others_change_are_counted_and_named() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    let db = knows_db(&one, &two).await;
    assert_eq!(repairs(&one, "map entry").0, 0);

    let right = one.paper.state().tables.clone();
    {
        let mut state = one.paper.state();
        state.tables.fdb.remove(&db);
        state.tables.networks.get_mut(&VNI).unwrap().flags = 9;
        state.tables.fdb.insert(FdbKey::new(5, [9; 6]), FdbEntry { ifindex: 1, vtep: [0; 4] });
    }
    one.eventually("the entries are put right", |state| state.tables == right).await;
    eventually("three are told", || async { repairs(&one, "map entry").0 == 3 }).await;
    assert_eq!(repairs(&one, "map entry").1, "map NETWORKS: 1 entry: 256 changed");

    one.paper.state().tables.underlay.clear();
    one.eventually("the path is put right", |state| state.tables == right).await;
    eventually("the path is told", || async { repairs(&one, "map entry").0 == 4 }).await;
    assert_eq!(repairs(&one, "map entry").1, "map UNDERLAY: 1 entry: 192.0.2.2 removed");

    one.paper.state().found.note("VTEP_IDS", || "192.0.2.2 removed".to_owned());
    eventually("the number is told", || async { repairs(&one, "map entry").0 == 5 }).await;
    assert_eq!(repairs(&one, "map entry").1, "map VTEP_IDS: 1 entry: 192.0.2.2 removed");
    let status = one.agent.status().await.unwrap();
    let row = status.repairs.iter().find(|row| row.kind == "map entry").unwrap();
    assert_eq!(row.count, 5);
}

/// A host that nobody touches has no repairs, however much it changes itself while the maps are
/// read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_agent_writes_is_no_repair() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    for round in 0..5 {
        one.paper.reads.close(true);
        one.eventually("the maps are read", |_| one.paper.reads.waiting() > 0).await;
        // The read that is under way has older contents than all this.
        let (here, there) = (format!("here{round}"), format!("there{round}"));
        one.run(&here, "blue").await.unwrap();
        two.run(&there, "blue").await.unwrap();
        if round > 0 {
            one.agent.container_remove(&name(&format!("here{}", round - 1)), false).await.unwrap();
            two.agent.container_remove(&name(&format!("there{}", round - 1)), false).await.unwrap();
        }
        let passed = one.paper.reads.passed();
        one.paper.reads.close(false);
        one.eventually("the maps are read twice more", |_| one.paper.reads.passed() > passed + 1)
            .await;
    }
    assert!(one.shared.shown.repairs.all().is_empty(), "{:?}", one.shared.shown.repairs.all());
}

/// The kernel may lose the event of a change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_whose_event_was_lost_is_told_as_well() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let change = || {
        let mut state = one.paper.state();
        let ifindex = *state.veths.values().next().unwrap();
        state.changed.insert(ifindex, "cv01 was down".to_owned());
    };
    change();
    one.paper.tell(HostEvent::Lost);
    eventually("it is told", || async { repairs(&one, "container device").0 == 1 }).await;
    assert_eq!(repairs(&one, "container device").1, "cv01 was down");
    // Without any event the next full comparison finds it.
    change();
    eventually("it is told", || async { repairs(&one, "container device").0 == 2 }).await;
}

/// A pin can be there and lead to another object: the full comparison opens the pins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_of_another_object_is_told() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.paper.state().exchanged.note("maps/FDB", "led to another object");
    eventually("it is told", || async { repairs(&one, "pin").0 == 1 }).await;
    assert_eq!(repairs(&one, "pin").1, "maps/FDB led to another object");
}

/// A device that another program moves to another network namespace lives on there: the agent takes
/// its program off it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_device_that_is_gone_has_no_program() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    one.eventually("there is a gateway device", |state| state.gateways.contains_key(&VNI)).await;
    let gone = one.paper.state().gateways.remove(&VNI).unwrap();
    one.paper.tell(HostEvent::LinkGone(gone));
    one.eventually("there is another one", |state| {
        state.gateways.get(&VNI).is_some_and(|ifindex| *ifindex != gone)
    })
    .await;
    one.eventually("the program is detached", |state| state.left.contains(&gone)).await;
}

/// A look at the programs of thousands of containers takes milliseconds, and the kernel may make it
/// wait. Other tasks run meanwhile, also on a machine with one processor.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_tasks_run_while_programs_are_looked_at() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.paper.repairing.close(true);
    one.eventually("the look waits", |_| one.paper.repairing.waiting() > 0).await;
    let began = Instant::now();
    tokio::spawn(async {}).await.unwrap();
    assert!(began.elapsed() < DEADLINE, "the only worker of the runtime waits");
    one.paper.repairing.close(false);
}

/// A repair that fails is no repair, however often it is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_counted_when_it_has_been_put_right() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let (id, ifindex) = {
        let mut state = one.paper.state();
        state.refuse_plug = Some(PlugError::Refused(ErrorKind::Internal, "refused".to_owned()));
        let (id, ifindex) = state.veths.first_key_value().unwrap();
        let (id, ifindex) = (id.clone(), *ifindex);
        state.changed.insert(ifindex, "cv01 was down".to_owned());
        (id, ifindex)
    };
    one.paper.tell(HostEvent::Device(ifindex));
    let problem = format!("endpoint/{id}");
    eventually("it has been tried twice", || async { one.shared.shown.problems.has(&problem) })
        .await;
    assert_eq!(repairs(&one, "container device").0, 0);
    one.paper.state().refuse_plug = None;
    eventually("it is told", || async { repairs(&one, "container device").0 == 1 }).await;
    assert_eq!(repairs(&one, "container device").1, "cv01 was down");
}

/// Open vSwitch does not let a port go. The container works without the bridge of the agent, and
/// `status` names the problem as long as it lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_cannot_be_left_is_a_problem_and_no_repair() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let ifindex = {
        let mut state = one.paper.state();
        let ifindex = *state.veths.values().next().unwrap();
        state.changed.insert(ifindex, "cv01 was a port of ovs-system".to_owned());
        state.stuck.insert(ifindex, "cv01 stays a port of ovs-system".to_owned());
        ifindex
    };
    one.paper.tell(HostEvent::Device(ifindex));
    let line = "container 'web' in network 'blue': cv01 stays a port of ovs-system".to_owned();
    let is_told = || async { one.shared.shown.problems.lines().contains(&line) };
    eventually("the problem", is_told).await;
    assert_eq!(repairs(&one, "container device").0, 0);
    // The problems of published ports are others.
    one.shared.hold_ports(&BTreeMap::new(), true);
    assert!(is_told().await);
    one.paper.state().stuck.clear();
    eventually("no problem", || async { !is_told().await }).await;
    assert_eq!(repairs(&one, "container device").0, 0);
}

/// The next agent reports what others have changed while no agent ran.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_changed_while_no_agent_ran_is_told() {
    let world = World::new().await;
    let paper = Paper::new();
    let one = world.start(1, &paper).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    one.stop().await;
    {
        let mut state = paper.state();
        let ifindex = *state.veths.values().next().unwrap();
        state.changed.insert(ifindex, "cv01 was a port of br9".to_owned());
        state.plugs_put_right = true;
    }
    let one = world.start(1, &paper).await.ready().await;
    eventually("it is told", || async { repairs(&one, "container device").0 == 1 }).await;
    assert_eq!(repairs(&one, "container device").1, "cv01 was a port of br9");
}

/// An entry that cannot be put back is not repaired yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_is_told_when_it_is_back() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    let db = knows_db(&one, &two).await;
    {
        let mut state = one.paper.state();
        state.full = true;
        state.tables.fdb.remove(&db);
    }
    let is_refused = || async { one.shared.shown.problems.has("maps/blue") };
    eventually("the write is refused", is_refused).await;
    assert_eq!(repairs(&one, "map entry").0, 0);
    one.paper.state().full = false;
    eventually("it is told", || async { repairs(&one, "map entry").0 == 1 }).await;
    assert_eq!(
        repairs(&one, "map entry").1,
        format!("map FDB: 1 entry: {VNI} 02:42:0a:00:01:03 removed")
    );
    assert!(one.paper.state().tables.fdb.contains_key(&db));
}

/// Events are lost in bursts. Each loss would cost a look at every device of the host; together
/// they cost one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_lost_events_is_one_look_at_everything() {
    const LOST: usize = 2000;
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    for number in 0..5 {
        one.run(&format!("web{number}"), "blue").await.unwrap();
    }
    let (taken, looks) = (one.paper.taken(), one.paper.state().looks);
    for _ in 0..LOST {
        one.paper.tell(HostEvent::Lost);
    }
    one.eventually("all are taken", |_| one.paper.taken() == taken + LOST).await;
    // At most two looks in each 20 ms, and two at each full comparison, for 10 s.
    let looks = one.paper.state().looks - looks;
    assert!(looks < LOST, "{looks}");
}

/// A kernel that does not answer leaves the question open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_cannot_be_looked_at_is_looked_at_again() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let ifindex = {
        let mut state = one.paper.state();
        let ifindex = *state.veths.values().next().unwrap();
        state.refuse_looks = Some(PlugError::Refused(ErrorKind::Internal, "no answer".to_owned()));
        ifindex
    };
    one.paper.tell(HostEvent::Device(ifindex));
    eventually("the problem", || async { one.shared.shown.problems.has("devices") }).await;
    {
        let mut state = one.paper.state();
        state.refuse_looks = None;
        state.changed.insert(ifindex, "cv01 was down".to_owned());
    }
    eventually("it is told", || async { repairs(&one, "container device").0 == 1 }).await;
    eventually("no problem", || async { !one.shared.shown.problems.has("devices") }).await;
}

/// A change in a sandbox is put right at once and told. The agent's own changes cost one more look,
/// which changes nothing and so is the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_in_a_sandbox_is_put_right_at_once() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    one.run("db", "blue").await.unwrap();
    // No full comparison plugs an endpoint from here on.
    one.paper.reads.close(true);
    one.eventually("the full comparison waits", |_| one.paper.reads.waiting() > 0).await;
    let (plugs, id) = {
        let mut state = one.paper.state();
        let web = state.wanted.values().find(|endpoint| endpoint.container == name("web"));
        let id = web.unwrap().id.clone();
        state.inside.insert(id.clone(), "eth0 was down".to_owned());
        (one.paper.plugging.passed(), id)
    };
    assert_eq!(repairs(&one, "container interface").0, 0);
    one.paper.tell(HostEvent::Sandbox([id.clone()].into()));
    eventually("it is told", || async { repairs(&one, "container interface").0 == 1 }).await;
    assert_eq!(repairs(&one, "container interface").1, "container 'web': eth0 was down");
    one.eventually("one more look", |_| one.paper.plugging.passed() == plugs + 2).await;
    // A look that finds nothing is no repair, and nobody looks again.
    one.paper.tell(HostEvent::Sandbox([id.clone()].into()));
    one.eventually("a look in vain", |_| one.paper.plugging.passed() == plugs + 3).await;
    assert_eq!(repairs(&one, "container interface").0, 1);
    // An endpoint that is gone is not looked at. A look at the other one shows that nothing waits.
    one.agent.container_remove(&name("web"), true).await.unwrap();
    one.paper.tell(HostEvent::Sandbox([id].into()));
    let all = one.paper.state().wanted.keys().cloned().collect();
    one.paper.tell(HostEvent::Sandbox(all));
    one.eventually("a look at db only", |_| one.paper.plugging.passed() == plugs + 4).await;
    one.paper.reads.close(false);
}
