//! A real etcd: on loopback or in a namespace, in a directory of its own, killed when
//! dropped.

use std::{
    collections::VecDeque,
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::{signal::Signal, statvfs::statvfs};

use crate::wait::{POLL, unique};

/// How long etcd may take to end.
const END: Duration = Duration::from_secs(10);
/// How long etcd may take to be ready.
const START: Duration = Duration::from_secs(30);
/// Number of attempts, each with other ports: another process may take a free port first.
const ATTEMPTS: u32 = 5;
/// Number of lines of etcd's log that are kept for the message of a failure.
const LOG_LINES: usize = 30;
/// Port for the clients of a member of a cluster.
const CLIENT_PORT: u16 = 2379;
/// Port for the other members of a cluster.
const PEER_PORT: u16 = 2380;

/// Certificates (PEM files) of a server that requires client certificates.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authority of the clients' certificates.
    pub ca: PathBuf,
    /// The server's certificate.
    pub cert: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

/// A member of a cluster with other members.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name of the member.
    pub name: String,
    /// All members as etcd's `--initial-cluster` lists them: `NAME=URL,...`.
    pub cluster: String,
}

/// Differences from an etcd on a free port of 127.0.0.1.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Namespace that etcd runs in, such as `/run/netns/X`.
    pub netns: Option<PathBuf>,
    /// Address at which clients reach etcd; 127.0.0.1 by default.
    pub address: Option<IpAddr>,
    /// Port for clients; a free port by default. The default looks for a free port in the
    /// namespace of the test, so a port must be given together with `netns`.
    pub port: Option<u16>,
    /// TLS.
    pub tls: Option<Tls>,
    /// The cluster that the server is a member of; one of its own by default.
    pub member: Option<Member>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Directory of etcd's data and of a copy of its log, `etcd.log`; a temporary directory by
    /// default. A given directory is not removed.
    pub dir: Option<PathBuf>,
    /// Runs etcd in a process group of its own, so that signals from the terminal do not reach it.
    pub own_group: bool,
}

impl Config {
    /// Arguments of etcd with its data in `dir`. `client` is the address for clients. `peer` is the
    /// address for other members; `None` means etcd's default.
    pub fn arguments(
        &self,
        dir: &Path,
        client: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> Vec<OsString> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://{client}");
        let mut args: Vec<OsString> = ["--data-dir".into(), dir.join("data").into()].into();
        let mut add = |option: &str, value: &OsStr| {
            args.extend([OsString::from(option), value.to_owned()]);
        };
        add("--listen-client-urls", client.as_ref());
        add("--advertise-client-urls", client.as_ref());
        if let Some(peer) = peer {
            let peer = format!("http://{peer}");
            let alone = || Member { name: "test".to_owned(), cluster: format!("test={peer}") };
            let member = self.member.clone().unwrap_or_else(alone);
            add("--name", member.name.as_ref());
            add("--listen-peer-urls", peer.as_ref());
            add("--initial-advertise-peer-urls", peer.as_ref());
            add("--initial-cluster", member.cluster.as_ref());
        }
        if let Some(tls) = &self.tls {
            add("--trusted-ca-file", tls.ca.as_ref());
            add("--cert-file", tls.cert.as_ref());
            add("--key-file", tls.key.as_ref());
            args.push("--client-cert-auth".into());
        }
        args.extend(self.args.iter().map(OsString::from));
        args
    }
}

/// A running etcd.
#[derive(Debug)]
pub struct EtcdServer {
    config: Config,
    dir: PathBuf,
    client: SocketAddr,
    peer: Option<SocketAddr>,
    child: Option<Child>,
    log: Arc<Log>,
}

impl EtcdServer {
    /// Starts an etcd on a free port of 127.0.0.1 and waits until it serves.
    pub fn start() -> io::Result<Self> {
        Self::start_with(Config::default())
    }

