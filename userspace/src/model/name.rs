//! Names of networks, containers and nodes, as in Docker, and names of node-local networks.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

use super::invalid::Invalid;

/// Separates the name of a node-local network from its node. Names that a user gives cannot contain
/// it.
const AT: char = '@';

/// The name of a network, container or node. As in Docker: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 63
/// bytes.
///
/// The name of a node-local network (driver bridge) includes its node: `bridge@host1`. The store
/// has this form. Users read and write `bridge`, so this is the form of `Display` and of `FromStr`.
/// Keys must be made from [`Self::as_str`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The longest name that a user may give, in bytes. A node-local network's name is a network
    /// name, '@' and a node name.
    pub const MAX_LEN: usize = 63;

    /// The name in the store's form, with its node.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in the user's form, without its node.
    pub fn local(&self) -> &str {
        self.0.split_once(AT).map_or(&self.0, |(local, _)| local)
    }

    /// The node of a node-local network. `None`: the name is global.
    pub fn node(&self) -> Option<&str> {
        self.0.split_once(AT).map(|(_, node)| node)
    }

    /// The same name as a node-local network of `node`.
    #[must_use]
    pub fn on(&self, node: &Self) -> Self {
        Self(format!("{}{AT}{}", self.local(), node.local()))
    }

    /// Whether the name is usable on a node: it is global or local to that node.
    pub fn is_seen_on(&self, node: &Self) -> bool {
        self.node().is_none_or(|own| own == node.as_str())
    }

    /// Whether the two names are local to different nodes, so that the networks never share a host.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        matches!((self.node(), other.node()), (Some(one), Some(two)) if one != two)
    }

    /// Parses a network's name in the store's form.
    ///
    /// # Errors
    ///
    /// The text is neither a name nor two names separated by '@'.
    pub fn from_store(text: &str) -> Result<Self, Invalid> {
        match text.split_once(AT) {
            None => text.parse(),
            Some((local, node)) => Ok(local.parse::<Self>()?.on(&node.parse()?)),
        }
    }

    /// The name for a message that may be about another node's local network: `'bridge' on
    /// 'host2'`.
    pub fn quoted(&self) -> String {
        match self.node() {
            None => format!("'{self}'"),
            Some(node) => format!("'{self}' on '{node}'"),
        }
    }
}

/// Deserializes the `network` of a record.
pub(super) fn stored<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    let text = String::deserialize(deserializer)?;
    Name::from_store(&text).map_err(serde::de::Error::custom)
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut bytes = text.bytes();
        let valid = text.len() <= Self::MAX_LEN
            && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid(format!(
                "name {text:?} is malformed: a letter or digit, then letters, digits, '_', '.' or '-', at most {} in all, is valid",
                Self::MAX_LEN
            )))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.local())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("name")
    }

    #[test]
    fn a_nodes_own_network_is_spelled_with_it_and_displayed_without() {
        let own = name("bridge").on(&name("host1"));
        assert_eq!(own.as_str(), "bridge@host1");
        assert_eq!((own.local(), own.node()), ("bridge", Some("host1")));
        assert_eq!(format!("{own:>8}"), "  bridge");
        assert_eq!(own.quoted(), "'bridge' on 'host1'");
        assert_eq!(own.on(&name("host2")).as_str(), "bridge@host2");
        assert!(own.is_seen_on(&name("host1")) && !own.is_seen_on(&name("host2")));
        assert!(own.is_apart_from(&own.on(&name("host2"))));
        assert!(!own.is_apart_from(&own) && !own.is_apart_from(&name("bridge")));
        let everybodys = name("blue");
        assert_eq!((everybodys.local(), everybodys.node()), ("blue", None));
        assert!(everybodys.is_seen_on(&name("host2")));
        assert_eq!(everybodys.quoted(), "'blue'");
    }

    #[test]
    fn only_the_store_may_name_the_node() {
        assert!("bridge@host1".parse::<Name>().is_err());
        assert!(serde_json::from_str::<Name>("\"bridge@host1\"").is_err());
        let own = name("bridge").on(&name("host1"));
        assert_eq!(Name::from_store("bridge@host1"), Ok(own.clone()));
        assert_eq!(serde_json::to_string(&own).expect("JSON"), "\"bridge@host1\"");
        for bad in ["", "@", "a@", "@b", "a@b@c", "a b@c"] {
            assert!(Name::from_store(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_the_store_spells_is_spelled_back(text in "[a-z@.]{0,9}|.{0,200}") {
            if let Ok(name) = Name::from_store(&text) {
                prop_assert_eq!(name.as_str(), text);
            }
        }
    }
}
