//! Names in containers: the host's name servers, `/etc/hosts`, host names.
//!
//! The hosts have files of their own in `/etc` and `/run`, in a mount namespace that the agent and
//! the command line share.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, symlink},
    },
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, Process, wait_until},
};

use crate::host_changes::repairs;

const STUB: &str = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n";
/// The file that systemd-resolved writes about its own servers.
const UPLINK: &str = "nameserver 192.0.2.254\nnameserver fe80::1%2\nsearch corp.example\n";

/// A host whose `/etc/resolv.conf` is systemd-resolved's, as on Ubuntu and Fedora.
struct Resolved {
    cluster: Cluster,
    files: tempfile::TempDir,
}

impl Resolved {
    /// `uplink` is the content of the file with systemd-resolved's own servers, if the file exists.
    fn new(uplink: Option<&str>) -> Self {
        let files = tempfile::tempdir().unwrap();
        let at = |path: &str| files.path().join(path);
        fs::create_dir_all(at("run/systemd/resolve")).unwrap();
        fs::create_dir_all(at("run/netns")).unwrap();
        fs::create_dir(at("etc")).unwrap();
        fs::write(at("run/systemd/resolve/stub-resolv.conf"), STUB).unwrap();
        if let Some(uplink) = uplink {
            fs::write(at("run/systemd/resolve/resolv.conf"), uplink).unwrap();
        }
        symlink("../run/systemd/resolve/stub-resolv.conf", at("etc/resolv.conf")).unwrap();
        fs::write(at("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(at("etc/hostname"), "box\n").unwrap();
        fs::write(at("etc/nsswitch.conf"), "hosts: files dns\n").unwrap();

        let mut cluster = Cluster::without_agents(1, 1500);
        let host = &mut cluster.hosts[0];
        let plain = host.agent_command(&["--allow-private-mounts"]);
        let mut agent = Command::new("unshare");
        let script =
            "mount --bind \"$1\" /etc && mount --bind \"$2\" /run && shift 2 && exec \"$@\"";
        agent.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        agent.args([at("etc"), at("run")]);
        // The host's namespace is a path in /run, so it is opened before another /run is mounted.
        let nsenter: Vec<_> = plain.get_args().take(2).collect();
        let culvert: Vec<_> = plain.get_args().skip(2).collect();
        agent.args(&culvert);
        let mut outer = Command::new(plain.get_program());
        outer.args(nsenter).arg(agent.get_program()).args(agent.get_args());
        host.agent = Some(Process::spawn(outer));
        host.wait_ready();
        Self { cluster, files }
    }

    fn host(&self) -> &Host {
        &self.cluster.hosts[0]
    }

    /// Runs a command line in the mount namespace of the host.
    fn culvert(&self, args: &[&str]) -> Output {
        let pid = self.host().agent.as_ref().unwrap().pid();
        let plain = self.host().culvert_command(args);
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{pid}/ns/mnt"));
        command.args(plain.get_args());
        command.env("CULVERT_SOCKET", self.host().socket());
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.culvert(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}{}", self.host().agent_log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a container that is then removed. Returns what it prints.
    fn run(&self, options: &[&str], command: &[&str]) -> String {
        let name = unique_name("names");
        self.ok(&[&["run", "--rm", "--name", &name], options, &["--"], command].concat())
    }

    /// Starts a container that only sleeps. Returns its name and the root of its file system.
    fn idle(&self, options: &[&str]) -> (String, PathBuf) {
        let name = unique_name("names");
        let head = ["run", "-d", "--name", &name];
        self.ok(&[&head, options, &["--", "sleep", "1000"]].concat());
        let rows = self.host().json(&["ps"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name.as_str());
        let root = format!("/proc/{}/root", row.unwrap()["pid"]);
        (name, root.into())
    }

    /// The finding of `doctor` about names: level, and detail with advice.
    fn doctor(&self) -> (String, String) {
        let output = self.culvert(&["doctor", "--format", "json"]);
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = rows.as_array().unwrap().iter().find(|row| row["check"] == "names").unwrap();
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        (text("level"), format!("{} {}", text("detail"), text("advice")))
    }
}

/// A name server on port 53 of an address, stopped when it is dropped.
struct NameServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    fn new(netns: &Netns, address: Ipv4Addr, names: &[(&str, Ipv4Addr)]) -> Self {
        let bind = || UdpSocket::bind((address, 53));
        let socket = culvert::netns::run_in(netns.fd().as_fd(), bind).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let names: BTreeMap<String, Ipv4Addr> =
            names.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(answer) = answer(&buffer[..length], &names) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer to a query (RFC 1035 §4.1): the address of a known name, else an answer without one.
fn answer(query: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let known = names.get(&labels.join("."));
    let address = known.filter(|_| is_a);
    let mut answer = query.get(..2)?.to_vec();
    answer.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }]);
    answer.extend([0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

const DB: (&str, Ipv4Addr) = ("db.corp.example", Ipv4Addr::new(203, 0, 113, 7));

/// If the host's only name server is on its loopback device, names resolve by the servers behind
/// it.
#[test]
#[ignore = "needs root"]
fn names_resolve_on_a_host_with_a_local_resolver() {
    let world = Resolved::new(Some(UPLINK));
    let _server = NameServer::new(&world.cluster.switch, Cluster::ETCD, &[DB]);
    // The containers use the host's search domain.
    let found = world.run(&[], &["getent", "ahostsv4", "db"]);
    assert!(found.contains("203.0.113.7"), "{found}");
    let conf = "nameserver 192.0.2.254\nsearch corp.example\n";
    assert_eq!(world.run(&[], &["cat", "/etc/resolv.conf"]), conf);
    let (level, detail) = world.doctor();
    assert_eq!(level, "ok", "{detail}");
    assert!(detail.contains("192.0.2.254 from /run/systemd/resolve/resolv.conf"), "{detail}");

    // A container in another container's namespace has that container's files. A container in the
    // host's namespace has the host's files.
    let (web, _) = world.idle(&["--hostname", "www"]);
    let shared = ["--network", &format!("container:{web}")];
    let script = "uname -n; cat /etc/resolv.conf";
    assert_eq!(world.run(&shared, &["sh", "-c", script]), format!("www\n{conf}"));
    let host = world.run(&["--network", "host"], &["sh", "-c", script]);
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(host, format!("{own}{STUB}"));
    world.ok(&["rm", "-f", &web]);
}

/// A host without a server for its containers reports this, and `--dns` gives one.
#[test]
#[ignore = "needs root"]
fn a_host_without_a_name_server_for_containers_says_so() {
    let world = Resolved::new(None);
    let _server = NameServer::new(&world.cluster.switch, Cluster::ETCD, &[DB]);
    let name = unique_name("names");
    let lookup = ["getent", "ahostsv4", "db.corp.example"];
    let output = world.culvert(&[&["run", "--rm", "--name", &name, "--"], &lookup[..]].concat());
    assert_eq!(output.status.code(), Some(2), "getent: not found: {output:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for word in [name.as_str(), "127.0.0.53", "--dns IP"] {
        assert!(errors.contains(word), "no {word:?} in: {errors}");
    }
    let (level, detail) = world.doctor();
    assert_eq!(level, "warning", "{detail}");
    assert!(detail.contains("127.0.0.53") && detail.contains("--dns IP"), "{detail}");

    let dns = ["--dns", "192.0.2.254", "--dns-search", "corp.example", "--dns-option", "ndots:2"];
    assert!(world.run(&dns, &["getent", "ahostsv4", "db"]).contains("203.0.113.7"));
    assert_eq!(
        world.run(&dns, &["cat", "/etc/resolv.conf"]),
        "nameserver 192.0.2.254\nsearch corp.example\noptions ndots:2\n"
    );
    let host = world.host();
    let line = host.refused(
        1,
        &["run", "--name", &name, "--network", "host", "--dns", "192.0.2.254", "--", "true"],
    );
    assert!(line.contains("--dns does not go with '--network host'"), "{line}");
    let line = host.refused(2, &["run", "--name", &name, "--add-host", "db", "--", "true"]);
    assert!(line.contains("--add-host") && line.contains("db:10.0.0.9"), "{line}");
    assert_eq!(host.json(&["ps"]), serde_json::json!([]));
}

/// The container has its host name, and `/etc/hosts` always has its present addresses.
#[test]
#[ignore = "needs root"]
fn a_container_knows_its_own_name_and_the_ones_it_is_told() {
    let world = Resolved::new(Some(UPLINK));
    world.ok(&["network", "create", "-d", "bridge", "--subnet", "10.7.0.0/24", "lan"]);
    let (web, root) = world.idle(&[
        "--hostname",
        "www.example.com",
        "--add-host",
        "db:10.0.0.9",
        "--add-host",
        "up:host-gateway",
    ]);
    let ip = world.host().ip(&web, "bridge");
    let hosts = || fs::read_to_string(root.join("etc/hosts")).unwrap();
    let own = |ip: &str| format!("{ip}\twww.example.com www {web}\n");
    assert!(hosts().starts_with("127.0.0.1\tlocalhost\n"), "{}", hosts());
    assert!(
        hosts().ends_with(&format!("10.0.0.9\tdb\n172.17.0.1\tup\n{}", own(&ip))),
        "{}",
        hosts()
    );
    let script = "uname -n; cat /etc/hostname; getent ahostsv4 $0 | head -1; getent hosts db up";
    let inside = world.ok(&["exec", &web, "--", "sh", "-c", script, &web]);
    assert!(inside.starts_with("www.example.com\nwww.example.com\n"), "{inside}");
    for address in [ip.as_str(), "10.0.0.9", "172.17.0.1"] {
        assert!(inside.contains(address), "no {address} in: {inside}");
    }
    // host-gateway is an address by which the container reaches the host.
    wait_until(SOON, "the host to answer", || {
        world.culvert(&["exec", &web, "--", "ping", "-c1", "-W1", "172.17.0.1"]).status.success()
    });

    world.ok(&["network", "connect", "lan", &web]);
    let second = world.host().ip(&web, "lan");
    assert!(hosts().ends_with(&format!("{}{}", own(&ip), own(&second))), "{}", hosts());
    world.ok(&["network", "disconnect", "bridge", &web]);
    assert!(hosts().ends_with(&format!("\tup\n{}", own(&second))), "{}", hosts());

    let default =
        world.run(&[], &["sh", "-c", "test $(uname -n) = $(cat /etc/hostname) && uname -n"]);
    assert!(default.starts_with("names-"), "{default}");
    let files = world.host().dir().join("state/etc");
    assert_eq!(fs::read_dir(&files).unwrap().count(), 1, "those of {web}");
    world.ok(&["rm", "-f", &web]);
    assert_eq!(fs::read_dir(&files).unwrap().count(), 0);
    assert_eq!(
        fs::read_to_string(world.files.path().join("etc/hosts")).unwrap(),
        "127.0.0.1 localhost\n"
    );
}

/// Time in which a container has the host's new name servers.
const FOLLOWS: Duration = Duration::from_secs(5);

/// A host gets another name server, as by DHCP or a VPN, and names resolve by it in a container
/// that runs. A file that the container has changed is kept, and told of. A file with `--dns`
/// stays.
#[test]
#[ignore = "needs root"]
fn name_servers_follow_the_host() {
    let world = Resolved::new(Some(UPLINK));
    let server = NameServer::new(&world.cluster.switch, Cluster::ETCD, &[DB]);
    let (web, root) = world.idle(&[]);
    let (edited, edited_root) = world.idle(&[]);
    let (given, given_root) = world.idle(&["--dns", "10.0.0.53"]);
    let seen =
        |root: &PathBuf| fs::read_to_string(root.join("etc/resolv.conf")).unwrap_or_default();
    let lookup = ["exec", &web, "--", "getent", "ahostsv4", "db"];
    wait_until(SOON, "the name to resolve", || world.culvert(&lookup).status.success());
    let mine = "nameserver 10.9.9.9\n";
    let script = "echo nameserver 10.9.9.9 > /etc/resolv.conf";
    world.ok(&["exec", &edited, "--", "sh", "-c", script]);
    assert_eq!(seen(&edited_root), mine);
    let file = world.host().dir().join("state/etc").join(&web).join("resolv.conf");
    let inode = fs::metadata(&file).unwrap().ino();

    drop(server);
    let other = Ipv4Addr::new(192, 0, 2, 253);
    world.cluster.switch.run(&format!("ip addr add {other}/24 dev br0"));
    let _server = NameServer::new(&world.cluster.switch, other, &[DB]);
    let conf = format!("nameserver {other}\nsearch corp.example\n");
    let at = |path: &str| world.files.path().join(path);
    fs::write(at("new"), &conf).unwrap();
    fs::rename(at("new"), at("run/systemd/resolve/resolv.conf")).unwrap();
    wait_until(FOLLOWS, "the container's file to follow", || seen(&root) == conf);
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "it is mounted in the container");
    wait_until(SOON, "the name to resolve", || world.culvert(&lookup).status.success());
    assert!(world.ok(&lookup).contains("203.0.113.7"));
    wait_until(FOLLOWS, "the change to be counted", || {
        let (count, last) = repairs(world.host(), "resolv.conf");
        count == 1 && last.contains(&web) && last.contains("the host has 192.0.2.253 now")
    });

    wait_until(FOLLOWS, "the kept file to be told", || {
        let problems = world.host().json(&["status"])["problems"].to_string();
        problems.contains(&format!("container '{edited}'")) && problems.contains("10.9.9.9")
    });
    assert_eq!(seen(&edited_root), mine);
    assert_eq!(seen(&given_root), "nameserver 10.0.0.53\nsearch corp.example\n");
    world.ok(&["rm", "-f", &web, &edited, &given]);
}

/// A container keeps its file when a program of the host writes a new `/etc/resolv.conf`.
#[test]
#[ignore = "needs root"]
fn a_file_that_the_host_replaces_stays_the_containers() {
    let world = Resolved::new(Some(UPLINK));
    let (web, root) = world.idle(&["--dns", "10.0.0.53"]);
    let seen = || fs::read_to_string(root.join("etc/resolv.conf")).unwrap_or_default();
    let own = "nameserver 10.0.0.53\nsearch corp.example\n";
    assert_eq!(seen(), own);
    let at = |path: &str| world.files.path().join(path);
    // systemd-resolved writes the target of the link. Other programs replace the link by a file.
    for file in ["run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf"] {
        fs::write(at("new"), "nameserver 127.0.0.9\n").unwrap();
        fs::rename(at("new"), at(file)).unwrap();
        wait_until(SOON, "the container's file to be there again", || seen() == own);
    }
    assert_eq!(fs::read_to_string(at("etc/resolv.conf")).unwrap(), "nameserver 127.0.0.9\n");
    world.ok(&["rm", "-f", &web]);
}
