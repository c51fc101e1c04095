//! Packets to published ports, and the clients that may use these ports.

use crate::abi::zone;
use crate::datapath::nat::{UPPER_LEN, Upper, has_ports, upper};
use crate::wire::{Ipv4Hdr, ipv4::PROTO_ICMP};

/// What a packet to an address of the host may have to do with published ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The packet is for this port, in network order. It concerns a published port if this port is
    /// published.
    Port([u8; 2]),
    /// The packet is an ICMP error, whose headers do not have the port.
    Unknown,
    /// The packet concerns no published port.
    Nothing,
}

/// Whether the packet is a fragment that may concern a published port. Only the first fragment has
/// ports, and the programs must see it even if it is the host's: they hold the other fragments until
/// they have seen it.
#[inline(always)]
pub const fn is_concerned_fragment(ip: &Ipv4Hdr) -> bool {
    ip.is_fragment() && has_ports(ip.protocol())
}

/// What a packet that is not a fragment has to do with published ports, by the first bytes of its
/// upper layer.
#[inline(always)]
pub const fn concern(protocol: u8, bytes: &[u8; UPPER_LEN]) -> Concern {
    match upper(protocol, bytes) {
        // The host itself answers an echo request.
        Upper::Ports(..) if protocol == PROTO_ICMP => Concern::Nothing,
        Upper::Ports(_, port) => Concern::Port(port),
        Upper::Error => Concern::Unknown,
        Upper::Unsupported => Concern::Nothing,
    }
}

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
    use crate::wire::icmp::{V4_ECHO_REQUEST, V4_TIME_EXCEEDED, V4_UNREACHABLE};
    use crate::wire::ipv4::{PROTO_TCP, PROTO_UDP};

    #[test]
    fn a_packet_concerns_the_port_that_it_is_for() {
        let ports = [0x80, 0x01, 0x1f, 0x90, 0, 0, 0, 0];
        for protocol in [PROTO_TCP, PROTO_UDP] {
            assert_eq!(concern(protocol, &ports), Concern::Port(8080_u16.to_be_bytes()));
        }
        for (first, expected) in [
            (V4_UNREACHABLE, Concern::Unknown),
            (V4_TIME_EXCEEDED, Concern::Unknown),
            (V4_ECHO_REQUEST, Concern::Nothing),
            (13, Concern::Nothing),
        ] {
            let bytes = [first, 0, 0, 0, 0x1f, 0x90, 0x1f, 0x90];
            assert_eq!(concern(PROTO_ICMP, &bytes), expected, "ICMP type {first}");
        }
        // ESP.
        assert_eq!(concern(50, &ports), Concern::Nothing);
    }

    /// A host whose first fragments the programs do not see would lose its own datagrams.
    #[test]
    fn each_fragment_of_a_datagram_concerns_the_programs() {
        const MORE: u16 = 0x2000;
        const UNFRAGMENTED: u16 = 0x4000;
        for (frag_off, protocol, expected) in [
            (MORE, PROTO_UDP, true),
            (MORE | 185, PROTO_UDP, true),
            (185, PROTO_TCP, true),
            (185, PROTO_ICMP, true),
            (185, 50, false),
            (0, PROTO_UDP, false),
            (UNFRAGMENTED, PROTO_UDP, false),
        ] {
            let mut header = [0; Ipv4Hdr::LEN];
            header[0] = 0x45;
            header[6..8].copy_from_slice(&frag_off.to_be_bytes());
            header[9] = protocol;
            let ip: Ipv4Hdr = bytemuck::cast(header);
            assert_eq!(is_concerned_fragment(&ip), expected, "{frag_off:#x} {protocol}");
        }
    }

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
