//! Records that another client of the store has written.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    collections::BTreeMap,
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use culvert::model::{
    Driver, Endpoint, IpOwner, Key, MacAddr, Name, Network, Node, Protocol, PublishedPort, SCHEMA,
    SandboxRef, VniOwner, encode, validate,
};
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, wait_until},
    sock::{self, container},
};
use etcd_client::{Client, GetOptions};

use crate::{
    host_routes::device_to,
    ports::{echo, exchange},
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Uses a client of the store, in the namespace of the store.
fn ask<T: Send>(cluster: &Cluster, question: impl AsyncFnOnce(Client) -> T + Send) -> T {
    let endpoint = cluster.etcd.endpoint();
    sock::within(cluster.switch.path(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::connect([endpoint], None).await.unwrap();
            question(client).await
        })
    })
}

/// Writes keys into the store.
fn put(cluster: &Cluster, records: &[(String, Vec<u8>)]) {
    ask(cluster, async |mut client| {
        for (key, value) in records {
            client.put(key.as_str(), value.clone(), None).await.unwrap();
        }
    });
}

/// Deletes a key of the store.
fn delete(cluster: &Cluster, key: &str) {
    ask(cluster, async |mut client| drop(client.delete(key, None).await.unwrap()));
}

/// The endpoints of a network in the store.
fn endpoints_of(cluster: &Cluster, network: &str) -> Vec<Endpoint> {
    let prefix = format!("/culvert/v1/endpoints/{network}/");
    ask(cluster, async |mut client| {
        let all = GetOptions::new().with_prefix();
        let found = client.get(prefix, Some(all)).await.unwrap();
        found.kvs().iter().map(|kv| serde_json::from_slice(kv.value()).unwrap()).collect()
    })
}

/// Writes an overlay network into the store, with the claim to its VNI. No host checks its subnet.
fn forge_network(cluster: &Cluster, title: &str, subnet: &str, vni: u32) {
    let network = Network {
        schema: SCHEMA,
        name: name(title),
        id: "0f".repeat(32),
        driver: Driver::Overlay,
        subnets: validate::with_gateways(&[subnet.parse().unwrap()], None).unwrap(),
        vni: vni.try_into().unwrap(),
        mtu: 1450,
        internal: false,
        learning: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    };
    let owner = VniOwner { schema: SCHEMA, network: network.name.clone() };
    let records = [
        (Key::vni(network.vni), encode(&owner).unwrap()),
        (Key::network(&network.name), encode(&network).unwrap()),
    ];
    put(cluster, &records);
    cluster.wait_network(title);
}

/// An endpoint of the first host in the network `net` (10.0.0.0/24, VNI 300), with the address
/// 10.0.0.`last`.
fn endpoint(cluster: &Cluster, container: &str, last: u8, netns: &Path, owned: bool) -> Endpoint {
    let ip = [10, 0, 0, last].into();
    Endpoint {
        schema: SCHEMA,
        id: format!("{last:064x}"),
        network: name("net"),
        vni: 300.try_into().unwrap(),
        container: name(container),
        node: name(&cluster.hosts[0].node),
        mac: MacAddr::from_ipv4(ip),
        ipv4: Some(ip),
        ipv6: None,
        additional: Vec::new(),
        ifname: "eth9".to_owned(),
        sandbox: SandboxRef { netns: netns.to_owned(), owned, id: None },
        ports: Vec::new(),
        from: Vec::new(),
    }
}

/// Writes an endpoint into the store, with its claims.
fn forge(cluster: &Cluster, endpoint: &Endpoint) {
    let owner = IpOwner { schema: SCHEMA, endpoint: endpoint.id.clone() };
    let claims =
        endpoint.addresses().map(|ip| (Key::ipam(&endpoint.network, ip), encode(&owner).unwrap()));
    let mut records: Vec<_> = claims.collect();
    records.push((Key::endpoint(&endpoint.network, &endpoint.id), encode(endpoint).unwrap()));
    put(cluster, &records);
}

