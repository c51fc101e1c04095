//! Network address translation: classification of packets, translated headers, and checksum
//! updates.
//!
//! The terms are those of RFC 2663 (NAPT) and RFC 5508 (ICMP). A flow gets the first candidate
//! port whose `reply` entry does not yet exist in the map of flows.

use crate::abi::{Tuple, seen};
use crate::wire::icmp::{
    V4_ECHO_REPLY, V4_ECHO_REQUEST, V4_PARAMETER_PROBLEM, V4_SOURCE_QUENCH, V4_TIME_EXCEEDED,
    V4_UNREACHABLE,
};
use crate::wire::ipv4::{PROTO_ICMP, PROTO_TCP, PROTO_UDP};
use crate::wire::{Ipv4Hdr, tcp};

/// Number of ports that are tried for a new flow.
pub const PORT_TRIES: u32 = 64;

/// Ports tried for a container that was refused within the last 100 ms. So a flood of packets for
/// which no port is free costs no more than a flood of accepted packets.
pub const BRIEF_PORT_TRIES: u32 = 8;

/// The translatable part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// TCP, UDP or ICMP echo with these ports: source and destination.
    Ports([u8; 2], [u8; 2]),
    /// An ICMP error: the packet that it quotes is translated.
    Error,
    /// No part: the packet cannot be translated.
    Unsupported,
}

/// Bytes of the upper-layer header that [`upper`] reads.
pub const UPPER_LEN: usize = 8;

/// Classifies a packet by the first bytes of its upper layer.
#[inline(always)]
pub const fn upper(protocol: u8, bytes: &[u8; UPPER_LEN]) -> Upper {
    match protocol {
        PROTO_TCP | PROTO_UDP => Upper::Ports([bytes[0], bytes[1]], [bytes[2], bytes[3]]),
        PROTO_ICMP => match bytes[0] {
            V4_ECHO_REQUEST => Upper::Ports([bytes[4], bytes[5]], [0, 0]),
            V4_ECHO_REPLY => Upper::Ports([0, 0], [bytes[4], bytes[5]]),
            V4_UNREACHABLE | V4_SOURCE_QUENCH | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM => {
                Upper::Error
            }
            _ => Upper::Unsupported,
        },
        _ => Upper::Unsupported,
    }
}

/// Whether packets of the protocol can have ports or an ICMP identifier.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, PROTO_TCP | PROTO_UDP | PROTO_ICMP)
}

/// Offset of the ports, or of the ICMP identifier, in the upper-layer header.
#[inline(always)]
pub const fn ports_offset(protocol: u8) -> u32 {
    if protocol == PROTO_ICMP { 4 } else { 0 }
}

/// Offset of the checksum in the upper-layer header.
#[inline(always)]
pub const fn checksum_offset(protocol: u8) -> u32 {
    match protocol {
        PROTO_TCP => 16,
        PROTO_UDP => 6,
        _ => 2,
    }
}

/// The identifier of an ICMP echo: one of the two ports of its tuple; the other is 0.
#[inline(always)]
pub const fn echo_id(tuple: &Tuple) -> [u8; 2] {
    [tuple.src_port[0] | tuple.dst_port[0], tuple.src_port[1] | tuple.dst_port[1]]
}

/// The change of a checksum when the words `old` that it covers become `new`, as a one's
/// complement sum over words read in host order. For `bpf_l4_csum_replace` with a size of 0.
#[inline(always)]
pub const fn difference(old: [u8; 4], new: [u8; 4]) -> u32 {
    add(u32::from_ne_bytes(new), !u32::from_ne_bytes(old))
}

/// One's complement sum of two [`difference`]s.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// [`difference`] of one word at an even offset, given in network order.
#[inline(always)]
pub const fn bytes_difference(old: [u8; 2], new: [u8; 2]) -> u32 {
    difference([old[0], old[1], 0, 0], [new[0], new[1], 0, 0])
}

