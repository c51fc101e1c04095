//! Names of the keys in the store. docs/STATE.md has the table.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use super::{Invalid, MacAddr, Name, Vni};
use crate::store::{FollowOptions, Layout};

/// Prefix of all keys of Culvert; `v1` is the version of the layout of the keys.
pub const ROOT: &str = "/culvert/v1/";
/// Key of the [`StoreMark`](crate::store::StoreMark).
pub const STORE: &str = "/culvert/v1/store";
/// Prefix of [`Key::Network`].
pub const NETWORKS: &str = "/culvert/v1/networks/";
/// Prefix of [`Key::Vni`].
pub const VNIS: &str = "/culvert/v1/vnis/";
/// Prefix of [`Key::Node`].
pub const NODES: &str = "/culvert/v1/nodes/";
/// Prefix of [`Key::Alive`].
pub const ALIVE: &str = "/culvert/v1/alive/";
/// Prefix of [`Key::Endpoint`].
pub const ENDPOINTS: &str = "/culvert/v1/endpoints/";
/// Prefix of [`Key::Ipam`].
pub const IPAM: &str = "/culvert/v1/ipam/";
/// Prefix of [`Key::Mac`].
pub const MACS: &str = "/culvert/v1/macs/";
/// Prefix of [`Key::Vtep`].
pub const VTEPS: &str = "/culvert/v1/vteps/";

/// Prefix of [`witness_key`]. Not below [`ROOT`]: only the node itself reads its witness, so the
/// watches of the other nodes need not deliver each write.
const WITNESSES: &str = "/culvert/witnesses/";

/// Layout of the keys, for a backend that reads the whole of [`ROOT`].
pub const LAYOUT: Layout =
    Layout { root: ROOT, random: ENDPOINTS, ordered: IPAM, groups: NETWORKS, small: '@' };

/// Options to follow all keys of Culvert in a store.
pub fn follow_options() -> FollowOptions {
    FollowOptions { fleeting: Some(ALIVE.to_owned()), ..FollowOptions::new(ROOT, STORE) }
}

/// Key of the own witness of the node with this identifier
/// ([`OwnWitness`](crate::store::OwnWitness)).
pub fn witness_key(node_id: &str) -> String {
    format!("{WITNESSES}{node_id}")
}

/// Longest identifier of an endpoint, in hexadecimal digits.
const ID_DIGITS: usize = 64;

/// A parsed key. `Display` writes it back. Each key has exactly one spelling: two keys with one
/// meaning could have two owners.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `store`: the store's own mark.
    Store,
    /// `networks/NAME`.
    Network(Name),
    /// `vnis/N`.
    Vni(Vni),
    /// `nodes/NODE`.
    Node(Name),
    /// `alive/NODE`, on a lease.
    Alive(Name),
    /// `endpoints/NETWORK/ID`.
    Endpoint {
        /// Network.
        network: Name,
        /// Identifier: at most 64 hexadecimal digits, lower case.
        id: String,
    },
    /// `ipam/NETWORK/IP`.
    Ipam {
        /// Network.
        network: Name,
        /// Address.
        ip: IpAddr,
    },
    /// `macs/NETWORK/MAC`.
    Mac {
        /// Network.
        network: Name,
        /// MAC address.
        mac: MacAddr,
    },
    /// `vteps/NETWORK/IP`.
    Vtep {
        /// Network.
        network: Name,
        /// VTEP address.
        ip: Ipv4Addr,
    },
}

impl Key {
    /// Key of a network.
    pub fn network(name: &Name) -> String {
        format!("{NETWORKS}{}", name.as_str())
    }

    /// Key of a VNI.
    pub fn vni(vni: Vni) -> String {
        format!("{VNIS}{vni}")
    }

    /// Key of a node.
    pub fn node(name: &Name) -> String {
        format!("{NODES}{}", name.as_str())
    }

    /// Key of a node's liveness.
    pub fn alive(name: &Name) -> String {
        format!("{ALIVE}{}", name.as_str())
    }

    /// Prefix of a network's endpoints.
    pub fn endpoints_of(network: &Name) -> String {
        format!("{ENDPOINTS}{}/", network.as_str())
    }

    /// Key of an endpoint.
    pub fn endpoint(network: &Name, id: &str) -> String {
        format!("{ENDPOINTS}{}/{id}", network.as_str())
    }

    /// Prefix of a network's addresses.
    pub fn ipam_of(network: &Name) -> String {
        format!("{IPAM}{}/", network.as_str())
    }

    /// Key of an address.
    pub fn ipam(network: &Name, ip: IpAddr) -> String {
        format!("{IPAM}{}/{ip}", network.as_str())
    }

    /// Prefix of a network's MACs that are not derived from addresses.
    pub fn macs_of(network: &Name) -> String {
        format!("{MACS}{}/", network.as_str())
    }

    /// Key of a MAC that is not derived from an address.
    pub fn mac(network: &Name, mac: MacAddr) -> String {
        format!("{MACS}{}/{mac}", network.as_str())
    }

    /// Prefix of a network's foreign VTEPs.
    pub fn vteps_of(network: &Name) -> String {
        format!("{VTEPS}{}/", network.as_str())
    }

