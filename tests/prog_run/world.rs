//! The hosts and networks that the cases are set in.
//!
//! Network A has two endpoints here, `A1` and `A2`, and one behind each of the VTEPs [`PEER`] and
//! [`PEER2`]. Network B has the same addresses, and no remote endpoint.
//!
//! Both have a gateway. The gateway of A has its address on a device of the host, so that
//! containers and the host reach each other. The gateway of B has no address on the host.

use culvert::datapath::entry::{FdbEntry, NeighEntry, UnderlayPath, VtepInfo, VtepKey};
use culvert::datapath::{KernelTables, Table};
use culvert_common::abi::{
    EndpointInfo, FdbKey, FloodKey, MappedAddr, NeighKey, NetworkInfo, UplinkInfo,
};
use culvert_tests::packet::{Host, Tunnel};

use crate::interfaces::{CLIENT_LINK, GATEWAY_A, GATEWAY_B, Interface};

/// VNI of network A: three different bytes.
pub(crate) const A: u32 = 0x00a1_b2c3;
/// VNI of network B: it differs from A in one byte.
pub(crate) const B: u32 = 0x00a1_b2c4;

/// UDP port on which we receive.
pub(crate) const VXLAN_PORT: u16 = 4789;
/// Our VTEP.
pub(crate) const OUR_VTEP: [u8; 4] = [192, 0, 2, 1];
/// A VTEP of network A.
pub(crate) const PEER: [u8; 4] = [192, 0, 2, 2];
/// Another VTEP of network A, behind a router, which receives on port 8472.
pub(crate) const PEER2: [u8; 4] = [198, 51, 100, 3];
/// Router to [`PEER2`].
pub(crate) const ROUTER: [u8; 4] = [192, 0, 2, 254];
/// An address that is not a VTEP.
pub(crate) const STRANGER: [u8; 4] = [192, 0, 2, 66];

/// MAC of our uplink.
pub(crate) const UPLINK_MAC: [u8; 6] = [0x02, 0xaa, 0, 0, 0, 1];
/// MAC of [`PEER`].
pub(crate) const PEER_MAC: [u8; 6] = [0x02, 0xaa, 0, 0, 0, 2];
/// MAC of [`ROUTER`].
pub(crate) const ROUTER_MAC: [u8; 6] = [0x02, 0xaa, 0, 0, 0, 0xfe];

/// This host, as seen on the underlay.
pub(crate) const US: Host = Host { mac: UPLINK_MAC, v4: OUR_VTEP, v6: [0; 16] };
/// Another address that the programs take for the host's. No interface has it, so that the kernel
/// does not answer packets to it.
pub(crate) const SECOND: Host = Host { v4: [192, 0, 2, 77], ..US };
/// A host of the internet, behind [`ROUTER`].
pub(crate) const SERVER: Host = Host { mac: ROUTER_MAC, v4: [203, 0, 113, 7], v6: [0; 16] };
/// Another host of the internet, behind [`ROUTER`].
pub(crate) const SERVER2: Host = Host { v4: [203, 0, 113, 8], ..SERVER };
/// An address that the host's netfilter translates, such as a service address of kube-proxy.
pub(crate) const SERVICE: Host = Host { v4: [10, 96, 0, 10], ..SERVER };
/// This host on its client link.
pub(crate) const US_TO_CLIENTS: Host =
    Host { mac: [0x02, 0xcc, 0, 0, 0, 1], v4: [172, 30, 0, 1], v6: [0; 16] };
/// A client on the client link.
pub(crate) const CLIENT: Host =
    Host { mac: [0x02, 0xcc, 0, 0, 0, 2], v4: [172, 30, 0, 2], v6: [0; 16] };
/// Gateway of network A.
pub(crate) const GATEWAY: Host = host(1);
/// Gateway of network B. It has the same address as [`GATEWAY`], because tenants are independent.
pub(crate) const GATEWAY_OF_B: Host = Host { mac: [0x02, 0x42, 10, 0, 1, 1], ..GATEWAY };
/// A host in a prefix that the kernel routes to network B's gateway device.
pub(crate) const IN_B: Host = Host { v4: [10, 200, 0, 5], ..host(5) };

/// MTU of both networks.
pub(crate) const MTU: u16 = 1450;

