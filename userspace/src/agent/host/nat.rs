//! Addresses and uplinks of the host, which the programs need for NAT.

use std::{collections::BTreeMap, net::IpAddr};

use culvert_common::abi::{MappedAddr, UplinkInfo};

use super::{
    Host,
    error::{broken, refused},
};
use crate::{api::types::ApiError, datapath::DatapathError};

impl Host {
    /// Writes the host's own addresses to `HOST_ADDRS`. Loopback addresses (127.0.0.0/8) are left
    /// out: no packet from another host has such a destination.
    pub(super) async fn note_addresses(&self) -> Result<(), ApiError> {
        let addresses = self.netlink.all_addresses().await.map_err(refused)?;
        let wanted = addresses.iter().filter_map(|(_, address)| match address.ip() {
            IpAddr::V4(ip) if !ip.is_loopback() => Some((MappedAddr::v4(ip.octets()), 0)),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        let table = &self.datapath.tables().host_addrs;
        self.kept.host_addrs.replace(table, &wanted.collect()).map_err(broken)
    }

    /// Writes the uplinks to `UPLINKS`.
    pub(super) fn note_uplinks(
        &self,
        uplinks: &BTreeMap<u32, UplinkInfo>,
    ) -> Result<(), DatapathError> {
        self.kept.uplinks.replace(&self.datapath.tables().uplinks, uplinks)
    }
}
