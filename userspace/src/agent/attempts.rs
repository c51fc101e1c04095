//! Attempts to make an endpoint: a file `attempts/NETWORK~ID.json` in the state directory for each.
//!
//! If the store does not answer a commit in time, it may carry it out later. The request has failed
//! by then, and its endpoint would take address, name and ports for ever. The file is there before
//! the commit is sent, so that an agent that is killed meanwhile, or before the store answers again,
//! leaves the next one what is to be taken back. The name of the file says what that is, also if a
//! crash of the host has taken its contents.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize};

use super::files::{ATTEMPTS, remove_if_there, write_atomically, write_unsynced};
use crate::{
    model::{Name, SCHEMA, SandboxRef},
    private,
};

/// An attempt to attach a container to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Identifier of the endpoint, of this attempt alone.
    pub(crate) endpoint: String,
    /// Network, in the store's form.
    #[serde(deserialize_with = "stored")]
    pub(crate) network: Name,
    /// Container.
    pub(crate) container: Name,
    /// Culvert made the sandbox.
    pub(crate) owned: bool,
    /// The container existed before, and joins a network: its record does not tell whether the
    /// request was complete.
    #[serde(default)]
    pub(crate) joins: bool,
    /// The request has failed, and the endpoint is to be taken back. Otherwise the request was under
    /// way.
    pub(crate) failed: bool,
}

impl Attempt {
    /// An attempt that is under way.
    pub(crate) fn new(endpoint: String, network: Name, container: Name, owned: bool) -> Self {
        Self { schema: SCHEMA, endpoint, network, container, owned, joins: false, failed: false }
    }
}

fn stored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    let text = String::deserialize(deserializer)?;
    Name::from_store(&text).map_err(serde::de::Error::custom)
}

/// What an earlier agent has left.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// The attempts.
    pub(crate) attempts: Vec<Attempt>,
    /// Network and endpoint of the attempts of which nothing else is known.
    pub(crate) torn: Vec<(Name, String)>,
    /// Files that cannot be used, a line each.
    pub(crate) problems: Vec<String>,
}

/// Network and endpoint in the name of a file.
fn named(path: &Path) -> Option<(Name, String)> {
    let (network, endpoint) = path.file_stem()?.to_str()?.split_once('~')?;
    let is_id = !endpoint.is_empty() && endpoint.bytes().all(|byte| byte.is_ascii_hexdigit());
    let network = Name::from_store(network).ok()?;
    is_id.then(|| (network, endpoint.to_owned()))
}

/// The attempts of one agent.
#[derive(Debug)]
pub(crate) struct Attempts {
    directory: PathBuf,
    /// Those to take back, by endpoint.
    failed: Mutex<BTreeMap<String, Attempt>>,
    /// The namespaces of those that are under way, by endpoint.
    sandboxes: Mutex<BTreeMap<String, SandboxRef>>,
}

impl Attempts {
    /// The attempts in `STATE_DIR/attempts`.
    pub(crate) fn new(state_dir: &Path) -> Self {
        let directory = state_dir.join(ATTEMPTS);
        Self { directory, failed: Mutex::default(), sandboxes: Mutex::default() }
    }

    // A thread that panicked with the lock held left a valid map: it changes in one step.
    fn failed_mut(&self) -> MutexGuard<'_, BTreeMap<String, Attempt>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // As above.
    fn sandboxes_mut(&self) -> MutexGuard<'_, BTreeMap<String, SandboxRef>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // No name has a '~'.
    fn path(&self, network: &Name, endpoint: &str) -> PathBuf {
        self.directory.join(format!("{}~{endpoint}.json", network.as_str()))
    }

