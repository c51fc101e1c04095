//! Starting other programs: in the foreground, captured, with progress, in the background.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::signals;

/// How long a program gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// Polling interval of a condition.
const TICK: Duration = Duration::from_millis(10);

/// The program's name in `command`, for messages.
fn name(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// Starts `command` in a process group of its own, so that ending signals reach it only through
/// this program, and once.
fn spawn(command: &mut Command) -> Result<Child> {
    let name = name(command);
    command.process_group(0).spawn().with_context(|| format!("{name}: cannot be started"))
}

/// Runs `command` with our standard streams and waits for it.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    signals::check()?;
    let mut child = spawn(command)?;
    let _foreground = signals::foreground(child.id());
    let status =
        child.wait().with_context(|| format!("{}: cannot be waited for", name(command)))?;
    signals::check()?;
    Ok(status)
}

/// Runs `command` with our standard streams; any exit code but 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// Runs `command` and hands each line of its output, both streams, to `each` as it comes.
pub(crate) fn lines(command: &mut Command, each: impl FnMut(&str)) -> Result<ExitStatus> {
    lines_watched(command, None, each)
}

/// Runs `command` like [`lines`]. If there is no line of output for the time `silence`, the program
/// is killed and an error is returned.
pub(crate) fn lines_watched(
    command: &mut Command,
    silence: Option<Duration>,
    mut each: impl FnMut(&str),
) -> Result<ExitStatus> {
    let status = lines_until(command, silence, |line| {
        each(line);
        ControlFlow::Continue(())
    })?;
    status.with_context(|| format!("{}: was stopped", name(command)))
}

/// Runs `command` like [`lines_watched`], until `each` breaks. The program is then killed, and has
/// no status.
pub(crate) fn lines_until(
    command: &mut Command,
    silence: Option<Duration>,
    mut each: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Option<ExitStatus>> {
    signals::check()?;
    let name = name(command);
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let errors = writer.try_clone().context("cannot copy a pipe")?;
    command.stdin(Stdio::null()).stdout(Stdio::from(writer)).stderr(Stdio::from(errors));
    let mut child = spawn(command)?;
    // The command holds the pipe's writing ends open until they are replaced.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let _foreground = signals::foreground(child.id());
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let watchdog = silence.map(|silence| Watchdog::start(group, silence));
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut stopped = false;
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line);
        if read.with_context(|| format!("{name}: its output cannot be read"))? == 0 {
            break;
        }
        if let Some(watchdog) = &watchdog {
            watchdog.feed();
        }
        let text = String::from_utf8_lossy(&line);
        if each(text.trim_end_matches(['\n', '\r'])).is_break() {
            stopped = true;
            let _ = killpg(group, Signal::SIGKILL);
            break;
        }
    }
    // Before `wait`: after it, another process can get this id, and the watchdog would kill that
    // process.
    let bitten = watchdog.is_some_and(Watchdog::stop);
    let status = child.wait().with_context(|| format!("{name}: cannot be waited for"))?;
    signals::check()?;
    match silence {
        _ if stopped => Ok(None),
        Some(silence) if bitten => {
            bail!("{name}: killed: no line of output for {} s", silence.as_secs())
        }
        _ => Ok(Some(status)),
    }
}

/// Kills a process group that is silent for too long.
#[derive(Debug)]
struct Watchdog {
    feed: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    fn start(group: Pid, silence: Duration) -> Self {
        let (feed, fed) = channel();
        let thread = std::thread::spawn(move || {
            loop {
                match fed.recv_timeout(silence) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return false,
                    Err(RecvTimeoutError::Timeout) => {
                        let _ = killpg(group, Signal::SIGKILL);
                        return true;
                    }
                }
            }
        });
        Self { feed, thread }
    }

    /// Records that there was output.
    fn feed(&self) {
        // The thread has ended only if it has killed the group.
        let _ = self.feed.send(());
    }

    /// Ends the watch and returns whether the group was killed.
    fn stop(self) -> bool {
        drop(self.feed);
        self.thread.join().unwrap_or(false)
    }
}

/// Output and status of a program that has ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// Both streams, in the order they came.
    pub(crate) text: String,
    /// Exit status of the program.
    pub(crate) status: ExitStatus,
}

/// Runs `command` to its end and captures its output.
pub(crate) fn capture(command: &mut Command) -> Result<Said> {
    let mut text = String::new();
    let status = lines(command, |line| {
        text.push_str(line);
        text.push('\n');
    })?;
    Ok(Said { text, status })
}

/// Runs `command` without showing its output; on failure the error ends with its last lines.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let said = capture(command)?;
    if !said.status.success() {
        bail!("{} failed ({}): {}", name(command), said.status, last_lines(&said.text, 3));
    }
    Ok(said.text)
}

/// The last `count` non-empty lines of `text`, as one line.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let mut last = VecDeque::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if last.len() == count {
            last.pop_front();
        }
        last.push_back(line);
    }
    if last.is_empty() {
        return "it said nothing".to_owned();
    }
    Vec::from(last).join(" | ")
}

/// Waits until `done` returns a value. Fails when `deadline` has passed, with an error that names
/// `what`, or when the user interrupts.
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        signals::check()?;
        if let Some(value) = done()? {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("{what}: not within {} s", deadline.as_secs());
        }
        sleep(TICK);
    }
}

