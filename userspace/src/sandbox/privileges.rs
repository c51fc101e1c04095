//! What a program in a sandbox may do: its user and its capabilities (credentials(7),
//! capabilities(7)).
//!
//! The thread that starts a program goes on mounting files for it and waits for its end. So it keeps
//! its own user and capabilities. What it changes of itself is the bounding set, which limits the
//! programs that are executed. User and groups are changed in the new process, before it executes
//! the program.

use std::{io, os::fd::AsFd};

use nix::unistd::{self, fchown};
use rustix::{
    io::Errno,
    process::{Gid, Uid},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_thread_gid, set_thread_groups, set_thread_uid,
    },
};

use crate::model::{Capabilities, Privileges, RunAs};

/// Whether a program that this process starts can have a capability. The kernel does not know every
/// number.
pub fn may_have(number: u8) -> bool {
    capability_is_in_bounding_set(set_of(number)).unwrap_or(false)
}

fn set_of(number: u8) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1_u64.checked_shl(number.into()).unwrap_or(0))
}

/// User and groups that a new process takes before it executes its program.
pub(super) struct Identity {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
}

impl Identity {
    /// Takes user and groups for the calling process, which must have one thread. Makes system calls
    /// alone and allocates nothing, as is necessary between fork and exec.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn take(&self) -> io::Result<()> {
        // The kernel itself clears the ambient set only if the thread's user is root.
        clear_ambient_capability_set()?;
        // The user last: the calls before need its privileges.
        set_thread_groups(&self.groups)?;
        set_thread_gid(self.group)?;
        Ok(set_thread_uid(self.user)?)
    }

    /// Gives a pipe to the user, so that a program can open it again as `/dev/stdout`. A program that
    /// only writes to it does not need that, so an error is ignored.
    pub(super) fn own(&self, pipe: impl AsFd) {
        let user = unistd::Uid::from_raw(self.user.as_raw());
        let group = unistd::Gid::from_raw(self.group.as_raw());
        let _ = fchown(pipe, Some(user), Some(group));
    }
}

/// Limits the programs that the calling thread executes from now on. Returns the identity that the
/// new process has to take. The thread itself keeps its user and its effective capabilities.
///
/// # Errors
/// One line: the thread lacks the privilege, or the kernel refuses.
pub(super) fn confine(privileges: &Privileges) -> Result<Option<Identity>, String> {
    privileges.check().map_err(|invalid| invalid.to_string())?;
    let identity = match &privileges.user {
        None => None,
        Some(user) => Some(identity(user)?),
    };
    if let Some(kept) = privileges.capabilities {
        bound(kept)?;
    }
    Ok(identity)
}

fn identity(user: &RunAs) -> Result<Identity, String> {
    let own = capabilities(None).map_err(|errno| refused("--user", errno))?;
    if !own.effective.contains(CapabilitySet::SETUID.union(CapabilitySet::SETGID)) {
        return Err("--user: it needs CAP_SETUID and CAP_SETGID: use it as root".to_owned());
    }
    let RunAs { uid, gid, groups } = user;
    Ok(Identity {
        user: Uid::from_raw(*uid),
        group: Gid::from_raw(*gid),
        groups: groups.iter().map(|group| Gid::from_raw(*group)).collect(),
    })
}

/// Takes all capabilities but `kept` from the bounding set and the inheritable set of the calling
/// thread. The ambient set follows the inheritable one.
fn bound(kept: Capabilities) -> Result<(), String> {
    for number in 0..64 {
        let capability = set_of(number);
        match capability_is_in_bounding_set(capability) {
            // The kernel has no further ones.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(refused("--cap-drop", errno)),
            Ok(true) if !kept.contains(number) => {
                remove_capability_from_bounding_set(capability)
                    .map_err(|errno| refused("--cap-drop", errno))?;
            }
            Ok(_) => {}
        }
    }
    let kept: CapabilitySet = (0..64).filter(|number| kept.contains(*number)).map(set_of).collect();
    let CapabilitySets { effective, permitted, inheritable } =
        capabilities(None).map_err(|errno| refused("--cap-drop", errno))?;
    let inheritable = inheritable.intersection(kept);
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable })
        .map_err(|errno| refused("--cap-drop", errno))
}

fn refused(option: &str, errno: Errno) -> String {
    if errno == Errno::PERM {
        format!("{option}: it needs CAP_SETPCAP: use it as root")
    } else {
        format!("{option}: the kernel refuses: {errno}")
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;
    use crate::model::CapabilityOption;

    /// The lines of `/proc/self/status` of a program that the calling thread starts, by name.
    fn of_a_program() -> Vec<(String, String)> {
        let output = Command::new("cat").arg("/proc/self/status").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    fn value(status: &[(String, String)], name: &str) -> String {
        status.iter().find(|(found, _)| found == name).unwrap().1.clone()
    }

    #[test]
    #[ignore = "needs root"]
    fn programs_have_the_capabilities_that_are_left_and_the_thread_its_own() {
        let options = |text: &str| -> Vec<CapabilityOption> {
            text.split_whitespace().map(|name| name.parse().unwrap()).collect()
        };
        for (drop, add, left) in [
            ("ALL", "", "0000000000000000"),
            ("ALL", "NET_RAW", "0000000000002000"),
            ("ALL", "NET_RAW CHOWN", "0000000000002001"),
        ] {
            let capabilities_left = Capabilities::left_by(&options(drop), &options(add));
            let privileges = Privileges { user: None, capabilities: capabilities_left };
            thread::spawn(move || {
                let before = capabilities(None).unwrap();
                assert!(confine(&privileges).unwrap().is_none());
                assert_eq!(capabilities(None).unwrap().effective, before.effective);
                let status = of_a_program();
                for set in ["CapPrm", "CapEff", "CapBnd"] {
                    assert_eq!(value(&status, set), left, "{drop} {add}: {set}");
                }
                assert_eq!(value(&status, "CapInh"), "0000000000000000");
            })
            .join()
            .unwrap();
        }
        assert!(may_have(13) && !may_have(63) && !may_have(200));
    }

    #[test]
    #[ignore = "needs root"]
    fn a_process_takes_user_and_groups() {
        use std::os::unix::process::CommandExt as _;
        let user = RunAs { uid: 4711, gid: 4712, groups: vec![4713, 4714] };
        let privileges = Privileges { user: Some(user), capabilities: None };
        let identity = confine(&privileges).unwrap().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "id -u; id -g; id -G; grep CapEff /proc/self/status"]);
        // SAFETY: between fork and exec this makes system calls alone and allocates nothing.
        unsafe {
            command.pre_exec(move || identity.take());
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "4711\n4712\n4712 4713 4714\nCapEff:\t0000000000000000\n");
    }
}
