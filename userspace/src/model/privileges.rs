//! `--user`, `--cap-drop` and `--cap-add`: what the command of a container may do. The values and
//! their combination are Docker's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Names of the capabilities without `CAP_`, by number (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Greatest number of supplementary groups of a process (`NGROUPS_MAX`, linux/limits.h).
const MAX_GROUPS: usize = 65_536;

/// Value of `--cap-drop` and `--cap-add`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityOption {
    /// `ALL`.
    All,
    /// A capability, by its number.
    One(u8),
}

impl CapabilityOption {
    fn mask(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::One(number) => 1_u64.checked_shl(number.into()).unwrap_or(0),
        }
    }
}

impl FromStr for CapabilityOption {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let upper = text.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(Self::All);
        }
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|known| *known == name);
        let number = number.and_then(|number| u8::try_from(number).ok());
        number.map(Self::One).ok_or_else(|| {
            Invalid(format!(
                "capability {text:?} is unknown: a name of capabilities(7) as in NET_RAW, or ALL, is valid"
            ))
        })
    }
}

impl fmt::Display for CapabilityOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::All => "ALL",
            Self::One(number) => NAMES.get(usize::from(*number)).copied().unwrap_or("unknown"),
        };
        f.write_str(name)
    }
}

/// A set of capabilities: one bit each, by number. As text it has 16 hexadecimal digits, as in
/// `/proc/PID/status` (proc_pid_status(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capabilities(u64);

impl Capabilities {
    /// The capabilities that are left by values of `--cap-drop` and `--cap-add`. A capability that
    /// is named in both is left, and of `ALL` in both everything but the dropped ones. `None`: there
    /// are no values.
    pub fn left_by(drop: &[CapabilityOption], add: &[CapabilityOption]) -> Option<Self> {
        let mask = |options: &[CapabilityOption]| {
            options.iter().fold(0, |mask, option| mask | option.mask())
        };
        let named = |options: &[CapabilityOption]| {
            let named = options.iter().filter(|option| **option != CapabilityOption::All);
            named.fold(0, |mask, option| mask | option.mask())
        };
        if drop.is_empty() && add.is_empty() {
            None
        } else if add.contains(&CapabilityOption::All) {
            Some(Self(!named(drop)))
        } else {
            Some(Self(!mask(drop) | named(add)))
        }
    }

    /// Whether the set has the capability of this number.
    pub fn contains(self, number: u8) -> bool {
        self.0 & CapabilityOption::One(number).mask() != 0
    }
}

impl TryFrom<String> for Capabilities {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mask = digits.then(|| u64::from_str_radix(&text, 16).ok()).flatten();
        mask.map(Self).ok_or_else(|| {
            Invalid(format!("capabilities {text:?}: 16 hexadecimal digits are valid"))
        })
    }
}

impl From<Capabilities> for String {
    fn from(Capabilities(mask): Capabilities) -> Self {
        format!("{mask:016x}")
    }
}

/// A user or group as in `--user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

impl Account {
    /// Parses a number or a name. The greatest number stands for no user in system calls.
    fn parse(text: &str) -> Option<Self> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = text.parse().ok().filter(|number| *number != u32::MAX)?;
            return Some(Self::Number(number));
        }
        (!text.contains([':', '\0'])).then(|| Self::Name(text.to_owned()))
    }
}

/// Value of `--user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserOption {
    /// The user.
    pub user: Account,
    /// The group. `None`: those of the user.
    pub group: Option<Account>,
}

impl UserOption {
    fn parse(text: &str) -> Option<Self> {
        let (user, group) = match text.split_once(':') {
            None => (text, None),
            Some((user, group)) => (user, Some(Account::parse(group)?)),
        };
        Some(Self { user: Account::parse(user)?, group })
    }
}

impl FromStr for UserOption {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text).ok_or_else(|| {
            Invalid(format!(
                "user {text:?} is malformed: UID, UID:GID, NAME or NAME:GROUP is valid"
            ))
        })
    }
}

/// User and groups of a process, by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// What the command of a container may do. By default everything that the user of `run` may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Privileges {
    /// `--user`. `None`: the user of `run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<RunAs>,
    /// The capabilities that the command and its programs can have at most, by `--cap-drop` and
    /// `--cap-add`. `None`: those of `run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
}

