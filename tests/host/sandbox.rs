//! Namespaces as `ip netns` makes them.

use std::{fs, os::fd::AsFd, path::Path, process::Command};

use culvert::{
    model::Name,
    netns::{Netns as Sandbox, NetnsError, same_namespace},
};
use culvert_tests::netns::{Netns, unique};

/// A name that is free. The guard removes the namespace or file that gets the name.
struct Guard(Name);

impl Guard {
    fn new(hint: &str) -> Self {
        Self(format!("cvt-{}-{}-{hint}", std::process::id(), unique()).parse().unwrap())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", self.0.as_str()]).output();
        let _ = fs::remove_file(Sandbox::path_of(&self.0));
    }
}

fn create(name: &Name) -> Result<Sandbox, NetnsError> {
    Sandbox::create(name, |_| Ok(()))
}

#[test]
#[ignore = "needs root"]
fn a_sandbox_is_what_ip_netns_makes() {
    let guard = Guard::new("made");
    let name = &guard.0;
    assert!(!Sandbox::exists(name));
    let sandbox = create(name).unwrap();
    assert!(Sandbox::exists(name));
    assert_eq!(sandbox.path(), Path::new("/run/netns").join(name.as_str()));
    let shown = Netns::here().run(&format!("ip netns exec {name} ip -o link"));
    assert!(shown.contains("lo: <LOOPBACK,UP,LOWER_UP>"), "{shown}");
    assert_eq!(shown.lines().count(), 1, "{shown}");

    let error = create(name).unwrap_err();
    assert!(matches!(error, NetnsError::Taken(_)), "{error}");
    assert!(error.to_string().contains(name.as_str()));
    let same = Sandbox::ensure(name).unwrap();
    assert!(same_namespace(sandbox.as_fd(), same.as_fd()).unwrap());
    assert_eq!(sandbox.id(), same.id());
    assert_ne!(sandbox.id(), Sandbox::current().unwrap().id());

    for _ in 0..2 {
        Sandbox::remove(name).unwrap();
    }
    assert!(!sandbox.path().exists());
}

#[test]
#[ignore = "needs root"]
fn a_file_that_a_reboot_left_is_used_again() {
    // The directory exists and is a shared mount once a sandbox was made.
    let first = Guard::new("first");
    create(&first.0).unwrap();
    for make in [create, Sandbox::ensure] {
        let guard = Guard::new("stale");
        let path = Sandbox::path_of(&guard.0);
        fs::write(&path, "").unwrap();
        assert!(!Sandbox::exists(&guard.0));
        let error = Sandbox::open(&path).unwrap_err();
        assert!(matches!(error, NetnsError::NotNetns(_)), "{error}");
        make(&guard.0).unwrap();
        assert!(Sandbox::exists(&guard.0));
    }
    // A stale file is removed as well.
    let guard = Guard::new("stale");
    fs::write(Sandbox::path_of(&guard.0), "").unwrap();
    Sandbox::remove(&guard.0).unwrap();
    assert!(!Sandbox::path_of(&guard.0).exists());
}

#[test]
#[ignore = "needs root"]
fn a_sandbox_of_another_tool_is_seen_and_removed() {
    let netns = Netns::new("theirs");
    let name: Name = netns.name().parse().unwrap();
    assert!(Sandbox::exists(&name));
    assert!(matches!(create(&name).unwrap_err(), NetnsError::Taken(_)));
    Sandbox::remove(&name).unwrap();
    assert!(!Netns::here().run("ip netns list").contains(netns.name()));
}

#[test]
#[ignore = "needs root"]
fn what_is_no_namespace_is_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let cases = [
        ("/run/netns/no-such-sandbox", "does not exist"),
        ("/etc/passwd/x", "does not exist"),
        ("/etc", "is not a network namespace"),
        ("/proc/self/ns/mnt", "is not a network namespace"),
        (file.to_str().unwrap(), "is not a network namespace"),
        (fifo.to_str().unwrap(), "is not a network namespace"),
    ];
    for (path, words) in cases {
        let error = Sandbox::open(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(words), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
#[ignore = "needs root"]
fn a_dead_process_has_no_namespace() {
    let netns = Netns::new("alive");
    let process = netns.spawn("sleep", &["1000"]);
    let entered = || {
        Sandbox::from_pid(process.pid().as_raw())
            .ok()
            .filter(|sandbox| sandbox.id() == Sandbox::open(netns.path()).unwrap().id())
    };
    culvert_tests::netns::wait_for(crate::DEADLINE, "sleep is in its namespace", entered);

    let mut ended = Command::new("true").spawn().unwrap();
    let pid = ended.id().cast_signed();
    let zombie = format!("/proc/{pid}/stat");
    culvert_tests::netns::wait_until(crate::DEADLINE, "true has ended", || {
        fs::read_to_string(&zombie).unwrap().contains(") Z ")
    });
    let error = Sandbox::from_pid(pid).unwrap_err().to_string();
    assert!(error.contains(&format!("process {pid} does not exist")), "{error}");
    ended.wait().unwrap();
    for pid in [pid, 0, -1, i32::MAX] {
        let error = Sandbox::from_pid(pid).unwrap_err();
        assert!(matches!(error, NetnsError::DeadProcess(dead) if dead == pid), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_closure_runs_inside_and_nothing_else_moves() {
    let netns = Netns::new("run");
    let sandbox = Sandbox::open(netns.path()).unwrap();
    let before = Sandbox::current().unwrap().id();
    let within = sandbox.run(|| Sandbox::current().unwrap().id()).unwrap();
    assert_eq!(within, sandbox.id());
    assert_eq!(Sandbox::current().unwrap().id(), before);
    // Sysctl settings are the sandbox's, too.
    netns.run("sysctl -qw net.ipv4.conf.lo.rp_filter=2");
    let read = || fs::read_to_string("/proc/sys/net/ipv4/conf/lo/rp_filter").unwrap();
    assert_eq!(sandbox.run(read).unwrap(), "2\n");
    assert_ne!(read(), "2\n");
}