/// Endpoint `A1`, and `B1` too.
pub(crate) const ONE: Host = host(2);
/// Endpoint `A2`, and `B2` too.
pub(crate) const TWO: Host = host(3);
/// Endpoint of network A behind [`PEER`].
pub(crate) const FAR: Host = host(9);
/// Endpoint of network A behind [`PEER2`].
pub(crate) const FARTHER: Host = host(10);
/// An unknown endpoint.
pub(crate) const NOBODY: Host = host(99);

/// Endpoint of number `n`.
pub(crate) const fn host(n: u8) -> Host {
    Host {
        mac: [0x02, 0x42, 10, 0, 0, n],
        v4: [10, 0, 0, n],
        v6: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n],
    }
}

/// The endpoint entry for `host` in the network `vni`.
pub(crate) const fn endpoint(vni: u32, host: &Host) -> EndpointInfo {
    EndpointInfo {
        vni,
        flags: 0,
        mac: host.mac,
        mtu: MTU,
        ipv4: host.v4,
        ipv6: host.v6,
        incarnation: vni ^ host.v4[3] as u32,
        ..EndpointInfo::NONE
    }
}

/// Network A.
pub(crate) const NETWORK_A: NetworkInfo = NetworkInfo {
    flags: NetworkInfo::HOST_ACCESS,
    local_endpoints: 2,
    remote_vteps: 2,
    gateway_ifindex: GATEWAY_A,
    gateway_ip: GATEWAY.v4,
    gateway_mac: GATEWAY.mac,
    pad: [0; 2],
    seal: 0,
};
/// Network B.
pub(crate) const NETWORK_B: NetworkInfo = NetworkInfo {
    flags: 0,
    remote_vteps: 0,
    gateway_ifindex: GATEWAY_B,
    gateway_mac: GATEWAY_OF_B.mac,
    ..NETWORK_A
};

/// The uplink.
pub(crate) const UPLINK: UplinkInfo =
    UplinkInfo { mtu: 1500, link_len: 14, pad: 0, flags: UplinkInfo::GUARDED };

/// The path to [`PEER`].
pub(crate) const TO_PEER: UnderlayPath = UnderlayPath {
    ifindex: Interface::Uplink.ifindex(),
    next_hop: PEER,
    port: VXLAN_PORT,
    inner_mtu: MTU,
    next_hop_mac: PEER_MAC,
    uplink_mac: UPLINK_MAC,
};
/// The path to [`PEER2`].
pub(crate) const TO_PEER2: UnderlayPath =
    UnderlayPath { next_hop: ROUTER, port: 8472, next_hop_mac: ROUTER_MAC, ..TO_PEER };

/// An FDB entry of a local endpoint.
pub(crate) const fn local(interface: Interface) -> FdbEntry {
    FdbEntry { ifindex: interface.ifindex(), vtep: [0; 4] }
}

/// An FDB entry of a remote endpoint.
pub(crate) const fn remote(vtep: [u8; 4]) -> FdbEntry {
    FdbEntry { ifindex: 0, vtep }
}

/// Writes the state that every case starts from.
pub(crate) fn fill(tables: &KernelTables) {
    for (port, vni, host) in [
        (Interface::A1, A, ONE),
        (Interface::A2, A, TWO),
        (Interface::B1, B, ONE),
        (Interface::B2, B, TWO),
    ] {
        tables.endpoints.insert(&port.ifindex(), &endpoint(vni, &host)).unwrap();
        tables.fdb.insert(&FdbKey::new(vni, host.mac), &local(port)).unwrap();
        neighbour(tables, vni, &host, host.mac);
    }
    tables.networks.insert(&A, &NETWORK_A).unwrap();
    tables.networks.insert(&B, &NETWORK_B).unwrap();
    for (host, vtep, path) in [(FAR, PEER, TO_PEER), (FARTHER, PEER2, TO_PEER2)] {
        endpoint_behind(tables, A, &host, vtep);
        tables.vteps.insert(&VtepKey { vni: A, ip: vtep }, &VtepInfo { foreign: 0 }).unwrap();
        tables.underlay.insert(&vtep, &path).unwrap();
    }
    for (vni, index, port) in
        [(A, 0, Interface::A1), (A, 1, Interface::A2), (B, 0, Interface::B1), (B, 1, Interface::B2)]
    {
        tables.flood_local.insert(&FloodKey { vni, index }, &port.ifindex()).unwrap();
    }
    for (index, vtep) in [(0, PEER), (1, PEER2)] {
        tables.flood_remote.insert(&FloodKey { vni: A, index }, &vtep).unwrap();
    }
}