impl Privileges {
    /// Whether no option is given.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The first option that is given, as the command line spells it.
    pub fn given(&self) -> Option<&'static str> {
        let user = self.user.as_ref().map(|_| "--user");
        user.or_else(|| self.capabilities.map(|_| "--cap-drop"))
    }

    /// Checks what a client of the API has sent.
    ///
    /// # Errors
    /// One line: a number stands for no user or group, or there are too many groups.
    pub fn check(&self) -> Result<(), Invalid> {
        let Some(RunAs { uid, gid, groups }) = &self.user else { return Ok(()) };
        if [uid, gid].into_iter().chain(groups).any(|number| *number == u32::MAX) {
            return Err(Invalid(format!(
                "--user: {} is no user and no group: a smaller number is valid",
                u32::MAX
            )));
        }
        if groups.len() > MAX_GROUPS {
            return Err(Invalid(format!(
                "--user: {} groups are too many: at most {MAX_GROUPS} are valid",
                groups.len()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<CapabilityOption> {
        text.split_whitespace().map(|name| name.parse().unwrap()).collect()
    }

    /// The names of the capabilities that are left.
    fn left(drop: &str, add: &str) -> Vec<&'static str> {
        let left = Capabilities::left_by(&options(drop), &options(add)).unwrap();
        let has = |number: usize| left.contains(u8::try_from(number).unwrap());
        NAMES.iter().enumerate().filter(|(number, _)| has(*number)).map(|(_, name)| *name).collect()
    }

    #[test]
    fn capabilities_are_read_as_docker_reads_them() {
        for text in ["NET_RAW", "net_raw", "CAP_NET_RAW", "cap_Net_Raw"] {
            assert_eq!(text.parse(), Ok(CapabilityOption::One(13)), "{text}");
        }
        assert_eq!("all".parse(), Ok(CapabilityOption::All));
        assert_eq!("CHECKPOINT_RESTORE".parse(), Ok(CapabilityOption::One(40)));
        for (number, name) in NAMES.iter().enumerate() {
            let option: CapabilityOption = name.parse().unwrap();
            assert_eq!(option, CapabilityOption::One(u8::try_from(number).unwrap()));
            assert_eq!(option.to_string(), *name);
        }
        for bad in ["", "CAP_", "NET-RAW", "CAP_ALL", "13", "NET_RAW,NET_ADMIN"] {
            let line = bad.parse::<CapabilityOption>().unwrap_err().to_string();
            assert!(line.starts_with(&format!("capability {bad:?} is unknown: ")), "{line}");
        }
    }

    #[test]
    fn capabilities_are_combined_as_docker_combines_them() {
        assert_eq!(Capabilities::left_by(&[], &[]), None);
        assert!(left("ALL", "").is_empty());
        assert_eq!(left("ALL", "NET_RAW CHOWN"), ["CHOWN", "NET_RAW"]);
        let without = |gone: &[&str]| -> Vec<&str> {
            NAMES.iter().copied().filter(|name| !gone.contains(name)).collect()
        };
        assert_eq!(left("NET_RAW SYS_ADMIN", ""), without(&["NET_RAW", "SYS_ADMIN"]));
        assert_eq!(left("NET_RAW SYS_ADMIN", "NET_RAW"), without(&["SYS_ADMIN"]));
        assert_eq!(left("ALL NET_RAW", "ALL"), without(&["NET_RAW"]));
        assert_eq!(left("ALL", "ALL"), NAMES);
        // A kernel may have capabilities that have no name here.
        let all_but_one = Capabilities::left_by(&options("NET_RAW"), &[]).unwrap();
        assert!(all_but_one.contains(63) && !all_but_one.contains(64));
        assert!(!Capabilities::left_by(&options("ALL"), &[]).unwrap().contains(41));
    }

    #[test]
    fn a_set_is_written_as_the_kernel_writes_it() {
        let set = Capabilities::left_by(&options("ALL"), &options("NET_ADMIN BPF")).unwrap();
        let json = serde_json::to_string(&set).unwrap();
        assert_eq!(json, "\"0000008000001000\"");
        assert_eq!(serde_json::from_str::<Capabilities>(&json).unwrap(), set);
        for bad in ["", "1", "+000008000001000", "00000080000010000"] {
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<Capabilities>(&json).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_read() {
        let number = Account::Number;
        let name = |name: &str| Account::Name(name.to_owned());
        for (text, user, group) in [
            ("0", number(0), None),
            ("1000:100", number(1000), Some(number(100))),
            ("www-data", name("www-data"), None),
            ("app:4294967294", name("app"), Some(number(4_294_967_294))),
            ("app:disk", name("app"), Some(name("disk"))),
        ] {
            assert_eq!(text.parse(), Ok(UserOption { user, group }), "{text}");
        }
        for bad in ["", ":", "a:", ":a", "a:b:c", "4294967295", "99999999999", "1:4294967295"] {
            let line = bad.parse::<UserOption>().unwrap_err().to_string();
            assert!(line.starts_with(&format!("user {bad:?} is malformed: ")), "{line}");
        }
    }

    #[test]
    fn privileges_are_kept_and_checked() {
        let user = RunAs { uid: 1000, gid: 1000, groups: vec![4, 1000] };
        let all = Privileges {
            user: Some(user.clone()),
            capabilities: Capabilities::left_by(&options("ALL"), &[]),
        };
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Privileges>(&json).unwrap(), all);
        assert_eq!(serde_json::to_string(&Privileges::default()).unwrap(), "{}");
        assert_eq!((all.given(), all.check()), (Some("--user"), Ok(())));
        let none = Privileges::default();
        assert!(none.is_default() && none.given().is_none());
        for user in [
            RunAs { uid: u32::MAX, ..user.clone() },
            RunAs { groups: vec![u32::MAX], ..user.clone() },
            RunAs { groups: vec![1; MAX_GROUPS + 1], ..user },
        ] {
            assert!(Privileges { user: Some(user), ..all.clone() }.check().is_err());
        }
    }
}
