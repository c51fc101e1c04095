//! Packed endpoint records. A host holds one record for every endpoint of the cluster; of most
//! endpoints it needs only the MAC, the addresses and the node.
//!
//! Numbers have postcard's encoding (varints). Postcard's derived encoding of a whole record takes
//! a byte for each optional field: 62 bytes an endpoint instead of 56 (100,000 endpoints with names
//! of 10 letters).

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use ipnetwork::Ipv4Network;

use super::Versioned;
use crate::{
    model::{Endpoint, MacAddr, Name, NetnsId, Protocol, PublishedPort, SCHEMA, SandboxRef, Vni},
    store::Revision,
};

/// Greatest length of an identifier, in hexadecimal digits.
const DIGITS: usize = 64;

/// An identifier of an endpoint in bytes, two digits each. An odd last digit is padded with 0. The
/// order is that of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    bytes: [u8; DIGITS / 2],
    digits: u8,
}

impl Id {
    /// No identifier is less.
    pub(super) const LEAST: Self = Self { bytes: [0; DIGITS / 2], digits: 0 };
    /// No identifier is greater.
    pub(super) const GREATEST: Self = Self { bytes: [u8::MAX; DIGITS / 2], digits: u8::MAX };

    /// Parses the text. `None`: it is not an identifier.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = u8::try_from(text.len()).ok().filter(|digits| *digits as usize <= DIGITS)?;
        let mut bytes = [0; DIGITS / 2];
        for (index, digit) in text.bytes().enumerate() {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *bytes.get_mut(index / 2)? |= if index.is_multiple_of(2) { value << 4 } else { value };
        }
        Some(Self { bytes, digits })
    }

    /// The identifier as text.
    pub(crate) fn text(&self) -> String {
        let nibbles = self.bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits = nibbles.filter_map(|value| char::from_digit(value.into(), 16));
        digits.take(self.digits.into()).collect()
    }

    fn used(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.digits).div_ceil(2)).unwrap_or(&self.bytes)
    }
}

/// Flags: the optional fields of a packed endpoint.
mod part {
    /// The MAC is stored: it is not the one derived from the IPv4 address.
    pub(super) const MAC: u64 = 1;
    pub(super) const IPV4: u64 = 2;
    pub(super) const IPV6: u64 = 4;
    /// The interface name is stored: it is not `eth0`.
    pub(super) const IFNAME: u64 = 8;
    /// The namespace path is stored: it is not `/run/netns/CONTAINER`.
    pub(super) const NETNS: u64 = 16;
    pub(super) const OWNED: u64 = 32;
    /// Published ports and their clients are stored.
    pub(super) const PORTS: u64 = 64;
    /// The identity of the namespace is stored.
    pub(super) const NETNS_ID: u64 = 128;
    /// There are additional addresses.
    pub(super) const ADDITIONAL: u64 = 256;
}

const IFNAME: &str = "eth0";

/// Bytes of an additional address: its family, and 16 octets.
const ADDRESS: usize = 17;

