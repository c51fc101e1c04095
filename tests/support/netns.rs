//! Network namespaces, links and processes that go away when their guard does.
//!
//! Names carry the pid and a counter, so tests run in parallel; what a killed
//! test run left behind is removed by the next one.

#![expect(
    clippy::panic,
    reason = "a fixture that cannot be made fails the test with what went wrong"
)]

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File},
    net::Ipv4Addr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use nix::{
    sys::signal::{SigHandler, Signal, kill},
    unistd::{Pid, Uid},
};

/// Start of the name of every namespace made here.
const PREFIX: &str = "cvt-";
/// How often [`wait_for`] looks.
const POLL: Duration = Duration::from_millis(5);

/// Whether we may make namespaces. Says why a test is skipped if not.
pub fn is_root() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED: needs root to make network namespaces");
    }
    root
}

/// The tests run on a kernel that must have netkit, and are to show it: `cargo xtask test
/// --full` says so where it started that kernel.
pub fn expects_netkit() -> bool {
    std::env::var_os("CULVERT_TEST_DEVICE").is_some_and(|kind| kind == "netkit")
}

/// A number that is unique in this process.
pub fn unique() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Calls `look` until it returns something.
///
/// # Panics
/// When `deadline` has passed, with `what`.
pub fn wait_for<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        if start.elapsed() > deadline {
            panic!("{what}: not within {deadline:?}");
        }
        thread::sleep(POLL);
    }
}

/// As [`wait_for`], for a condition.
///
/// # Panics
/// When `deadline` has passed, with `what`.
pub fn wait_until(deadline: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(deadline, what, || holds().then_some(()));
}

/// A network namespace, removed when it is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
}

impl Netns {
    /// Makes one with the loopback device up; `hint` is part of its name.
    ///
    /// # Panics
    /// When `ip netns add` fails.
    pub fn new(hint: &str) -> Self {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(remove_stray);
        let name = format!("{PREFIX}{}-{}-{hint}", std::process::id(), unique());
        let path = Path::new("/run/netns").join(&name);
        check(&format!("ip netns add {name}"));
        let netns = Self { name, path };
        netns.run("ip link set lo up");
        netns
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open namespace.
    ///
    /// # Panics
    /// When it is gone.
    pub fn fd(&self) -> OwnedFd {
        match File::open(&self.path) {
            Ok(file) => file.into(),
            Err(error) => panic!("{}: {error}", self.path.display()),
        }
    }

    /// A command that runs inside. The file system is the host's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg("--").arg(program);
        command
    }

