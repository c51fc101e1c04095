use super::{MAC, OTHER_MAC, v4};
use crate::abi::{DropReason, EndpointInfo, FdbEntry, NetworkInfo, VtepId};
use crate::datapath::arp::arp_request_frame;
use crate::datapath::tunnel_source::{
    TunnelSource, check_arp, check_host_arp, check_host_ipv4, check_ipv4, identify,
};
use crate::wire::ethernet::{BROADCAST, ETH_P_ARP, ETH_P_IP};
use crate::wire::{ARP_REPLY, ARP_REQUEST, ArpIpv4, EthHdr, Ipv4Hdr};

const GATEWAY_MAC: [u8; 6] = [0x02, 0x42, 10, 0, 0, 1];
const GATEWAY_IP: [u8; 4] = [10, 0, 0, 1];
const SENDER: VtepId = VtepId(7);
const VTEP: [u8; 4] = [192, 0, 2, 2];

/// A network that does not learn.
const STRICT: NetworkInfo = NetworkInfo {
    gateway_ifindex: 9,
    gateway_ip: GATEWAY_IP,
    gateway_mac: GATEWAY_MAC,
    ..NetworkInfo::NONE
};
/// A network that learns.
const OPEN: NetworkInfo = NetworkInfo { flags: NetworkInfo::LEARNING, ..STRICT };

/// The sender as a receiver makes it: a MAC without addresses.
fn sender() -> EndpointInfo {
    EndpointInfo { vni: 256, mac: MAC, ..EndpointInfo::NONE }
}

/// The neighbour map has these addresses of the sender: a primary and an additional one.
fn has(ip: &[u8; 4]) -> bool {
    [v4("10.0.0.2"), v4("10.0.0.102")].contains(ip)
}

fn from(mac: [u8; 6]) -> EthHdr {
    EthHdr::new(OTHER_MAC, mac, ETH_P_IP)
}

fn packet(src: [u8; 4]) -> Ipv4Hdr {
    Ipv4Hdr::new(src, v4("10.0.0.3"), 17, 28, 0, 64)
}

#[test]
fn a_mac_is_where_the_fdb_has_it() {
    let at = |vtep| FdbEntry { ifindex: 0, vtep, seal: 0 };
    let local = FdbEntry { ifindex: 5, vtep: VtepId::NONE, seal: 0 };
    for net in [STRICT, OPEN] {
        let named = |place: &FdbEntry| identify(&net, &from(MAC), SENDER, Some(place));
        assert_eq!(named(&at(SENDER)), Ok(TunnelSource::Endpoint));
        assert_eq!(named(&at(VtepId(8))), Err(DropReason::ForeignSourceMac));
        assert_eq!(named(&local), Err(DropReason::LocalSourceMac));
        let gateway = identify(&net, &from(GATEWAY_MAC), SENDER, None);
        assert_eq!(gateway, Ok(TunnelSource::Host));
    }
    let unknown = |net: &NetworkInfo| identify(net, &from(MAC), SENDER, None);
    assert_eq!(unknown(&STRICT), Err(DropReason::ForeignSourceMac));
    assert_eq!(unknown(&OPEN), Ok(TunnelSource::Unknown));
}

#[test]
fn without_a_gateway_no_mac_is_the_gateways() {
    let net = NetworkInfo { gateway_mac: [0; 6], gateway_ip: [0; 4], ..OPEN };
    assert_eq!(identify(&net, &from([0; 6]), SENDER, None), Ok(TunnelSource::Unknown));
    assert_eq!(check_ipv4(&net, &sender(), &packet([0; 4]), has), Ok(()));
    let probe = ArpIpv4::new(ARP_REQUEST, [0; 6], [0; 4], [0; 6], v4("10.0.0.9"));
    assert_eq!(check_arp(&net, &sender(), &probe, has), Ok(()));
}

#[test]
fn a_host_speaks_to_containers_from_its_own_address() {
    for net in [STRICT, OPEN] {
        let check = |eth: &EthHdr, src| check_host_ipv4(&net, eth, &packet(src), &VTEP);
        let eth = EthHdr::new(MAC, GATEWAY_MAC, ETH_P_IP);
        assert_eq!(check(&eth, VTEP), Ok(()));
        for src in [GATEWAY_IP, v4("10.0.0.2"), v4("8.8.8.8"), v4("192.0.2.3"), [0; 4]] {
            assert_eq!(check(&eth, src), Err(DropReason::SpoofedIp), "{src:?}");
        }
        for dst in [BROADCAST, [1, 0, 0x5e, 0, 0, 1], GATEWAY_MAC] {
            let eth = EthHdr::new(dst, GATEWAY_MAC, ETH_P_IP);
            assert_eq!(check(&eth, VTEP), Err(DropReason::GatewaySource), "{dst:?}");
        }
    }
}

