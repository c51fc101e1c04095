//! The capabilities of the agent (capabilities(7)). It gives up those that it does not need.
//!
//! The programs that the agent starts are supervisors of commands (`run --restart`). They need all
//! capabilities that a command of root has. A program that root executes gets those of the bounding
//! set (capabilities(7), "Capabilities and execution of programs by root"), so the bounding set stays
//! as it is. This does not hold with `no_new_privs` or with the secure bit `NO_ROOT`, nor for another
//! user than root. The agent then keeps all that it has.
//!
//! With `--seccomp on` the starter starts the supervisors. The agent starts it before it gives
//! anything up ([`super::seccomp`]), so they have all capabilities in any case.

use std::sync::OnceLock;

use nix::unistd::{geteuid, getuid};
use rustix::{
    io,
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities,
        capabilities_secure_bits, no_new_privs, set_capabilities,
    },
};

/// What the agent needs, with the reasons.
const NEEDED: [(CapabilitySet, &str); 11] = [
    (CapabilitySet::NET_ADMIN, "devices, addresses, routes, programs on interfaces"),
    (CapabilitySet::NET_RAW, "announces addresses that have moved (packet sockets)"),
    (CapabilitySet::NET_BROADCAST, "hears of changes in the namespaces of containers"),
    (CapabilitySet::NET_BIND_SERVICE, "published ports below 1024"),
    (CapabilitySet::SYS_ADMIN, "enters namespaces, mounts, finds BPF objects by their numbers"),
    (CapabilitySet::BPF, "loads programs, makes maps"),
    (CapabilitySet::PERFMON, "programs that compare pointers and run without speculation barriers"),
    (CapabilitySet::SYS_PTRACE, "namespaces, programs and open files of other processes in /proc"),
    (CapabilitySet::KILL, "ends commands that run as another user"),
    (CapabilitySet::DAC_OVERRIDE, "keys, working directories and namespaces of other users"),
    (CapabilitySet::SYS_RESOURCE, "writes to the blocks of a full disk that are kept for root"),
];

/// Whether `no_new_privs` was set when [`give_up`] was called. Noted there because the agent sets
/// it for itself later.
static LIMITED: OnceLock<bool> = OnceLock::new();

/// What [`give_up`] has done, for the log, which is not set up then.
static DONE: OnceLock<KeptCapabilities> = OnceLock::new();

/// The capabilities that the agent has kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KeptCapabilities {
    /// Those of [`NEEDED`] that it had.
    Needed,
    /// All, and why.
    All(String),
}

/// Gives up the capabilities that the agent does not need. Must be called while the process has one
/// thread: capabilities belong to threads, and new ones inherit them.
pub(super) fn give_up() {
    let _ = LIMITED.set(has_no_new_privs());
    let kept = limit()
        .unwrap_or_else(|errno| KeptCapabilities::All(format!("the kernel refuses: {errno}")));
    let _ = DONE.set(kept);
}

/// Writes to the log what [`give_up`] has done, if it was called.
pub(super) fn tell() {
    match DONE.get() {
        None => {}
        Some(KeptCapabilities::Needed) => {
            for (capability, reason) in NEEDED {
                tracing::debug!("capability {capability:?} is kept: {reason}");
            }
        }
        Some(KeptCapabilities::All(why)) => {
            tracing::info!("capabilities: those that are not needed are kept, too: {why}");
        }
    }
}

/// Whether commands that are started again cannot gain privileges, which those of `run` can: the
/// unit of the agent sets `NoNewPrivileges=`.
pub(super) fn are_limited() -> bool {
    LIMITED.get().copied().unwrap_or_else(has_no_new_privs)
}

fn has_no_new_privs() -> bool {
    no_new_privs().unwrap_or(false)
}

fn needed() -> CapabilitySet {
    NEEDED.iter().fold(CapabilitySet::empty(), |all, (capability, _)| all.union(*capability))
}

