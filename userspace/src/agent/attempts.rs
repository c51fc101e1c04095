//! Attempts to make an endpoint: a file `attempts/ID.json` in the state directory for each.
//!
//! If the store does not answer a commit in time, it may carry it out later. The request has failed
//! by then, and its endpoint would take address, name and ports for ever. The file is there before
//! the commit is sent, so that an agent that is killed meanwhile, or before the store answers again,
//! leaves the next one what is to be taken back.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::files::{ATTEMPTS, write_atomically};
use crate::model::{Name, SCHEMA};

/// An attempt to attach a container to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Identifier of the endpoint, of this attempt alone.
    pub(crate) endpoint: String,
    /// Network.
    pub(crate) network: Name,
    /// Container.
    pub(crate) container: Name,
    /// Culvert made the sandbox.
    pub(crate) owned: bool,
    /// The request has failed, and the endpoint is to be taken back. Otherwise the request was under
    /// way.
    pub(crate) failed: bool,
}

impl Attempt {
    /// An attempt that is under way.
    pub(crate) fn new(endpoint: String, network: Name, container: Name, owned: bool) -> Self {
        Self { schema: SCHEMA, endpoint, network, container, owned, failed: false }
    }
}

/// The attempts of one agent.
#[derive(Debug)]
pub(crate) struct Attempts {
    directory: PathBuf,
    /// Those to take back, by endpoint.
    failed: Mutex<BTreeMap<String, Attempt>>,
}

impl Attempts {
    /// The attempts in `STATE_DIR/attempts`.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join(ATTEMPTS), failed: Mutex::default() }
    }

    // A thread that panicked with the lock held left a valid map: it changes in one step.
    fn failed_mut(&self) -> MutexGuard<'_, BTreeMap<String, Attempt>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, endpoint: &str) -> PathBuf {
        self.directory.join(format!("{endpoint}.json"))
    }

    /// The attempts of an earlier agent, and the files that cannot be read, a line each.
    pub(crate) fn earlier(&self) -> (Vec<Attempt>, Vec<String>) {
        let (mut attempts, mut problems) = (Vec::new(), Vec::new());
        for file in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = fs::read(&path).map_err(|error| error.to_string());
            let parsed = read.and_then(|text| {
                serde_json::from_slice::<Attempt>(&text).map_err(|error| error.to_string())
            });
            match parsed {
                Ok(attempt) if attempt.schema > SCHEMA => {
                    let newer = format!("schema {} is newer than {SCHEMA}", attempt.schema);
                    problems.push(format!("{}: skipped: {newer}", path.display()));
                }
                Ok(attempt) => attempts.push(attempt),
                Err(error) => problems.push(format!("{}: skipped: {error}", path.display())),
            }
        }
        (attempts, problems)
    }

    /// Notes an attempt before its commit is sent. It is not synchronised with the disk.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or written to.
    pub(crate) fn begin(&self, attempt: &Attempt) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        fs::write(self.path(&attempt.endpoint), serde_json::to_vec(attempt)?)
    }

    /// Notes that an attempt is to be taken back.
    ///
    /// # Errors
    ///
    /// The directory cannot be written to. This agent takes it back nevertheless.
    pub(crate) fn fail(&self, attempt: &Attempt) -> io::Result<()> {
        let attempt = Attempt { failed: true, ..attempt.clone() };
        self.failed_mut().insert(attempt.endpoint.clone(), attempt.clone());
        fs::create_dir_all(&self.directory)?;
        write_atomically(&self.path(&attempt.endpoint), &serde_json::to_vec(&attempt)?)
    }

    /// Notes that an attempt has succeeded, was refused, or is taken back.
    ///
    /// # Errors
    ///
    /// The file cannot be removed. The next agent finds it.
    pub(crate) fn end(&self, endpoint: &str) -> io::Result<()> {
        self.failed_mut().remove(endpoint);
        match fs::remove_file(self.path(endpoint)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether an attempt is still to be taken back.
    pub(crate) fn is_failed(&self, endpoint: &str) -> bool {
        self.failed_mut().contains_key(endpoint)
    }

    /// The attempts of a container that are to be taken back.
    pub(crate) fn failed_of(&self, container: &Name) -> Vec<Attempt> {
        let failed = self.failed_mut();
        failed.values().filter(|attempt| attempt.container == *container).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_found_by_the_next_agent_until_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let attempts = Attempts::new(dir.path());
        let [one, two, three] = ["a1", "b2", "c3"]
            .map(|id| Attempt::new(id.to_owned(), name("net"), name("web"), true));
        for attempt in [&one, &two, &three] {
            attempts.begin(attempt).unwrap();
        }
        attempts.end("b2").unwrap();
        attempts.end("b2").unwrap();
        attempts.fail(&three).unwrap();
        assert!(attempts.is_failed("c3") && !attempts.is_failed("a1"));
        assert_eq!(attempts.failed_of(&name("web")).len(), 1);
        assert!(attempts.failed_of(&name("db")).is_empty());

        fs::write(dir.path().join(ATTEMPTS).join("d4.json"), "{").unwrap();
        let newer = Attempt { schema: SCHEMA + 1, ..one.clone() };
        let text = serde_json::to_vec(&newer).unwrap();
        fs::write(dir.path().join(ATTEMPTS).join("e5.json"), text).unwrap();
        let next = Attempts::new(dir.path());
        let (mut found, problems) = next.earlier();
        found.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        assert_eq!(found, [one, Attempt { failed: true, ..three }]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        next.end("c3").unwrap();
        assert_eq!(next.earlier().0.len(), 1);
    }
}