/// A namespace that is mounted at a path, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(netns: &Path, at: PathBuf) -> Self {
        File::create(&at).unwrap();
        let status = Command::new("mount").arg("--bind").arg(netns).arg(&at).status();
        assert!(status.unwrap().success());
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn problems(host: &Host) -> String {
    host.json(&["status"])["problems"].to_string()
}

/// Interfaces, addresses, routes and rules of a namespace.
fn network_of(netns: &Netns) -> String {
    netns.run("ip -o link; ip -o addr; ip route; ip rule")
}

/// Whether the namespaces of process 1 cannot be read.
fn hides_first_process() -> bool {
    std::fs::read_link("/proc/1/ns/net").is_err()
}

/// Neither a request nor a record makes an interface in the host's own namespace, by whatever path,
/// or in a namespace that nobody on this host has attached.
#[test]
#[ignore = "needs root"]
fn the_hosts_own_and_other_programs_namespaces_get_no_interface() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &["--vni", "300"]);
    // A mount of the host's namespace elsewhere, and a link to one of its paths.
    let mounted = Mounted::new(host.netns.path(), host.dir().join("mounted"));
    let link = host.dir().join("link");
    std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
    let theirs = Netns::new("theirs");
    let (before, other) = (network_of(&host.netns), network_of(&theirs));

    let attach = unique_name("self");
    let pid = host.agent.as_ref().unwrap().pid().to_string();
    let (mounted_path, link_path) = (mounted.0.display().to_string(), link.display().to_string());
    let own = host.netns.path().display().to_string();
    for target in [
        ["--netns", "/proc/1/ns/net"],
        ["--netns", own.as_str()],
        ["--netns", mounted_path.as_str()],
        ["--netns", link_path.as_str()],
        ["--pid", "1"],
        ["--pid", pid.as_str()],
    ] {
        let command = [&["attach", "--name", &attach, "--network", "net"][..], &target].concat();
        let line = host.refused(1, &command);
        // A kernel may hide the namespaces of process 1 even from root.
        let is_hidden = line.contains("/proc/1/ns/net: permission denied") && hides_first_process();
        assert!(line.contains("is the host's own") || is_hidden, "{target:?}: {line}");
    }

    let fifo = host.dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let paths = [
        Path::new("/proc/1/ns/net"),
        Path::new("/proc/self/ns/net"),
        mounted.0.as_path(),
        link.as_path(),
        fifo.as_path(),
        theirs.path(),
    ];
    for (last, path) in (10..).zip(paths) {
        for (owned, last) in [(false, last), (true, last + 100)] {
            forge(&cluster, &endpoint(&cluster, &format!("x{last}"), last, path, owned));
        }
    }
    // One by the name of another program's namespace.
    forge(&cluster, &endpoint(&cluster, theirs.name(), 30, theirs.path(), true));
    wait_until(SOON, "every record to be told", || {
        let told = problems(host);
        let containers = (10..16).chain(110..116).map(|last| format!("'x{last}'"));
        containers.chain([format!("'{}'", theirs.name())]).all(|one| told.contains(&one))
    });
    assert_eq!(network_of(&theirs), other);
    let now = network_of(&host.netns);
    assert!(!now.contains("eth9") && !now.contains("10.0.0."), "{before}\n---\n{now}");

    // The advice of the problem works, and the other program's namespace stays.
    host.ok(&["rm", theirs.name()]);
    assert!(theirs.succeeds("true") && theirs.path().exists());
    // A container of this host works as before.
    let (first, second) = (unique_name("ok"), unique_name("ok"));
    host.run_idle(&first, "net", &[]);
    host.run_idle(&second, "net", &[]);
    host.wait_ping(&first, &host.ip(&second, "net"));
}