/// Packs an endpoint. `node` is the number of its node. `None`: its identifier is invalid, which
/// [`crate::model::decode`] excludes.
pub(super) fn pack(endpoint: &Versioned<Endpoint>, node: u32) -> Option<Box<[u8]>> {
    let Versioned { record, revision } = endpoint;
    let id = Id::parse(&record.id)?;
    let mut flags = 0;
    let mut set = |flag: u64, there: bool| {
        if there {
            flags |= flag;
        }
        there
    };
    let mac = set(part::MAC, !record.has_derived_mac());
    set(part::IPV4, record.ipv4.is_some());
    set(part::IPV6, record.ipv6.is_some());
    let ifname = set(part::IFNAME, record.ifname != IFNAME);
    let netns = set(part::NETNS, record.sandbox.netns != usual_netns(&record.container));
    set(part::OWNED, record.sandbox.owned);
    let ports = set(part::PORTS, !record.ports.is_empty() || !record.from.is_empty());
    set(part::NETNS_ID, record.sandbox.id.is_some());
    let additional = set(part::ADDITIONAL, !record.additional.is_empty());

    let mut bytes = Vec::with_capacity(96);
    bytes.push(id.digits);
    bytes.extend(id.used());
    number(&mut bytes, flags);
    number(&mut bytes, revision.cast_unsigned());
    number(&mut bytes, node.into());
    number(&mut bytes, record.vni.get().into());
    if mac {
        bytes.extend(record.mac.0);
    }
    bytes.extend(record.ipv4.iter().flat_map(Ipv4Addr::octets));
    bytes.extend(record.ipv6.iter().flat_map(Ipv6Addr::octets));
    if additional {
        let mut list = Vec::with_capacity(ADDRESS * record.additional.len());
        for ip in &record.additional {
            list.push(ip.is_ipv6().into());
            let mapped = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => *ip,
            };
            list.extend(mapped.octets());
        }
        text(&mut bytes, &list);
    }
    text(&mut bytes, record.container.as_str().as_bytes());
    if ifname {
        text(&mut bytes, record.ifname.as_bytes());
    }
    if netns {
        text(&mut bytes, record.sandbox.netns.as_os_str().as_bytes());
    }
    if let Some(NetnsId { dev, ino }) = record.sandbox.id {
        number(&mut bytes, dev);
        number(&mut bytes, ino);
    }
    if ports {
        number(&mut bytes, record.ports.len() as u64);
        for port in &record.ports {
            bytes.extend(port.host_ip.octets());
            bytes.extend(port.host_port.to_be_bytes());
            bytes.extend(port.container_port.to_be_bytes());
            bytes.push(port.protocol.number());
            number(&mut bytes, port.count.into());
        }
        number(&mut bytes, record.from.len() as u64);
        for from in &record.from {
            bytes.extend(from.ip().octets());
            bytes.push(from.prefix());
        }
    }
    Some(bytes.into_boxed_slice())
}

/// The identifier of a packed endpoint.
pub(super) fn id_of(packed: &[u8]) -> Id {
    Reader(packed).id()
}

/// The fields of a packed endpoint that [`super::endpoints::Endpoints`] has an index of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Indexed {
    /// Number of the node.
    pub(super) node: u32,
    /// The MAC, unless it is the one derived from the IPv4 address.
    pub(super) own_mac: Option<MacAddr>,
}

impl Indexed {
    /// The indexed fields of a packed endpoint.
    pub(super) fn of(packed: &[u8]) -> Self {
        let mut reader = Reader(packed);
        reader.id();
        let flags = reader.number();
        reader.number();
        let node = u32::try_from(reader.number()).unwrap_or(u32::MAX);
        reader.number();
        let own_mac = (flags & part::MAC != 0).then(|| MacAddr(reader.array()));
        Self { node, own_mac }
    }
}

/// The fields of an endpoint that every host needs. The other fields stay packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brief<'a> {
    pub(crate) id: Id,
    pub(crate) revision: Revision,
    pub(crate) node: &'a Name,
    pub(crate) vni: u32,
    pub(crate) mac: MacAddr,
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// The additional addresses, packed.
    additional: &'a [u8],
    flags: u64,
    rest: &'a [u8],
}

impl<'a> Brief<'a> {
    /// Decodes a packed endpoint. `nodes` are the names of nodes by number.
    pub(super) fn of(packed: &'a [u8], nodes: &'a [Name]) -> Option<Self> {
        #[cfg(test)]
        decoded::count();
        let mut reader = Reader(packed);
        let id = reader.id();
        let flags = reader.number();
        let has = |flag| flags & flag != 0;
        let revision = reader.number().cast_signed();
        let node = nodes.get(usize::try_from(reader.number()).ok()?)?;
        let vni = u32::try_from(reader.number()).ok()?;
        let mac = has(part::MAC).then(|| MacAddr(reader.array()));
        let ipv4 = has(part::IPV4).then(|| Ipv4Addr::from(reader.array()));
        let ipv6 = has(part::IPV6).then(|| Ipv6Addr::from(reader.array::<16>()));
        let additional = if has(part::ADDITIONAL) { reader.text() } else { &[] };
        let mac = mac.or_else(|| ipv4.map(MacAddr::from_ipv4))?;
        Some(Self { id, revision, node, vni, mac, ipv4, ipv6, additional, flags, rest: reader.0 })
    }

    /// As [`Endpoint::has_derived_mac`].
    pub(super) const fn has_derived_mac(&self) -> bool {
        self.flags & part::MAC == 0
    }