/// A program in the background. The program is asked to end when this value is dropped.
#[derive(Debug)]
pub(crate) struct Background {
    name: String,
    child: Child,
    log: PathBuf,
    ended: bool,
}

impl Background {
    /// Starts `command` in the background with its output in `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file =
            File::create(log).with_context(|| format!("{}: cannot be created", log.display()))?;
        let errors = file.try_clone().context("cannot copy a file descriptor")?;
        let child = spawn(command.stdin(Stdio::null()).stdout(file).stderr(errors))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), ended: false })
    }

    /// Fails if the program has ended, with the last lines of its log.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.ended = true;
            bail!("{} ended ({status}): {}", self.name, self.tail());
        }
        Ok(())
    }

    /// The last lines of the log as one line.
    fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&text), 3)
    }

    /// Asks the program to end with SIGTERM and waits for it.
    ///
    /// # Errors
    ///
    /// The program ended with another code than 0, or had to be killed.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let status = self.end()?;
        // A program without a handler for SIGTERM ends by the signal itself.
        use std::os::unix::process::ExitStatusExt as _;
        if !status.success() && status.signal() != Some(Signal::SIGTERM as i32) {
            bail!("{} ended badly ({status}): {}", self.name, self.tail());
        }
        Ok(())
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let status = end(&mut self.child, GRACE);
        self.ended = true;
        status.with_context(|| format!("{}: {}", self.name, self.tail()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if !self.ended {
            // The error is ignored: the caller shows the error that caused the drop.
            let _ = self.end();
        }
    }
}

/// A program that writes to our terminal. Ending signals are not passed to it; the verb stops it.
#[derive(Debug)]
pub(crate) struct Foreground {
    name: String,
    child: Child,
    ended: bool,
}

impl Foreground {
    /// Starts `command`.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        signals::check()?;
        let child = spawn(command.stdin(Stdio::null()))?;
        Ok(Self { name: name.to_owned(), child, ended: false })
    }

    /// Fails if the program has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.ended = true;
            bail!("{} ended ({status}): its messages are above", self.name);
        }
        Ok(())
    }

    /// Sends SIGTERM and waits for the program to end in order.
    pub(crate) fn stop(&mut self, deadline: Duration) -> Result<()> {
        let status =
            end(&mut self.child, deadline).with_context(|| format!("{}: does not stop", self.name));
        self.ended = true;
        let status = status?;
        if !status.success() {
            bail!("{} ended badly ({status}): its messages are above", self.name);
        }
        Ok(())
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if !self.ended {
            // The error is ignored: the caller shows the error that caused the drop.
            let _ = end(&mut self.child, GRACE);
        }
    }
}

/// Ends `child`'s process group: SIGTERM, and SIGKILL after `deadline`, which is an error.
fn end(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let _ = killpg(group, Signal::SIGTERM);
    let start = Instant::now();
    while start.elapsed() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        sleep(TICK);
    }
    let _ = killpg(group, Signal::SIGKILL);
    child.wait()?;
    bail!("still there {} s after SIGTERM, killed", deadline.as_secs());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_skips_empty_ones() {
        assert_eq!(last_lines("a\n\nb\nc\n\n", 2), "b | c");
        assert_eq!(last_lines("\n", 2), "it said nothing");
    }

    #[test]
    fn capture_keeps_both_streams() {
        let said = capture(Command::new("sh").args(["-c", "echo a; echo b >&2; exit 3"]))
            .expect("sh runs");
        assert_eq!(said.text, "a\nb\n");
        assert_eq!(said.status.code(), Some(3));
    }

    #[test]
    fn a_failure_names_the_program_and_its_last_words() {
        let error = quiet(Command::new("sh").args(["-c", "echo why >&2; exit 1"]))
            .expect_err("sh fails")
            .to_string();
        assert!(error.starts_with("sh failed") && error.ends_with("why"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut Command::new("/nonexistent/frob")).expect_err("no such program");
        assert!(format!("{error:#}").starts_with("frob: cannot be started"), "{error:#}");
    }

    #[test]
    fn a_silent_program_is_killed_and_a_talking_one_is_not() {
        let mut hang = Command::new("sh");
        hang.args(["-c", "echo a; sleep 1000 & wait"]);
        let error = lines_watched(&mut hang, Some(Duration::from_millis(50)), |_| {})
            .expect_err("it is killed");
        assert!(error.to_string().contains("no line of output"), "{error}");
        let talk = lines_watched(
            Command::new("sh").args(["-c", "echo a; echo b"]),
            Some(Duration::from_secs(60)),
            |_| {},
        );
        assert!(talk.expect("it ends by itself").success());
    }

    #[test]
    fn a_program_ends_at_the_line_that_was_waited_for() {
        let mut seen = Vec::new();
        let status = lines_until(
            Command::new("sh").args(["-c", "echo a; echo b; sleep 1000 & wait"]),
            Some(Duration::from_secs(60)),
            |line| {
                seen.push(line.to_owned());
                if line == "b" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        assert_eq!(status.expect("sh runs"), None);
        assert_eq!(seen, ["a", "b"]);
    }

    #[test]
    fn waiting_has_a_deadline() {
        let result: Result<()> = wait_for("a miracle", Duration::ZERO, || Ok(None));
        assert_eq!(result.expect_err("none happens").to_string(), "a miracle: not within 0 s");
    }
}