/// A record of a network whose subnet has an address of the store or the VTEP address of another
/// host: the host adds no route to it, and says so. Its containers start, also after a reboot. When
/// the conflict is gone, the host adds the route.
#[test]
#[ignore = "needs root"]
fn a_network_that_covers_the_store_or_another_host_gets_no_route() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    // A second member of the store, which does not answer.
    host.store = format!("{},10.9.0.50:2379", host.store);
    host.start_agent(&[]);
    host.wait_ready();
    let host = &cluster.hosts[0];
    let container = unique_name("covers");
    // The container starts, and the host gets no route to its network.
    let is_apart = |network: &str, ip: &str, words: &str| {
        let told = format!("network '{network}': {words}: the host and the containers");
        wait_until(SOON, "the problem", || problems(host).contains(&told));
        assert!(!device_to(host, ip).starts_with("cvg"), "{network}");
    };
    forge_network(&cluster, "near", "10.9.0.0/24", 300);
    host.run_idle(&container, "near", &[]);
    let words = "subnet 10.9.0.0/24 has 10.9.0.50, an address of the store";
    is_apart("near", "10.9.0.50", words);
    host.ok(&["rm", "-f", &container]);
    wait_until(SOON, "no problem", || !problems(host).contains(words));

    // The record of the other host is later than that of the network.
    forge_network(&cluster, "far", "10.10.0.0/24", 301);
    let peer = Node::new(name("peer"), "9".repeat(64), [10, 10, 0, 77].into(), 4789);
    let key = Key::node(&peer.name);
    let nodes = |number: usize| {
        wait_until(SOON, "the nodes", || {
            host.json(&["node", "ls"]).as_array().is_some_and(|nodes| nodes.len() == number)
        });
    };
    let come = || {
        put(&cluster, &[(key.clone(), encode(&peer).unwrap())]);
        nodes(2);
    };
    let go = || {
        delete(&cluster, &key);
        nodes(1);
    };
    come();
    let words = "subnet 10.10.0.0/24 has 10.10.0.77, the VTEP address of node 'peer'";
    host.run_idle(&container, "far", &["--ip", "10.10.0.9"]);
    is_apart("far", "10.10.0.77", words);
    go();
    let reaches = || host.netns.succeeds("ping -c1 -W1 10.10.0.9");
    wait_until(SOON, "the container", reaches);

    // All devices are lost, as by a new start of the host.
    come();
    host.netns.run(
        "ip link del cvg301; \
         for dev in $(ip -o link | grep -o 'cv[0-9a-f]\\{12\\}' | sort -u); do ip link del $dev; done",
    );
    let pair = "ip -o link | grep -q 'cv[0-9a-f]\\{12\\}'";
    wait_until(SOON, "the container's interface", || host.netns.succeeds(pair));
    is_apart("far", "10.10.0.77", words);
    go();
    wait_until(SOON, "the container again", reaches);
    wait_until(SOON, "no problem", || !problems(host).contains(words));
    host.ok(&["rm", "-f", &container]);
}

/// A record of a container with the port of a process of the host, which listens: the process gets
/// its clients as before, and the host says so. A port that is free is the container's.
#[test]
#[ignore = "needs root"]
fn the_port_of_a_listener_is_not_taken_by_a_record() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let web = unique_name("web");
    host.run_idle(&web, "net", &["-p", "8080:80"]);
    let listener = echo(host.netns.path(), "tcp", 2222);
    let server = echo(&container(&web), "tcp", 80);
    let mut record = endpoints_of(&cluster, "net").remove(0);
    record.ports.extend([2222, 8081].map(|host_port| PublishedPort {
        host_ip: Ipv4Addr::UNSPECIFIED,
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
        count: 1,
    }));
    put(&cluster, &[(Key::endpoint(&record.network, &record.id), encode(&record).unwrap())]);
    let client = cluster.plain_host(50);
    let comes_through = |port: u16| exchange(&client, "tcp", host.vtep(), port, 10) == "ok 10";
    wait_until(SOON, "the free port", || comes_through(8081));
    assert_eq!(server.take_clients(), ["192.0.2.51"]);
    wait_until(SOON, "the problem", || problems(host).contains("port 2222/tcp is in use by"));
    assert!(comes_through(2222) && comes_through(8080));
    assert_eq!(listener.take_clients(), ["192.0.2.51"]);
    drop(listener);
    host.ok(&["rm", "-f", &web]);
}
