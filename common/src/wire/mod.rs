//! Packet headers in network format.
//!
//! Every header is a `repr(C)` structure of byte arrays: any bytes are a valid
//! value, it has no padding and an alignment of one, so that it can be laid
//! over packet memory on both sides. Multi-byte fields are big-endian on the
//! wire and native integers in accessors. Nothing here panics or allocates.

/// Asserts at compile time that a header has the size and the alignment that this module
/// promises, and defines its `LEN`.
macro_rules! wire_header {
    ($($ty:ty = $len:literal),+ $(,)?) => {
        $(
            impl $ty {
                /// Bytes on the wire.
                pub const LEN: usize = $len;
            }

            const _: () = assert!(size_of::<$ty>() == $len);
            const _: () = assert!(align_of::<$ty>() == 1);
        )+
    };
}

mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod igmp;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
mod udp;
mod vxlan;

pub use arp::{ARP_REPLY, ARP_REQUEST, ArpIpv4};
pub use ethernet::EthHdr;
pub use icmp::{Icmpv4Hdr, Icmpv6Hdr, LinkLayerOption, NeighbourHdr};
pub use ipv4::Ipv4Hdr;
pub use ipv6::Ipv6Hdr;
pub use tcp::{TcpHdr, TcpStart};
pub use udp::UdpHdr;
pub use vxlan::VxlanHdr;

#[cfg(test)]
mod tests;
