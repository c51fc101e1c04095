//! Frames, built by etherparse: a library that shares no code with Culvert.
//!
//! Builders have public fields: a test sets the fields under test; the defaults are those of a
//! well-behaved host. Only the VXLAN header is laid out by hand, from RFC 7348 §5.
#![expect(clippy::expect_used, reason = "a packet that cannot be built is a broken test")]

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type,
    Icmpv6Header, Icmpv6Type, IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header,
    TcpHeader, UdpHeader,
};

/// The addresses of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// MAC address.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub v4: [u8; 4],
    /// IPv6 address.
    pub v6: [u8; 16],
}

impl Host {
    /// The link-local address that follows from the MAC (RFC 4291 appendix A).
    pub const fn link_local(&self) -> [u8; 16] {
        let [a, b, c, d, e, f] = self.mac;
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]
    }
}

/// The broadcast MAC address.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// TCP flags (RFC 9293 §3.1).
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// An Ethernet II frame around `payload`, not padded.
pub fn ethernet(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header =
        Ethernet2Header { source: src, destination: dst, ether_type: EtherType(ethertype) };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}

/// `len` bytes that are not all the same.
pub fn payload(len: usize) -> Vec<u8> {
    // 251 is prime, so usual lengths and offsets are not multiples of the period.
    (0..len).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect()
}

/// An IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct V4 {
    /// Destination MAC.
    pub eth_dst: [u8; 6],
    /// Source MAC.
    pub eth_src: [u8; 6],
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// More fragments.
    pub mf: bool,
    /// Fragment offset in units of eight bytes.
    pub offset: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Protocol number.
    pub protocol: u8,
    /// Everything behind the header.
    pub l4: Vec<u8>,
}

impl V4 {
    /// A packet without content.
    pub fn new(src: &Host, dst: &Host) -> Self {
        Self {
            eth_dst: dst.mac,
            eth_src: src.mac,
            src: src.v4,
            dst: dst.v4,
            tos: 0,
            ttl: 63,
            id: 0x1234,
            df: true,
            mf: false,
            offset: 0,
            options: Vec::new(),
            protocol: 253,
            l4: Vec::new(),
        }
    }

    /// A UDP datagram.
    pub fn udp(src: &Host, dst: &Host, ports: (u16, u16), payload: &[u8]) -> Self {
        let mut header = udp_header(ports, payload.len());
        header.checksum =
            header.calc_checksum_ipv4_raw(src.v4, dst.v4, payload).expect("payload of a datagram");
        let mut l4 = header.to_bytes().to_vec();
        l4.extend_from_slice(payload);
        Self { protocol: IpNumber::UDP.0, l4, ..Self::new(src, dst) }
    }

    /// A TCP segment with a timestamp option, as Linux sends it.
    pub fn tcp(src: &Host, dst: &Host, ports: (u16, u16), payload: &[u8]) -> Self {
        Self::segment(src, dst, ports, ACK, payload)
    }

    /// A TCP segment with the given [flags](FIN) instead of ACK alone. A SYN comes before [`SEQ`].
    pub fn segment(src: &Host, dst: &Host, ports: (u16, u16), flags: u8, payload: &[u8]) -> Self {
        let seq = if flags & SYN == 0 { SEQ } else { SEQ - 1 };
        Self::segment_at(src, dst, ports, flags, seq, payload)
    }

    /// A TCP segment with the given sequence number.
    pub fn segment_at(
        src: &Host,
        dst: &Host,
        ports: (u16, u16),
        flags: u8,
        seq: u32,
        payload: &[u8],
    ) -> Self {
        Self::numbered(src, dst, ports, flags, (seq, SEQ), payload)
    }

