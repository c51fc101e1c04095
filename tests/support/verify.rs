//! Every checksum of a frame, computed again by etherparse: a library that shares no
//! code with Culvert, nor with the kernel.

use std::collections::BTreeMap;

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv6Header, IpHeaders, IpNumber, TcpHeader,
    UdpHeader,
};

/// UDP port of VXLAN (RFC 7348 §5).
const VXLAN_PORT: u16 = 4789;
/// Length of a VXLAN header.
const VXLAN_LEN: usize = 8;
/// Length of an Ethernet header.
const ETH_LEN: usize = 14;

/// Properties of a verified frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// VNI, if the frame is VXLAN.
    pub vni: Option<u32>,
    /// Length of the outermost L3 packet.
    pub l3_len: usize,
    /// Bytes from the outermost L3 header to the innermost payload. Each segment repeats them.
    pub headers_len: usize,
    /// Protocol of the innermost packet; 0 if the packet is not IP.
    pub protocol: u8,
    /// Offset in the frame of the innermost transport header; 0 if there is none.
    pub l4: usize,
    /// The innermost packet is a fragment.
    pub fragment: bool,
}

/// Key of the datagram that a fragment belongs to: VNI, source, destination, identification,
/// protocol.
type DatagramKey = (Option<u32>, Vec<u8>, Vec<u8>, u32, u8);

/// A datagram of which at least one fragment was received.
#[derive(Debug, Default)]
struct Datagram {
    parts: BTreeMap<usize, Vec<u8>>,
    len: Option<usize>,
}

/// Verifies consecutive frames of one direction. A fragmented datagram is verified with its last
/// fragment.
#[derive(Debug, Default)]
pub struct Verifier {
    fragments: BTreeMap<DatagramKey, Datagram>,
    /// The transport checksum covers the first segment only.
    segments: bool,
}

/// Source and destination address of a packet, for the pseudo header of a checksum.
#[derive(Clone, Copy)]
enum Addresses {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

impl Verifier {
    /// Verifies a frame whose checksums are all filled in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn frame(&mut self, frame: &[u8]) -> Result<Facts, String> {
        self.segments = false;
        self.ethernet(frame, None)
    }

    /// Verifies a list of segments that each have their own checksum (`SKB_GSO_FRAGLIST`): only the
    /// headers of the first segment are visible, and not the bytes that its checksum covers.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn list(&mut self, frame: &[u8]) -> Result<Facts, String> {
        self.segments = true;
        self.ethernet(frame, None)
    }

    /// Number of datagrams with missing fragments.
    pub fn incomplete(&self) -> usize {
        self.fragments.len()
    }

    fn ethernet(&mut self, frame: &[u8], vni: Option<u32>) -> Result<Facts, String> {
        let (eth, packet) = Ethernet2Header::from_slice(frame).map_err(|e| format!("{e}"))?;
        if !matches!(eth.ether_type, EtherType::IPV4 | EtherType::IPV6) {
            return Ok(Facts { vni, l3_len: packet.len(), ..Facts::default() });
        }
        let (ip, rest) = IpHeaders::from_slice(packet).map_err(|e| format!("{e}"))?;
        let headers = ip.header_len();
        let mut facts = Facts {
            vni,
            l3_len: headers + rest.payload.len(),
            headers_len: headers,
            protocol: rest.ip_number.0,
            l4: ETH_LEN + headers,
            fragment: rest.fragmented,
        };
        let (addresses, place) = match &ip {
            IpHeaders::Ipv4(header, _) => {
                let right = header.calc_header_checksum();
                same("IPv4", header.header_checksum, right)?;
                let place = (
                    usize::from(header.fragment_offset.value()) * 8,
                    header.more_fragments,
                    u32::from(header.identification),
                );
                (Addresses::V4(header.source, header.destination), place)
            }
            IpHeaders::Ipv6(header, extensions) => {
                let place = extensions.fragment.as_ref().map_or((0, false, 0), |fragment| {
                    let offset = usize::from(fragment.fragment_offset.value()) * 8;
                    (offset, fragment.more_fragments, fragment.identification)
                });
                (Addresses::V6(header.source, header.destination), place)
            }
        };
        if rest.fragmented {
            if let Some(whole) =
                self.collect(vni, addresses, rest.ip_number.0, place, rest.payload)?
            {
                transport(addresses, rest.ip_number, &whole)?;
            }
            return Ok(facts);
        }
        let l4_len = match transport(addresses, rest.ip_number, rest.payload) {
            Ok(len) => len,
            Err(_) if self.segments => return Ok(facts),
            Err(error) => return Err(error),
        };
        facts.headers_len += l4_len;
        if vni.is_none()
            && rest.ip_number == IpNumber::UDP
            && let Ok((udp, datagram)) = UdpHeader::from_slice(rest.payload)
            && udp.destination_port == VXLAN_PORT
        {
            return self.vxlan(facts, udp.checksum, datagram);
        }
        Ok(facts)
    }

    fn vxlan(&mut self, outer: Facts, checksum: u16, datagram: &[u8]) -> Result<Facts, String> {
        let Some((&[flags, _, _, _, a, b, c, _], frame)) = datagram.split_first_chunk() else {
            return Err(format!("VXLAN of {} bytes", datagram.len()));
        };
        if flags & 0x08 == 0 {
            return Err("VXLAN without a VNI".to_owned());
        }
        let vni = u32::from_be_bytes([0, a, b, c]);
        let inner = self
            .ethernet(frame, Some(vni))
            .map_err(|error| format!("in VNI {vni} (outer checksum {checksum:#06x}): {error}"))?;
        let before = outer.headers_len + VXLAN_LEN + ETH_LEN;
        Ok(Facts {
            l3_len: outer.l3_len,
            headers_len: before + inner.headers_len,
            l4: if inner.l4 == 0 { 0 } else { before + inner.l4 },
            ..inner
        })
    }

    /// Keeps a fragment; returns the datagram if it is now whole.
    fn collect(
        &mut self,
        vni: Option<u32>,
        addresses: Addresses,
        protocol: u8,
        (offset, more, id): (usize, bool, u32),
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, String> {
        let (src, dst) = match addresses {
            Addresses::V4(src, dst) => (src.to_vec(), dst.to_vec()),
            Addresses::V6(src, dst) => (src.to_vec(), dst.to_vec()),
        };
        let key = (vni, src, dst, id, protocol);
        let datagram = self.fragments.entry(key.clone()).or_default();
        if datagram.parts.insert(offset, payload.to_vec()).is_some_and(|old| old != payload) {
            return Err(format!("two fragments of {id:#06x} at {offset} that differ"));
        }
        if !more {
            datagram.len = Some(offset + payload.len());
        }
        let mut whole = Vec::new();
        for (at, part) in &datagram.parts {
            if *at != whole.len() {
                return Ok(None);
            }
            whole.extend_from_slice(part);
        }
        if datagram.len != Some(whole.len()) {
            return Ok(None);
        }
        self.fragments.remove(&key);
        Ok(Some(whole))
    }
}