    /// Key of a foreign VTEP.
    pub fn vtep(network: &Name, ip: Ipv4Addr) -> String {
        format!("{VTEPS}{}/{ip}", network.as_str())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Store => STORE.to_owned(),
            Self::Network(name) => Self::network(name),
            Self::Vni(vni) => Self::vni(*vni),
            Self::Node(name) => Self::node(name),
            Self::Alive(name) => Self::alive(name),
            Self::Endpoint { network, id } => Self::endpoint(network, id),
            Self::Ipam { network, ip } => Self::ipam(network, *ip),
            Self::Mac { network, mac } => Self::mac(network, *mac),
            Self::Vtep { network, ip } => Self::vtep(network, *ip),
        })
    }
}

impl FromStr for Key {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let rest = text
            .strip_prefix(ROOT)
            .ok_or_else(|| Invalid(format!("key {text:?} is not below {ROOT}")))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let key = match parts.as_slice() {
            ["store"] => Self::Store,
            ["networks", name] => Self::Network(Name::from_store(name)?),
            ["vnis", number] => Self::Vni(
                number
                    .parse::<u32>()
                    .map_err(|_| Invalid(format!("VNI {number:?} is not a number")))?
                    .try_into()?,
            ),
            ["nodes", name] => Self::Node(name.parse()?),
            ["alive", name] => Self::Alive(name.parse()?),
            ["endpoints", network, id] => {
                Self::Endpoint { network: Name::from_store(network)?, id: endpoint_id(id)? }
            }
            ["ipam", network, ip] => {
                Self::Ipam { network: Name::from_store(network)?, ip: address(ip)? }
            }
            ["macs", network, mac] => {
                Self::Mac { network: Name::from_store(network)?, mac: mac.parse()? }
            }
            ["vteps", network, ip] => {
                Self::Vtep { network: Name::from_store(network)?, ip: address(ip)? }
            }
            _ => return Err(Invalid(format!("key {text:?} is of no known kind"))),
        };
        // Only numbers and addresses have more than one spelling.
        if matches!(key, Self::Store | Self::Network(_) | Self::Endpoint { .. })
            || matches!(key, Self::Node(_) | Self::Alive(_))
        {
            return Ok(key);
        }
        let spelled = key.to_string();
        if spelled == text {
            Ok(key)
        } else {
            Err(Invalid(format!("key {text:?} is not spelled {spelled:?}")))
        }
    }
}

fn address<T: FromStr>(text: &str) -> Result<T, Invalid> {
    text.parse().map_err(|_| Invalid(format!("{text:?} is not an IP address")))
}

fn endpoint_id(text: &str) -> Result<String, Invalid> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if (1..=ID_DIGITS).contains(&text.len()) && text.bytes().all(digit) {
        Ok(text.to_owned())
    } else {
        Err(Invalid(format!(
            "endpoint identifier {text:?} is malformed: up to {ID_DIGITS} digits 0-9 and a-f are valid"
        )))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_is_parsed_and_spelled_back() {
        for text in [
            "/culvert/v1/store",
            "/culvert/v1/networks/overlaynet1",
            "/culvert/v1/networks/bridge@host1",
            "/culvert/v1/endpoints/bridge@host1/00ff",
            "/culvert/v1/ipam/bridge@host1/172.17.0.2",
            "/culvert/v1/vteps/bridge@host1/192.0.2.1",
            "/culvert/v1/vnis/256",
            "/culvert/v1/nodes/host-1.example",
            "/culvert/v1/alive/host1",
            "/culvert/v1/endpoints/overlaynet1/00ff",
            "/culvert/v1/ipam/overlaynet1/10.0.0.2",
            "/culvert/v1/ipam/overlaynet1/fd00::2",
            "/culvert/v1/macs/overlaynet1/0e:00:00:00:00:0a",
            "/culvert/v1/vteps/overlaynet1/192.0.2.1",
        ] {
            assert_eq!(text.parse::<Key>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn a_second_spelling_of_a_key_is_refused() {
        for text in [
            "/culvert/v1/vnis/0256",
            "/culvert/v1/vnis/+256",
            "/culvert/v1/ipam/n/fd00:0::2",
            "/culvert/v1/ipam/n/FD00::2",
            "/culvert/v1/ipam/n/10.0.0.02",
            "/culvert/v1/macs/n/0E:00:00:00:00:0a",
            "/culvert/v1/macs/n/+e:00:00:00:00:0a",
            "/culvert/v1/networks/n/",
            "/culvert/v1//networks/n",
            "/culvert/v1/endpoints/n/00FF",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_of_no_kind_are_refused() {
        for text in [
            "",
            "/culvert/v2/networks/n",
            "/culvert/v1/",
            "/culvert/v1/colour/n",
            "/culvert/v1/networks/",
            "/culvert/v1/networks/a b",
            "/culvert/v1/networks/a@",
            "/culvert/v1/networks/a@b@c",
            "/culvert/v1/nodes/a@b",
            "/culvert/v1/alive/a@b",
            "/culvert/v1/vnis/0",
            "/culvert/v1/vnis/16777216",
            "/culvert/v1/vnis/x",
            "/culvert/v1/vteps/n/fd00::2",
            "/culvert/v1/macs/n/0e:00:00:00:00",
            "/culvert/v1/macs/n/",
            "/culvert/v1/endpoints/n/",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(/culvert/v1/)?[a-z]{0,9}/?.{0,80}") {
            if let Ok(key) = text.parse::<Key>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
