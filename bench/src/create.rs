//! Time from the creation of an endpoint to its first packet.

use std::{
    net::UdpSocket,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{results::Create, stats::percentile};
use anyhow::{Context as _, bail, ensure};
use culvert::netns::run_in;
use culvert_testbed::{
    cluster::{Cluster, unique_name},
    netns::Netns,
};

/// UDP port at which the endpoint under test listens.
const PORT: u16 = 9000;
/// Address and MAC of the endpoint under test.
const IP: &str = "10.0.0.200";
const MAC: &str = "02:42:0a:00:00:c8";
/// Interval of the other host's datagrams: the resolution of the figure.
const EVERY: Duration = Duration::from_millis(1);
/// Timeout for the first packet, after which the run fails.
const LIMIT: Duration = Duration::from_secs(10);

/// The figures of one endpoint.
struct Sample {
    /// From the request to the first packet.
    requested: Duration,
    /// From the agent's answer to the first packet; zero if it came before.
    answered: Duration,
}

/// Measures `rounds` endpoints and prints the result.
pub(crate) fn run(rounds: u32, json: bool) -> anyhow::Result<()> {
    print(&samples(rounds)?, json);
    Ok(())
}

/// Measures `rounds` endpoints.
pub(crate) fn figures(rounds: u32) -> anyhow::Result<Create> {
    let mut taken: Vec<_> = samples(rounds)?.iter().map(|sample| sample.requested).collect();
    taken.sort_unstable();
    let ms = |share| percentile(&taken, share).as_secs_f64() * 1e3;
    Ok(Create { endpoints: taken.len(), p50_ms: ms(0.5), p99_ms: ms(0.99) })
}

fn samples(rounds: u32) -> anyhow::Result<Vec<Sample>> {
    ensure!(rounds > 0, "--rounds 0 measures nothing: 1 or more is valid");
    ensure!(nix::unistd::geteuid().is_root(), "needs root to make network namespaces");
    let cluster = Cluster::new(2);
    let [one, two] = &cluster.hosts[..] else { bail!("cluster: not two hosts") };
    // Without a limit on BUM: the probed address is unknown at first.
    one.overlay("bench", "10.0.0.0/24", &["--opt", "bum_rate=0"]);
    cluster.wait_network("bench");
    let prober = unique_name("prober");
    one.run_idle(&prober, "bench", &["--ip", "10.0.0.2"]);
    // The container's own ARP would retry only once a second.
    one.in_container(
        &prober,
        &format!("ip neigh replace {IP} lladdr {MAC} dev eth0 nud permanent"),
    );

    let stop = Arc::new(AtomicBool::new(false));
    let probing = probe(&format!("/run/netns/{prober}"), Arc::clone(&stop))?;
    let mut samples = Vec::new();
    for _ in 0..rounds {
        samples.push(measure(two)?);
    }
    stop.store(true, Ordering::Relaxed);
    let _ = probing.join();
    Ok(samples)
}

/// Sends a datagram to the endpoint under test every [`EVERY`], from a namespace.
fn probe(netns: &str, stop: Arc<AtomicBool>) -> anyhow::Result<thread::JoinHandle<()>> {
    let socket = socket_in(netns, 0)?;
    Ok(thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            // The error is ignored: the endpoint does not exist for most of the time.
            let _ = socket.send_to(b"probe", (IP, PORT));
            thread::sleep(EVERY);
        }
    }))
}

/// Makes an endpoint, waits for the first packet, and removes it.
fn measure(host: &culvert_testbed::cluster::Host) -> anyhow::Result<Sample> {
    let netns = Netns::new("bench");
    let name = unique_name("bench");
    let path = netns.path().display().to_string();
    let socket = socket_in(&path, PORT)?;
    socket.set_read_timeout(Some(LIMIT))?;
    let arrival = thread::spawn(move || {
        let mut buffer = [0; 16];
        socket.recv_from(&mut buffer).map(|_| Instant::now())
    });
    let requested = Instant::now();
    host.ok(&["attach", "--netns", &path, "--name", &name, "--network", "bench", "--ip", IP]);
    let answered = Instant::now();
    let Ok(arrived) = arrival.join() else { anyhow::bail!("receiver: ended early") };
    let arrived = arrived.with_context(|| format!("no packet within {LIMIT:?}"))?;
    host.ok(&["detach", &name]);
    Ok(Sample {
        requested: arrived.duration_since(requested),
        answered: arrived.saturating_duration_since(answered),
    })
}

/// A UDP socket that lives in a namespace.
fn socket_in(netns: &str, port: u16) -> anyhow::Result<UdpSocket> {
    let file = std::fs::File::open(netns).with_context(|| netns.to_owned())?;
    Ok(run_in(file.as_fd(), || UdpSocket::bind(("0.0.0.0", port)))??)
}

fn print(samples: &[Sample], json: bool) {
    let sorted = |of: fn(&Sample) -> Duration| {
        let mut values: Vec<Duration> = samples.iter().map(of).collect();
        values.sort_unstable();
        values
    };
    let rows = [
        ("request_to_first_packet", sorted(|sample| sample.requested)),
        ("answer_to_first_packet", sorted(|sample| sample.answered)),
    ];
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, values)| {
                serde_json::json!({
                    "what": name,
                    "rounds": values.len(),
                    "p50_ms": percentile(values, 0.5).as_secs_f64() * 1e3,
                    "p99_ms": percentile(values, 0.99).as_secs_f64() * 1e3,
                })
            })
            .collect();
        println!("{}", serde_json::Value::from(rows));
        return;
    }
    println!("{:<26} {:>8} {:>10} {:>10}", "create -> reachable", "rounds", "p50 ms", "p99 ms");
    for (name, values) in rows {
        let ms = |share| percentile(&values, share).as_secs_f64() * 1e3;
        println!("{name:<26} {:>8} {:>10.1} {:>10.1}", values.len(), ms(0.5), ms(0.99));
    }
}