    /// A TCP segment with the given sequence number and acknowledgement number.
    pub fn numbered(
        src: &Host,
        dst: &Host,
        ports: (u16, u16),
        flags: u8,
        (seq, ack): (u32, u32),
        payload: &[u8],
    ) -> Self {
        let mut header = tcp_header(ports);
        header.sequence_number = seq;
        header.acknowledgment_number = ack;
        header.fin = flags & FIN != 0;
        header.syn = flags & SYN != 0;
        header.rst = flags & RST != 0;
        header.ack = flags & ACK != 0;
        header.checksum =
            header.calc_checksum_ipv4_raw(src.v4, dst.v4, payload).expect("payload of a segment");
        let mut l4 = header.to_bytes().to_vec();
        l4.extend_from_slice(payload);
        Self { protocol: IpNumber::TCP.0, l4, ..Self::new(src, dst) }
    }

    /// An ICMP message.
    pub fn icmp(src: &Host, dst: &Host, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Self {
        let kind = Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
        let mut l4 = Icmpv4Header::with_checksum(kind, payload).to_bytes().to_vec();
        l4.extend_from_slice(payload);
        Self { protocol: IpNumber::ICMP.0, l4, ..Self::new(src, dst) }
    }

    /// The L3 packet.
    pub fn packet(&self) -> Vec<u8> {
        let mut header = Ipv4Header::new(0, self.ttl, IpNumber(self.protocol), self.src, self.dst)
            .expect("an empty packet");
        header.dscp = IpDscp::try_new(self.tos >> 2).expect("six bits");
        header.ecn = IpEcn::try_new(self.tos & 3).expect("two bits");
        header.identification = self.id;
        header.dont_fragment = self.df;
        header.more_fragments = self.mf;
        header.fragment_offset = IpFragOffset::try_new(self.offset).expect("13 bits");
        header.options = self.options.as_slice().try_into().expect("options");
        header.set_payload_len(self.l4.len()).expect("length of a packet");
        header.header_checksum = header.calc_header_checksum();
        let mut packet = header.to_bytes().to_vec();
        packet.extend_from_slice(&self.l4);
        packet
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        ethernet(self.eth_dst, self.eth_src, 0x0800, &self.packet())
    }
}

/// Sequence number of the first byte of payload of both sides, and acknowledgement number of every
/// segment. The receivers expect these numbers.
pub const SEQ: u32 = 0x0102_0304;

/// A UDP header without a checksum.
fn udp_header(ports: (u16, u16), payload_len: usize) -> UdpHeader {
    UdpHeader::without_ipv4_checksum(ports.0, ports.1, payload_len).expect("payload of a datagram")
}

/// The header of a TCP segment with a timestamp option, without a checksum.
fn tcp_header(ports: (u16, u16)) -> TcpHeader {
    let mut header = TcpHeader::new(ports.0, ports.1, SEQ, 4096);
    header.ack = true;
    header.acknowledgment_number = SEQ;
    // NOP, NOP, timestamps.
    header.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).expect("options of a segment");
    header
}

/// An IPv6 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct V6 {
    /// Destination MAC.
    pub eth_dst: [u8; 6],
    /// Source MAC.
    pub eth_src: [u8; 6],
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// DSCP and ECN.
    pub tclass: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Protocol number of the header that follows the fixed header.
    pub next_header: u8,
    /// Everything behind the fixed header.
    pub rest: Vec<u8>,
}

impl V6 {
    /// A packet without content.
    pub fn new(src: &Host, dst: &Host) -> Self {
        Self {
            eth_dst: dst.mac,
            eth_src: src.mac,
            src: src.v6,
            dst: dst.v6,
            tclass: 0,
            flow_label: 0,
            hop_limit: 63,
            next_header: 59,
            rest: Vec::new(),
        }
    }

    /// A UDP datagram.
    pub fn udp(src: &Host, dst: &Host, ports: (u16, u16), payload: &[u8]) -> Self {
        let mut header = udp_header(ports, payload.len());
        header.checksum =
            header.calc_checksum_ipv6_raw(src.v6, dst.v6, payload).expect("payload of a datagram");
        let mut rest = header.to_bytes().to_vec();
        rest.extend_from_slice(payload);
        Self { next_header: IpNumber::UDP.0, rest, ..Self::new(src, dst) }
    }