/// Takes from the calling thread what the agent does not need.
fn limit() -> io::Result<KeptCapabilities> {
    let now = capabilities(None)?;
    if let Some(why) = reason_to_keep_all(now)? {
        return Ok(KeptCapabilities::All(why.to_owned()));
    }
    let needed = needed();
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective.intersection(needed),
            permitted: now.permitted.intersection(needed),
            inheritable: now.inheritable,
        },
    )?;
    Ok(KeptCapabilities::Needed)
}

/// Why a program that this thread starts would not get all capabilities back, or why the agent
/// itself would miss one that it gives up. `None`: neither is so.
fn reason_to_keep_all(now: CapabilitySets) -> io::Result<Option<&'static str>> {
    Ok(if !geteuid().is_root() || !getuid().is_root() {
        Some("commands that are started again would not get them back, since the user is not root")
    } else if no_new_privs()? {
        Some("commands that are started again would not get them back, with no_new_privs")
    } else if capabilities_secure_bits()?.contains(CapabilitiesSecureBits::NO_ROOT) {
        Some("commands that are started again would not get them back, with the secure bit NO_ROOT")
    } else if !now.permitted.contains(CapabilitySet::SYS_PTRACE) {
        // Without it a process can look only at processes that have no more capabilities.
        Some("CAP_SYS_PTRACE is missing, and containers would have more than the agent")
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use rustix::thread::set_no_new_privs;

    use super::*;

    /// The capabilities of a program that the calling thread starts: inheritable, permitted,
    /// effective, bounding and ambient ones.
    fn of_a_program() -> String {
        let output = Command::new("grep").args(["^Cap", "/proc/self/status"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a test on a thread of its own, whose capabilities are its own.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn the_agent_has_what_it_needs_and_its_programs_have_all() {
        let before = of_a_program();
        on_a_thread(move || {
            assert_eq!(limit(), Ok(KeptCapabilities::Needed));
            let now = capabilities(None).unwrap();
            assert_eq!(now.effective, now.permitted);
            assert!(needed().contains(now.permitted), "{:?}", now.permitted);
            assert!(!now.permitted.contains(CapabilitySet::SYS_MODULE));
            assert_eq!(of_a_program(), before);
            assert_eq!(limit(), Ok(KeptCapabilities::Needed), "again, as after a restart in place");
        });
    }

    #[test]
    fn the_strict_unit_leaves_what_the_agent_needs() {
        let file = "/../packaging/systemd/culvert.service.d/strict.conf";
        let path = format!("{}{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap().replace("\\\n", " ");
        let left = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let mut left: Vec<String> = left.unwrap().split_whitespace().map(str::to_owned).collect();
        let mut needed: Vec<String> =
            needed().iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
        left.sort();
        needed.sort();
        assert_eq!(left, needed);
    }

    #[test]
    #[ignore = "needs root"]
    fn all_is_kept_where_programs_would_not_get_it_back() {
        let before = of_a_program();
        on_a_thread(move || {
            set_no_new_privs(true).unwrap();
            let kept = limit().unwrap();
            assert!(
                matches!(&kept, KeptCapabilities::All(why) if why.contains("no_new_privs")),
                "{kept:?}"
            );
            assert!(are_limited());
            assert_eq!(of_a_program(), before);
        });
        on_a_thread(|| {
            let CapabilitySets { effective, permitted, inheritable } = capabilities(None).unwrap();
            let without = |set: CapabilitySet| set.difference(CapabilitySet::SYS_PTRACE);
            let (effective, permitted) = (without(effective), without(permitted));
            let sets = CapabilitySets { effective, permitted, inheritable };
            set_capabilities(None, sets).unwrap();
            assert!(
                matches!(limit().unwrap(), KeptCapabilities::All(why) if why.contains("CAP_SYS_PTRACE"))
            );
            assert_eq!(capabilities(None).unwrap(), sets);
        });
    }
}
