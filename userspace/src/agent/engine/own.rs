//! Facts about this host that other hosts must know: VTEP address, subnets, MTU.

use std::{net::Ipv4Addr, sync::Arc};

use super::Engine;
use crate::{agent::platform::NodeFacts, model::Node};

impl Engine {
    /// Compares the host with this node's record. Changed subnets or a changed MTU are written to
    /// the record. The VTEP address is a constant of the programs: if the host has another address
    /// instead, the agent starts anew.
    pub(super) async fn check_host(&mut self) {
        let shared = Arc::clone(&self.shared);
        let facts = match shared.platform.facts().await {
            Ok(facts) => facts,
            Err(error) => {
                shared.shown.problems.set("host", Some(format!("host: {}", error.message)));
                return;
            }
        };
        shared.shown.problems.set("host", None);
        let moved = moved(&facts, shared.node.vtep, shared.options.vtep_ip.is_some());
        match moved {
            Moved::No => {
                shared.shown.problems.set("vtep", None);
                shared.shown.problems.set("prefixes", untold(&facts));
                let told = facts.told_prefixes();
                let NodeFacts { prefixes, mtu, .. } = facts;
                if self.connected != prefixes {
                    // Other networks than before may now overlap a subnet of the host.
                    self.connected = prefixes;
                    self.dirty.extend(self.vnis.keys().cloned());
                }
                shared.record.send_if_modified(|record| {
                    let mtu = mtu.or(record.mtu);
                    let now = Node { prefixes: told, mtu, ..record.clone() };
                    let changed = now != *record;
                    *record = now;
                    changed
                });
            }
            Moved::To(ip) => {
                shared.ending.start_anew(format!(
                    "VTEP address {} is no address of this host any more, {ip} is",
                    shared.node.vtep
                ));
            }
            Moved::Away(line) => shared.shown.problems.set("vtep", Some(line)),
        }
    }
}

/// The problem, on one line, that the record of the node has no room for all subnets to which the
/// host is connected.
fn untold(facts: &NodeFacts) -> Option<String> {
    let first = facts.prefixes.get(Node::MOST_PREFIXES)?;
    Some(format!(
        "host: it is connected to {} subnets, and other hosts are told {} of them: the subnet that is chosen for an overlay network may overlap one of the others, such as {first}; name subnets with 'network create --subnet', or ranges with 'agent --pool' on all hosts",
        facts.prefixes.len(),
        Node::MOST_PREFIXES
    ))
}

/// Whether the host has its VTEP address.
#[derive(Debug, PartialEq, Eq)]
enum Moved {
    No,
    /// The uplink has this address instead.
    To(Ipv4Addr),
    /// There is no address that the agent may take: the problem on one line.
    Away(String),
}

/// Checks whether the host has the address `vtep`. `given`: `vtep` is the value of `--vtep-ip`.
fn moved(facts: &NodeFacts, vtep: Ipv4Addr, given: bool) -> Moved {
    if facts.ips.contains(&vtep) {
        return Moved::No;
    }
    let gone = format!("VTEP address {vtep} is no address of this host any more");
    match facts.uplink_ips.first() {
        _ if given => {
            Moved::Away(format!("{gone}: add it again, or start the agent with another --vtep-ip"))
        }
        Some(ip) => Moved::To(*ip),
        None => Moved::Away(format!(
            "{gone}, and the uplink has no other: the agent takes the next one that it gets"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_that_other_hosts_are_not_told_are_a_problem() {
        let facts = |number: u8| NodeFacts {
            prefixes: (0..number).map(|n| format!("10.0.{n}.0/24").parse().unwrap()).collect(),
            ..NodeFacts::default()
        };
        let most = u8::try_from(Node::MOST_PREFIXES).unwrap();
        assert_eq!((untold(&facts(most)), facts(most).told_prefixes().len()), (None, 64));
        let line = untold(&facts(most + 2)).unwrap();
        assert!(line.contains("connected to 66 subnets") && line.contains("told 64"), "{line}");
        assert!(line.contains("such as 10.0.64.0/24"), "{line}");
        assert_eq!(facts(most + 2).told_prefixes(), facts(most).prefixes);
    }

    #[test]
    fn the_next_address_of_the_uplink_is_taken_unless_one_was_given() {
        let vtep = Ipv4Addr::new(192, 0, 2, 1);
        let next = Ipv4Addr::new(192, 0, 2, 9);
        let facts = |uplink: &[Ipv4Addr], other: &[Ipv4Addr]| NodeFacts {
            uplink_ips: uplink.to_vec(),
            ips: uplink.iter().chain(other).copied().collect(),
            ..NodeFacts::default()
        };
        assert_eq!(moved(&facts(&[next, vtep], &[]), vtep, false), Moved::No);
        assert_eq!(moved(&facts(&[next], &[vtep]), vtep, true), Moved::No);
        assert_eq!(moved(&facts(&[next], &[]), vtep, false), Moved::To(next));
        for (facts, given) in [(facts(&[next], &[]), true), (facts(&[], &[next]), false)] {
            let Moved::Away(line) = moved(&facts, vtep, given) else { panic!("{facts:?}") };
            assert!(line.starts_with("VTEP address 192.0.2.1 is no address"), "{line}");
        }
    }
}