/// [`difference`] of one word at an even offset, given in host order.
#[inline(always)]
pub const fn word_difference(old: u16, new: u16) -> u32 {
    bytes_difference(old.to_be_bytes(), new.to_be_bytes())
}

/// The new value of a checksum, in network order, after the covered bytes changed by `difference`.
#[inline(always)]
pub const fn update(checksum: [u8; 2], difference: u32) -> [u8; 2] {
    let sum = add(difference, !u16::from_ne_bytes(checksum) as u32);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    (!(sum as u16)).to_ne_bytes()
}

/// The new value of an upper-layer checksum, in network order, after the covered bytes changed
/// by `difference`. A UDP checksum of zero means that there is none, and stays zero; a computed
/// zero becomes all ones (RFC 768).
#[inline(always)]
pub const fn update_upper(protocol: u8, checksum: [u8; 2], difference: u32) -> [u8; 2] {
    if protocol != PROTO_UDP {
        return update(checksum, difference);
    }
    match (checksum, update(checksum, difference)) {
        ([0, 0], _) => [0, 0],
        (_, [0, 0]) => [0xff, 0xff],
        (_, updated) => updated,
    }
}

/// [`difference`] of both addresses.
#[inline(always)]
pub const fn address_difference(from: &Tuple, to: &Tuple) -> u32 {
    add(difference(from.src, to.src), difference(from.dst, to.dst))
}

/// [`difference`] of both ports, or of the identifier of an ICMP echo.
#[inline(always)]
pub const fn port_difference(protocol: u8, from: &Tuple, to: &Tuple) -> u32 {
    if protocol == PROTO_ICMP {
        let ([a, b], [c, d]) = (echo_id(from), echo_id(to));
        return difference([a, b, 0, 0], [c, d, 0, 0]);
    }
    let ([a, b], [c, d]) = (from.src_port, from.dst_port);
    let ([e, f], [g, h]) = (to.src_port, to.dst_port);
    difference([a, b, c, d], [e, f, g, h])
}

/// The IPv4 header with other addresses. With `hop` the TTL is decremented.
#[inline(always)]
pub const fn readdress(ip: &Ipv4Hdr, src: [u8; 4], dst: [u8; 4], hop: bool) -> Ipv4Hdr {
    let mut ip = *ip;
    ip.set_addresses(src, dst);
    if hop {
        ip.decrement_ttl();
    }
    ip
}

/// Whether a segment of the `ORIG` direction begins a new connection on the ports of an ended
/// one: it is a SYN, and both directions have sent FIN, or the connection was reset.
#[inline(always)]
pub const fn begins_anew(tcp_flags: u8, orig: u32, reply: u32) -> bool {
    tcp::opens(tcp_flags) && ((orig | reply) & seen::RST != 0 || orig & reply & seen::FIN != 0)
}

/// The `index`-th of `tries` ports (or identifiers) to try, [`PORT_TRIES`] or [`BRIEF_PORT_TRIES`]
/// of them. The first is the packet's own port, if it is in the range, or if it is privileged and
/// the range begins after the privileged ports. The next ones are spread evenly over the range, from
/// a random port on: ports in use often are next to each other, as those that a system has given
/// out one after the other.
#[inline(always)]
pub const fn candidate(
    index: u32,
    tries: u32,
    own: u16,
    random: u32,
    min: u16,
    max: u16,
) -> Option<u16> {
    if index == 0 {
        let keep = own != 0 && ((own >= min && own <= max) || (own < 1024 && min == 1024));
        return if keep { Some(own) } else { None };
    }
    // Not 0, which the compiler can prove.
    let span = max.saturating_sub(min) as u32 + 1;
    // Both divisors are constants: a division by a variable costs more.
    let step = if tries == BRIEF_PORT_TRIES { span / BRIEF_PORT_TRIES } else { span / PORT_TRIES };
    let step = if step == 0 { 1 } else { step };
    Some((min as u32 + (random % span + index * step) % span) as u16)
}

