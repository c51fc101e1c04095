//! The records of the store, and the newtypes of their fields.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    path::PathBuf,
    str::FromStr,
};

use culvert_common::{
    abi::MAX_PUBLISHED,
    wire::ipv4::{PROTO_TCP, PROTO_UDP},
};
use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

use super::{
    invalid::Invalid,
    name::{self, Name},
};

/// Schema version of the records that this build writes, and the newest one that it reads.
pub const SCHEMA: u32 = 1;

/// A VXLAN network identifier: 1 to 2^24-1 (RFC 7348 §5: 24 bits).
///
/// 0 is refused: an unset field reads as 0, and a kernel vxlan device in collect-metadata mode
/// gives VNI 0 a special meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(NonZeroU32);

impl Vni {
    /// The largest VNI, 2^24-1.
    pub const MAX: u32 = (1 << 24) - 1;
    /// The first VNI that Culvert allocates, as in Docker's overlay driver.
    pub const FIRST_ALLOCATED: u32 = 256;

    /// The VNI as a number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for Vni {
    type Error = Invalid;

    fn try_from(value: u32) -> Result<Self, Invalid> {
        match NonZeroU32::new(value) {
            Some(vni) if value <= Self::MAX => Ok(Self(vni)),
            _ => Err(Invalid(format!("VNI {value} is out of range: 1 to {} is valid", Self::MAX))),
        }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.get()
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A MAC address, written `02:42:0a:00:00:02`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The default MAC of an endpoint, as in Docker: `02:42:` and its IPv4 address.
    pub fn from_ipv4(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// The IPv4 address from which [`Self::from_ipv4`] makes this MAC.
    pub fn to_ipv4(self) -> Option<Ipv4Addr> {
        match self.0 {
            [0x02, 0x42, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
            _ => None,
        }
    }

    /// The MAC of an endpoint that has only an IPv6 address: `02:42:` and the last four octets of
    /// the address.
    pub fn from_ipv6(ip: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = ip.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// Whether an interface may have this address: it is neither a group address nor zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The link-local address that is derived from the MAC (RFC 4291 appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid(format!(
                "MAC address '{text}' is malformed: six octets as in 02:42:0a:00:00:02 are valid"
            ))
        };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// Which of Docker's drivers a network follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// VXLAN between hosts.
    Overlay,
    /// One host, SNAT to external networks.
    Bridge,
}

/// A subnet of a network and the gateway address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet; its address part is the network address.
    pub subnet: IpNetwork,
    /// The gateway address. No endpoint gets it.
    pub gateway: IpAddr,
}

/// The record at `networks/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name, unique in the store. The name of a bridge network includes its node.
    #[serde(deserialize_with = "name::stored")]
    pub name: Name,
    /// 64 hexadecimal digits, as in Docker.
    pub id: String,
    /// Driver.
    pub driver: Driver,
    /// At most one IPv4 and one IPv6 subnet.
    pub subnets: Vec<Subnet>,
    /// VNI. A bridge network has one too, as the key of its data plane state.
    pub vni: Vni,
    /// Largest L3 packet of a container, in bytes.
    pub mtu: u16,
    /// The network has no route to external addresses (`--internal`).
    pub internal: bool,
    /// The data plane learns source MAC addresses.
    pub learning: bool,
    /// `--opt k=v` as given: `allow_overlap`, `anti_spoof`, `block_hosts`, `dscp` (`copy` or
    /// `zero`), `bum_rate`, `bum_burst`.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Network {
    /// The IPv4 gateway, if the network has an IPv4 subnet.
    pub fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.subnets.iter().find_map(|subnet| match subnet.gateway {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
    }

    /// The address of the network from which a MAC is derived. Such a MAC belongs to whoever has
    /// the address.
    pub fn address_of(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        mac.to_ipv4().filter(|ip| self.subnet_with(IpAddr::V4(*ip)).is_some())
    }

    /// The subnet that has an address.
    pub fn subnet_with(&self, ip: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.subnet.contains(ip))
    }

    /// Whether hosts learn MACs and addresses that the store does not have, from the packets of the
    /// network.
    pub fn learns(&self) -> bool {
        self.learning || self.allows_any_source()
    }

    /// Whether containers may send from any address (`anti_spoof=false`): addresses move between
    /// containers without a change in the store.
    pub fn allows_any_source(&self) -> bool {
        self.options.get("anti_spoof").is_some_and(|value| value == "false")
    }

    /// Whether containers begin no flows to the addresses of hosts (`block_hosts=true`).
    pub fn blocks_hosts(&self) -> bool {
        self.options.get("block_hosts").is_some_and(|value| value == "true")
    }

    /// Whether another network may use the same addresses (`allow_overlap`).
    pub fn may_overlap(&self) -> bool {
        self.options.get("allow_overlap").is_some_and(|value| value == "true")
    }
}

