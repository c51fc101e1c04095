//! Processes of containers, which outlive the agent.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    sync::OnceLock,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

/// The present boot of this machine: the first 64 bits of its identifier (random(4)). `None`: the
/// kernel does not tell.
pub(crate) fn boot() -> Option<u64> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        u64::from_str_radix(&digits, 16).ok()
    })
}

/// Whether something that was noted in the boot `noted` is from before a reboot. Not if either boot
/// is not known.
pub(crate) fn is_past(noted: Option<u64>) -> bool {
    noted.zip(boot()).is_some_and(|(noted, now)| noted != now)
}

/// What was read of a process in `/proc`. `None`: no process has the number, or it has ended
/// meanwhile.
///
/// # Errors
/// Every other error: the process may run.
pub(crate) fn if_alive<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH) => Ok(None),
            _ => Err(error),
        },
    }
}

/// A process. Boot and start time tell it from a later process with the same number.
///
/// A pidfd cannot take its place: the record outlives the agent on disk, and the inode of a pidfd
/// is unique only since Linux 6.9 (pidfs). [`Process::open`] gets one from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Process number.
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat` (proc(5)), in clock ticks since boot.
    pub(crate) start_time: u64,
    /// The boot. `None` in a record of an earlier version.
    #[serde(default)]
    pub(crate) boot: Option<u64>,
}

/// State of a process that has ended, and that nobody has waited for.
const ENDED: char = 'Z';
/// State of a process that was stopped by a signal.
const STOPPED: char = 'T';

/// What `/proc/PID/stat` says of a process (proc(5)).
struct Stat {
    /// Field 3.
    state: char,
    /// Field 4: number of its parent.
    parent: i32,
    /// Field 22, in clock ticks since boot.
    start_time: u64,
}

impl Stat {
    /// `None`: no process has the number.
    fn read(pid: i32) -> io::Result<Option<Self>> {
        let Some(stat) = if_alive(fs::read(format!("/proc/{pid}/stat")))? else { return Ok(None) };
        // The name of a program may be any bytes.
        let stat = String::from_utf8_lossy(&stat);
        let malformed = || io::Error::other(format!("/proc/{pid}/stat is malformed"));
        // Field 2, the name in parentheses, may contain spaces and parentheses.
        let (_, after_name) = stat.rsplit_once(") ").ok_or_else(malformed)?;
        let mut fields = after_name.split(' ');
        let state = fields.next().and_then(|field| field.chars().next()).ok_or_else(malformed)?;
        let parent = fields.next().and_then(|field| field.parse().ok()).ok_or_else(malformed)?;
        // The parent is field 4; 17 fields lie between it and field 22.
        let start_time = fields.nth(17).and_then(|field| field.parse().ok());
        let start_time = start_time.ok_or_else(malformed)?;
        Ok(Some(Self { state, parent, start_time }))
    }
}

/// The PID namespace of a process: device and inode of its file. `None`: the process has ended.
fn pid_namespace(pid: i32) -> io::Result<Option<(u64, u64)>> {
    let found = if_alive(fs::metadata(format!("/proc/{pid}/ns/pid")))?;
    Ok(found.map(|file| (file.dev(), file.ino())))
}

/// Opens the process that has this number now (pidfd_open(2)). `None`: there is none.
fn open_number(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(number, PidfdFlags::empty()) {
        Err(Errno::SRCH) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

/// The numbers in `/proc`.
fn numbers() -> io::Result<impl Iterator<Item = io::Result<i32>>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) => Some(Ok(entry.file_name().to_str()?.parse::<i32>().ok()?)),
        Err(error) => Some(Err(error)),
    }))
}

impl Process {
    /// The process that has this number now; `None` if there is none, or it has ended and nobody
    /// has waited for it.
    ///
    /// # Errors
    /// It is not known, as when no file descriptor is left.
    pub(crate) fn find(pid: i32) -> io::Result<Option<Self>> {
        Ok(Self::with_parent(pid)?.map(|(process, _)| process))
    }

    /// As [`Self::find`], with the number of its parent.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub(crate) fn with_parent(pid: i32) -> io::Result<Option<(Self, i32)>> {
        let Some(stat) = Stat::read(pid)? else { return Ok(None) };
        let Stat { state, parent, start_time } = stat;
        let has_ended = matches!(state, ENDED | 'X');
        Ok((!has_ended).then(|| (Self { pid, start_time, boot: boot() }, parent)))
    }

    /// The processes that run, each with the number of its parent.
    ///
    /// # Errors
    /// As [`Self::find`]: the directory cannot be read, or a process cannot be looked at.
    pub(crate) fn all() -> io::Result<impl Iterator<Item = io::Result<(Self, i32)>>> {
        Ok(numbers()?.filter_map(|number| match number {
            Ok(pid) => Self::with_parent(pid).transpose(),
            Err(error) => Some(Err(error)),
        }))
    }

    /// The processes that this one has started and that run. None if it has ended.
    ///
    /// # Errors
    /// It is not known, as when no file descriptor is left.
    pub(crate) fn children(&self) -> io::Result<Vec<Self>> {
        let mut children = Vec::new();
        for found in Self::all()? {
            let (child, parent) = found?;
            if parent == self.pid {
                children.push(child);
            }
        }
        // The number was this process's all the time.
        Ok(if self.is_alive()? { children } else { Vec::new() })
    }

    /// Continues the stopped processes without which this one, the first of a PID namespace, does
    /// not end after SIGKILL: those outside of the namespace with a child in it that has ended.
    /// The kernel waits until each process of the namespace was waited for (pid_namespaces(7)), and
    /// a stopped `culvert exec` does not wait for its command. Returns their numbers.
    ///
    /// # Errors
    /// It is not known, as when no file descriptor is left.
    pub(crate) fn continue_waiters(&self) -> io::Result<Vec<i32>> {
        let Some(namespace) = pid_namespace(self.pid)? else { return Ok(Vec::new()) };
        if !self.is_alive()? || pid_namespace(std::process::id().cast_signed())? == Some(namespace)
        {
            return Ok(Vec::new());
        }
        let mut continued = Vec::new();
        for number in numbers()? {
            let child = number?;
            let held = |stat: &Stat| stat.state == ENDED && child != self.pid;
            let Some(Stat { parent, .. }) = Stat::read(child)?.filter(held) else { continue };
            if pid_namespace(child)? != Some(namespace) || pid_namespace(parent)? == Some(namespace)
            {
                continue;
            }
            let Some(opened) = open_number(parent)? else { continue };
            // It is still the parent, so the descriptor is that process's.
            let is_parent = Stat::read(child)?.is_some_and(|stat| stat.parent == parent);
            let is_stopped = Stat::read(parent)?.is_some_and(|stat| stat.state == STOPPED);
            if is_parent && is_stopped && pidfd_send_signal(&opened, Signal::CONT).is_ok() {
                continued.push(parent);
            }
        }
        Ok(continued)
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    /// It is not known, as when no file descriptor is left.
    fn is_alive(&self) -> io::Result<bool> {
        if is_past(self.boot) {
            return Ok(false);
        }
        let found = Self::find(self.pid)?;
        Ok(found.is_some_and(|found| found.start_time == self.start_time))
    }

    /// Whether the process still runs, as far as is known: an agent that cannot look must not take
    /// it for dead.
    pub(crate) fn lives(&self) -> bool {
        self.is_alive().unwrap_or(true)
    }

    /// Opens the process, if it still runs. A signal to the returned value cannot reach a later
    /// process with the same number.
    ///
    /// # Errors
    /// It is not known whether it runs, as when no file descriptor is left.
    pub(crate) fn open(&self) -> io::Result<Option<Running>> {
        if !self.is_alive()? {
            return Ok(None);
        }
        let Some(fd) = open_number(self.pid)? else { return Ok(None) };
        // The number is still this process's, so it was when the descriptor was opened.
        if !self.is_alive()? {
            return Ok(None);
        }
        // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, and `Running` owns
        // it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Some(Running(fd)))
    }
}

/// An open process (pidfd_open(2)). It may have ended since it was opened.
#[derive(Debug)]
pub(crate) struct Running(AsyncFd<OwnedFd>);

impl Running {
    /// Kills the process. It is no error if it has ended.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Stops the process: it starts no other one until it is killed.
    pub(crate) fn stop(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::STOP);
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// The runtime stops.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pid: u32) -> Process {
        Process::find(pid.cast_signed()).unwrap().unwrap()
    }

    #[test]
    fn a_process_that_cannot_be_looked_at_is_not_dead() {
        let read = |errno: Errno| if_alive::<()>(Err(errno.into()));
        for errno in [Errno::NOENT, Errno::SRCH] {
            assert!(read(errno).unwrap().is_none(), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::ACCESS, Errno::NOMEM] {
            assert!(read(errno).is_err(), "{errno}");
        }
        assert!(Process::find(-1).unwrap().is_none());
        let own = std::process::id().cast_signed();
        let (process, parent) = Process::with_parent(own).unwrap().unwrap();
        assert_eq!((process.pid, parent), (own, nix::unistd::getppid().as_raw()));
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = found(std::process::id());
        assert!(own.lives());
        assert!(!Process { start_time: own.start_time + 1, ..own }.lives());
        assert!(!Process { boot: own.boot.map(|boot| boot ^ 1), ..own }.lives());
        assert!(Process { boot: None, ..own }.lives(), "a record of an earlier version");

        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = found(child.id());
        assert!(process.lives());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.lives());
    }

    #[test]
    fn the_children_of_a_process_are_found() {
        let own = found(std::process::id());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = found(child.id());
        let children = own.children().unwrap();
        let (none, later) =
            (process.children().unwrap(), Process { start_time: own.start_time + 1, ..own });
        let of_later = later.children().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(children.contains(&process), "{children:?}");
        assert!(none.is_empty() && of_later.is_empty());
        assert!(!own.children().unwrap().contains(&process));
    }

    /// A child process that is killed and reaped on drop.
    struct Killed(std::process::Child);

    impl Killed {
        fn spawn(program: &str, args: &[&str]) -> Self {
            Self(std::process::Command::new(program).args(args).spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }
    }

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Waits for a value.
    fn until<T>(what: &str, value: impl Fn() -> Option<T>) -> T {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            if let Some(value) = value() {
                return value;
            }
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// As with `culvert exec` that is stopped by Ctrl-Z.
    #[test]
    #[ignore = "needs root"]
    fn a_stopped_process_does_not_keep_the_first_one_of_a_namespace() {
        use nix::sys::signal::Signal as ToSend;
        let child = |parent: &Killed| {
            let own = found(parent.0.id());
            until("a child", || own.children().unwrap().first().copied())
        };
        let has = |pid: i32, state: char| {
            until("a state", || (Stat::read(pid).unwrap()?.state == state).then_some(()));
        };
        let send = |pid: i32, signal: ToSend| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
        };
        let outer = Killed::spawn("unshare", &["--pid", "--kill-child", "sleep", "1000"]);
        let first = child(&outer);
        let target = first.pid.to_string();
        let waiter = Killed::spawn("nsenter", &["--target", &target, "--pid", "sleep", "1000"]);
        let second = child(&waiter);
        assert_eq!(first.continue_waiters().unwrap(), [0; 0], "none is stopped");

        send(waiter.pid(), ToSend::SIGSTOP);
        has(waiter.pid(), STOPPED);
        send(first.pid, ToSend::SIGKILL);
        has(second.pid, ENDED);
        assert!(first.lives());
        assert_eq!(first.continue_waiters().unwrap(), [waiter.pid()]);
        until("its end", || (!first.lives()).then_some(()));
    }

    #[tokio::test]
    async fn an_open_process_is_killed_and_its_end_is_seen() {
        let stdin = std::process::Stdio::piped;
        let mut child = std::process::Command::new("cat").stdin(stdin()).spawn().unwrap();
        let process = found(child.id());
        let later = Process { start_time: process.start_time + 1, ..process };
        assert!(later.open().unwrap().is_none());
        let running = process.open().unwrap().unwrap();
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, running.ended()).await.is_err());
        running.kill();
        let deadline = std::time::Duration::from_secs(10);
        tokio::time::timeout(deadline, running.ended()).await.unwrap().unwrap();
        assert!(!process.lives(), "a process that nobody has waited for has ended, too");
        child.wait().unwrap();
        running.kill();
        assert!(process.open().unwrap().is_none());
    }
}