    /// All addresses, the primary ones first.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<'a> {
        let primary = self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6));
        primary.chain(self.additional())
    }

    fn additional(&self) -> impl Iterator<Item = IpAddr> + use<'a> {
        self.additional.chunks_exact(ADDRESS).map(|packed| {
            let mut reader = Reader(packed);
            let v6 = reader.byte() != 0;
            let ip = Ipv6Addr::from(reader.array::<16>());
            // Not `to_canonical`: a mapped address may have been given as IPv6.
            match ip.to_ipv4_mapped() {
                Some(ip) if !v6 => IpAddr::V4(ip),
                _ => IpAddr::V6(ip),
            }
        })
    }

    /// The name of the container.
    pub(crate) fn container(&self) -> &'a str {
        str::from_utf8(Reader(self.rest).text()).unwrap_or_default()
    }

    /// Decodes the whole record.
    pub(crate) fn unpack(&self, network: &Name) -> Option<Versioned<Endpoint>> {
        let has = |flag| self.flags & flag != 0;
        let mut reader = Reader(self.rest);
        let container: Name = str::from_utf8(reader.text()).ok()?.parse().ok()?;
        let ifname = if has(part::IFNAME) {
            String::from_utf8_lossy(reader.text()).into_owned()
        } else {
            IFNAME.to_owned()
        };
        let netns = if has(part::NETNS) {
            Path::new(OsStr::from_bytes(reader.text())).to_owned()
        } else {
            usual_netns(&container)
        };
        let netns_id =
            has(part::NETNS_ID).then(|| NetnsId { dev: reader.number(), ino: reader.number() });
        let count = if has(part::PORTS) { reader.number() } else { 0 };
        let ports = (0..count).map(|_| PublishedPort {
            host_ip: reader.array().into(),
            host_port: u16::from_be_bytes(reader.array()),
            container_port: u16::from_be_bytes(reader.array()),
            protocol: if reader.byte() == Protocol::Udp.number() {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
            count: u16::try_from(reader.number()).unwrap_or_default(),
        });
        let ports = ports.collect();
        let count = if has(part::PORTS) { reader.number() } else { 0 };
        let from = (0..count).map(|_| Ipv4Network::new(reader.array().into(), reader.byte()));
        let from = from.collect::<Result<_, _>>().ok()?;
        let record = Endpoint {
            // Only records of this schema are packed.
            schema: SCHEMA,
            id: self.id.text(),
            network: network.clone(),
            vni: Vni::try_from(self.vni).ok()?,
            container,
            node: self.node.clone(),
            mac: self.mac,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            additional: self.additional().collect(),
            ifname,
            sandbox: SandboxRef { netns, owned: has(part::OWNED), id: netns_id },
            ports,
            from,
        };
        Some(Versioned { record, revision: self.revision })
    }
}

/// The number of decoded records, for tests of what a change costs.
#[cfg(test)]
pub(crate) mod decoded {
    use std::cell::Cell;

    thread_local! {
        static RECORDS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        RECORDS.with(|records| records.set(records.get() + 1));
    }

    /// The number of records that `work` decodes on this thread, and its result.
    pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (usize, T) {
        let before = RECORDS.with(Cell::get);
        let result = work();
        (RECORDS.with(Cell::get) - before, result)
    }
}

fn usual_netns(container: &Name) -> PathBuf {
    Path::new("/run/netns").join(container.as_str())
}

fn number(bytes: &mut Vec<u8>, number: u64) {
    // A varint of 64 bits has at most 10 bytes.
    bytes.extend_from_slice(postcard::to_slice(&number, &mut [0; 10]).unwrap_or_default());
}

fn text(bytes: &mut Vec<u8>, text: &[u8]) {
    number(bytes, text.len() as u64);
    bytes.extend(text);
}

