//! Names of the files of a log: `LOG`, and the older ones `LOG.1`, `LOG.2` and so on.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Size of a log. The names of the options are Docker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// `max-size`: size of a file in bytes.
    pub max_size: u64,
    /// `max-file`: number of files, the current one included.
    pub max_files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { max_size: 10_000_000, max_files: 2 }
    }
}

/// The path of the file that was `LOG` until `age` replacements ago. Age 0 is `LOG` itself.
pub(super) fn aged(log: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return log.to_owned();
    }
    let mut path = OsString::from(log);
    path.push(format!(".{age}"));
    path.into()
}

/// The ages of the files of a log that exist now, in no order.
pub(super) fn ages(log: &Path) -> io::Result<Vec<u32>> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else {
        return Ok(Vec::new());
    };
    let name = name.to_string_lossy();
    let mut found = Vec::new();
    for file in fs::read_dir(directory)? {
        let file = file?.file_name();
        let Some(rest) = file.to_str().and_then(|file| file.strip_prefix(&*name)) else { continue };
        let age = if rest.is_empty() { Some(0) } else { age(rest) };
        found.extend(age);
    }
    Ok(found)
}

/// Parses a suffix such as `.1` as an age.
fn age(suffix: &str) -> Option<u32> {
    let digits = suffix.strip_prefix('.')?;
    let age: u32 = digits.parse().ok()?;
    // A suffix such as `.01` is of a file that does not belong to the log.
    (age > 0 && age.to_string() == digits).then_some(age)
}

/// Removes all files of a log. It is no error if there is none.
///
/// # Errors
/// A file cannot be removed.
pub fn remove_log(log: &Path) -> io::Result<()> {
    let found = match ages(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    for age in found {
        match fs::remove_file(aged(log, age)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_of_the_log_itself_are_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a.log");
        remove_log(&dir.path().join("nowhere/a.log")).unwrap();
        let others = ["b.log", "a.log.x", "a.log.01", "a.log.0", "a.log.1.log", "ba.log.1"];
        for name in others.iter().chain(&["a.log", "a.log.1", "a.log.12"]) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut found = ages(&log).unwrap();
        found.sort_unstable();
        assert_eq!(found, [0, 1, 12]);
        remove_log(&log).unwrap();
        assert!(ages(&log).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), others.len());
    }
}
