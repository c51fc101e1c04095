//! Faults in random order while traffic flows: agents that are killed and upgraded, and a store
//! that fails.

use std::{
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

use culvert_tests::{
    chaos::{Random, each, rounds},
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{on_this_machine, wait_until},
    sock::{self, Behaviour, Server, container},
};
use nix::sys::signal::Signal;

/// Timeout of an answer. The answer counts as lost after this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Port of the servers.
const PORT: u16 = 7000;

/// One TCP connection and one UDP flow between two containers. Both send all the time.
struct Traffic {
    stop: Arc<AtomicBool>,
    clients: [JoinHandle<Result<u64, String>>; 2],
    _servers: [Server; 2],
}

impl Traffic {
    /// Starts the traffic from the namespace `from` to the namespace `to`, whose address is `ip`.
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

    /// Sends numbers, one after the other, and reads each one back, until `stop` is set. Returns
    /// how many came back, or the error of the first one that did not.
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

    /// Stops the traffic. Checks that no number was lost, and that more than 10 came back.
    #[track_caller]
    fn nothing_was_lost(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let passed = client.join().unwrap();
            assert!(passed.as_ref().is_ok_and(|passed| *passed > 10), "{passed:?}");
        }
    }
}

/// Two hosts with a container each, and traffic between the containers.
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

    /// Checks that no traffic was lost, and that a new container is reached. Removes all containers
    /// and the network, and checks that no entry is left.
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
    let (mut random, mut world) = (Random::seeded(), World::new());
    for round in each("agents_are_killed", rounds(20, 1000)) {
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

/// Agents are replaced by others. The programs of the others have other constants.
#[test]
#[ignore = "needs root"]
fn agents_are_upgraded() {
    let (mut random, mut world) = (Random::seeded(), World::new());
    for round in each("agents_are_upgraded", rounds(4, 200)) {
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
    let (mut random, mut world) = (Random::seeded(), World::new());
    for round in each("the_store_fails", rounds(8, 500)) {
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
