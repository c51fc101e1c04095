//! Network namespaces and the links between them.
//!
//! The names that [`Netns::new`] gives carry the process id and a counter, so tests run at the same
//! time. The next test run removes the namespaces that a killed test run has left.

#![expect(clippy::panic, reason = "a test whose namespace cannot be made fails with the cause")]

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Once,
};

use anyhow::{Context as _, Result, bail};

use crate::{process::Process, wait::unique};

/// Start of the name of every namespace that [`Netns::new`] makes.
const PREFIX: &str = "cvt-";

/// A network namespace, removed when it is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    is_ours: bool,
}

impl Netns {
    /// Makes the namespace `name` with the loopback device up.
    ///
    /// # Errors
    /// `ip netns add` fails.
    pub fn make(name: &str) -> Result<Self> {
        let output = Command::new("ip").args(["netns", "add", name]).stdin(Stdio::null()).output();
        succeeded(&format!("ip netns add {name}"), &output.context("ip")?)?;
        let path = Path::new("/run/netns").join(name);
        let netns = Self { name: name.to_owned(), path, is_ours: true };
        netns.sh("ip link set lo up")?;
        Ok(netns)
    }

    /// The namespace of this process.
    pub fn here() -> Self {
        // `nsenter` opens this path while it is still in its parent's namespace.
        Self { name: "here".to_owned(), path: "/proc/self/ns/net".into(), is_ours: false }
    }

    /// Makes a namespace with the loopback device up; `hint` is part of its name.
    ///
    /// # Panics
    /// When `ip netns add` fails.
    pub fn new(hint: &str) -> Self {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(remove_stray);
        let name = format!("{PREFIX}{}-{}-{hint}", std::process::id(), unique());
        match Self::make(&name) {
            Ok(netns) => netns,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor of the namespace.
    ///
    /// # Panics
    /// When the namespace is gone.
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
    /// # Errors
    /// The command fails: the last line that it wrote.
    pub fn sh(&self, script: &str) -> Result<String> {
        let mut command = self.command("sh");
        command.arg("-c").arg(script).stdin(Stdio::null());
        let output = command.output().context("nsenter")?;
        succeeded(&format!("{}: '{script}'", self.name), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a shell command inside and returns its standard output.
    ///
    /// # Panics
    /// When the command fails, with what it wrote.
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

    /// Connects two namespaces by a veth pair; both ends are up.
    ///
    /// # Panics
    /// When `ip link` refuses.
    pub fn connect(&self, ifname: &str, other: &Self, other_ifname: &str, mtu: u32) {
        if let Err(error) = self.link(ifname, other, other_ifname, mtu) {
            panic!("{error:#}");
        }
    }

    /// Connects two namespaces by a veth pair; both ends are up.
    ///
    /// # Errors
    /// `ip link` refuses.
    pub fn link(&self, ifname: &str, other: &Self, other_ifname: &str, mtu: u32) -> Result<()> {
        self.sh(&format!(
            "ip link add {ifname} mtu {mtu} type veth \
             peer name {other_ifname} mtu {mtu} netns {} && ip link set {ifname} up",
            other.name
        ))?;
        other.sh(&format!("ip link set {other_ifname} up")).map(drop)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        // An error here would hide the failure of the test.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Fails with the last line that a program wrote if it did not succeed.
fn succeeded(what: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}", said.trim().lines().last().unwrap_or("failed without a message"));
    }
    Ok(())
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

/// Removes namespaces of test runs that have ended.
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