/// Identity of a network namespace: device and inode of its file. The kernel may reuse the inode
/// for another namespace once this one has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// The network namespace of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRef {
    /// Path of the namespace, such as `/run/netns/over1`.
    pub netns: PathBuf,
    /// Whether Culvert made the namespace, and so makes it again after a reboot.
    pub owned: bool,
    /// Identity of the namespace, if the path names a process (`/proc/PID/ns/net`): the kernel may
    /// give the pid to another process later. `None`: any namespace at the path is the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<NetnsId>,
}

/// The record at `endpoints/NETWORK/ID`: the attachment of one container to one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// [`SCHEMA`].
    pub schema: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Network.
    #[serde(deserialize_with = "name::stored")]
    pub network: Name,
    /// VNI of the network. It is repeated here so that a peer needs only this record.
    pub vni: Vni,
    /// Name of the container, unique on its node.
    pub container: Name,
    /// Node on which the container runs.
    pub node: Name,
    /// MAC address.
    pub mac: MacAddr,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address, besides the link-local one.
    pub ipv6: Option<Ipv6Addr>,
    /// Additional addresses of the interface, in the order in which they were given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional: Vec<IpAddr>,
    /// Interface name in the sandbox.
    pub ifname: String,
    /// Sandbox on the node.
    pub sandbox: SandboxRef,
    /// Published ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// Clients that may use the published ports. Empty: all clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Ipv4Network>,
}

impl Endpoint {
    /// Greatest number of [`Self::addresses`].
    pub const MOST_ADDRESSES: usize = 16;
    /// Greatest number of single published ports: those of a host.
    pub const MOST_PORTS: usize = MAX_PUBLISHED as usize;

    /// How many single ports of the host the endpoint publishes.
    pub fn number_of_ports(&self) -> usize {
        self.ports.iter().map(|port| usize::from(port.count)).sum()
    }

    /// All addresses but the link-local one, the primary ones first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ipv4.map(IpAddr::V4).into_iter();
        let v6 = self.ipv6.map(IpAddr::V6).into_iter();
        v4.chain(v6).chain(self.additional.iter().copied())
    }

    /// Whether the MAC is the one that is derived from the IPv4 address. The claim to the address
    /// is then the claim to the MAC. Any other MAC has a claim of its own, [`MacOwner`].
    pub fn has_derived_mac(&self) -> bool {
        self.ipv4.is_some_and(|ip| MacAddr::from_ipv4(ip) == self.mac)
    }

    /// A number that identifies the endpoint: the first digits of its identifier; never 0.
    pub fn incarnation(&self) -> u32 {
        let digits = self.id.get(..8).unwrap_or(&self.id);
        u32::from_str_radix(digits, 16).unwrap_or(1).max(1)
    }
}

/// Protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Number of the protocol in an IPv4 header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTO_TCP,
            Self::Udp => PROTO_UDP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host that leads to a container, or a range of ports:
/// `-p [IP:]HOST:CONT[/tcp|udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address of the host; 0.0.0.0 means every address.
    pub host_ip: Ipv4Addr,
    /// Port of the host, not 0; of a range the first.
    pub host_port: u16,
    /// Port of the container, not 0; of a range the first.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Number of ports, not 0.
    #[serde(default = "PublishedPort::one", skip_serializing_if = "PublishedPort::is_one")]
    pub count: u16,
}

impl PublishedPort {
    fn one() -> u16 {
        1
    }

    fn is_one(count: &u16) -> bool {
        *count == 1
    }

    /// The last port of a range that begins with `first`. `None`: there is no such range.
    fn last(&self, first: u16) -> Option<u16> {
        first.checked_add(self.count.checked_sub(1)?).filter(|_| first != 0)
    }

