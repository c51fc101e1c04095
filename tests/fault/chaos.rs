//! Faults in random order while traffic flows: agents that are killed and upgraded, a store that fails,
//! and addresses that several hosts take and give back at once.
//!
//! The order is that of the seed, which a failed test prints: `CULVERT_TEST_SEED` repeats it. With
//! `CULVERT_TEST_FULL` (`cargo xtask test --full chaos`) each test has many more rounds.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use culvert::{
    model::{
        Driver, LAYOUT, Name, ROOT, SandboxRef, View,
        ops::{self, EndpointSpec, ExecuteError, NetworkSpec},
    },
    store::{EtcdOptions, EtcdStore, StateStore},
};
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    etcd::EtcdServer,
    netns::{on_this_machine, wait_until},
    sock::{self, Behaviour, Server, container},
};
use futures::StreamExt as _;
use nix::sys::signal::Signal;

/// Rounds of a test: few, or with `CULVERT_TEST_FULL` many.
fn rounds(few: u32, many: u32) -> u32 {
    if std::env::var_os("CULVERT_TEST_FULL").is_some() { many } else { few }
}

/// Random numbers: SplitMix64, which any seed serves.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("CULVERT_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()) << 32
        });
        eprintln!("CULVERT_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Sleeps for less than `most` ms.
    fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most)));
    }
}

/// How long an answer may take. It is lost after that.
const PATIENCE: Duration = Duration::from_secs(5);
/// Port of the servers.
const PORT: u16 = 7000;

/// One TCP connection and one UDP flow between two containers, in use all the time.
struct Traffic {
    stop: Arc<AtomicBool>,
    clients: [JoinHandle<Result<u64, String>>; 2],
    _servers: [Server; 2],
}

impl Traffic {
    /// Between the namespaces `from` and `to`; the latter has the address `ip`.
    fn start(from: &Path, to: &Path, ip: Ipv4Addr) -> Self {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let servers = [Server::tcp(to, any, Behaviour::Echo), Server::udp(to, any)];
        let at = SocketAddrV4::new(ip, PORT);
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = sock::within(from, || sock::open(at, 0)).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(on_this_machine(PATIENCE))).unwrap();
        let udp = sock::within(from, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        udp.connect(at).unwrap();
        udp.set_read_timeout(Some(on_this_machine(PATIENCE))).unwrap();
        let clients = [
            Self::client(&stop, "TCP", move |sent, received| {
                (&tcp).write_all(sent)?;
                (&tcp).read_exact(received)
            }),
            Self::client(&stop, "UDP", move |sent, received| {
                udp.send(sent)?;
                udp.recv(received).map(drop)
            }),
        ];
        Self { stop, clients, _servers: servers }
    }

    /// Sends numbers, one after the other, and reads them back until it is stopped. Returns how many,
    /// or what became of the first that did not come back.
    fn client(
        stop: &Arc<AtomicBool>,
        what: &'static str,
        mut exchange: impl FnMut(&[u8], &mut [u8]) -> std::io::Result<()> + Send + 'static,
    ) -> JoinHandle<Result<u64, String>> {
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let (sent, mut received) = (number.to_be_bytes(), [0; 8]);
                exchange(&sent, &mut received).map_err(|why| format!("{what} {number}: {why}"))?;
                if sent != received {
                    return Err(format!("{what} {number}: {received:?} came back"));
                }
                number += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(number)
        })
    }

    /// Stops it, and checks that nothing was lost and that it has flowed.
    #[track_caller]
    fn nothing_was_lost(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let passed = client.join().unwrap();
            assert!(passed.as_ref().is_ok_and(|passed| *passed > 10), "{passed:?}");
        }
    }
}