    /// Starts an etcd and waits until it serves.
    pub fn start_with(config: Config) -> io::Result<Self> {
        let dir = config.dir.clone().unwrap_or_else(temporary_dir);
        fs::create_dir_all(&dir)?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let address = config.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let client = SocketAddr::new(address, config.port.map_or_else(free_port, Ok)?);
            // With a given client port nothing else listens, so the default peer port is free.
            let peer = match config.port {
                Some(_) => None,
                None => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port()?)),
            };
            let mut server = Self::new(config.clone(), dir.clone(), client, peer);
            match server.launch() {
                Ok(()) => return Ok(server),
                Err(error) => last = Some(error),
            }
            // The drop also removes the directory: the next attempt starts with an empty one.
            drop(server);
            fs::create_dir_all(&dir)?;
        }
        remove(&config, &dir);
        Err(last.unwrap_or_else(|| io::Error::other("etcd: no attempt was made")))
    }

    /// Starts the members of one cluster in a namespace, each at an address of its own, and waits
    /// until all serve. `args` are further arguments of each member.
    pub fn start_members(
        netns: &Path,
        addresses: &[IpAddr],
        args: &[String],
    ) -> io::Result<Vec<Self>> {
        let name = |index: usize| format!("member{index}");
        let peer = |address: &IpAddr| SocketAddr::new(*address, PEER_PORT);
        let urls: Vec<String> = addresses
            .iter()
            .enumerate()
            .map(|(index, address)| format!("{}=http://{}", name(index), peer(address)))
            .collect();
        let mut members = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let config = Config {
                netns: Some(netns.to_owned()),
                address: Some(*address),
                port: Some(CLIENT_PORT),
                member: Some(Member { name: name(index), cluster: urls.join(",") }),
                args: args.to_vec(),
                ..Config::default()
            };
            let dir = temporary_dir();
            fs::create_dir_all(&dir)?;
            let client = SocketAddr::new(*address, CLIENT_PORT);
            members.push(Self::new(config, dir, client, Some(peer(address))));
        }
        Self::resume_all(&mut members)?;
        Ok(members)
    }

    fn new(config: Config, dir: PathBuf, client: SocketAddr, peer: Option<SocketAddr>) -> Self {
        Self { config, dir, client, peer, child: None, log: Arc::new(Log::default()) }
    }

    /// Fails if etcd has ended, with the last line of its log.
    pub fn check(&mut self) -> io::Result<()> {
        match self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            Some(status) => Err(self.ended(status)),
            None => Ok(()),
        }
    }

    /// Asks etcd to end (SIGTERM) and waits for its end, at most 10 s.
    pub fn end(mut self) -> io::Result<()> {
        self.check()?;
        self.signal("TERM")?;
        let start = Instant::now();
        let Some(child) = &mut self.child else { return Ok(()) };
        while start.elapsed() < END {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                // A program without a handler for SIGTERM ends by the signal itself.
                let by_signal = status.signal() == Some(Signal::SIGTERM as i32);
                return if status.success() || by_signal {
                    Ok(())
                } else {
                    Err(self.ended(status))
                };
            }
            std::thread::sleep(POLL);
        }
        Err(io::Error::other(format!("etcd: still running {} s after SIGTERM", END.as_secs())))
    }

    fn ended(&self, status: ExitStatus) -> io::Error {
        let text = self.log.text();
        let last = text.lines().last().unwrap_or("it said nothing").to_owned();
        io::Error::other(format!("etcd ended ({status}): {last}"))
    }

    /// `HOST:PORT` for clients.
    pub fn endpoint(&self) -> String {
        self.client.to_string()
    }

    /// The URL for `--store`, `etcd://HOST:PORT`.
    pub fn client_url(&self) -> String {
        format!("etcd://{}", self.client)
    }

    /// Pid of etcd, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills etcd (SIGKILL). Its data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts etcd again on the same data and ports.
    pub fn resume(&mut self) -> io::Result<()> {
        self.stop();
        self.launch()
    }

    /// Starts members of one cluster again, on the same data and ports. It waits for them only when
    /// all are started: no member serves before a majority runs.
    pub fn resume_all<'a>(members: impl IntoIterator<Item = &'a mut Self>) -> io::Result<()> {
        let mut members: Vec<&mut Self> = members.into_iter().collect();
        for member in &mut members {
            member.stop();
            member.spawn()?;
        }
        members.into_iter().try_for_each(Self::wait_ready)
    }

    /// Kills etcd and starts it again on the same data and ports.
    pub fn restart(&mut self) -> io::Result<()> {
        self.resume()
    }

    /// Kills etcd and removes its data.
    pub fn wipe(&mut self) -> io::Result<()> {
        self.stop();
        fs::remove_dir_all(self.dir.join("data"))
    }

    /// Kills etcd and keeps a copy of its data.
    pub fn back_up(&mut self) -> io::Result<()> {
        self.stop();
        copy_tree(&self.dir.join("data"), &self.dir.join("backup"))
    }

    /// Kills etcd and restores the data of the last [`Self::back_up`].
    pub fn roll_back(&mut self) -> io::Result<()> {
        self.wipe()?;
        copy_tree(&self.dir.join("backup"), &self.dir.join("data"))
    }

    /// Stops etcd's process (SIGSTOP): its sockets stay open, but do not answer.
    pub fn freeze(&self) -> io::Result<()> {
        self.signal("STOP")
    }

    /// Continues the process after [`Self::freeze`] (SIGCONT).
    pub fn thaw(&self) -> io::Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> io::Result<()> {
        let pid = self.pid().ok_or_else(|| io::Error::other("etcd: not running"))?;
        let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other("kill: failed")) }
    }

    fn launch(&mut self) -> io::Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts the process, without waiting until it serves.
    fn spawn(&mut self) -> io::Result<()> {
        let mut command = match &self.config.netns {
            // `ip netns exec` would remount /sys.
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", netns.display())).arg("etcd");
                command
            }
            None => Command::new("etcd"),
        };
        // etcd 3.4 starts on architectures other than amd64 only with this variable.
        if env::consts::ARCH == "aarch64" {
            command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        }
        command
            .args(self.config.arguments(&self.dir, self.client, self.peer))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if self.config.own_group {
            command.process_group(0);
        }
        // The caller that gave the directory may read the log afterwards.
        let mut copy = match &self.config.dir {
            Some(dir) => Some(File::create(dir.join("etcd.log"))?),
            None => None,
        };
        let mut child = command
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("etcd: {error}")))?;
        let stderr = child.stderr.take();
        self.child = Some(child);
        self.log = Arc::new(Log::default());
        if let Some(stderr) = stderr {
            let log = Arc::clone(&self.log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    if let Some(copy) = &mut copy {
                        // The copy is for users; etcd does not need it.
                        let _ = writeln!(copy, "{line}");
                    }
                    log.add(line);
                }
                log.end();
            });
        }
        Ok(())
    }

    /// Waits until the process serves. Stops it if it does not in time.
    fn wait_ready(&mut self) -> io::Result<()> {
        if self.log.wait_ready(Instant::now() + START) {
            Ok(())
        } else {
            self.stop();
            Err(io::Error::other(format!("etcd: not ready:\n{}", self.log.text())))
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.stop();
        remove(&self.config, &self.dir);
    }
}

