//! Actions, drop reasons and notes, and where each is counted.
//!
//! Every frame that a program receives is counted once, under exactly one [`Action`] or one
//! [`DropReason`]: the received frames are the forwarded and the dropped ones. A [`Note`] counts an
//! additional event.

use bytemuck::{Pod, Zeroable};

/// Packets and bytes of one counter. A GSO frame is one packet with all its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counter {
    /// Frames.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

/// Defines an enum with a number and a name for each variant.
macro_rules! coded {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vmeta])* $variant = $code,)+
        }

        impl $name {
            /// All variants, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number. It never changes its meaning.
            #[inline(always)]
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The variant with this number.
            #[inline(always)]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name as `culvert stats` prints it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}
pub(crate) use coded;

coded! {
    /// The program that counts, named after its hook.
    Direction {
        /// tcx ingress, host side of a container's veth.
        FromContainer = 0 => "from_container",
        /// tcx ingress, uplink.
        FromUnderlay = 1 => "from_underlay",
        /// XDP, uplink.
        FromUnderlayXdp = 2 => "from_underlay_xdp",
        /// tcx egress, the network's gateway device.
        FromHost = 3 => "from_host",
        /// tcx ingress, the host's loopback device.
        FromLoopback = 4 => "from_loopback",
        /// tcx ingress, a client link.
        FromClient = 5 => "from_client",
        /// tcx egress, uplink.
        ToUnderlay = 6 => "to_underlay",
    }
}

coded! {
    /// Outcome of a frame that was not dropped. Append only.
    Action {
        /// Not a frame of Culvert: passed to the kernel unchanged.
        Pass = 0 => "pass",
        /// Handed to a local endpoint.
        Deliver = 1 => "deliver",
        /// Encapsulated and sent to one VTEP.
        Encap = 2 => "encap",
        /// Replicated to the flood list (BUM).
        Flood = 3 => "flood",
        /// ARP request answered from the neighbour map.
        ArpReply = 4 => "arp_reply",
        /// Neighbour solicitation answered from the neighbour map.
        NdReply = 5 => "nd_reply",
        /// The frame is not forwarded, because no receiver needs it: an announcement or probe of
        /// the endpoint's own address, or an IGMP or MLD report without a querier. Also an ARP
        /// reply to this host, after its MAC was learned.
        Absorb = 6 => "absorb",
        /// Handed to the host's own stack.
        ToHost = 7 => "to_host",
        /// Translated and sent out of an uplink.
        NatOut = 8 => "nat_out",
        /// Translated and handed to a local endpoint.
        NatDeliver = 9 => "nat_deliver",
        /// A fragment held until the first fragment of its datagram comes.
        Hold = 10 => "hold",
    }
}

coded! {
    /// Why a frame was dropped. Append only: numbers are never reused.
    DropReason {
        /// The veth has no entry in `ENDPOINTS`.
        UnknownEndpoint = 64 => "unknown_endpoint",
        /// The endpoint's VNI has no entry in `NETWORKS`.
        UnknownNetwork = 65 => "unknown_network",
        /// A header is cut short or contradicts itself.
        Malformed = 66 => "malformed",
        /// An 802.1Q or 802.1ad tag (RFC 7348 §6.1: no inner VLAN).
        VlanTagged = 67 => "vlan_tagged",
        /// The source MAC is not the endpoint's.
        SpoofedMac = 68 => "spoofed_mac",
        /// The source IP is not the endpoint's.
        SpoofedIp = 69 => "spoofed_ip",
        /// The sender fields of an ARP packet are not the endpoint's.
        SpoofedArp = 70 => "spoofed_arp",
        /// A neighbour discovery message claims an address, a link-layer option or a router role
        /// that is not the endpoint's.
        SpoofedNd = 71 => "spoofed_nd",
        /// VXLAN from a container towards a VTEP.
        VxlanFromContainer = 72 => "vxlan_from_container",
        /// The endpoint sent more BUM frames than its limit.
        BumRateLimited = 73 => "bum_rate_limited",
        /// A BUM frame in a network without another endpoint.
        NoReceiver = 74 => "no_receiver",
        /// The packet is larger than the path MTU.
        PacketTooBig = 75 => "packet_too_big",
        /// The destination is behind the interface that the frame came from. The name in counters
        /// was given when an interface was called a port.
        SameInterface = 76 => "same_port",
        /// The FDB names a VTEP that has no entry in `UNDERLAY`.
        NoUnderlayPath = 77 => "no_underlay_path",
        /// The kernel has no MAC for the next hop to the VTEP.
        NoUnderlayNeighbour = 78 => "no_underlay_neighbour",
        /// The kernel refused to make room for the outer header.
        EncapFailed = 79 => "encap_failed",
        /// The kernel refused to remove the outer header.
        DecapFailed = 80 => "decap_failed",
        /// VXLAN in IP fragments (RFC 7348 §4.3: VTEPs must not fragment).
        OuterFragment = 81 => "outer_fragment",
        /// The outer header is cut short or contradicts itself.
        OuterMalformed = 82 => "outer_malformed",
        /// The VXLAN I flag is clear (RFC 7348 §5).
        VniFlagClear = 83 => "vni_flag_clear",
        /// No network here has this VNI.
        UnknownVni = 84 => "unknown_vni",
        /// The outer source is not a VTEP of this VNI.
        UnknownVtep = 85 => "unknown_vtep",
        /// Outer CE on an inner Not-ECT packet (RFC 6040 §4.2).
        EcnInvalid = 86 => "ecn_invalid",
        /// Datagrams that the kernel merged as plain UDP, regardless of the inner frames.
        MergedFrames = 87 => "merged_frames",
        /// The inner source MAC is a group address or zero.
        InvalidSourceMac = 88 => "invalid_source_mac",
        /// A frame from the tunnel with the source MAC of a local endpoint.
        LocalSourceMac = 89 => "local_source_mac",
        /// A frame from the tunnel whose destination MAC is at a VTEP.
        SplitHorizon = 90 => "split_horizon",
        /// A frame from the tunnel for a MAC that no endpoint of this host has.
        UnknownDestination = 91 => "unknown_destination",
        /// The kernel refused a rewrite or a redirect.
        HelperFailed = 92 => "helper_failed",
        /// The network is internal, and the destination is external.
        InternalNetwork = 93 => "internal_network",
        /// The destination is in another network of this host, or is the gateway of one.
        Isolated = 94 => "isolated",
        /// The route leads out of an interface that is not an uplink.
        NotAnUplink = 95 => "not_an_uplink",
        /// The route to the destination is of type blackhole, unreachable or prohibit.
        NoRoute = 96 => "no_route",
        /// The TTL ran out.
        TtlExceeded = 97 => "ttl_exceeded",
        /// No port is free for the masquerading of a new flow.
        NatPortsExhausted = 98 => "nat_ports_exhausted",
        /// The conntrack table is full, and no flow in it may be evicted.
        ConntrackFull = 99 => "conntrack_full",
        /// The packet cannot be routed: a group or loopback address, the broadcast address of a
        /// subnet of the host, or IPv6.
        Unroutable = 100 => "unroutable",
        /// An ICMP error about a packet without a flow, or an echo reply without a flow. An answer
        /// to a client, with an address that the host has lost.
        NoFlow = 101 => "no_flow",
        /// The first fragment of the datagram has not come, and this fragment cannot be held.
        FragmentUnknown = 102 => "fragment_unknown",
        /// The protocol is not TCP, UDP or ICMP echo. Only these can be translated.
        ProtocolUnsupported = 103 => "protocol_unsupported",
        /// The gateway device has no entry in `GATEWAYS`.
        UnknownGateway = 104 => "unknown_gateway",
        /// The packet would begin a flow, but its addresses and ports are those of the other
        /// direction of an existing flow: a server connects to its client's port.
        FlowConflict = 105 => "flow_conflict",
        /// A client that may not use a published port: its address is denied.
        Denied = 106 => "denied",
        /// A frame from the tunnel whose source MAC the FDB has at another VTEP, or, in a network
        /// that does not learn, nowhere.
        ForeignSourceMac = 107 => "foreign_source_mac",
        /// A frame from the tunnel with the MAC or the IPv4 address of the gateway as sender, except
        /// a packet of the sending host itself.
        GatewaySource = 108 => "gateway_source",
        /// A container may not begin a flow to the destination: an address of a host, in a network
        /// with `--opt block_hosts=true`, or a store without authentication.
        Blocked = 109 => "blocked",
        /// VXLAN from this host's VTEP address to another VTEP that neither Culvert nor root has sent.
        VxlanNotOurs = 110 => "vxlan_not_ours",
        /// The container has its share of the flows, and none of them may be evicted.
        ShareExceeded = 111 => "conntrack_share",
        /// The packet would begin a flow, and the checksum of its upper layer is wrong.
        BadChecksum = 112 => "bad_checksum",
    }
}

coded! {
    /// Event that is counted besides the action or drop of the frame. Append only.
    Note {
        /// Copies of flooded frames handed to local endpoints.
        FloodLocalCopy = 192 => "flood_local_copy",
        /// Copies of flooded frames sent to VTEPs.
        FloodRemoteCopy = 193 => "flood_remote_copy",
        /// A copy of a flooded frame that could not be sent.
        FloodCopyFailed = 194 => "flood_copy_failed",
        /// Reserved bits of the VXLAN header set; ignored (RFC 7348 §5).
        ReservedBits = 195 => "reserved_bits",
        /// A MAC learned for the first time, or again after it aged.
        Learned = 196 => "learned",
        /// A learned MAC moved.
        MacMove = 197 => "mac_move",
        /// A move of a learned MAC, refused by the rate limit.
        MacMoveLimited = 198 => "mac_move_limited",
        /// A source MAC that is not learned, because a local or static entry has it at another
        /// location.
        LearnRefused = 199 => "learn_refused",
        /// ICMP fragmentation-needed or packet-too-big sent to a container.
        IcmpTooBigSent = 200 => "icmp_too_big_sent",
        /// ICMP fragmentation-needed or packet-too-big, not sent because of the rate limit.
        IcmpTooBigLimited = 201 => "icmp_too_big_limited",
        /// A smaller path MTU, learned from an ICMP error of the underlay. No longer counted: the
        /// programs only note a hint, [`Self::PathMtuHint`].
        PathMtuLearnt = 202 => "path_mtu_learnt",
        /// Outer CE carried over to the inner header (RFC 6040 §4.2).
        EcnMarked = 203 => "ecn_marked",
        /// A new flow in the conntrack table.
        FlowCreated = 204 => "flow_created",
        /// A flow masqueraded with another port than the container's.
        PortChanged = 205 => "port_changed",
        /// An idle flow removed to make room for a new one.
        FlowEvicted = 206 => "flow_evicted",
        /// A flow of a container that is gone, removed.
        FlowStale = 207 => "flow_stale",
        /// ICMP time-exceeded sent to a container.
        IcmpTtlSent = 208 => "icmp_ttl_sent",
        /// ICMP destination-unreachable sent to a container.
        IcmpUnreachableSent = 209 => "icmp_unreachable_sent",
        /// ICMP time-exceeded or destination-unreachable, not sent because of the rate limit.
        IcmpLimited = 210 => "icmp_limited",
        /// A held fragment, forwarded after the first fragment of its datagram.
        FragmentReleased = 211 => "fragment_released",
        /// VXLAN of another system, passed on to the socket that shares the VXLAN port with
        /// Culvert.
        ForeignVxlan = 212 => "foreign_vxlan",
        /// A flow to the host's stack that could not be made: forwarded answers will be dropped.
        FlowRefused = 213 => "flow_refused",
        /// The MAC of an address without an endpoint, learned from ARP for the first time, or
        /// changed.
        NeighbourHeard = 214 => "neighbour_heard",
        /// ARP request of the host for an address without an endpoint.
        NeighbourAsked = 215 => "neighbour_asked",
        /// A new MAC, not learned because of the rate limit.
        LearnLimited = 216 => "learn_limited",
        /// The MAC of an address without an endpoint, new or changed, not noted because of the
        /// rate limit.
        NeighbourLimited = 217 => "neighbour_limited",
        /// A flow that was ended because the host has lost its source address.
        SourceLost = 218 => "source_lost",
        /// An IGMP or MLD report in a network without a querier.
        ReportAbsorbed = 219 => "report_absorbed",
        /// An ICMP fragmentation-needed that may be about a datagram of the tunnel: a hint of a
        /// smaller path MTU, which the agent is to verify.
        PathMtuHint = 220 => "path_mtu_hint",
        /// An ICMP fragmentation-needed about a datagram of the tunnel that the programs cannot
        /// have sent, or with an MTU that is too small or no smaller than that of the path.
        PathMtuRefused = 221 => "path_mtu_refused",
        /// A fragment from an external host, passed to the host's stack before the first fragment of
        /// its datagram came. A copy is held, because the datagram may belong to a flow.
        FragmentCopied = 222 => "fragment_copied",
        /// As [`Self::FragmentCopied`], but without a copy: its source has its share of the memory, or
        /// no slot is free.
        FragmentLimited = 223 => "fragment_limited",
    }
}

/// Anything that [`STATS`](super::names::STATS) counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The frame went on.
    Action(Action),
    /// The frame was dropped.
    Drop(DropReason),
    /// An event in addition to the outcome of a frame.
    Note(Note),
}