    /// The ports of the host: the first and the last one. `None`: the record is not valid.
    pub fn host_ports(&self) -> Option<(u16, u16)> {
        self.last(self.container_port)?;
        Some((self.host_port, self.last(self.host_port)?))
    }

    /// The single ports.
    pub fn singles(self) -> impl Iterator<Item = Self> {
        (0..self.count).map_while(move |offset| {
            Some(Self {
                host_port: self.host_port.checked_add(offset)?,
                container_port: self.container_port.checked_add(offset)?,
                count: 1,
                ..self
            })
        })
    }
}

impl fmt::Display for PublishedPort {
    /// Writes the port as `docker ps` does: `0.0.0.0:8080->80/tcp`, or
    /// `0.0.0.0:8000-8010->9000-9010/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host_ip, host_port, container_port, protocol, .. } = self;
        let range = |first: u16| match self.last(first) {
            Some(last) if last != first => format!("{first}-{last}"),
            _ => first.to_string(),
        };
        write!(f, "{host_ip}:{}->{}/{protocol}", range(*host_port), range(*container_port))
    }
}

/// The record at `nodes/NODE`: the host of an agent. It stays when the agent stops. `alive/NODE`,
/// which is on a lease, tells whether the agent is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name.
    pub name: Name,
    /// Identifier, made once by the agent that owns the name. It distinguishes a restart from a
    /// second agent with the same name.
    pub id: String,
    /// VTEP address.
    pub vtep: Ipv4Addr,
    /// VXLAN port.
    pub port: u16,
    /// Subnets that the node's own interfaces are connected to: no subnet of an overlay network is
    /// chosen from them. At most [`Self::MOST_PREFIXES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpNetwork>,
    /// Least MTU of the node's uplinks, in bytes. `None`: an agent before this field wrote the
    /// record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

impl Node {
    /// Greatest number of [`Self::prefixes`].
    pub const MOST_PREFIXES: usize = 64;

    /// A node of which only name, identifier, VTEP address and VXLAN port are known.
    pub const fn new(name: Name, id: String, vtep: Ipv4Addr, port: u16) -> Self {
        Self { schema: SCHEMA, name, id, vtep, port, prefixes: Vec::new(), mtu: None }
    }
}

/// The record at `alive/NODE`, on a lease of the agent that runs on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`Node::id`] of that agent.
    pub id: String,
    /// Identifier of the agent's process, made at its start. Empty in a record of an agent that
    /// does not have it.
    #[serde(default)]
    pub run: String,
    /// Machine of the agent.
    #[serde(default)]
    pub machine: Machine,
}

impl Alive {
    /// The record of an agent whose process and machine are not known.
    pub fn new(id: String) -> Self {
        Self { schema: SCHEMA, id, run: String::new(), machine: Machine::default() }
    }
}

/// A machine that is up. A field is empty where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `/etc/machine-id` (machine-id(5)). A clone may have the identifier of its original.
    #[serde(default)]
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id` (random(4)). Two machines that are up never have the same
    /// one, a container and its host do.
    #[serde(default)]
    pub boot_id: String,
}

impl Machine {
    /// Whether the two are known to be different machines, or different boots of one.
    pub fn differs_from(&self, other: &Self) -> bool {
        let differ = |one: &str, two: &str| !one.is_empty() && !two.is_empty() && one != two;
        differ(&self.machine_id, &other.machine_id) || differ(&self.boot_id, &other.boot_id)
    }
}

/// The record at `vnis/N`: the owner of a VNI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VniOwner {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Network.
    #[serde(deserialize_with = "name::stored")]
    pub network: Name,
}

/// The record at `ipam/NETWORK/IP`: the owner of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpOwner {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Endpoint.
    pub endpoint: String,
}

/// The record at `macs/NETWORK/MAC`: the endpoint that has a MAC which is not derived from its IPv4
/// address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacOwner {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Endpoint.
    pub endpoint: String,
}

/// The record at `vteps/NETWORK/IP`: a VTEP that is not a Culvert host (`culvert vtep add`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignVtep {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Network.
    #[serde(deserialize_with = "name::stored")]
    pub network: Name,
    /// Address.
    pub ip: Ipv4Addr,
    /// UDP port.
    pub port: u16,
}