#[test]
fn a_host_asks_where_it_learns() {
    let asked = arp_request_frame(GATEWAY_MAC, GATEWAY_IP, v4("10.0.0.9"));
    let refused = Err(DropReason::GatewaySource);
    assert_eq!(check_host_arp(&OPEN, &asked.eth, &asked.arp), Ok(()));
    assert_eq!(check_host_arp(&STRICT, &asked.eth, &asked.arp), refused);
    let unicast = EthHdr::new(MAC, GATEWAY_MAC, ETH_P_ARP);
    assert_eq!(check_host_arp(&OPEN, &unicast, &asked.arp), refused);
    let arp = |kind, mac, ip| ArpIpv4::new(kind, mac, ip, [0; 6], v4("10.0.0.9"));
    for arp in [
        arp(ARP_REPLY, GATEWAY_MAC, GATEWAY_IP),
        arp(ARP_REQUEST, MAC, GATEWAY_IP),
        arp(ARP_REQUEST, GATEWAY_MAC, v4("10.0.0.2")),
        arp(3, GATEWAY_MAC, GATEWAY_IP),
    ] {
        assert_eq!(check_host_arp(&OPEN, &asked.eth, &arp), refused, "{arp:?}");
    }
}

#[test]
fn an_endpoint_sends_from_its_addresses() {
    let check = |net: &NetworkInfo, src| check_ipv4(net, &sender(), &packet(src), has);
    for src in ["10.0.0.2", "10.0.0.102"] {
        assert_eq!(check(&STRICT, v4(src)), Ok(()));
    }
    for src in ["10.0.0.3", "8.8.8.8", "192.0.2.2", "0.0.0.0", "255.255.255.255"] {
        assert_eq!(check(&STRICT, v4(src)), Err(DropReason::SpoofedIp), "{src}");
        assert_eq!(check(&OPEN, v4(src)), Ok(()), "{src}");
    }
    for net in [STRICT, OPEN] {
        assert_eq!(check(&net, GATEWAY_IP), Err(DropReason::GatewaySource));
    }
    // Not even if the neighbour map has the gateway's address for the MAC.
    let all = check_ipv4(&STRICT, &sender(), &packet(GATEWAY_IP), |_| true);
    assert_eq!(all, Err(DropReason::GatewaySource));
}

#[test]
fn an_endpoint_claims_its_addresses() {
    let arp = |kind, mac, ip| ArpIpv4::new(kind, mac, ip, OTHER_MAC, v4("10.0.0.3"));
    let check = |net: &NetworkInfo, arp: &ArpIpv4| check_arp(net, &sender(), arp, has);
    for kind in [ARP_REQUEST, ARP_REPLY] {
        for net in [STRICT, OPEN] {
            for ip in ["10.0.0.2", "10.0.0.102"] {
                assert_eq!(check(&net, &arp(kind, MAC, v4(ip))), Ok(()));
            }
            for gateway in [arp(kind, MAC, GATEWAY_IP), arp(kind, GATEWAY_MAC, v4("10.0.0.2"))] {
                assert_eq!(check(&net, &gateway), Err(DropReason::GatewaySource));
            }
        }
        for foreign in [arp(kind, MAC, v4("10.0.0.3")), arp(kind, OTHER_MAC, v4("10.0.0.2"))] {
            assert_eq!(check(&STRICT, &foreign), Err(DropReason::SpoofedArp));
            assert_eq!(check(&OPEN, &foreign), Ok(()));
        }
    }
    // Probes (RFC 5227 §1.1) are requests.
    assert_eq!(check(&STRICT, &arp(ARP_REQUEST, MAC, [0; 4])), Ok(()));
    assert_eq!(check(&STRICT, &arp(ARP_REPLY, MAC, [0; 4])), Err(DropReason::SpoofedArp));
    assert_eq!(check(&STRICT, &arp(3, MAC, v4("10.0.0.2"))), Err(DropReason::Malformed));
}
