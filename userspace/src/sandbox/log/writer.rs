//! Writes what a program prints to its log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::unistd::{dup2_stderr, read};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::oneshot};

use super::files::{LogLimits, aged};
use crate::private;

/// Number of bytes that are read at once: the capacity of a pipe.
const CHUNK: usize = 64 << 10;

/// Opens a log to append to it. Makes it, and its directory, if it does not exist. Only the user of
/// this process can read it: what programs print may have passwords.
pub(in crate::sandbox) fn open_log(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        private::make_dir(directory)?;
    }
    append().create(true).open(path)
}

fn append() -> OpenOptions {
    let mut options = private::options();
    options.append(true);
    options
}

/// A log that is written to. A file that would become too large is replaced, at the end of a line
/// if there is one.
pub(in crate::sandbox) struct LogWriter {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    size: u64,
    /// The last byte was the end of a line.
    at_line_start: bool,
    /// Standard error of this process leads to the log, too.
    with_stderr: bool,
    /// Bytes that could not be written, and why.
    lost: Option<(u64, String)>,
}

impl LogWriter {
    /// Opens the log. `with_stderr`: this process writes its own errors there.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(in crate::sandbox) fn open(
        path: &Path,
        limits: LogLimits,
        with_stderr: bool,
    ) -> io::Result<Self> {
        let file = open_log(path)?;
        let size = file.metadata().map_or(0, |about| about.len());
        Ok(Self {
            path: path.to_owned(),
            limits,
            file,
            size,
            at_line_start: true,
            with_stderr,
            lost: None,
        })
    }

    /// Appends what a program has printed. A full disk does not stop the program: how much is lost
    /// is noted in the log later.
    pub(in crate::sandbox) fn write(&mut self, mut text: &[u8]) {
        if let Some((bytes, why)) = &self.lost {
            let line = if self.at_line_start { "" } else { "\n" };
            let note = format!("{line}culvert: {bytes} bytes of output are lost: {why}\n");
            match self.file.write_all(note.as_bytes()) {
                Ok(()) => {
                    self.size += note.len() as u64;
                    self.at_line_start = true;
                    self.lost = None;
                }
                Err(_) => return self.lose(text.len(), None),
            }
        }
        while !text.is_empty() {
            let room = usize::try_from(self.limits.max_size.saturating_sub(self.size));
            let room = room.unwrap_or(usize::MAX);
            let fits = text.get(..room).unwrap_or(text);
            if fits.len() == text.len() {
                return self.append(text);
            }
            let lines = fits.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            // A line that has begun in this file, or fills one alone, is cut.
            let cut =
                if lines > 0 || (self.at_line_start && self.size > 0) { lines } else { fits.len() };
            let (now, later) = text.split_at(cut);
            self.append(now);
            text = later;
            if let Err(error) = self.replace() {
                // The file becomes too large rather than to lose output.
                tracing::debug!(%error, "the log is not replaced");
                return self.append(text);
            }
        }
    }

    fn append(&mut self, text: &[u8]) {
        let mut rest = text;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return self.lose(rest.len(), Some(&io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    self.size += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.lose(rest.len(), Some(&error)),
            }
        }
        if let Some(last) = text.last() {
            self.at_line_start = *last == b'\n';
        }
    }

    fn lose(&mut self, bytes: usize, why: Option<&io::Error>) {
        let (lost, first) = self.lost.take().unwrap_or_default();
        let why = why.map_or(first, ToString::to_string);
        self.lost = Some((lost + bytes as u64, why));
    }

    /// Begins a new file. The oldest one is removed.
    fn replace(&mut self) -> io::Result<()> {
        if !self.is_ours()? {
            // The container was removed, and another may have its name. Nobody reads this any more.
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        // Made first: if that fails, everything is as before.
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        // One that is left over from a crash, or that somebody else has put there.
        let _ = fs::remove_file(&new);
        let file = append().create_new(true).open(&new)?;
        for age in (0..self.limits.max_files.saturating_sub(1)).rev() {
            match fs::rename(aged(&self.path, age), aged(&self.path, age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&new, &self.path)?;
        if self.with_stderr {
            // Standard error then stays with the older file, if at all.
            let _ = dup2_stderr(&file);
        }
        self.file = file;
        self.size = 0;
        self.at_line_start = true;
        Ok(())
    }

    /// Whether the file at the path is the one that is written to.
    fn is_ours(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match fs::symlink_metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A log that the pumps of several programs write to, one after the other.
#[derive(Clone)]
pub(in crate::sandbox) struct SharedLog(Arc<Mutex<LogWriter>>);

impl SharedLog {
    pub(in crate::sandbox) fn new(log: LogWriter) -> Self {
        Self(Arc::new(Mutex::new(log)))
    }

    /// As [`LogWriter::write`].
    pub(in crate::sandbox) fn write(&self, text: &[u8]) {
        // A thread that panicked with the lock held left a valid writer: at most a part of its text
        // is missing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(text);
    }
}

/// A task that brings what a program prints from a pipe to its log.
pub(in crate::sandbox) struct Pump {
    end: Option<oneshot::Sender<()>>,
    drained: Option<oneshot::Receiver<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Pump {
    /// Starts the task. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The pipe cannot be used.
    pub(in crate::sandbox) fn start(pipe: PipeReader, log: SharedLog) -> io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd(OwnedFd::from(pipe))?;
        let (end, ended) = oneshot::channel();
        let (done, drained) = oneshot::channel();
        let task = tokio::spawn(pump(pipe, log, ended, done));
        Ok(Self { end: Some(end), drained: Some(drained), task })
    }

    /// Waits until everything is in the log that was printed before the program's end.
    pub(in crate::sandbox) async fn drain(&mut self) {
        drop(self.end.take());
        if let Some(drained) = self.drained.take() {
            // An error means that the pipe has ended.
            let _ = drained.await;
        }
    }

    /// Waits until no process has the pipe open any more: the program's own children may outlive
    /// it, and they must not be killed by SIGPIPE.
    pub(in crate::sandbox) async fn finish(self) {
        let _ = self.task.await;
    }

    /// Whether no process has the pipe open any more.
    pub(in crate::sandbox) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

async fn pump(
    mut pipe: pipe::Receiver,
    log: SharedLog,
    ended: oneshot::Receiver<()>,
    drained: oneshot::Sender<()>,
) {
    let mut buffer = vec![0; CHUNK];
    tokio::pin!(ended);
    loop {
        tokio::select! {
            read = pipe.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(read) => log.write(buffer.get(..read).unwrap_or_default()),
            },
            _ = &mut ended => break,
        }
    }
    // The runtime may not know yet that the pipe can be read: the kernel is asked.
    loop {
        match read(&pipe, &mut buffer) {
            Ok(0) => return,
            Ok(read) => log.write(buffer.get(..read).unwrap_or_default()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    let _ = drained.send(());
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => log.write(buffer.get(..read).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::LogReader, *};

    fn all(path: &Path) -> String {
        let mut text = Vec::new();
        LogReader::open(path).unwrap().read_to(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn writer(path: &Path, max_size: u64, max_files: u32) -> LogWriter {
        LogWriter::open(path, LogLimits { max_size, max_files }, false).unwrap()
    }

    fn lines(path: &Path, age: u32) -> String {
        fs::read_to_string(aged(path, age)).unwrap()
    }

    #[test]
    fn a_log_is_replaced_between_lines_and_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut log = writer(&path, 10, 3);
        log.write(b"one\ntwo\nthree!\nfour");
        let files = [0, 1, 2].map(|age| lines(&path, age));
        assert_eq!(files, ["four", "three!\n", "one\ntwo\n"]);
        log.write(b" more\nlast\n");
        let files = [0, 1, 2].map(|age| lines(&path, age));
        assert_eq!(files, ["last\n", "four more\n", "three!\n"]);
        assert_eq!(all(&path), "three!\nfour more\nlast\n");
    }

    #[test]
    fn no_other_user_can_read_a_log_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, victim) = (dir.path().join("logs"), dir.path().join("victim"));
        let path = logs.join("c.log");
        fs::write(&victim, "theirs").unwrap();
        let mut log = writer(&path, 10, 2);
        std::os::unix::fs::symlink(&victim, logs.join("c.log.new")).unwrap();
        log.write(b"one\ntwo\nthree\n");
        assert_eq!((lines(&path, 0), lines(&path, 1)), ("three\n".into(), "one\ntwo\n".into()));
        for (path, mode) in [(&logs, 0o700), (&path, 0o600), (&aged(&path, 1), 0o600)] {
            let found = fs::metadata(path).unwrap().mode() & 0o777;
            assert_eq!(found, mode, "{}", path.display());
        }
        assert_eq!(fs::read(&victim).unwrap(), b"theirs");
        std::os::unix::fs::symlink(&victim, logs.join("d.log")).unwrap();
        assert!(open_log(&logs.join("d.log")).is_err());
    }

    #[test]
    fn no_byte_is_lost_as_long_as_there_are_files() {
        for chunk in [1, 3, 7, 100, 5000] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("c.log");
            let mut log = writer(&path, 100, 1000);
            let text: String = (0..500).map(|n| format!("{n}{}\n", "x".repeat(n % 150))).collect();
            for part in text.as_bytes().chunks(chunk) {
                log.write(part);
            }
            assert_eq!(all(&path), text, "{chunk}");
            for age in super::super::files::ages(&path).unwrap() {
                assert!(lines(&path, age).len() <= 100, "{chunk}");
            }
        }
    }

    #[test]
    fn the_oldest_file_goes() {
        for max_files in [1, 2, 4] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("c.log");
            let mut log = writer(&path, 10, max_files);
            let text: String = (10..60).map(|n| format!("line {n}\n")).collect();
            log.write(text.as_bytes());
            let kept = all(&path);
            assert!(text.ends_with(&kept), "{kept}");
            assert_eq!(kept.lines().count(), max_files as usize, "a line a file: {kept}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), max_files as usize);
        }
    }

    #[test]
    fn a_log_that_was_removed_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut log = writer(&path, 10, 2);
        log.write(b"old\n");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's\n").unwrap();
        for _ in 0..10 {
            log.write(b"old line\n");
        }
        assert_eq!(all(&path), "another's\n");
        assert!(log.file.metadata().unwrap().len() <= 10);
    }

    #[test]
    #[ignore = "needs root"]
    fn a_full_disk_costs_output_and_the_log_says_how_much() {
        let dir = tempfile::tempdir().unwrap();
        let small = crate::testing::SmallDisk::at(&dir.path().join("logs"), "64k");
        let path = small.path().join("c.log");
        let mut log = writer(&path, 1_000_000, 2);
        log.write(b"before\n");
        small.fill();
        // The rest of the page that the file has already is still there.
        let text = vec![b'x'; 8191];
        log.write(&text);
        log.write(b"\n");
        small.empty();
        log.write(b"after\n");
        let all = all(&path);
        let note = all.lines().find(|line| line.contains("culvert: ")).unwrap();
        assert!(note.contains("bytes of output are lost: No space left on device"), "{note}");
        let lost: usize =
            note.split("culvert: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let kept = all.matches('x').count();
        assert_eq!(kept + lost, text.len() + 1, "{note}");
        assert!(all.ends_with("after\n"));
    }
}