/// Least difference between the greatest and the least port of a range that has shares, see
/// [`is_in_share`].
const LEAST_SHARED: u32 = 4096;

/// Share of 100 %, in 1/256 of the ports.
pub const WHOLE_SHARE: u32 = 256;

/// The share of the ports for `percent` of them, 0 to 100, in 1/256 of the ports.
#[inline(always)]
pub const fn port_share(percent: u32) -> u32 {
    percent * WHOLE_SHARE / 100
}

/// Number of ports that [`in_share`] examines. With a share of a half, none of them is in the share
/// for one port in 256; with a share of a fifth, for one port in 6.
const BESIDE: u16 = 8;

/// Mixes all bits into the upper half: the finalizer of MurmurHash3 without its last step.
#[inline(always)]
const fn mix(bits: u32) -> u32 {
    let mixed = (bits ^ (bits >> 16)).wrapping_mul(0x85eb_ca6b);
    (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35)
}

/// Number of random ports that are examined to tell whether ports towards a destination are taken.
pub const PROBES: u32 = 4;

/// The `index`-th of these random ports. Each is chosen independently of the others. Otherwise a
/// container that has taken all ports but one part of the range would need few attempts until all
/// random ports are in that part, and so free.
#[inline(always)]
pub const fn probe(index: u32, random: u32, min: u16, max: u16) -> u16 {
    let mixed = mix(random.wrapping_add(index.wrapping_mul(0x9e37_79b1)));
    let span = max.saturating_sub(min) as u32 + 1;
    // The upper half as a fraction of the range. The product has at most 32 bits.
    (min as u32 + (((mixed >> 16) * span) >> 16)) as u16
}

/// Whether the range is large enough for shares of its ports.
#[inline(always)]
pub const fn has_shares(min: u16, max: u16) -> bool {
    max.saturating_sub(min) as u32 >= LEAST_SHARED
}

/// Whether the port is in the share of the ports that the container with the incarnation `owner`
/// may always take. `share` is a result of [`port_share`]. The shares of two containers are
/// independent: with 50 % each, they have about a quarter of all ports in common, and another
/// quarter is only in the share of the second container. The first one cannot use up that quarter,
/// so no count of ports is needed.
#[inline(always)]
pub const fn is_in_share(port: u16, owner: u32, share: u32) -> bool {
    // A weaker mix leaves two containers with nearly the same share.
    let mixed = mix((port as u32).wrapping_mul(0x9e37_79b1) ^ owner.wrapping_mul(0x85eb_ca6b));
    (mixed >> 24) < share
}

/// `port`, or a port near it that is in the range, in the container's share. `None`: none of the
/// `BESIDE` ports that were examined is in the share.
#[inline(always)]
pub const fn in_share(port: u16, owner: u32, share: u32, min: u16, max: u16) -> Option<u16> {
    let mut at = 0;
    while at < BESIDE {
        let beside = port ^ at;
        if beside >= min && beside <= max && is_in_share(beside, owner, share) {
            return Some(beside);
        }
        at += 1;
    }
    None
}

/// The packet that an ICMP error quotes, and the error's addresses, after translation. They follow
/// from `to`, the translation of packets in the other direction, which the receiver of the quoted
/// packet sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Addresses and ports of the quoted packet.
    pub tuple: Tuple,
    /// Source of the error.
    pub src: [u8; 4],
    /// Destination of the error.
    pub dst: [u8; 4],
}

/// Translates an ICMP error, see [`Quoted`] (RFC 5508 §4.2, §4.3). The source of the error is
/// translated if it is the receiver of the quoted packet; a router's address is not changed.
#[inline(always)]
pub fn translate_error(error: &Ipv4Hdr, quoted: &Tuple, to: &Tuple) -> Quoted {
    let src = if error.src == quoted.dst { to.src } else { error.src };
    Quoted { tuple: to.reversed(), src, dst: to.dst }
}
