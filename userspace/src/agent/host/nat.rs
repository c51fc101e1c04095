//! Addresses and uplinks of the host, which the programs need for NAT, and destinations that are
//! closed to containers.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use culvert_common::{
    abi::{MappedAddr, PublishedKey, UplinkInfo, blocked},
    wire::ipv4::PROTO_TCP,
};
use ipnetwork::{IpNetwork, Ipv4Network};

use super::{
    Host,
    closed::Closed,
    error::{broken, refused},
    facts::is_gateway,
};
use crate::{
    api::types::ApiError,
    datapath::{DatapathError, Table as _},
};

/// Prefix length from which on a subnet has no broadcast address (RFC 3021).
const NO_BROADCAST: u8 = 31;

impl Host {
    /// Writes the host's own addresses to `HOST_ADDRS`, and what is closed to containers to
    /// `BLOCKED`. Loopback addresses (127.0.0.0/8) are left out: no packet from another host has
    /// such a destination.
    pub(super) async fn note_addresses(&self, known: &Closed) -> Result<(), ApiError> {
        let addresses = self.netlink.all_addresses().await.map_err(refused)?;
        let own: Vec<(u32, Ipv4Network)> = addresses
            .iter()
            .filter_map(|(ifindex, address)| match address {
                IpNetwork::V4(address) if !address.ip().is_loopback() => Some((*ifindex, *address)),
                IpNetwork::V4(_) | IpNetwork::V6(_) => None,
            })
            .collect();
        let key = |(_, address): &(u32, Ipv4Network)| (MappedAddr::v4(address.ip().octets()), 0);
        let tables = self.datapath.tables();
        let written =
            self.kept.host_addrs.replace(&tables.host_addrs, &own.iter().map(key).collect());
        written.map_err(broken)?;
        let peers = known.peers.as_deref();
        let mut closed = closed(&own, is_gateway, &known.members, peers.unwrap_or_default());
        if !known.are_all || peers.is_none() {
            // Not all is known yet: what the last agent has closed stays closed.
            let before = tables.blocked.dump().map_err(broken)?;
            let stays = |why| match why {
                blocked::STORE => !known.are_all,
                blocked::HOST => peers.is_none(),
                _ => false,
            };
            for (key, why) in before.into_iter().filter(|(_, why)| stays(*why)) {
                closed.entry(key).or_insert(why);
            }
        }
        self.kept.blocked.replace(&tables.blocked, &closed).map_err(broken)
    }

    /// Writes the uplinks to `UPLINKS`.
    pub(super) fn note_uplinks(
        &self,
        uplinks: &BTreeMap<u32, UplinkInfo>,
    ) -> Result<(), DatapathError> {
        self.kept.uplinks.replace(&self.datapath.tables().uplinks, uplinks)
    }
}

/// The destinations that are closed to containers: of the host's addresses `own`, those of gateways
/// and the broadcast addresses; `store`; and the VTEP addresses `peers` of other hosts. A store on
/// this host is closed at every address of the host: it may listen at all of them.
fn closed(
    own: &[(u32, Ipv4Network)],
    is_gateway: impl Fn(u32) -> bool,
    store: &[SocketAddrV4],
    peers: &[Ipv4Addr],
) -> BTreeMap<PublishedKey, u32> {
    let address = |ip: Ipv4Addr| MappedAddr::v4(ip.octets());
    let hosts = peers.iter().map(|ip| (PublishedKey::whole(address(*ip)), blocked::HOST));
    let mut closed: BTreeMap<_, _> = hosts.collect();
    for (_, net) in own.iter().filter(|(_, net)| net.prefix() < NO_BROADCAST) {
        closed.insert(PublishedKey::whole(address(net.broadcast())), blocked::BROADCAST);
    }
    for (ifindex, net) in own {
        let whole = PublishedKey::whole(address(net.ip()));
        if is_gateway(*ifindex) {
            closed.insert(whole, blocked::GATEWAY);
        } else {
            // The broadcast address of one subnet may be the host's own address in another.
            closed.remove(&whole);
        }
    }
    for member in store {
        let ips: Vec<Ipv4Addr> = match member.ip() {
            ip if ip.is_loopback() || own.iter().any(|(_, net)| net.ip() == *ip) => {
                own.iter().map(|(_, net)| net.ip()).collect()
            }
            ip => vec![*ip],
        };
        for ip in ips {
            let (port, protocol) = (member.port().to_be_bytes(), PROTO_TCP);
            let key = PublishedKey { addr: address(ip), port, protocol, pad: 0 };
            closed.insert(key, blocked::STORE);
        }
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway device.
    const GATEWAY: u32 = 9;

    fn of(own: &[(u32, &str)], store: &[&str]) -> Vec<(String, u32)> {
        let own: Vec<(u32, Ipv4Network)> =
            own.iter().map(|(ifindex, net)| (*ifindex, net.parse().unwrap())).collect();
        let store: Vec<SocketAddrV4> = store.iter().map(|at| at.parse().unwrap()).collect();
        let closed = closed(&own, |ifindex| ifindex == GATEWAY, &store, &[]);
        let spell = |key: PublishedKey| {
            let [a, b, c, d] = key.addr.low();
            format!("{a}.{b}.{c}.{d}:{}/{}", u16::from_be_bytes(key.port), key.protocol)
        };
        closed.into_iter().map(|(key, why)| (spell(key), why)).collect()
    }

    fn is(text: &str, why: u32) -> (String, u32) {
        (text.to_owned(), why)
    }

    #[test]
    fn gateways_and_broadcast_addresses_are_closed() {
        let own = [(2, "192.0.2.1/24"), (3, "198.51.100.7/31"), (4, "203.0.113.9/32")];
        assert_eq!(of(&own, &[]), [is("192.0.2.255:0/0", blocked::BROADCAST)]);
        let gateway = [(GATEWAY, "172.17.0.1/16")];
        let expected =
            [is("172.17.0.1:0/0", blocked::GATEWAY), is("172.17.255.255:0/0", blocked::BROADCAST)];
        assert_eq!(of(&gateway, &[]), expected);
        // An address of the host is not closed because another subnet ends there.
        let nested = [(2, "10.0.0.1/25"), (3, "10.0.0.127/24")];
        assert_eq!(of(&nested, &[]), [is("10.0.0.255:0/0", blocked::BROADCAST)]);
    }

    #[test]
    fn other_hosts_are_known() {
        let peer = Ipv4Addr::new(198, 51, 100, 4);
        let key = PublishedKey::whole(MappedAddr::v4(peer.octets()));
        assert_eq!(closed(&[], |_| false, &[], &[peer]), [(key, blocked::HOST)].into());
    }

    #[test]
    fn the_store_is_closed_at_its_port_alone() {
        let own = [(2, "192.0.2.1/32"), (GATEWAY, "172.17.0.1/32")];
        let gateway = is("172.17.0.1:0/0", blocked::GATEWAY);
        let remote = of(&own, &["192.0.2.9:2379"]);
        assert_eq!(remote, [gateway.clone(), is("192.0.2.9:2379/6", blocked::STORE)]);
        // An etcd on a loopback address may listen at all addresses of the host.
        let expected = [
            gateway,
            is("172.17.0.1:2379/6", blocked::STORE),
            is("192.0.2.1:2379/6", blocked::STORE),
        ];
        let mut found = of(&own, &["127.0.0.1:2379"]);
        found.sort();
        assert_eq!(found, expected);
        // So may one on another address of the host.
        let mut found = of(&own, &["192.0.2.1:2379"]);
        found.sort();
        assert_eq!(found, expected);
    }
}
