//! Identity of this host: the name of its node, the machine and the process.

use std::{fs, path::Path};

use super::files;
use crate::{
    config::{AgentOptions, DEFAULT_BPFFS, DEFAULT_SOCKET, DEFAULT_STATE_DIR},
    model::{Alive, Machine, Name},
};

/// The name of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Name of the node.
    pub(super) name: Name,
    /// One line, if the host name differs from the name of the node and `--node` is not given.
    pub(super) problem: Option<String>,
}

/// The name of this node. At the first start the name is the value of `--node`, or the host name.
/// Later starts use the name under which the node was registered, so that a host whose name changes
/// keeps its containers.
///
/// # Errors
///
/// `--node` differs from the registered name, or there is no valid name. The error is one line.
pub(super) fn name(options: &AgentOptions) -> Result<Named, String> {
    let path = files::name_path(&options.state_dir);
    let kept = files::kept_name(&options.state_dir)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let host = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .map_err(|errno| format!("the host name cannot be read ({errno}): give --node NAME"));
    choose(options.node.as_ref(), kept, host, &purge_command(options))
}

fn choose(
    given: Option<&Name>,
    kept: Option<Name>,
    host: Result<String, String>,
    purge: &str,
) -> Result<Named, String> {
    match (given, kept) {
        (Some(given), Some(kept)) if *given != kept => Err(format!(
            "--node {given}: this host is node '{kept}' already: start with --node {kept}, or run '{purge}' first, which removes its containers"
        )),
        (Some(name), _) => Ok(Named { name: name.clone(), problem: None }),
        (None, Some(name)) => {
            let other = host.ok().filter(|host| *host != name.as_str());
            let problem = other.map(|host| {
                format!(
                    "host name is now {}; this node stays {name}: start with --node {name} to end this line, or run '{purge}' and start again to take the new name, which removes the containers",
                    host.escape_default()
                )
            });
            Ok(Named { name, problem })
        }
        (None, None) => {
            let host = host?;
            let name = host
                .parse()
                .map_err(|_| format!("host name {host:?} cannot name a node: give --node NAME"))?;
            Ok(Named { name, problem: None })
        }
    }
}

/// The command that purges this host when no agent runs.
fn purge_command(options: &AgentOptions) -> String {
    let paths = [
        ("--state-dir", &options.state_dir, DEFAULT_STATE_DIR),
        ("--bpffs", &options.bpffs, DEFAULT_BPFFS),
        ("--socket", &options.socket, DEFAULT_SOCKET),
    ];
    let given = paths.iter().filter(|(_, path, default)| path.as_path() != Path::new(default));
    let given = given.map(|(option, path, _)| format!(" {option} {}", path.display()));
    format!("culvert purge{}", given.collect::<String>())
}

/// The liveness record of an agent on this machine. `id` is the identifier of its node, and `run`
/// identifies its process.
pub(super) fn alive(id: String, run: &str) -> Alive {
    Alive { run: run.to_owned(), machine: machine(), ..Alive::new(id) }
}

/// The machine ID and the boot ID of this host. If a file cannot be read, its field is empty, and
/// [`Machine::differs_from`] compares only the other field.
fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let machine_id = read("/etc/machine-id").unwrap_or_default();
    Machine {
        // machine-id(5): 32 digits, or `uninitialized` during the first boot.
        machine_id: Some(machine_id).filter(|id| id.len() == 32).unwrap_or_default(),
        boot_id: read("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(given: Option<&str>, kept: Option<&str>, host: &str) -> Result<Named, String> {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let host = if host.is_empty() { Err("unreadable".to_owned()) } else { Ok(host.to_owned()) };
        choose(given.map(name).as_ref(), kept.map(name), host, "culvert purge")
    }

    #[test]
    fn a_node_keeps_its_name_when_the_host_gets_another() {
        let named = |given, kept, host| {
            let Named { name, problem } = chosen(given, kept, host).unwrap();
            (name.to_string(), problem)
        };
        assert_eq!(named(None, None, "old"), ("old".to_owned(), None));
        assert_eq!(named(None, Some("old"), "old"), ("old".to_owned(), None));
        assert_eq!(named(Some("mine"), None, "old"), ("mine".to_owned(), None));
        // `--node` is given: the host name does not matter.
        assert_eq!(named(Some("mine"), Some("mine"), "old"), ("mine".to_owned(), None));
        assert_eq!(named(None, Some("old"), ""), ("old".to_owned(), None));
        for host in ["new", "not a node's name"] {
            let (name, problem) = named(None, Some("old"), host);
            assert_eq!(name, "old");
            let problem = problem.unwrap();
            assert!(problem.starts_with("host name is now ne") || host != "new", "{problem}");
            assert!(problem.contains("; this node stays old: "), "{problem}");
        }
    }

    #[test]
    fn another_name_than_before_is_refused_with_the_way_out() {
        let refused = chosen(Some("new"), Some("old"), "new").unwrap_err();
        assert!(
            refused.contains("start with --node old, or run 'culvert purge' first"),
            "{refused}"
        );
        assert!(chosen(None, None, "not a name").unwrap_err().contains("give --node"));
        assert_eq!(chosen(None, None, "").unwrap_err(), "unreadable");
    }

    #[test]
    fn an_agent_knows_its_machine_and_its_process() {
        let [one, two] = ["1", "2"].map(|run| alive("0a".to_owned(), run));
        assert_eq!(one.machine.boot_id.len(), 36, "{one:?}");
        assert!(!one.machine.differs_from(&two.machine));
        assert_eq!((one.run.as_str(), two.run.as_str()), ("1", "2"));
    }
}