impl Code {
    /// The number of the code.
    #[inline(always)]
    pub const fn code(self) -> u8 {
        match self {
            Self::Action(action) => action.code(),
            Self::Drop(reason) => reason.code(),
            Self::Note(note) => note.code(),
        }
    }

    /// The name as `culvert stats` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Action(action) => action.name(),
            Self::Drop(reason) => reason.name(),
            Self::Note(note) => note.name(),
        }
    }

    /// `forward`, `drop` or `note`.
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::Action(_) => "forward",
            Self::Drop(_) => "drop",
            Self::Note(_) => "note",
        }
    }

    /// All codes, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        let actions = Action::ALL.iter().copied().map(Self::Action);
        let drops = DropReason::ALL.iter().copied().map(Self::Drop);
        let notes = Note::ALL.iter().copied().map(Self::Note);
        actions.chain(drops).chain(notes)
    }
}

/// Entries of [`STATS`](super::names::STATS): 256 codes for each [`Direction`].
pub const STATS_ENTRIES: u32 = 7 * 256;

/// Index in [`STATS`](super::names::STATS) of the counter of `code` for `direction`.
#[inline(always)]
pub const fn stats_index(direction: Direction, code: Code) -> u32 {
    ((direction.code() as u32) << 8) | code.code() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_their_ranges() {
        let mut seen = [false; 256];
        for code in Code::all() {
            let number = code.code() as usize;
            assert!(!seen[number], "{code:?} shares its number");
            seen[number] = true;
            let range = match code {
                Code::Action(_) => 0..64,
                Code::Drop(_) => 64..192,
                Code::Note(_) => 192..256,
            };
            assert!(range.contains(&number), "{code:?} is out of its range");
        }
    }

    #[test]
    fn every_index_is_inside_the_map() {
        for direction in Direction::ALL {
            for code in Code::all() {
                assert!(stats_index(*direction, code) < STATS_ENTRIES);
            }
        }
    }
}