    /// The attempts of an earlier agent. A file whose contents are lost has network and endpoint in
    /// its name; one that has not is removed.
    pub(crate) fn earlier(&self) -> Earlier {
        let Earlier { mut attempts, mut torn, mut problems } = Earlier::default();
        for file in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = fs::read(&path).map_err(|error| error.to_string());
            let text = match read {
                Ok(text) => text,
                Err(error) => {
                    problems.push(format!("{}: skipped: {error}", path.display()));
                    continue;
                }
            };
            match serde_json::from_slice::<Attempt>(&text) {
                Ok(attempt) if attempt.schema > SCHEMA => {
                    let newer = format!("schema {} is newer than {SCHEMA}", attempt.schema);
                    problems.push(format!("{}: skipped: {newer}", path.display()));
                }
                Ok(attempt) => attempts.push(attempt),
                Err(error) => match named(&path) {
                    Some(named) => torn.push(named),
                    None => {
                        tracing::warn!("{}: removed, it is no attempt: {error}", path.display());
                        if let Err(error) = fs::remove_file(&path) {
                            problems.push(format!("{}: it stays: {error}", path.display()));
                        }
                    }
                },
            }
        }
        Earlier { attempts, torn, problems }
    }

    /// Notes an attempt before its commit is sent. It is not synchronised with the disk.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or written to.
    pub(crate) fn begin(&self, attempt: &Attempt) -> io::Result<()> {
        private::make_dir(&self.directory)?;
        let path = self.path(&attempt.network, &attempt.endpoint);
        write_unsynced(&path, &serde_json::to_vec(attempt)?)
    }

    /// Notes the namespace of an attempt that has begun, until the attempt ends or fails.
    pub(crate) fn agree(&self, endpoint: &str, sandbox: SandboxRef) {
        self.sandboxes_mut().insert(endpoint.to_owned(), sandbox);
    }

    /// Whether an attempt to make the endpoint in this namespace is under way.
    pub(crate) fn has_agreed(&self, endpoint: &str, sandbox: &SandboxRef) -> bool {
        self.sandboxes_mut().get(endpoint) == Some(sandbox)
    }

    /// Notes that an attempt is to be taken back.
    ///
    /// # Errors
    ///
    /// The directory cannot be written to. This agent takes it back nevertheless.
    pub(crate) fn fail(&self, attempt: &Attempt) -> io::Result<()> {
        let attempt = Attempt { failed: true, ..attempt.clone() };
        self.sandboxes_mut().remove(&attempt.endpoint);
        self.failed_mut().insert(attempt.endpoint.clone(), attempt.clone());
        private::make_dir(&self.directory)?;
        let path = self.path(&attempt.network, &attempt.endpoint);
        write_atomically(&path, &serde_json::to_vec(&attempt)?)
    }

    /// Notes that an attempt has succeeded, was refused, or is taken back.
    ///
    /// # Errors
    ///
    /// The file cannot be removed. The next agent finds it.
    pub(crate) fn end(&self, network: &Name, endpoint: &str) -> io::Result<()> {
        self.sandboxes_mut().remove(endpoint);
        self.failed_mut().remove(endpoint);
        remove_if_there(&self.path(network, endpoint))
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
    fn an_attempt_in_a_network_of_the_node_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let attempts = Attempts::new(dir.path());
        let network = Name::from_store("bridge@host1").unwrap();
        let attempt = Attempt::new("a1".to_owned(), network.clone(), "web".parse().unwrap(), true);
        attempts.begin(&attempt).unwrap();
        let path = dir.path().join(ATTEMPTS).join("bridge@host1~a1.json");
        assert!(path.exists());
        assert_eq!(attempts.earlier().attempts, [attempt]);
        fs::write(&path, "").unwrap();
        assert_eq!(attempts.earlier().torn, [(network, "a1".to_owned())]);
    }

    #[test]
    fn a_namespace_is_agreed_to_while_the_attempt_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let attempts = Attempts::new(dir.path());
        let network: Name = "net".parse().unwrap();
        let sandbox = SandboxRef { netns: "/run/netns/web".into(), owned: true, id: None };
        let theirs = SandboxRef { netns: "/run/netns/db".into(), ..sandbox.clone() };
        for fails in [false, true] {
            attempts.agree("a1", sandbox.clone());
            assert!(attempts.has_agreed("a1", &sandbox));
            assert!(!attempts.has_agreed("a1", &theirs) && !attempts.has_agreed("b2", &sandbox));
            if fails {
                let web = "web".parse().unwrap();
                let attempt = Attempt::new("a1".to_owned(), network.clone(), web, true);
                attempts.fail(&attempt).unwrap();
            } else {
                attempts.end(&network, "a1").unwrap();
            }
            assert!(!attempts.has_agreed("a1", &sandbox));
        }
    }

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
        attempts.end(&name("net"), "b2").unwrap();
        attempts.end(&name("net"), "b2").unwrap();
        attempts.fail(&three).unwrap();
        assert!(attempts.is_failed("c3") && !attempts.is_failed("a1"));
        assert_eq!(attempts.failed_of(&name("web")).len(), 1);
        assert!(attempts.failed_of(&name("db")).is_empty());

        let file = |name: &str| dir.path().join(ATTEMPTS).join(name);
        for (name, text) in [("net~d4.json", "{"), ("d5.json", ""), ("net~x.json", ""), ("no", "")]
        {
            fs::write(file(name), text).unwrap();
        }
        let newer = Attempt { schema: SCHEMA + 1, ..one.clone() };
        let text = serde_json::to_vec(&newer).unwrap();
        fs::write(file("net~e5.json"), text).unwrap();
        let next = Attempts::new(dir.path());
        let Earlier { attempts: mut found, torn, problems } = next.earlier();
        found.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
        assert_eq!(found, [one, Attempt { failed: true, ..three }]);
        assert_eq!(torn, [(name("net"), "d4".to_owned())]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(!file("d5.json").exists() && !file("net~x.json").exists() && file("no").exists());
        next.end(&name("net"), "c3").unwrap();
        next.end(&name("net"), "d4").unwrap();
        let left = next.earlier();
        assert_eq!((left.attempts.len(), left.torn.len()), (1, 0));
    }
}