    /// A TCP segment with a timestamp option.
    pub fn tcp(src: &Host, dst: &Host, ports: (u16, u16), payload: &[u8]) -> Self {
        let mut header = tcp_header(ports);
        header.checksum =
            header.calc_checksum_ipv6_raw(src.v6, dst.v6, payload).expect("payload of a segment");
        let mut rest = header.to_bytes().to_vec();
        rest.extend_from_slice(payload);
        Self { next_header: IpNumber::TCP.0, rest, ..Self::new(src, dst) }
    }

    /// An ICMPv6 message between `src` and `dst`, which may differ from the hosts of the frame.
    pub fn icmp(
        eth: ([u8; 6], [u8; 6]),
        (src, dst): ([u8; 16], [u8; 16]),
        (kind, code): (u8, u8),
        rest: [u8; 4],
        payload: &[u8],
    ) -> Self {
        Self {
            eth_dst: eth.1,
            eth_src: eth.0,
            src,
            dst,
            tclass: 0,
            flow_label: 0,
            hop_limit: 255,
            next_header: IpNumber::IPV6_ICMP.0,
            rest: icmpv6((src, dst), (kind, code), rest, payload),
        }
    }

    /// Prepends an extension header of type `kind`. `content` follows its next-header byte.
    #[must_use]
    pub fn extended(mut self, kind: u8, content: &[u8]) -> Self {
        let mut rest = vec![self.next_header];
        rest.extend_from_slice(content);
        rest.append(&mut self.rest);
        Self { next_header: kind, rest, ..self }
    }

    /// The L3 packet.
    pub fn packet(&self) -> Vec<u8> {
        let header = Ipv6Header {
            traffic_class: self.tclass,
            flow_label: self.flow_label.try_into().expect("20 bits"),
            payload_length: self.rest.len().try_into().expect("length of a packet"),
            next_header: IpNumber(self.next_header),
            hop_limit: self.hop_limit,
            source: self.src,
            destination: self.dst,
        };
        let mut packet = header.to_bytes().to_vec();
        packet.extend_from_slice(&self.rest);
        packet
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        ethernet(self.eth_dst, self.eth_src, 0x86dd, &self.packet())
    }
}

/// An ICMPv6 message with its checksum.
pub fn icmpv6(
    (src, dst): ([u8; 16], [u8; 16]),
    (kind, code): (u8, u8),
    rest: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    let kind = Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: rest };
    let header = Icmpv6Header::with_checksum(kind, src, dst, payload).expect("an ICMPv6 message");
    let mut message = header.to_bytes().to_vec();
    message.extend_from_slice(payload);
    message
}

/// An ARP packet for IPv4 over Ethernet in an Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// Destination MAC of the frame.
    pub eth_dst: [u8; 6],
    /// Source MAC of the frame.
    pub eth_src: [u8; 6],
    /// 1 is a request, 2 a reply.
    pub operation: u16,
    /// Sender MAC.
    pub sender_mac: [u8; 6],
    /// Sender IP.
    pub sender_ip: [u8; 4],
    /// Target MAC.
    pub target_mac: [u8; 6],
    /// Target IP.
    pub target_ip: [u8; 4],
}

impl Arp {
    /// A broadcast request of `sender` for the MAC of `target_ip`.
    pub const fn request(sender: &Host, target_ip: [u8; 4]) -> Self {
        Self {
            eth_dst: BROADCAST,
            eth_src: sender.mac,
            operation: 1,
            sender_mac: sender.mac,
            sender_ip: sender.v4,
            target_mac: [0; 6],
            target_ip,
        }
    }

    /// A unicast reply of `sender` to `target`.
    pub const fn reply(sender: &Host, target: &Host) -> Self {
        Self {
            eth_dst: target.mac,
            eth_src: sender.mac,
            operation: 2,
            sender_mac: sender.mac,
            sender_ip: sender.v4,
            target_mac: target.mac,
            target_ip: target.v4,
        }
    }