/// Verifies the transport checksum of an IP packet or of a reassembled datagram. Returns the length
/// of the transport header in bytes.
fn transport(addresses: Addresses, protocol: IpNumber, l4: &[u8]) -> Result<usize, String> {
    use Addresses::{V4, V6};
    let (name, told, right, len) = match protocol {
        IpNumber::TCP => {
            let (tcp, payload) = TcpHeader::from_slice(l4).map_err(|e| format!("{e}"))?;
            let right = match addresses {
                V4(src, dst) => tcp.calc_checksum_ipv4_raw(src, dst, payload),
                V6(src, dst) => tcp.calc_checksum_ipv6_raw(src, dst, payload),
            };
            ("TCP", tcp.checksum, right.map_err(|e| format!("{e}"))?, tcp.header_len())
        }
        IpNumber::UDP => {
            let (udp, payload) = UdpHeader::from_slice(l4).map_err(|e| format!("{e}"))?;
            if usize::from(udp.length) != l4.len() {
                return Err(format!("UDP length {} of {}", udp.length, l4.len()));
            }
            if udp.checksum == 0 && matches!(addresses, V4(..)) {
                return Ok(UdpHeader::LEN);
            }
            let right = match addresses {
                V4(src, dst) => udp.calc_checksum_ipv4_raw(src, dst, payload),
                V6(src, dst) => udp.calc_checksum_ipv6_raw(src, dst, payload),
            };
            ("UDP", udp.checksum, right.map_err(|e| format!("{e}"))?, UdpHeader::LEN)
        }
        IpNumber::ICMP => {
            let (icmp, payload) = Icmpv4Header::from_slice(l4).map_err(|e| format!("{e}"))?;
            ("ICMP", icmp.checksum, icmp.icmp_type.calc_checksum(payload), icmp.header_len())
        }
        IpNumber::IPV6_ICMP => {
            let V6(src, dst) = addresses else { return Ok(0) };
            let (icmp, payload) = Icmpv6Header::from_slice(l4).map_err(|e| format!("{e}"))?;
            let right = icmp.icmp_type.calc_checksum(src, dst, payload);
            ("ICMPv6", icmp.checksum, right.map_err(|e| format!("{e}"))?, icmp.header_len())
        }
        _ => return Ok(0),
    };
    same(name, told, right).map(|()| len)
}

/// Compares two checksums. 0 and 0xffff are the same ones' complement sum, except in UDP, where 0
/// means no checksum (RFC 768).
fn same(what: &str, told: u16, right: u16) -> Result<(), String> {
    let zero = |checksum| checksum == 0 || checksum == 0xffff;
    if told == right || (what != "UDP" && zero(told) && zero(right)) {
        return Ok(());
    }
    Err(format!("{what} checksum {told:#06x} instead of {right:#06x}"))
}
