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
                let NodeFacts { prefixes, mtu, .. } = facts;
                if self.connected != prefixes {
                    // Other networks than before may now overlap a subnet of the host.
                    self.connected.clone_from(&prefixes);
                    self.dirty.extend(self.vnis.keys().cloned());
                }
                shared.record.send_if_modified(|record| {
                    let now = Node { prefixes, mtu: mtu.or(record.mtu), ..record.clone() };
                    let changed = now != *record;
                    *record = now;
                    changed
                });
            }
            Moved::To(ip) => {
                tracing::warn!(
                    "VTEP address {} is no address of this host any more, {ip} is: starting anew with it",
                    shared.node.vtep
                );
                shared.ending.again.cancel();
            }
            Moved::Away(line) => shared.shown.problems.set("vtep", Some(line)),
        }
    }
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
