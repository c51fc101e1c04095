//! The networks of the frames, and the states of the maps.

use culvert::datapath::Table as _;
use culvert::datapath::entry::{UnderlayPath, VtepInfo, VtepKey};
use culvert_common::abi::{FdbKey, FloodKey, NeighKey, NetworkInfo, blocked, seen};
use culvert_tests::packet::{Host, SYN, V4};

use crate::{
    blocked::{close, close_hosts},
    denied::deny,
    flows,
    interfaces::{GATEWAY_A, GATEWAY_B, Interface},
    lab::{Lab, ip},
    routed,
    run::REDIRECT,
    world::{
        A, B, FAR, GATEWAY, GATEWAY_OF_B, IN_B, ONE, PEER, PEER2, SERVER, SERVER2, TO_PEER,
        TO_PEER2, TWO, US, VXLAN_PORT, any_source, change_endpoint, change_network, learning,
        local, neighbour, remote,
    },
};

/// A network and its endpoints.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) vni: u32,
    /// The interfaces of `one` and of `two`.
    pub(super) interfaces: [Interface; 2],
    pub(super) gateway_ifindex: u32,
    pub(super) gateway: Host,
    pub(super) one: Host,
    pub(super) two: Host,
    /// An endpoint behind [`PEER`].
    pub(super) far: Host,
    pub(super) vteps: &'static [[u8; 4]],
}

/// Both networks have the same IP addresses. Their MACs differ, so that a MAC tells the network
/// that a frame was delivered in.
pub(super) static NETS: [Net; 2] = [
    Net {
        vni: A,
        interfaces: [Interface::A1, Interface::A2],
        gateway_ifindex: GATEWAY_A,
        gateway: GATEWAY,
        one: ONE,
        two: TWO,
        far: FAR,
        vteps: &[PEER, PEER2],
    },
    Net {
        vni: B,
        interfaces: [Interface::B1, Interface::B2],
        gateway_ifindex: GATEWAY_B,
        gateway: GATEWAY_OF_B,
        one: in_b(ONE),
        two: in_b(TWO),
        far: in_b(FAR),
        vteps: &[PEER],
    },
];

/// The host with the same addresses in network B.
const fn in_b(host: Host) -> Host {
    let [a, b, c, d, _, number] = host.mac;
    Host { mac: [a, b, c, d, 1, number], ..host }
}

impl Net {
    /// The network with this VNI.
    pub(super) fn of_vni(vni: u32) -> Option<&'static Self> {
        NETS.iter().find(|net| net.vni == vni)
    }

    /// The network of a container's interface.
    pub(super) fn of(interface: Interface) -> Option<&'static Self> {
        NETS.iter().find(|net| net.interfaces.contains(&interface))
    }

    /// The network with a local endpoint that has this MAC.
    pub(super) fn of_endpoint(mac: [u8; 6]) -> Option<&'static Self> {
        NETS.iter().find(|net| net.has_endpoint(mac))
    }

    /// Whether a local endpoint has this MAC.
    pub(super) fn has_endpoint(&self, mac: [u8; 6]) -> bool {
        [self.one.mac, self.two.mac].contains(&mac)
    }

    /// Whether the MAC is in the network's records: of an endpoint or of the gateway.
    pub(super) fn knows(&self, mac: [u8; 6]) -> bool {
        self.has_endpoint(mac) || [self.far.mac, self.gateway.mac].contains(&mac)
    }
}

/// A state of the maps.
#[derive(Debug)]
pub(super) struct State {
    pub(super) name: &'static str,
    set: fn(&mut Lab),
    /// All MACs are those of the store: no endpoint may send from others, and none are learned.
    pub(super) strict: bool,
    /// Ports of `A1` are published: the only way from one network to the other.
    pub(super) published: bool,
    /// The VXLAN port of [`PEER2`]. Without a path it is taken to be this host's.
    pub(super) far_port: u16,
}

/// The port of the host that is published in some states, as port 80 of `A1`.
pub(super) const PUBLISHED: u16 = 8080;
/// The port from which [`SERVER2`] has connected to [`PUBLISHED`] in these states.
pub(super) const CONNECTED: u16 = 5003;
/// A host to which the kernel has no way.
pub(super) const NOWHERE: Host = Host { v4: [203, 0, 113, 64], ..SERVER };

/// The state that [`begin`] makes of the maps.
const PLAIN: State =
    State { name: "plain", set: |_| {}, strict: true, published: false, far_port: TO_PEER2.port };

