//! Announcements of addresses that the store has given to another MAC.

use std::net::{IpAddr, Ipv6Addr};

use super::Engine;
use crate::{model::MacAddr, netlink::Announcement};

/// Most announcements of one turn of the engine. If there are more, the neighbour unreachability
/// detection of the containers corrects the other entries.
const MOST: usize = 65_536;

impl Engine {
    /// Announces addresses that have moved to the containers of this host. The containers learned
    /// the former MACs from the programs' answers, and would keep the entries for up to a minute.
    pub(super) async fn announce(&mut self) {
        let moved = self.reconciler.take_moved();
        if moved.is_empty() {
            return;
        }
        let mut announcements = Vec::new();
        let mut left_out = 0;
        for (key, mac) in &moved {
            let Some(held) = self.reconciler.network(key.vni) else { continue };
            let ip = Ipv6Addr::from(key.ip.0);
            let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
            for (ifindex, info) in &held.tables().endpoints {
                // The new owner of the address needs no announcement.
                if info.mac == *mac {
                    continue;
                }
                if announcements.len() < MOST {
                    let mac = MacAddr(*mac);
                    announcements.push(Announcement { ifindex: *ifindex, ip, mac });
                } else {
                    left_out += 1;
                }
            }
        }
        if announcements.is_empty() {
            self.shared.shown.problems.set("announce", None);
            return;
        }
        let addresses = moved.len();
        tracing::debug!(addresses, announcements = announcements.len(), "addresses announced");
        if left_out > 0 {
            tracing::warn!(
                "{left_out} messages to containers about {addresses} moved addresses were left out: the containers correct their neighbour entries within a minute"
            );
        }
        let sent = self.shared.platform.announce(announcements).await;
        let line = sent.err().map(|error| {
            self.reconciler.put_moved_back(moved);
            format!("announcement of moved addresses: {}; trying again", error.message())
        });
        self.shared.shown.problems.set("announce", line);
    }
}