    /// Runs a shell command inside and returns its standard output.
    ///
    /// # Panics
    /// When it fails, with what it wrote.
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        assert_success(&self.name, script, &output)
    }

    /// Runs a shell command inside, which may fail.
    ///
    /// # Panics
    /// When there is no `nsenter`.
    pub fn try_run(&self, script: &str) -> Output {
        let mut command = self.command("sh");
        command.arg("-c").arg(script).stdin(Stdio::null());
        match command.output() {
            Ok(output) => output,
            Err(error) => panic!("nsenter: {error}"),
        }
    }

    /// Whether a shell command succeeds inside.
    pub fn succeeds(&self, script: &str) -> bool {
        self.try_run(script).status.success()
    }

    /// Starts a command inside.
    pub fn spawn(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Process {
        let mut command = self.command(program);
        command.args(args);
        Process::spawn(command)
    }

    /// Names of the BPF programs at a device's tcx hook, as far as the kernel keeps them:
    /// 15 characters. (`bpftool net` tells of tcx only from its version 7.3 on.)
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn programs(&self, ifname: &str, hook: TcAttachType) -> Vec<String> {
        let query = || SchedClassifier::query_tcx(ifname, hook);
        match culvert::netns::run_in(self.fd().as_fd(), query) {
            Ok(Ok((_, programs))) => programs
                .iter()
                .map(|program| program.name_as_str().unwrap_or_default().to_owned())
                .collect(),
            Ok(Err(error)) => panic!("{ifname}: {error}"),
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    /// Connects two namespaces by a veth pair; both ends are up.
    ///
    /// # Panics
    /// When `ip link` refuses.
    pub fn connect(&self, ifname: &str, other: &Self, other_ifname: &str, mtu: u32) {
        self.run(&format!(
            "ip link add {ifname} mtu {mtu} type veth \
             peer name {other_ifname} mtu {mtu} netns {}",
            other.name
        ));
        self.run(&format!("ip link set {ifname} up"));
        other.run(&format!("ip link set {other_ifname} up"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A test that failed must not fail for another reason here.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Hosts that reach each other.
#[derive(Debug)]
pub struct Underlay {
    /// The hosts; each has the uplink [`Underlay::UPLINK`].
    pub hosts: Vec<Netns>,
    /// The namespace of the switch, if there is one; its port `pN` leads to host N.
    pub switch: Option<Netns>,
}

impl Underlay {
    /// Name of each host's uplink.
    pub const UPLINK: &str = "up0";

    /// `count` hosts on one bridge without spanning tree.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn bridged(count: u8, mtu: u32) -> Self {
        let switch = Netns::new("switch");
        // Nothing but what the hosts send shall be seen on the wire. A bridge whose address
        // is not set takes the lowest of its ports': one more port, and the hosts' neighbour
        // entries for what listens on it (etcd) are wrong.
        switch.run(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; \
             ip link add br0 address 02:00:00:00:00:fe type bridge \
             stp_state 0 forward_delay 0 mcast_snooping 0",
        );
        switch.run(&format!("ip link set br0 mtu {mtu} up"));
        let hosts = (0..count)
            .map(|index| {
                let host = Netns::new(&format!("host{index}"));
                let port = format!("p{index}");
                switch.connect(&port, &host, Self::UPLINK, mtu);
                switch.run(&format!("ip link set {port} master br0"));
                Self::configure(&host, index);
                host
            })
            .collect();
        Self { hosts, switch: Some(switch) }
    }

    /// Two hosts on one veth pair.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn direct(mtu: u32) -> Self {
        let hosts = [Netns::new("host0"), Netns::new("host1")];
        hosts[0].connect(Self::UPLINK, &hosts[1], Self::UPLINK, mtu);
        for (index, host) in (0..).zip(&hosts) {
            Self::configure(host, index);
        }
        Self { hosts: hosts.into(), switch: None }
    }

    /// Underlay address of a host: 192.0.2.1 for the first (RFC 5737).
    pub fn address(index: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, index + 1)
    }

    /// One more host on a switch, with the address of `index`.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn join(switch: &Netns, index: u8) -> Netns {
        let host = Netns::new("plain");
        let port = format!("p{index}");
        switch.connect(&port, &host, Self::UPLINK, 1500);
        switch.run(&format!("ip link set {port} master br0"));
        Self::configure(&host, index);
        host
    }

    fn configure(host: &Netns, index: u8) {
        host.run(&format!("ip addr add {}/24 dev {}", Self::address(index), Self::UPLINK));
    }
}

/// A process with its output in files, killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    files: tempfile::TempDir,
}

impl Process {
    /// Starts `command` with an empty standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Self {
        let mut start = || {
            let files = tempfile::tempdir()?;
            let output = File::create(files.path().join("out"))?;
            let errors = File::create(files.path().join("err"))?;
            // A test run in the background ignores some signals, and what it
            // starts would, too.
            // SAFETY: signal(2) is async-signal-safe, and sets a default action.
            unsafe {
                command.pre_exec(|| {
                    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
                        nix::sys::signal::signal(signal, SigHandler::SigDfl)?;
                    }
                    Ok(())
                })
            };
            let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn()?;
            Ok::<_, std::io::Error>(Self { child, files })
        };
        match start() {
            Ok(process) => process,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// Its pid. `nsenter` executes the program, so it is the program's.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it wrote to its standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.files.path().join("out")).unwrap_or_default()
    }

    /// What it wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.files.path().join("err")).unwrap_or_default()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, if it runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            // It cannot be gone: only we reap it.
            let _ = kill(self.pid(), signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When `deadline` has passed, with what it wrote to its standard error.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status;
            }
            if start.elapsed() > deadline {
                panic!("pid {} has not ended within {deadline:?}: {}", self.pid(), self.stderr());
            }
            thread::sleep(POLL);
        }
    }

    /// Asks it to end with `signal` and waits for that.
    ///
    /// # Panics
    /// As [`Process::wait`].
    pub fn stop(&mut self, signal: Signal, deadline: Duration) -> ExitStatus {
        self.signal(signal);
        self.wait(deadline)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Exit code as a shell gives it: 128 + the signal's number if one killed it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs a shell command in this namespace and returns its standard output.
///
/// # Panics
/// When it fails, with what it wrote.
pub fn check(script: &str) -> String {
    match Command::new("sh").arg("-c").arg(script).stdin(Stdio::null()).output() {
        Ok(output) => assert_success("host", script, &output),
        Err(error) => panic!("sh: {error}"),
    }
}

fn assert_success(place: &str, script: &str, output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let mut message = format!("[{place}] {script}: {}", output.status);
        let _ = write!(message, "\n{stdout}{}", String::from_utf8_lossy(&output.stderr));
        panic!("{message}");
    }
    stdout.into_owned()
}

/// Removes namespaces of test runs that do not live any more.
fn remove_stray() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