/// The states. Each reaches drop reasons that the others do not.
pub(super) static STATES: [State; 12] = [
    PLAIN,
    State { name: "published ports", set: publish, published: true, ..PLAIN },
    State { name: "denied clients", set: deny_clients, published: true, ..PLAIN },
    State { name: "networks that learn", set: learn, strict: false, published: true, ..PLAIN },
    State { name: "an internal network", set: make_internal, ..PLAIN },
    State { name: "limited rates", set: limit, ..PLAIN },
    State { name: "removed entries", set: remove, ..PLAIN },
    State { name: "unknown paths", set: lose_paths, far_port: VXLAN_PORT, ..PLAIN },
    State { name: "no free port", set: Lab::reserve_all, ..PLAIN },
    State { name: "a share that is used up", set: use_up_a_share, published: true, ..PLAIN },
    State { name: "a full table", set: fill_the_table, published: true, ..PLAIN },
    State { name: "closed destinations", set: close_some, ..PLAIN },
];

/// Makes what all states have in common and no state changes: the route to [`NOWHERE`].
pub(super) fn prepare() {
    let [a, b, c, d] = NOWHERE.v4;
    ip(&format!("route add unreachable {a}.{b}.{c}.{d}/32\n"));
}

/// Puts the maps into a state, without flows and fragments.
pub(super) fn begin(lab: &mut Lab, state: &State) {
    lab.begin();
    let tables = &lab.tables;
    for (interface, host) in [(Interface::B1, ONE), (Interface::B2, TWO)] {
        let mac = in_b(host).mac;
        change_endpoint(tables, interface, |entry| entry.mac = mac);
        tables.fdb.remove(&FdbKey::new(B, host.mac)).unwrap();
        tables.fdb.insert(&FdbKey::new(B, mac), &local(interface)).unwrap();
        tables.neighbours.remove(&NeighKey::v6(B, host.link_local())).unwrap();
        neighbour(tables, B, &in_b(host), mac);
    }
    let far = in_b(FAR);
    tables.fdb.insert(&FdbKey::new(B, far.mac), &remote(PEER)).unwrap();
    neighbour(tables, B, &far, far.mac);
    tables.vteps.insert(&VtepKey { vni: B, ip: PEER }, &VtepInfo { foreign: 0 }).unwrap();
    tables.flood_remote.insert(&FloodKey { vni: B, index: 0 }, &PEER).unwrap();
    change_network(tables, B, |network| network.remote_vteps = 1);
    (state.set)(lab);
}

fn publish(lab: &mut Lab) {
    for protocol in [6, 17] {
        routed::publish(lab, [0; 4], protocol, PUBLISHED, Interface::A1, 80);
    }
    let syn = V4::segment(&SERVER2, &US, (CONNECTED, PUBLISHED), SYN, &[]).frame();
    assert_eq!(lab.at_underlay(&syn).outcome().verdict, REDIRECT, "{SERVER2:?} connects");
}

/// `A1` has established connections for more than its share of the flows.
fn use_up_a_share(lab: &mut Lab) {
    publish(lab);
    flows::own(lab, 6, [seen::ACK; 2]);
}

/// The table is full of established connections, none of which may be evicted.
fn fill_the_table(lab: &mut Lab) {
    publish(lab);
    flows::fill(lab, 6, [seen::ACK; 2], 0);
}

/// A store without authentication, the gateway of another network, the broadcast address of a LAN,
/// and hosts that network A is closed to.
fn close_some(lab: &mut Lab) {
    close(lab, &SERVER, Some(80), blocked::STORE);
    close(lab, &IN_B, None, blocked::GATEWAY);
    close(lab, &Host { v4: [192, 0, 2, 255], ..SERVER }, None, blocked::BROADCAST);
    close_hosts(lab);
}

fn deny_clients(lab: &mut Lab) {
    publish(lab);
    deny(lab, "203.0.113.7/32");
    deny(lab, "172.30.0.2/32");
}

fn learn(lab: &mut Lab) {
    publish(lab);
    learning(&lab.tables);
    change_network(&lab.tables, B, |network| network.flags |= NetworkInfo::LEARNING);
    any_source(&lab.tables, Interface::A1);
    any_source(&lab.tables, Interface::B1);
}

fn make_internal(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::INTERNAL);
}

/// One endpoint of each network has a limit, and network B has one endpoint alone.
fn limit(lab: &mut Lab) {
    for interface in [Interface::A1, Interface::B2] {
        change_endpoint(&lab.tables, interface, |entry| {
            entry.bum_rate = 1;
            entry.bum_burst = 3;
        });
    }
    change_network(&lab.tables, B, |network| {
        network.local_endpoints = 1;
        network.remote_vteps = 0;
    });
}

fn remove(lab: &mut Lab) {
    lab.tables.endpoints.remove(&Interface::A2.ifindex()).unwrap();
    lab.tables.networks.remove(&B).unwrap();
    lab.tables.gateways.remove(&GATEWAY_B).unwrap();
}

fn lose_paths(lab: &mut Lab) {
    lab.tables.underlay.remove(&PEER2).unwrap();
    let unresolved = UnderlayPath { next_hop_mac: [0; 6], ..TO_PEER };
    lab.tables.underlay.insert(&PEER, &unresolved).unwrap();
}
