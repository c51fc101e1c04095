//! Comparison of the host sides of containers' pairs with their wanted state.

use std::collections::{BTreeMap, BTreeSet};

use super::Host;
use crate::netlink::{Link, NetlinkError};

/// The most interfaces that are read one by one. All interfaces of a host with thousands of
/// containers take about as long as 50 single ones.
const FEW: usize = 16;

impl Host {
    /// What differs, on one line for each interface, by interface index. `mtus` has the wanted MTU
    /// of each interface, in bytes.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(super) async fn compare_host_sides(
        &self,
        mtus: &BTreeMap<u32, u16>,
    ) -> Result<BTreeMap<u32, String>, NetlinkError> {
        let links = self.read_host_sides(mtus).await?;
        let line = |(ifindex, mtu): (&u32, &u16)| {
            let link = links.get(ifindex)?;
            let faults = self.faults(link, *mtu, &links);
            let line = (!faults.is_empty()).then(|| format!("{} {}", link.name, faults.join(", ")));
            Some((*ifindex, line?))
        };
        Ok(mtus.iter().filter_map(line).collect())
    }

    /// The interfaces with these indices, the devices that have them as ports, and the bridges that
    /// should.
    async fn read_host_sides(
        &self,
        mtus: &BTreeMap<u32, u16>,
    ) -> Result<BTreeMap<u32, Link>, NetlinkError> {
        if mtus.len() > FEW {
            let links = self.netlink.links().await?;
            return Ok(links.into_iter().map(|link| (link.index, link)).collect());
        }
        let mut links: BTreeMap<u32, Link> = BTreeMap::new();
        let mut wanted: BTreeSet<u32> =
            mtus.keys().copied().chain(self.assistants.room_indices()).collect();
        while let Some(index) = wanted.pop_first() {
            if let Some(link) = self.netlink.link_at(index).await? {
                wanted.extend(link.master.filter(|master| !links.contains_key(master)));
                links.insert(index, link);
            }
        }
        Ok(links)
    }

    /// What is wrong with the host side of a pair, in words. `links` are the interfaces of the host.
    fn faults(&self, link: &Link, mtu: u16, links: &BTreeMap<u32, Link>) -> Vec<String> {
        let mut found = Vec::new();
        if !link.up {
            found.push("was down".to_owned());
        }
        if link.mtu != u32::from(mtu) {
            found.push(format!("had MTU {} instead of {mtu}", link.mtu));
        }
        found.extend(self.assistants.misplaced(link, links));
        found
    }
}
