//! Encoding of the store's records: JSON with a schema version.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Alive, Endpoint, ForeignVtep, Invalid, IpOwner, Key, MacOwner, Network, Node, SCHEMA,
    StoreMark, VniOwner, validate,
};

/// Greatest length of a parser's error message in a [`Decoded::Garbage`], in characters.
const WHY_LIMIT: usize = 160;
/// Greatest length of a key in a message, and of the reason why it is no key, in characters. A
/// store may have keys of any length.
pub(super) const KEY_LIMIT: usize = 240;

/// A record of the store.
pub trait StoreRecord: Serialize + DeserializeOwned {
    /// Kind of the record, for error messages.
    const KIND: &'static str;

    /// Schema version of the fields.
    fn schema(&self) -> u32;

    /// Checks that the record belongs at `key` and is valid by itself.
    fn check(&self, key: &Key) -> Result<(), Invalid>;
}

/// Result of decoding the value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// A record that this build understands.
    Record(T),
    /// A record that a newer Culvert wrote.
    Newer {
        /// Its schema version.
        schema: u32,
    },
    /// Any other value.
    Garbage {
        /// The error, one line.
        why: String,
    },
}

impl<T> Decoded<T> {
    /// The record, or the reason why there is none, one line.
    pub fn into_result(self) -> Result<T, String> {
        match self {
            Self::Record(record) => Ok(record),
            Self::Newer { schema } => Err(format!(
                "skipped: schema {schema} is newer than {SCHEMA}, the newest this agent reads; upgrade the agent"
            )),
            Self::Garbage { why } => Err(format!("skipped: {why}")),
        }
    }
}

/// Decodes a record. Any bytes are accepted: invalid ones give [`Decoded::Garbage`].
pub fn decode<T: StoreRecord>(key: &Key, value: &[u8]) -> Decoded<T> {
    #[derive(Deserialize)]
    struct SchemaOnly {
        schema: u32,
    }

    let garbage = |error: &dyn fmt::Display| Decoded::Garbage {
        why: one_line(&format!("not a {} record: {error}", T::KIND), WHY_LIMIT),
    };
    let refused = |schema| match schema {
        0 => Some(garbage(&"schema 0 does not exist")),
        schema if schema > SCHEMA => Some(Decoded::Newer { schema }),
        _ => None,
    };
    match serde_json::from_slice::<T>(value) {
        // A newer record may have any other fields.
        Err(error) => match serde_json::from_slice::<SchemaOnly>(value) {
            Err(error) => garbage(&error),
            Ok(SchemaOnly { schema }) => refused(schema).unwrap_or_else(|| garbage(&error)),
        },
        Ok(record) => refused(record.schema()).unwrap_or_else(|| match record.check(key) {
            Err(error) => garbage(&error),
            Ok(()) => Decoded::Record(record),
        }),
    }
}

/// Encodes a record.
///
/// # Errors
///
/// A path that is not UTF-8: JSON cannot contain it.
pub fn encode<T: StoreRecord>(record: &T) -> Result<Vec<u8>, Invalid> {
    serde_json::to_vec(record)
        .map_err(|error| Invalid(format!("{} record cannot be written as JSON: {error}", T::KIND)))
}

/// Makes untrusted text fit into one line of a message: at most `limit` characters of it.
pub(super) fn one_line(text: &str, limit: usize) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

fn matches(
    what: &str,
    in_key: &dyn fmt::Display,
    in_record: &dyn fmt::Display,
) -> Result<(), Invalid> {
    let (in_key, in_record) = (in_key.to_string(), in_record.to_string());
    if in_key == in_record {
        Ok(())
    } else {
        Err(Invalid(format!("{what} in the record is {in_record:?}, in the key {in_key:?}")))
    }
}

fn misplaced(kind: &str) -> Result<(), Invalid> {
    Err(Invalid(format!("a {kind} record does not belong here")))
}

