//! The MTU of the path between two hosts: routers that take less, and errors that somebody forges.

use culvert_tests::{
    cluster::SOON,
    netns::{Netns, Underlay, wait_for, wait_until},
    sock::container,
};
use nix::sys::signal::Signal;

use crate::{
    overlay::Pair,
    ports::{echo, exchange_at},
};

impl Pair {
    /// Number in the part `path_mtu` of the first host's status.
    fn count(&self, name: &str) -> u64 {
        self.one().json(&["status"])["path_mtu"][name].as_u64().unwrap_or_default()
    }

    /// What a ping with packets of `size` bytes of data and DF from the first host prints.
    fn ping(&self, size: u16) -> (bool, String) {
        let script = format!("ping -c2 -i0.2 -W1 -M do -s {size} 10.0.0.3");
        let output = self.one().try_in_container(&self.over1, &script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// Sends 1 MiB from the first host and back over TCP.
    fn transfer(&self) {
        let _server = echo(&container(&self.over2), "tcp", 80);
        let at = [10, 0, 0, 3].into();
        let answer = exchange_at(&container(&self.over1), "tcp", at, 80, 1 << 20);
        assert_eq!(answer, "ok 1048576");
    }
}

/// Sends ICMP fragmentation-needed from `netns` to 192.0.2.1, as a router would: one for each MTU,
/// `times` times. `quoted` is the part of the quote behind its IP header, in Python.
fn forge(netns: &Netns, mtus: &str, times: u32, protocol: u8, quoted: &str) {
    let script = format!(
        r#"
import socket, struct
def csum(b):
    s = sum(struct.unpack('!%dH' % (len(b)//2), b))
    while s >> 16: s = (s & 0xffff) + (s >> 16)
    return ~s & 0xffff
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
quote = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 1500, 0, 0x4000, 64, {protocol}, 0,
    socket.inet_aton('192.0.2.1'), socket.inet_aton('192.0.2.2')) + {quoted}
for _ in range({times}):
    for mtu in {mtus}:
        body = struct.pack('!BBHHH', 3, 4, 0, 0, mtu) + quote
        body = body[:2] + struct.pack('!H', csum(body)) + body[4:]
        s.sendto(body, ('192.0.2.1', 0))
"#
    );
    netns.run(&format!("python3 -c \"{}\"", script.replace('"', "\\\"")));
}

/// The UDP header of a datagram of the tunnel, in Python.
const TUNNELLED: &str = "struct.pack('!HHHH', 50000, 4789, 1480, 0)";

/// A router whose next link takes 1400 bytes: the containers are told so within seconds, and the
/// agent has verified it.
#[test]
#[ignore = "needs root"]
fn a_router_that_takes_less_is_found() {
    let pair = Pair::new(2, &[]);
    let (one, two) = (pair.one(), pair.two());
    let router = pair.cluster.plain_host(9);
    let uplink = Underlay::UPLINK;
    router.run(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 \
         net.ipv4.conf.{uplink}.send_redirects=0; \
         ip route add {}/32 dev {uplink} mtu lock 1400",
        two.vtep()
    ));
    one.netns.run(&format!("ip route add {}/32 via {}", two.vtep(), Underlay::address(9)));
    wait_until(SOON, "the path over the router", || {
        one.json(&["vtep", "ls"]).to_string().contains(&format!("via {}", Underlay::address(9)))
    });
    assert!(pair.ping(1300).0);
    wait_until(SOON, "the container to be told the MTU", || {
        let (_, text) = pair.ping(1400);
        text.contains("mtu = 1350") || text.contains("mtu=1350")
    });
    assert_eq!((pair.count("smaller"), pair.count("verified")), (1, 1));
    assert!(pair.count("hints") >= 1);
    assert!(pair.ping(1300).0);
    pair.transfer();
    let log = one.agent_log();
    let line = format!("VTEP {}: a router on the path takes packets of at most 1400", two.vtep());
    assert_eq!(log.matches(&line).count(), 1, "{log}");
}

/// Anybody who sends an ICMP fragmentation-needed can name any MTU. No router confirms it, so it
/// has no effect.
#[test]
#[ignore = "needs root"]
fn forged_errors_do_not_limit_packets() {
    let pair = Pair::new(2, &[]);
    let (one, forger) = (pair.one(), pair.cluster.plain_host(9));
    forge(&forger, "[1, 551, 552, 601, 1329, 1400]", 50, 17, TUNNELLED);
    // The agent sends probes for about ten seconds before it gives up.
    wait_until(SOON * 2, "a hint that is not verified", || pair.count("unverified") >= 1);
    // The whole MTU of the network passes.
    let (passes, text) = pair.ping(1422);
    assert!(passes, "{text}");
    pair.transfer();
    forge(&forger, "[600, 1400]", 200, 17, TUNNELLED);
    let (passes, text) = pair.ping(1422);
    assert!(passes, "{text}");
    assert_eq!((pair.count("smaller"), pair.count("verified")), (0, 0));
    assert_eq!(one.counter("from_container", "packet_too_big"), 0);
    assert!(pair.count("refused") >= 100, "MTUs of 1 and 551 bytes");
    // The programs keep one hint at a time, and the agent reads it once a second.
    assert!(pair.count("hints") < 100, "{}", pair.count("hints"));
    let line = "VTEP 192.0.2.2: ICMP errors that are not confirmed by a probe";
    assert!(one.json(&["status"])["problems"].to_string().contains(line));
    assert_eq!(one.agent_log().matches(line).count(), 1);
}

/// The kernel believes an error that quotes an echo reply. Its path MTU is not that of the tunnel.
#[test]
#[ignore = "needs root"]
fn what_the_kernel_believes_is_not_used() {
    let mut pair = Pair::new(2, &[]);
    let forger = pair.cluster.plain_host(9);
    forge(&forger, "[600]", 1, 1, "struct.pack('!BBHHH', 0, 0, 0xffff, 0, 0)");
    let two = pair.two().vtep();
    wait_until(SOON, "the kernel to believe it", || {
        pair.one().netns.run(&format!("ip route get {two}")).contains("mtu 600")
    });
    // An agent that starts reads the routes.
    pair.cluster.hosts[0].stop_agent(Signal::SIGTERM);
    pair.cluster.hosts[0].start_agent(&[]);
    pair.cluster.hosts[0].wait_ready();
    // The agent answers before it has looked for the path.
    let row = wait_for(SOON, "the path", || {
        let rows = pair.one().json(&["vtep", "ls"]);
        let mut rows = rows.as_array().unwrap().iter();
        rows.find(|row| row["ip"] == two.to_string() && row["inner_mtu"] != 0).cloned()
    });
    assert_eq!(row["inner_mtu"], 1450, "{row}");
    let (passes, text) = pair.ping(1422);
    assert!(passes, "{text}");
}