/// Two hosts with a container each, between which traffic flows.
struct World {
    cluster: Cluster,
    names: [String; 2],
    traffic: Traffic,
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::new(2);
        cluster.hosts[0].ok(&[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.0.0.0/24",
            "net",
        ]);
        cluster.wait_network("net");
        let names = [unique_name("chaos"), unique_name("chaos")];
        cluster.hosts[0].run_idle(&names[0], "net", &["--ip", "10.0.0.2"]);
        cluster.hosts[1].run_idle(&names[1], "net", &["--ip", "10.0.0.3"]);
        cluster.hosts[0].wait_ping(&names[0], "10.0.0.3");
        let [from, to] = [&names[0], &names[1]].map(|name| container(name));
        let traffic = Traffic::start(&from, &to, Ipv4Addr::new(10, 0, 0, 3));
        Self { cluster, names, traffic }
    }

    /// Checks that nothing was lost, that a new container is reached, and that nothing is left of
    /// all once it is removed.
    fn ends_well(self) {
        let Self { cluster, names, traffic } = self;
        let well = || cluster.hosts.iter().all(Host::healthy);
        wait_until(Duration::from_secs(60), "the agents to recover", well);
        let late = unique_name("late");
        cluster.hosts[1].run_idle(&late, "net", &["--ip", "10.0.0.9"]);
        cluster.hosts[0].wait_ping(&names[0], "10.0.0.9");
        traffic.nothing_was_lost();
        cluster.hosts[0].ok(&["rm", "-f", &names[0]]);
        cluster.hosts[1].ok(&["rm", "-f", &names[1], &late]);
        cluster.hosts[0].ok(&["network", "rm", "net"]);
        for host in &cluster.hosts {
            wait_until(SOON, "nothing to be left", || {
                let counts = &host.json(&["status"])["counts"];
                ["endpoints", "fdb", "neighbours"].iter().all(|key| counts[key] == 0)
            });
        }
    }
}

/// Agents are killed at any moment, most of them before they are ready.
#[test]
#[ignore = "needs root"]
fn agents_are_killed() {
    let (mut random, mut world) = (Random::new(), World::new());
    for round in 0..rounds(20, 1000) {
        let host = &mut world.cluster.hosts[random.below(2) as usize];
        host.stop_agent(Signal::SIGKILL);
        random.pause(50);
        host.start_agent(&[]);
        if round % 10 == 9 {
            host.wait_ready();
        }
        random.pause(400);
    }
    world.ends_well();
}

/// Agents are replaced by others, whose programs have other constants.
#[test]
#[ignore = "needs root"]
fn agents_are_upgraded() {
    let (mut random, mut world) = (Random::new(), World::new());
    for round in 0..rounds(4, 200) {
        let host = &mut world.cluster.hosts[random.below(2) as usize];
        host.wait_ready();
        host.stop_agent(Signal::SIGTERM);
        host.start_agent(&["--ageing", &(300 + round).to_string()]);
        host.wait_ready();
    }
    world.ends_well();
}

/// The store hangs, is killed and started again, while containers come and go.
#[test]
#[ignore = "needs root"]
fn the_store_fails() {
    let (mut random, mut world) = (Random::new(), World::new());
    for round in 0..rounds(8, 500) {
        let etcd = &mut world.cluster.etcd;
        if random.below(2) == 0 {
            etcd.freeze().unwrap();
            random.pause(1000);
            etcd.thaw().unwrap();
        } else {
            etcd.stop();
            random.pause(300);
            etcd.resume().unwrap();
        }
        if round % 4 == 3 {
            let hosts = &world.cluster.hosts;
            wait_until(Duration::from_secs(60), "the agents to recover", || {
                hosts.iter().all(Host::healthy)
            });
            let name = unique_name("passing");
            hosts[0].run_idle(&name, "net", &[]);
            hosts[0].ok(&["rm", "-f", &name]);
        }
    }
    world.ends_well();
}

/// Number of hosts that take and give back addresses.
const HOSTS: u64 = 4;
/// Containers of a host. All together want more addresses than the network has.
const CONTAINERS: u64 = 12;

