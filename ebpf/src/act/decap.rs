//! Decapsulation: checks of the inner frame, removal of the outer header, and delivery.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    programs::TcContext,
};
use culvert_common::{
    abi::{Action, Direction, DropReason, NetworkInfo, Note},
    datapath::ecn::{self, EcnAction},
    wire::{
        EthHdr, Ipv4Hdr, Ipv6Hdr,
        ethernet::{ETH_P_IP, ETH_P_IPV6},
    },
};

use crate::{
    count::note,
    facts::{
        gso::check_not_merged,
        outer::{INNER, INNER_L3, Tunnelled},
    },
    globals::VTEP_IP,
    kernel::{
        redirect,
        skb::{ETH_LEN, Packet as _, ensure, gso_size, load, resize, set_protocol, store},
    },
};

const DIRECTION: Direction = Direction::FromUnderlay;

/// The inner packet, and the effect of the outer ECN field on it.
pub(crate) enum Contents {
    /// IPv4.
    V4 {
        /// Destination address.
        dst: [u8; 4],
        /// Change of the ECN field.
        ecn: EcnAction,
    },
    /// IPv6.
    V6 {
        /// Change of the ECN field.
        ecn: EcnAction,
    },
    /// Not IP.
    Other,
}

/// Examines an inner IPv4 packet: checks that the buffer holds only one frame, and computes the
/// effect of the outer ECN field.
#[inline(always)]
fn inspect_ipv4(ctx: &TcContext, outer: &Tunnelled, ip: &Ipv4Hdr) -> Result<Contents, DropReason> {
    let ecn = ecn::decap_ecn(outer.tos, ip.tos())?;
    check_not_merged(ctx, outer, Some(ip.tot_len().into()))?;
    Ok(Contents::V4 { dst: ip.dst, ecn })
}

/// Examines the inner packet after the Ethernet header `eth`: checks that the buffer holds only one
/// frame, and computes the effect of the outer ECN field.
#[inline(always)]
pub(crate) fn inspect(
    ctx: &TcContext,
    outer: &Tunnelled,
    eth: &EthHdr,
) -> Result<Contents, DropReason> {
    let (contents, total_len) = match eth.ethertype() {
        ETH_P_IP => {
            let ip: Ipv4Hdr = ctx.read(INNER_L3).ok_or(DropReason::Malformed)?;
            return inspect_ipv4(ctx, outer, &ip);
        }
        ETH_P_IPV6 => {
            ensure(ctx, (INNER_L3 + Ipv6Hdr::LEN) as u32);
            let ip: Ipv6Hdr = ctx.read(INNER_L3).ok_or(DropReason::Malformed)?;
            let ecn = ecn::decap_ecn(outer.tos, ip.tclass())?;
            (Contents::V6 { ecn }, Some(u32::from(ip.payload_len()) + Ipv6Hdr::LEN as u32))
        }
        _ => (Contents::Other, None),
    };
    check_not_merged(ctx, outer, total_len)?;
    Ok(contents)
}

/// Removes the outer header, and changes the inner frame as `contents` says.
#[inline(always)]
pub(crate) fn unwrap(
    ctx: &TcContext,
    outer: &Tunnelled,
    contents: &Contents,
    eth: &EthHdr,
) -> Result<(), DropReason> {
    if gso_size(ctx) == 0 {
        // Bytes after this length are padding of the link, not part of the frame.
        let len = contents.padded_len(outer.frame_len);
        if ctx.len() != len {
            resize(ctx, len)?;
        }
    }
    contents.strip(ctx)?;
    store(ctx, 0, eth)?;
    if !contents.is_ip() {
        // `skb->protocol` is still IPv4, and a netkit device does not set it from the EtherType.
        set_protocol(ctx)?;
    }
    contents.write_ecn(ctx)
}

/// Hands a decapsulated frame to a local endpoint.
#[inline(always)]
pub(crate) fn hand_over(ctx: &TcContext, ifindex: u32) -> Result<Action, DropReason> {
    redirect::peer(ctx, ifindex)?;
    Ok(Action::Deliver)
}

/// Decapsulates an IPv4 packet that is for a local endpoint, and hands it over.
#[inline(always)]
pub(crate) fn deliver(
    ctx: &TcContext,
    outer: &Tunnelled,
    ip: &Ipv4Hdr,
    eth: &EthHdr,
    ifindex: u32,
) -> Result<Action, DropReason> {
    let contents = inspect_ipv4(ctx, outer, ip)?;
    unwrap(ctx, outer, &contents, eth)?;
    hand_over(ctx, ifindex)
}

impl Contents {
    /// Whether the packet is for this host itself, and the network lets containers and hosts reach
    /// each other.
    #[inline(always)]
    pub(crate) fn is_for_host(&self, net: &NetworkInfo) -> bool {
        match self {
            Self::V4 { dst, .. } => {
                net.flags & NetworkInfo::HOST_ACCESS != 0
                    && u32::from_ne_bytes(*dst) == VTEP_IP.load()
            }
            Self::V6 { .. } | Self::Other => false,
        }
    }

    #[inline(always)]
    fn is_ip(&self) -> bool {
        !matches!(self, Self::Other)
    }

    /// Length in bytes to which the outer frame is resized before its decapsulation.
    /// `bpf_skb_adjust_room` refuses to leave less than an IPv4 header after the Ethernet header.
    /// So a shorter inner frame is padded to the minimum length of Ethernet (IEEE 802.3 §4.2.3.3).
    #[inline(always)]
    fn padded_len(&self, frame_len: u32) -> u32 {
        const LEAST: u32 = (INNER_L3 + Ipv4Hdr::LEN) as u32;
        const PADDED: u32 = INNER_L3 as u32 + 46;
        if self.is_ip() || frame_len >= LEAST { frame_len } else { PADDED }
    }

    /// Removes the outer header. GSO frames stay whole.
    #[inline(always)]
    fn strip(&self, ctx: &TcContext) -> Result<(), DropReason> {
        let l3 = match self {
            Self::V4 { .. } => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            Self::V6 { .. } => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
            Self::Other => 0,
        };
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO) | u64::from(l3);
        ctx.adjust_room(-(INNER as i32), BPF_ADJ_ROOM_MAC, flags)
            .map_err(|_| DropReason::DecapFailed)
    }

    /// Writes the ECN field into the decapsulated packet.
    #[inline(always)]
    fn write_ecn(&self, ctx: &TcContext) -> Result<(), DropReason> {
        match self {
            Self::V4 { ecn: EcnAction::Set(tos), .. } => {
                note(DIRECTION, Note::EcnMarked, ctx.len());
                let mut ip: Ipv4Hdr = load(ctx, ETH_LEN)?;
                ip.set_tos(*tos);
                // The sum over the header does not change, so `skb->csum` stays right.
                store(ctx, ETH_LEN, &ip)
            }
            Self::V6 { ecn: EcnAction::Set(tclass) } => {
                note(DIRECTION, Note::EcnMarked, ctx.len());
                let mut ip: Ipv6Hdr = load(ctx, ETH_LEN)?;
                ip.set_tclass(*tclass);
                ctx.store(ETH_LEN, &ip, u64::from(BPF_F_RECOMPUTE_CSUM))
                    .map_err(|_| DropReason::HelperFailed)
            }
            Self::V4 { ecn: EcnAction::Keep, .. }
            | Self::V6 { ecn: EcnAction::Keep }
            | Self::Other => Ok(()),
        }
    }
}