/// A directory for a server, not made yet.
fn temporary_dir() -> PathBuf {
    parent().join(format!("culvert-etcd-{}-{}", std::process::id(), unique()))
}

/// Parent of the servers' directories: in memory if enough is free, because etcd waits for the disk
/// at each change.
fn parent() -> PathBuf {
    /// Free memory that is enough, in bytes. A server reserves 128 MiB for its log, and many tests
    /// run at the same time.
    const PLENTY: u64 = 4 << 30;
    let memory = Path::new("/dev/shm");
    let free = statvfs(memory).map_or(0, |at| at.blocks_available() * at.fragment_size());
    if free >= PLENTY { memory.to_owned() } else { env::temp_dir() }
}

/// Removes the directory, unless the caller gave it.
fn remove(config: &Config, dir: &Path) {
    if config.dir.is_none() {
        let _ = fs::remove_dir_all(dir);
    }
}

/// A port of 127.0.0.1 that is free now.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The log that etcd writes to standard error.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: VecDeque<String>,
    ready: bool,
    ended: bool,
}

impl Log {
    fn add(&self, line: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // etcd 3.4 and 3.5 both log this line.
        state.ready |= line.contains("ready to serve client requests");
        if state.lines.len() == LOG_LINES {
            state.lines.pop_front();
        }
        state.lines.push_back(line);
        self.changed.notify_all();
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_all();
    }

    fn wait_ready(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.ready || state.ended {
                return state.ready;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn text(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// Copies a directory with everything in it.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