/// Reads the output of [`pack`]. Past the end it reads zeros; packed data never makes it do so.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at_checked(count).unwrap_or((self.0, &[]));
        self.0 = tail;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap_or([0; N])
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    fn number(&mut self) -> u64 {
        let (number, rest) = postcard::take_from_bytes(self.0).unwrap_or_default();
        self.0 = rest;
        number
    }

    fn text(&mut self) -> &'a [u8] {
        let count = usize::try_from(self.number()).unwrap_or(usize::MAX);
        self.take(count)
    }

    fn id(&mut self) -> Id {
        let digits = self.byte();
        let used = self.take(usize::from(digits).div_ceil(2));
        let mut bytes = [0; DIGITS / 2];
        for (to, from) in bytes.iter_mut().zip(used) {
            *to = *from;
        }
        Id { bytes, digits }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn endpoint()(
            id in "[0-9a-f]{1,64}",
            (container, node) in ("[a-z0-9][a-z0-9_.-]{0,62}", "[a-z0-9]{1,9}"),
            vni in 1..=Vni::MAX,
            mac in proptest::option::of(any::<[u8; 6]>()),
            ipv4 in any::<[u8; 4]>(),
            has_v4: bool,
            ipv6 in proptest::option::of(any::<u128>()),
            additional in proptest::collection::vec(any::<IpAddr>(), 0..4),
            ifname in proptest::option::of("[a-z0-9]{1,15}"),
            netns in proptest::option::of("/[a-zé/]{0,200}"),
            (owned, netns_id) in any::<(bool, Option<(u64, u64)>)>(),
            ports in proptest::collection::vec((any::<u32>(), any::<(u16, u16, bool, u16)>()), 0..4),
            from in proptest::collection::vec((any::<u32>(), 0..=32_u8), 0..4),
        ) -> Endpoint {
            let container: Name = container.parse().expect("name");
            let ipv4 = (has_v4 || ipv6.is_none()).then(|| Ipv4Addr::from(ipv4));
            let netns = netns.map_or_else(|| usual_netns(&container), PathBuf::from);
            Endpoint {
                schema: SCHEMA,
                id,
                network: "net".parse().expect("name"),
                vni: vni.try_into().expect("VNI"),
                node: node.parse().expect("name"),
                mac: mac.map(MacAddr).or(ipv4.map(MacAddr::from_ipv4)).unwrap_or(MacAddr([2; 6])),
                ipv4,
                ipv6: ipv6.map(Into::into),
                additional,
                ifname: ifname.unwrap_or_else(|| IFNAME.to_owned()),
                sandbox: SandboxRef {
                    netns,
                    owned,
                    id: netns_id.map(|(dev, ino)| NetnsId { dev, ino }),
                },
                container,
                ports: ports.into_iter().map(|(ip, (host, inner, tcp, count))| PublishedPort {
                    host_ip: ip.into(),
                    host_port: host,
                    container_port: inner,
                    protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                    count,
                }).collect(),
                from: from.into_iter().map(|(ip, bits)| {
                    Ipv4Network::new(ip.into(), bits).expect("prefix")
                }).collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_as_it_was(record in endpoint(), revision in 0..i64::MAX) {
            let endpoint = Versioned { record, revision };
            let packed = pack(&endpoint, 0).expect("identifier");
            let nodes = [endpoint.node.clone()];
            let brief = Brief::of(&packed, &nodes).expect("brief");
            prop_assert_eq!(id_of(&packed).text(), endpoint.id.clone());
            prop_assert_eq!(brief.container(), endpoint.container.as_str());
            let derived = endpoint.ipv4.map(MacAddr::from_ipv4);
            let own_mac = Some(endpoint.mac).filter(|mac| derived != Some(*mac));
            prop_assert_eq!(Indexed::of(&packed), Indexed { node: 0, own_mac });
            prop_assert!(brief.addresses().eq(endpoint.addresses()));
            prop_assert_eq!(brief.unpack(&endpoint.network), Some(endpoint));
        }

        #[test]
        fn identifiers_are_in_the_order_of_their_text(
            one in "[0-9a-f]{0,4}", other in "[0-9a-f]{0,4}",
        ) {
            let ids = (Id::parse(&one).expect("id"), Id::parse(&other).expect("id"));
            prop_assert_eq!(ids.0.cmp(&ids.1), one.cmp(&other));
            prop_assert_eq!(ids.0.text(), one);
        }
    }

    #[test]
    fn an_endpoint_takes_few_bytes() {
        let network = crate::model::testing::network("net", 256, &["10.0.0.0/8"]);
        let id = "9c".repeat(32);
        let mut record = crate::model::testing::endpoint(&network, "9c", "host1", "10.0.0.2");
        record.id = id;
        record.container = "web-100000".parse().expect("name");
        record.sandbox.netns = usual_netns(&record.container);
        let packed = pack(&Versioned { record, revision: 100_000 }, 7).expect("identifier");
        assert!(packed.len() <= 56, "{}", packed.len());
    }
}