/// A store of its own connection.
async fn store(server: &EtcdServer) -> EtcdStore {
    let options = EtcdOptions {
        endpoints: vec![server.endpoint()],
        ca: None,
        cert: None,
        key: None,
        user: None,
        password: None,
        insecure: false,
        timeout: EtcdOptions::TIMEOUT,
        layout: Some(LAYOUT),
    };
    EtcdStore::connect(&options).await.unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Adds and removes endpoints of one host, in random order. Returns how many are left.
async fn churn(store: &EtcdStore, host: u64, mut random: Random, operations: u32) -> usize {
    let mut held: BTreeMap<u64, String> = BTreeMap::new();
    for _ in 0..operations {
        let number = random.below(CONTAINERS);
        let network = name("net");
        let outcome = if let Some(id) = held.get(&number).cloned() {
            let plan = |view: &View| Ok(((), ops::remove_endpoint(view, &network, &id)?));
            ops::execute(store, None, plan).await.map(|_| drop(held.remove(&number)))
        } else {
            let last = u8::try_from(2 + random.below(29)).unwrap();
            let spec = EndpointSpec {
                network,
                container: name(&format!("c{host}-{number}")),
                node: name(&format!("n{host}")),
                ip: (random.below(4) == 0).then(|| Ipv4Addr::new(10, 0, 0, last).into()),
                mac: None,
                ifname: "eth0".to_owned(),
                sandbox: SandboxRef { netns: "/run/netns/x".into(), owned: true, id: None },
                ports: Vec::new(),
            };
            let plan = |view: &View| ops::create_endpoint(view, &spec);
            let made = ops::execute(store, None, plan).await;
            made.map(|(endpoint, _)| drop(held.insert(number, endpoint.id)))
        };
        // Refused: no address is free, or the one that was asked for is taken.
        if !matches!(&outcome, Err(ExecuteError::Refused(_) | ExecuteError::Contended)) {
            outcome.unwrap();
        }
    }
    held.len()
}

/// Checks that each endpoint owns its address, and that each address with an owner is an endpoint's.
fn check_addresses(view: &View) {
    let network = name("net");
    let mut owned = 0;
    for endpoint in view.endpoints_in(&network) {
        let ip = endpoint.ipv4.unwrap().into();
        let owner = view.ip_claim(&network, ip).and_then(|claim| claim.owner);
        let owner = owner.map(|owner| owner.endpoint);
        assert_eq!(owner.as_deref(), Some(endpoint.id.as_str()), "{ip} at {}", view.revision);
        owned += 1;
    }
    let claimed = (1..=30).filter(|last| {
        let claim = view.ip_claim(&network, Ipv4Addr::new(10, 0, 0, *last).into());
        claim.is_some()
    });
    assert_eq!(claimed.count(), owned, "addresses without an endpoint at {}", view.revision);
}

/// Several hosts take and give back the addresses of one network at once. At every revision of the store
/// each address has one owner; in the end none is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_have_one_owner() {
    let server = EtcdServer::start().unwrap();
    let first = store(&server).await;
    let spec = NetworkSpec {
        name: name("net"),
        driver: Driver::Overlay,
        subnets: vec!["10.0.0.0/27".parse().unwrap()],
        gateway: None,
        vni: None,
        mtu: None,
        max_mtu: 1450,
        internal: false,
        learning: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        routes: Vec::new(),
        pools: Vec::new(),
    };
    let plan = |view: &View| ops::create_network(view, &spec);
    ops::execute(&first, None, plan).await.unwrap();
    let mut random = Random::new();
    let operations = rounds(150, 25_000);
    let mut workers = Vec::new();
    for host in 0..HOSTS {
        let (store, seed) = (store(&server).await, Random(random.below(u64::MAX)));
        workers.push(tokio::spawn(async move { churn(&store, host, seed, operations).await }));
    }
    let mut held = 0;
    for worker in workers {
        held += worker.await.unwrap();
    }
    // The whole history, revision by revision.
    let end = first.snapshot(ROOT).await.unwrap();
    let mut watch = first.watch(ROOT, 1).await.unwrap();
    let mut view = View::default();
    while view.revision < end.revision {
        let changes = watch.next().await.unwrap().unwrap();
        for change in &changes {
            view.revision = change.revision();
            view.apply(change);
        }
        check_addresses(&view);
    }
    assert_eq!(view.endpoints.count(), held);
    assert_eq!(View::from_snapshot(&end).endpoints.count(), held);
}
