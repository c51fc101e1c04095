//! Values of the options of `run` about names: `--hostname`, `--dns`, `--dns-search`,
//! `--dns-option` and `--add-host`.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Invalid, Name};

/// The longest domain name, in bytes (RFC 1035 §2.3.4, as text).
const MAX_DOMAIN: usize = 253;
/// The address of `--add-host` that stands for the host.
const HOST_GATEWAY: &str = "host-gateway";

/// The name of a container, and how its programs find the addresses of other names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NameOptions {
    /// `--hostname`. Default: the container's name.
    pub hostname: Option<Name>,
    /// `--dns`: name servers. Default: those of the host.
    pub servers: Vec<IpAddr>,
    /// `--dns-search`. Default: the host's. [`Domain::ROOT`] alone: none.
    pub search: Vec<Domain>,
    /// `--dns-option`. Default: the host's.
    pub options: Vec<ResolverOption>,
    /// `--add-host`.
    pub hosts: Vec<HostEntry>,
}

impl NameOptions {
    /// The first option that is given, as the command line spells it.
    pub fn given(&self) -> Option<&'static str> {
        self.given_for_resolver()
            .or_else(|| (!self.hosts.is_empty()).then_some("--add-host"))
            .or_else(|| self.hostname.as_ref().map(|_| "--hostname"))
    }

    /// The first option about name servers that is given.
    pub fn given_for_resolver(&self) -> Option<&'static str> {
        [
            ("--dns", self.servers.is_empty()),
            ("--dns-search", self.search.is_empty()),
            ("--dns-option", self.options.is_empty()),
        ]
        .into_iter()
        .find_map(|(option, absent)| (!absent).then_some(option))
    }

    /// Whether no option is given.
    pub fn is_default(&self) -> bool {
        self.given().is_none()
    }
}

/// The name of a domain, or of a host with or without its domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// The root of all domains.
    pub const ROOT: &'static str = ".";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is a domain name other than the root. Labels may contain '_', which is common.
fn is_domain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    text.len() <= MAX_DOMAIN
        && text.bytes().all(plain)
        && !text.is_empty()
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
}

impl FromStr for Domain {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == Self::ROOT || is_domain(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!(
                "domain {text:?} is malformed: a name as in example.com, or '.' for no domain, is valid"
            )))
        }
    }
}

/// An option of resolv.conf(5), such as `ndots:2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResolverOption(String);

impl ResolverOption {
    /// The option as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ResolverOption {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-:.".contains(&byte);
        if !text.is_empty() && text.len() <= MAX_DOMAIN && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!(
                "resolver option {text:?} is malformed: an option of resolv.conf(5) as in ndots:2 is valid"
            )))
        }
    }
}

/// A value of `--add-host`: `NAME:IP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostEntry {
    /// Name.
    pub name: Domain,
    /// Its address.
    pub address: HostAddress,
}

/// The address in a [`HostEntry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// This address.
    Ip(IpAddr),
    /// `host-gateway`: the gateway of the container's network, an address of the host.
    Gateway,
}

impl FromStr for HostEntry {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parse = || {
            let (name, address) = text.split_once(':')?;
            let bare = match address.strip_prefix('[') {
                Some(rest) => rest.strip_suffix(']')?,
                None => address,
            };
            let address = match bare {
                HOST_GATEWAY => HostAddress::Gateway,
                ip => HostAddress::Ip(ip.parse().ok()?),
            };
            is_domain(name).then(|| Self { name: Domain(name.to_owned()), address })
        };
        parse().ok_or_else(|| {
            Invalid(format!(
                "host entry {text:?} is malformed: NAME:IP as in db:10.0.0.9, or NAME:{HOST_GATEWAY}, is valid"
            ))
        })
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_str();
        match self.address {
            HostAddress::Ip(ip) => write!(f, "{name}:{ip}"),
            HostAddress::Gateway => write!(f, "{name}:{HOST_GATEWAY}"),
        }
    }
}

impl TryFrom<String> for Domain {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

impl TryFrom<String> for ResolverOption {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ResolverOption> for String {
    fn from(option: ResolverOption) -> Self {
        option.0
    }
}

impl TryFrom<String> for HostEntry {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<HostEntry> for String {
    fn from(entry: HostEntry) -> Self {
        entry.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<T: fmt::Debug>(refused: Result<T, Invalid>, text: &str) {
        let line = refused.expect_err(text).0;
        assert!(line.ends_with("is valid") && line.lines().count() == 1, "{line}");
    }

    #[test]
    fn host_entries_are_a_name_and_an_address() {
        for (text, spelled) in [
            ("db:10.0.0.9", "db:10.0.0.9"),
            ("db.example.com:fd00::9", "db.example.com:fd00::9"),
            ("a_b-c:[fd00::9]", "a_b-c:fd00::9"),
            ("host.docker.internal:host-gateway", "host.docker.internal:host-gateway"),
        ] {
            let entry: HostEntry = text.parse().expect(text);
            assert_eq!(entry.to_string(), spelled);
            let json = serde_json::to_string(&entry).expect("JSON");
            assert_eq!(serde_json::from_str::<HostEntry>(&json).expect("JSON"), entry);
        }
        for bad in [
            "",
            "db",
            "db:",
            ":10.0.0.9",
            "10.0.0.9:db",
            "a b:10.0.0.9",
            "a\n1.2.3.4 b:10.0.0.9",
            ".:10.0.0.9",
            "db:[fd00::9",
            "db:10.0.0.9/24",
            "#db:10.0.0.9",
        ] {
            line(bad.parse::<HostEntry>(), bad);
        }
    }

    #[test]
    fn domains_and_options_cannot_add_lines_to_a_file() {
        for good in ["example.com", "example.com.", "lan", "_tcp.lan", "."] {
            assert_eq!(good.parse::<Domain>().expect(good).as_str(), good);
        }
        for bad in ["", "a b", "a\nnameserver 1.2.3.4", ".a", "a..b", "-a", &"a".repeat(254)] {
            line(bad.parse::<Domain>(), bad);
        }
        for good in ["ndots:2", "edns0", "use-vc"] {
            assert_eq!(good.parse::<ResolverOption>().expect(good).as_str(), good);
        }
        for bad in ["", "ndots 2", "a\nb", "#", "ü"] {
            line(bad.parse::<ResolverOption>(), bad);
        }
        assert!(serde_json::from_str::<Domain>(r#""a\nb""#).is_err());
        assert!(serde_json::from_str::<NameOptions>(r#"{"options":["a b"]}"#).is_err());
    }

    #[test]
    fn the_first_option_that_is_given_is_named() {
        let mut names = NameOptions::default();
        assert!(names.is_default());
        names.hostname = Some("web".parse().expect("name"));
        assert_eq!((names.given(), names.given_for_resolver()), (Some("--hostname"), None));
        names.hosts.push("db:10.0.0.9".parse().expect("entry"));
        assert_eq!(names.given(), Some("--add-host"));
        names.search.push("lan".parse().expect("domain"));
        assert_eq!(names.given_for_resolver(), Some("--dns-search"));
        assert!(!names.is_default());
    }
}
