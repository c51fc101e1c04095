//! Clients that may use a published port.

use crate::abi::zone;

/// Whether a packet from the zone `from` to a published port comes from a client, whose address
/// must be checked: from an uplink, a client link, or a container of this host. The host itself
/// needs no permission, as it reaches its containers by their own addresses, too. Another host
/// itself (`TUNNEL`) sends to no published port.
#[inline(always)]
pub const fn is_client(from: u32) -> bool {
    !matches!(from, zone::LOOPBACK | zone::HOST | zone::TUNNEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_but_a_host_itself_is_a_client() {
        for client in [zone::EXTERNAL, zone::client(1), zone::client(0x7fff_ff00), 256, 0xff_ffff] {
            assert!(is_client(client), "{client:#x}");
        }
        for host in [zone::LOOPBACK, zone::HOST, zone::TUNNEL] {
            assert!(!is_client(host), "{host:#x}");
        }
    }
}
