//! Reads a log while it is written to and its files are replaced.

use std::{
    collections::BTreeSet,
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::files::{aged, ages};

/// Device and inode of a file.
type FileId = (u64, u64);

fn id(about: &Metadata) -> FileId {
    (about.dev(), about.ino())
}

/// A log that is read from its oldest file on.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// The files to read, the oldest first. An open file keeps its inode from being used again.
    files: Vec<(FileId, File)>,
}

impl LogReader {
    /// Opens the files of the log.
    ///
    /// # Errors
    /// The log has no file, or a file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let files = open_all(path)?;
        if files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { path: path.to_owned(), files })
    }

    /// Writes to `out` the bytes that were added since the last call.
    ///
    /// # Errors
    /// A file cannot be read, or `out` cannot be written to.
    pub fn read_to(&mut self, out: &mut dyn Write) -> Result<(), ReadError> {
        self.drain(out)?;
        // A replaced file does not grow any more: it is read to its end once more.
        while self.is_replaced().map_err(ReadError::Log)? {
            self.drain(out)?;
            // The last file stays open until the next files are open, so that its inode is not used
            // again before.
            let Some(held) = self.files.pop() else { return Ok(()) };
            let mut all = open_all(&self.path).map_err(ReadError::Log)?;
            // If the last file that was read is gone, the files before it are gone too.
            if let Some(place) = all.iter().position(|(id, _)| *id == held.0) {
                all.drain(..=place);
            }
            if all.is_empty() {
                self.files.push(held);
                return Ok(());
            }
            self.files = all;
            self.drain(out)?;
        }
        Ok(())
    }

    /// Reads all files to their ends. The last file stays open.
    fn drain(&mut self, out: &mut dyn Write) -> Result<(), ReadError> {
        let mut buffer = vec![0; 64 << 10];
        for (_, file) in &mut self.files {
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => out
                        .write_all(buffer.get(..read).unwrap_or_default())
                        .map_err(ReadError::Out)?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(ReadError::Log(error)),
                }
            }
        }
        let last = self.files.len().saturating_sub(1);
        self.files.drain(..last);
        Ok(())
    }

    /// Whether the current file is another one. Between two files there is none for a moment.
    fn is_replaced(&self) -> io::Result<bool> {
        let Some((last, _)) = self.files.last() else { return Ok(false) };
        match fs::metadata(&self.path) {
            Ok(present) => Ok(id(&present) != *last),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Why a log is not read further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(io::Error),
    /// The output cannot be written to.
    #[error(transparent)]
    Out(io::Error),
}

/// Opens all files of a log, the oldest first. The search begins at the current file: a file that
/// is replaced meanwhile is found twice then, and never missed.
fn open_all(path: &Path) -> io::Result<Vec<(FileId, File)>> {
    let oldest = match ages(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?.into_iter().max().unwrap_or(0),
    };
    let mut files = Vec::new();
    let mut met = BTreeSet::new();
    for age in 0..=oldest.saturating_add(1) {
        match File::open(aged(path, age)) {
            Ok(file) => {
                let id = id(&file.metadata()?);
                if met.insert(id) {
                    files.push((id, file));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.reverse();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{LogLimits, LogWriter},
        *,
    };

    /// A reader that keeps up sees every byte once, whenever the files are replaced.
    #[test]
    fn a_reader_follows_over_replaced_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let limits = LogLimits { max_size: 50, max_files: 100 };
        let mut log = LogWriter::open(&path, limits, false).unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        let (mut written, mut seen) = (String::new(), Vec::new());
        for n in 0..300 {
            let line = format!("line {n}\n");
            log.write(line.as_bytes());
            written.push_str(&line);
            if n % 37 == 0 || n % 5 == 1 {
                reader.read_to(&mut seen).unwrap();
                assert_eq!(str::from_utf8(&seen).unwrap(), written);
            }
        }
        reader.read_to(&mut seen).unwrap();
        assert_eq!(str::from_utf8(&seen).unwrap(), written);
    }

    #[test]
    fn a_reader_that_is_too_slow_goes_on_with_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let limits = LogLimits { max_size: 10, max_files: 2 };
        let mut log = LogWriter::open(&path, limits, false).unwrap();
        log.write(b"one\n");
        let mut reader = LogReader::open(&path).unwrap();
        for word in ["two\n", "three\n", "four\n", "five\n", "six\n", "seven\n", "eight\n"] {
            log.write(word.as_bytes());
        }
        let mut seen = Vec::new();
        reader.read_to(&mut seen).unwrap();
        assert_eq!(str::from_utf8(&seen).unwrap(), "one\ntwo\nsix\nseven\neight\n");
        assert!(LogReader::open(&dir.path().join("d.log")).is_err());
    }
}
