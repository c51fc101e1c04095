//! What the programs need to know of the host to translate addresses.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Host,
    error::{broken, refused},
};
use crate::{
    api::types::ApiError,
    datapath::{DatapathError, KernelTable, Table as _},
};

impl Host {
    /// Tells the programs which addresses are the host's own. Those of the loopback
    /// device's network are left out: no packet from elsewhere is for them.
    pub(super) async fn note_addresses(&self) -> Result<(), ApiError> {
        let addresses = self.netlink.all_addresses().await.map_err(refused)?;
        let wanted = addresses.iter().filter_map(|(_, address)| match address.ip() {
            IpAddr::V4(ip) if !ip.is_loopback() => Some(ip.octets()),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        replace(&self.datapath.tables().host_addrs, &wanted.collect()).map_err(broken)
    }

    /// Tells the programs which interfaces are uplinks.
    pub(super) fn note_uplinks(&self, uplinks: &BTreeSet<u32>) -> Result<(), DatapathError> {
        replace(&self.datapath.tables().uplinks, uplinks)
    }
}

/// Makes a set what it should be.
fn replace<K: bytemuck::Pod + Ord + Send>(
    table: &KernelTable<K, u32>,
    wanted: &BTreeSet<K>,
) -> Result<(), DatapathError> {
    let present = table.dump()?;
    for key in wanted.iter().filter(|key| !present.contains_key(key)) {
        table.insert(key, &0)?;
    }
    for key in present.keys().filter(|key| !wanted.contains(key)) {
        table.remove(key)?;
    }
    Ok(())
}
