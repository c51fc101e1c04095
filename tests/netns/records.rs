//! Records that another client of the store has written.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use culvert::model::{Endpoint, IpOwner, Key, MacAddr, Name, SCHEMA, SandboxRef, encode};
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, wait_until},
    sock,
};
use etcd_client::Client;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Writes keys into the store, in the namespace of the store.
fn put(cluster: &Cluster, records: &[(String, Vec<u8>)]) {
    sock::within(cluster.switch.path(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = Client::connect([cluster.etcd.endpoint()], None).await.unwrap();
            for (key, value) in records {
                client.put(key.as_str(), value.clone(), None).await.unwrap();
            }
        });
    });
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