/// Writes the entries that routing needs in addition to [`fill`].
pub(crate) fn fill_routing(tables: &KernelTables) {
    tables.gateways.insert(&GATEWAY_A, &A).unwrap();
    tables.gateways.insert(&GATEWAY_B, &B).unwrap();
    tables.uplinks.insert(&Interface::Uplink.ifindex(), &UPLINK).unwrap();
    tables.client_links.insert(&CLIENT_LINK, &0).unwrap();
    for addr in [US.v4, SECOND.v4, GATEWAY.v4, US_TO_CLIENTS.v4, [127, 0, 0, 1]] {
        tables.host_addrs.insert(&MappedAddr::v4(addr), &0).unwrap();
    }
    neighbour(tables, A, &GATEWAY, GATEWAY.mac);
}

/// Writes neighbour entries in the network `vni` that map the addresses of `host` to `mac`.
pub(crate) fn neighbour(tables: &KernelTables, vni: u32, host: &Host, mac: [u8; 6]) {
    let entry = NeighEntry { mac };
    let keys = [
        NeighKey::v4(vni, host.v4),
        NeighKey::v6(vni, host.v6),
        NeighKey::v6(vni, host.link_local()),
    ];
    for key in keys {
        tables.neighbours.insert(&key, &entry).unwrap();
    }
}

/// Writes the entries of `host`, an endpoint of the network `vni` behind `vtep`.
pub(crate) fn endpoint_behind(tables: &KernelTables, vni: u32, host: &Host, vtep: [u8; 4]) {
    tables.fdb.insert(&FdbKey::new(vni, host.mac), &remote(vtep)).unwrap();
    neighbour(tables, vni, host, host.mac);
}

/// Changes the endpoint at `interface`.
pub(crate) fn change_endpoint(
    tables: &KernelTables,
    interface: Interface,
    change: impl FnOnce(&mut EndpointInfo),
) {
    let mut entry = tables.endpoints.dump().unwrap()[&interface.ifindex()];
    change(&mut entry);
    tables.endpoints.insert(&interface.ifindex(), &entry).unwrap();
}

/// The incarnation of the endpoint at `interface`.
pub(crate) fn incarnation(tables: &KernelTables, interface: Interface) -> u32 {
    tables.endpoints.dump().unwrap()[&interface.ifindex()].incarnation
}

/// Changes the network `vni`.
pub(crate) fn change_network(
    tables: &KernelTables,
    vni: u32,
    change: impl FnOnce(&mut NetworkInfo),
) {
    let mut entry = tables.networks.dump().unwrap()[&vni];
    change(&mut entry);
    tables.networks.insert(&vni, &entry).unwrap();
}

/// Makes network A a learning one.
pub(crate) fn learning(tables: &KernelTables) {
    change_network(tables, A, |network| network.flags |= NetworkInfo::LEARNING);
}

/// Lets the endpoint at `interface` send from any address.
pub(crate) fn any_source(tables: &KernelTables, interface: Interface) {
    change_endpoint(tables, interface, |entry| entry.flags |= EndpointInfo::ALLOW_ANY_SOURCE);
}

/// The outer headers that we send to [`PEER`] in network A, MACs included.
pub(crate) fn to_peer() -> Tunnel {
    Tunnel { eth_dst: PEER_MAC, eth_src: UPLINK_MAC, ..Tunnel::new(OUR_VTEP, PEER, A) }
}

/// The outer headers that we send to [`PEER2`] in network A, MACs included.
pub(crate) fn to_peer2() -> Tunnel {
    Tunnel {
        eth_dst: ROUTER_MAC,
        eth_src: UPLINK_MAC,
        dst_port: TO_PEER2.port,
        ..Tunnel::new(OUR_VTEP, PEER2, A)
    }
}

/// The outer headers of frames that [`PEER`] sends us in network A.
pub(crate) fn from_peer() -> Tunnel {
    Tunnel {
        eth_dst: UPLINK_MAC,
        eth_src: PEER_MAC,
        src_port: 50_000,
        ..Tunnel::new(PEER, OUR_VTEP, A)
    }
}
