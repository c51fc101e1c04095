//! Packets between a host itself and containers of an overlay network, on the same and on another
//! host.

use std::net::{Ipv4Addr, SocketAddrV4};

use culvert_tests::{
    cluster::{Cluster, unique_name},
    sock::{self, Behaviour, Server, Use, container},
};

/// A host reaches local and remote containers under its own address, with every kind of packet. The
/// answers return through the tunnel. Another host with the same source ports does not get them.
#[test]
#[ignore = "needs root"]
fn a_host_reaches_containers_everywhere() {
    let cluster = Cluster::new(3);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let names: Vec<String> = cluster
        .hosts
        .iter()
        .map(|host| {
            let name = unique_name("h");
            host.run_idle(&name, "net", &[]);
            name
        })
        .collect();
    let ip: Ipv4Addr = cluster.hosts[2].ip(&names[2], "net").parse().unwrap();
    let netns = container(&names[2]);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80);
    let (tcp, udp) = (Server::tcp(&netns, any, Behaviour::Echo), Server::udp(&netns, any));
    let to = SocketAddrV4::new(ip, 80);
    for (host, name) in cluster.hosts.iter().zip(&names) {
        host.wait_ping(name, &ip.to_string());
        host.netns.run(&format!("ping -c1 -W2 {ip}"));
        // The source port is the same on every host.
        let answer = sock::tcp(host.netns.path(), to, 4000, Use::Echo(300_000));
        assert_eq!(answer, "ok 300000", "{}", host.node);
        for len in [1, 1400, 5000] {
            let answer = sock::udp(host.netns.path(), to, 4001, len);
            assert_eq!(answer, format!("ok {len}"), "{}", host.node);
        }
        assert_eq!(tcp.take_clients(), [host.vtep().to_string()]);
        assert_eq!(udp.take_clients(), [host.vtep().to_string()]);
    }
    // For a port without a listener, the ICMP error or RST comes back.
    let nobody = SocketAddrV4::new(ip, 81);
    let host = &cluster.hosts[0];
    assert_eq!(sock::udp(host.netns.path(), nobody, 0, 1), "refused");
    assert_eq!(sock::tcp(host.netns.path(), nobody, 0, Use::Echo(1)), "refused");
    // From another host, packets with the gateway's address do not reach the container.
    let from_gateway = format!("ping -c1 -W1 -I 10.0.0.1 {ip}");
    assert!(!host.netns.succeeds(&from_gateway), "an address that every host has");
    assert!(cluster.hosts[2].counter("from_underlay", "spoofed_ip") > 0);
}