    /// The frame, not padded.
    pub fn frame(&self) -> Vec<u8> {
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation(self.operation),
            &self.sender_mac,
            &self.sender_ip,
            &self.target_mac,
            &self.target_ip,
        )
        .expect("an ARP packet");
        ethernet(self.eth_dst, self.eth_src, 0x0806, &packet.to_bytes())
    }
}

/// A VXLAN tunnel's outer headers.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Destination MAC on the underlay.
    pub eth_dst: [u8; 6],
    /// Source MAC on the underlay.
    pub eth_src: [u8; 6],
    /// VTEP that sends.
    pub src: [u8; 4],
    /// VTEP that receives.
    pub dst: [u8; 4],
    /// Outer DSCP and ECN.
    pub tos: u8,
    /// Don't fragment.
    pub df: bool,
    /// More fragments.
    pub mf: bool,
    /// Fragment offset in units of eight bytes.
    pub offset: u16,
    /// Outer IPv4 options.
    pub options: Vec<u8>,
    /// UDP source port. In an expected frame of the program tests, 0 stands for any entropy port.
    pub src_port: u16,
    /// UDP destination port.
    pub dst_port: u16,
    /// Sends a UDP checksum rather than 0.
    pub checksum: bool,
    /// First byte of the VXLAN header: flags.
    pub flags: u8,
    /// The 24 reserved bits behind the flags.
    pub reserved1: [u8; 3],
    /// VNI.
    pub vni: u32,
    /// The reserved byte behind the VNI.
    pub reserved2: u8,
    /// Bytes on the link behind the IP packet.
    pub trailer: Vec<u8>,
}

impl Tunnel {
    /// Outer headers as RFC 7348 requires of a sender: TTL 64, DF, no checksum, I flag.
    pub fn new(src: [u8; 4], dst: [u8; 4], vni: u32) -> Self {
        Self {
            eth_dst: [0; 6],
            eth_src: [0; 6],
            src,
            dst,
            tos: 0,
            df: true,
            mf: false,
            offset: 0,
            options: Vec::new(),
            src_port: 0,
            dst_port: 4789,
            checksum: false,
            flags: 0x08,
            reserved1: [0; 3],
            vni,
            reserved2: 0,
            trailer: Vec::new(),
        }
    }

    /// The VXLAN header (RFC 7348 §5):
    ///
    /// ```text
    /// |R|R|R|R|I|R|R|R|            Reserved           |
    /// |                VXLAN Network Identifier (VNI) |   Reserved    |
    /// ```
    pub fn vxlan(&self) -> [u8; 8] {
        let [_, high, middle, low] = self.vni.to_be_bytes();
        let [a, b, c] = self.reserved1;
        [self.flags, a, b, c, high, middle, low, self.reserved2]
    }

    /// The outer frame around `inner`.
    pub fn wrap(&self, inner: &[u8]) -> Vec<u8> {
        let mut datagram = self.vxlan().to_vec();
        datagram.extend_from_slice(inner);
        let ports = (self.src_port, self.dst_port);
        let mut udp = udp_header(ports, datagram.len());
        if self.checksum {
            udp.checksum = udp
                .calc_checksum_ipv4_raw(self.src, self.dst, &datagram)
                .expect("payload of a datagram");
        }
        let mut l4 = udp.to_bytes().to_vec();
        l4.append(&mut datagram);
        let ip = V4 {
            eth_dst: self.eth_dst,
            eth_src: self.eth_src,
            src: self.src,
            dst: self.dst,
            tos: self.tos,
            ttl: 64,
            id: 0,
            df: self.df,
            mf: self.mf,
            offset: self.offset,
            options: self.options.clone(),
            protocol: IpNumber::UDP.0,
            l4,
        };
        let mut frame = ip.frame();
        frame.extend_from_slice(&self.trailer);
        frame
    }
}