impl StoreRecord for Network {
    const KIND: &'static str = "network";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Network(name) = key else { return misplaced(Self::KIND) };
        matches("name", &name.as_str(), &self.name.as_str())?;
        let subnets: Vec<_> = self.subnets.iter().map(|subnet| subnet.subnet).collect();
        validate::subnets(&subnets)?;
        if subnets.is_empty() {
            return Err(Invalid("no subnet".to_owned()));
        }
        for subnet in &self.subnets {
            validate::gateway(subnet.subnet, subnet.gateway)?;
        }
        validate::mtu(u32::from(self.mtu), validate::has_ipv6(&subnets), u16::MAX)?;
        validate::options(&self.options)
    }
}

impl StoreRecord for VniOwner {
    const KIND: &'static str = "VNI";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Vni(_) = key else { return misplaced(Self::KIND) };
        Ok(())
    }
}

impl StoreRecord for Node {
    const KIND: &'static str = "node";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Node(name) = key else { return misplaced(Self::KIND) };
        matches("name", name, &self.name)?;
        validate::vtep_address(self.vtep)?;
        validate::udp_port(self.port)
    }
}

impl StoreRecord for Alive {
    const KIND: &'static str = "liveness";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Alive(_) = key else { return misplaced(Self::KIND) };
        Ok(())
    }
}

impl StoreRecord for Endpoint {
    const KIND: &'static str = "endpoint";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Endpoint { network, id } = key else { return misplaced(Self::KIND) };
        // Stores have many endpoints, so text is formatted only for an error.
        if *network != self.network {
            matches("network", &network.as_str(), &self.network.as_str())?;
        }
        if *id != self.id {
            matches("identifier", id, &self.id)?;
        }
        if !self.network.is_seen_on(&self.node) {
            return Err(Invalid(format!(
                "the network is node {:?}'s own, and the endpoint on {:?}",
                self.network.node().unwrap_or_default(),
                self.node.as_str()
            )));
        }
        if !self.mac.is_unicast() {
            return Err(Invalid(format!("MAC {} is not that of one interface", self.mac)));
        }
        if self.ipv4.is_none() && self.ipv6.is_none() {
            return Err(Invalid("no address".to_owned()));
        }
        if !self.additional.is_empty() {
            let all: BTreeSet<IpAddr> = self.addresses().collect();
            let count = self.addresses().count();
            if all.len() != count {
                return Err(Invalid("an address is there twice".to_owned()));
            }
            if count > Self::MOST_ADDRESSES {
                let most = Self::MOST_ADDRESSES;
                return Err(Invalid(format!("{count} addresses: at most {most} are valid")));
            }
        }
        if self.ports.iter().any(|port| port.host_ports().is_none()) {
            return Err(Invalid("a published port is not one of 1 to 65535".to_owned()));
        }
        let ports = self.number_of_ports();
        if ports > Self::MOST_PORTS {
            let most = Self::MOST_PORTS;
            return Err(Invalid(format!("{ports} published ports: at most {most} are valid")));
        }
        validate::ifname(&self.ifname)
    }
}

impl StoreRecord for IpOwner {
    const KIND: &'static str = "address";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Ipam { .. } = key else { return misplaced(Self::KIND) };
        Ok(())
    }
}

impl StoreRecord for MacOwner {
    const KIND: &'static str = "MAC";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Mac { .. } = key else { return misplaced(Self::KIND) };
        Ok(())
    }
}

impl StoreRecord for ForeignVtep {
    const KIND: &'static str = "VTEP";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Vtep { network, ip } = key else { return misplaced(Self::KIND) };
        matches("network", &network.as_str(), &self.network.as_str())?;
        matches("address", ip, &self.ip)?;
        validate::vtep_address(self.ip)?;
        validate::udp_port(self.port)
    }
}

impl StoreRecord for StoreMark {
    const KIND: &'static str = "store mark";

    fn schema(&self) -> u32 {
        self.schema
    }

    fn check(&self, key: &Key) -> Result<(), Invalid> {
        let Key::Store = key else { return misplaced(Self::KIND) };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
