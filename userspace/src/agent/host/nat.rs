//! What the programs need to know of the host to translate addresses.

use std::{collections::BTreeMap, net::IpAddr};

use culvert_common::abi::{MappedAddr, UplinkInfo};

use super::{
    Host,
    error::{broken, refused},
};
use crate::{
    api::types::ApiError,
    datapath::{DatapathError, Table},
};

impl Host {
    /// Tells the programs which addresses are the host's own. Those of the loopback
    /// device's network are left out: no packet from elsewhere is for them.
    pub(super) async fn note_addresses(&self) -> Result<(), ApiError> {
        let addresses = self.netlink.all_addresses().await.map_err(refused)?;
        let wanted = addresses.iter().filter_map(|(_, address)| match address.ip() {
            IpAddr::V4(ip) if !ip.is_loopback() => Some((MappedAddr::v4(ip.octets()), 0)),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        replace(&self.datapath.tables().host_addrs, &wanted.collect()).map_err(broken)
    }

    /// Tells the programs which interfaces are uplinks.
    pub(super) fn note_uplinks(
        &self,
        uplinks: &BTreeMap<u32, UplinkInfo>,
    ) -> Result<(), DatapathError> {
        replace(&self.datapath.tables().uplinks, uplinks)
    }
}

/// Makes a table what it should be.
fn replace<K: Copy + Ord, V: PartialEq>(
    table: &dyn Table<K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<(), DatapathError> {
    let present = table.dump()?;
    for (key, value) in wanted.iter().filter(|(key, value)| present.get(key) != Some(value)) {
        table.insert(key, value)?;
    }
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        table.remove(key)?;
    }
    Ok(())
}
