//! The options of `run` about the user and the capabilities of its command.

use std::ffi::CString;

use nix::{
    errno::Errno,
    unistd::{Gid, Group, Uid, User, getgrouplist},
};

use super::failure::Failure;
use crate::{
    model::{Account, Capabilities, CapabilityOption, Privileges, RunAs, UserOption},
    sandbox,
};

/// What the command may do. Names of users and groups are looked up in the host's databases.
///
/// # Errors
/// A user or group does not exist, or a capability of `--cap-add` cannot be had.
pub(super) fn privileges(
    user: Option<&UserOption>,
    drop: &[CapabilityOption],
    add: &[CapabilityOption],
) -> Result<Privileges, Failure> {
    for option in add {
        if let CapabilityOption::One(number) = option
            && !sandbox::may_have(*number)
        {
            return Err(Failure::refusal(format!(
                "--cap-add {option}: this process cannot hand it on: start 'culvert run' with it in the bounding set, or leave it out"
            )));
        }
    }
    let user = user.map(look_up).transpose()?;
    Ok(Privileges { user, capabilities: Capabilities::left_by(drop, add) })
}

/// User and groups, by number.
fn look_up(UserOption { user, group }: &UserOption) -> Result<RunAs, Failure> {
    let (uid, known) = match user {
        Account::Number(uid) => (*uid, User::from_uid(Uid::from_raw(*uid)).map_err(unread)?),
        Account::Name(name) => {
            let known = User::from_name(name).map_err(unread)?;
            let known = known.ok_or_else(|| missing("user", name))?;
            (known.uid.as_raw(), Some(known))
        }
    };
    let gid = match group {
        Some(Account::Number(gid)) => *gid,
        Some(Account::Name(name)) => {
            let known = Group::from_name(name).map_err(unread)?;
            known.ok_or_else(|| missing("group", name))?.gid.as_raw()
        }
        None => {
            let known = known.ok_or_else(|| {
                Failure::refusal(format!(
                    "--user {uid}: this host has no user of that number: name a group, too, as in {uid}:{uid}"
                ))
            })?;
            return Ok(RunAs { uid, gid: known.gid.as_raw(), groups: groups_of(&known)? });
        }
    };
    Ok(RunAs { uid, gid, groups: Vec::new() })
}

/// The groups of a user of the database.
fn groups_of(user: &User) -> Result<Vec<u32>, Failure> {
    let name = CString::new(user.name.as_str()).map_err(|_| missing("user", &user.name))?;
    let groups = getgrouplist(&name, user.gid).map_err(unread)?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

fn unread(errno: Errno) -> Failure {
    Failure::refusal(format!("--user: the users and groups of this host cannot be read: {errno}"))
}

fn missing(kind: &str, name: &str) -> Failure {
    Failure::refusal(format!(
        "--user: this host has no {kind} {name:?}: a name of 'getent {}', or a number, is valid",
        if kind == "user" { "passwd" } else { "group" }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Result<RunAs, String> {
        let option: UserOption = text.parse().unwrap();
        look_up(&option).map_err(|failure| {
            assert_eq!(failure.code, 1);
            failure.line.unwrap()
        })
    }

    #[test]
    fn users_and_groups_are_looked_up() {
        // Every host has root, with group 0.
        for text in ["0", "root"] {
            let root = user(text).unwrap();
            assert_eq!((root.uid, root.gid), (0, 0), "{text}");
            assert!(root.groups.contains(&0), "{text}");
        }
        let others = RunAs { uid: 4_294_000_001, gid: 4_294_000_002, groups: Vec::new() };
        assert_eq!(user("4294000001:4294000002"), Ok(others));
        assert_eq!(user("root:7"), Ok(RunAs { uid: 0, gid: 7, groups: Vec::new() }));
        for (text, words) in [
            ("culvert-nobody", "has no user \"culvert-nobody\""),
            ("root:culvert-nobody", "has no group \"culvert-nobody\""),
            ("4294000001", "as in 4294000001:4294000001"),
        ] {
            let line = user(text).unwrap_err();
            assert!(line.starts_with("--user") && line.contains(words), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
    }

    #[test]
    fn a_capability_that_no_program_can_have_is_refused() {
        let (drop, add) = ([CapabilityOption::All], [CapabilityOption::One(63)]);
        let failure = privileges(None, &drop, &add).unwrap_err();
        assert_eq!(failure.code, 1);
        let none = privileges(None, &drop, &[]).unwrap();
        assert_eq!(
            none,
            Privileges { user: None, capabilities: Capabilities::left_by(&drop, &[]) }
        );
        assert!(privileges(None, &[], &[]).unwrap().is_default());
    }
}
