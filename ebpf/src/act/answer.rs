//! Answers to a container: ARP, neighbour discovery, ICMP errors.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use culvert_common::{
    abi::{
        Action, Code, Direction, DropReason, FdbKey, NeighKey, NetworkInfo, Note, RateKey, Scratch,
    },
    datapath::{
        arp::{self, ArpQuery},
        nd::{self, NdKind, NdQuery},
        pmtu::{
            self, Error, ErrorHeaders, PacketTooBigHeaders, QUOTE_V4_LEN, QUOTE_V6_LEN,
            SHORT_QUOTE_V4_LEN,
        },
    },
    wire::{
        ArpIpv4, EthHdr, Icmpv6Hdr, Ipv4Hdr, Ipv6Hdr, LinkLayerOption, NeighbourHdr,
        ethernet::{ETH_P_IP, ETH_P_IPV6},
        icmp::{V4_FRAG_NEEDED, V4_UNREACHABLE},
        ipv6,
    },
};

use crate::{
    count::count,
    facts::sender::{Sender, UpperLayer, has_ipv4, has_ipv6},
    kernel::{
        memory::own,
        redirect::{copy_out, out},
        skb::{ETH_LEN, Packet as _, load, load_to, resize, store, sum},
    },
    maps::{FDB, NEIGHBOURS, SCRATCH, has, read},
    state::rates,
    verdict::hand_back,
};

/// The answer to a frame of a container. `None`: there is no answer, and the frame is to be
/// forwarded.
pub(crate) type Answer = Result<Option<Action>, DropReason>;

/// Offset of the upper layer in an IPv6 frame without extension headers.
const V6_UPPER: usize = ETH_LEN + Ipv6Hdr::LEN;
/// Rate limit of ICMP errors to an endpoint: `ICMP_BURST` at once, and one more every
/// `ICMP_INTERVAL_NS`.
const ICMP_BURST: u32 = 32;
const ICMP_INTERVAL_NS: u32 = 10_000_000;

/// Answers an ARP request whose answer is known. Stores `None` in `answer` if the packet is to be
/// forwarded. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn arp(sender: &Sender<'_>, answer: &mut Option<Action>) -> Result<(), DropReason> {
    hand_back(try_arp(sender), answer)
}

#[inline(always)]
fn try_arp(&Sender { ctx, ifindex, ep, net }: &Sender<'_>) -> Answer {
    let packet: ArpIpv4 = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    match arp::arp_query(ep, &packet, |ip| has_ipv4(ep, ip))? {
        ArpQuery::Absorb => Ok(absorbs(net).then_some(Action::Absorb)),
        ArpQuery::Forward => Ok(None),
        ArpQuery::Resolve { target } => {
            let Some(neighbour) = read(&NEIGHBOURS, &NeighKey::v4(ep.vni, target)) else {
                return Ok(None);
            };
            store(ctx, 0, &arp::arp_reply_frame(&packet, neighbour.mac))?;
            out(ifindex);
            Ok(Some(Action::ArpReply))
        }
    }
}

/// Whether announcements are absorbed. They are for hosts that learn addresses. In a network that
/// does not learn, every host has the addresses from the store.
#[inline(always)]
fn absorbs(net: &NetworkInfo) -> bool {
    net.flags & NetworkInfo::LEARNING == 0
}

/// Action for an ICMPv6 message.
#[derive(Clone, Copy)]
pub(crate) enum NdAnswer {
    /// The message is to be forwarded.
    Forward,
    /// No host needs the message.
    Absorb,
    /// The message is a solicitation that [`nd`] answers.
    Reply,
}

/// Checks an ICMPv6 message. Stores the action in `answer`, and in `mac` the MAC for the answer. A
/// BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn icmpv6(
    sender: &Sender<'_>,
    l4: &UpperLayer,
    mac: &mut [u8; 6],
    answer: &mut NdAnswer,
) -> Result<(), DropReason> {
    hand_back(try_icmpv6(sender, l4, mac), answer)
}

#[inline(always)]
fn try_icmpv6(
    sender: &Sender<'_>,
    l4: &UpperLayer,
    mac: &mut [u8; 6],
) -> Result<NdAnswer, DropReason> {
    let &Sender { ctx, ep, net, .. } = sender;
    let ip: Ipv6Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    if l4.offset != V6_UPPER {
        let disguised = nd::is_disguised(ep, &ip, l4.protocol);
        return if disguised { Err(DropReason::SpoofedNd) } else { Ok(NdAnswer::Forward) };
    }
    let icmp: Icmpv6Hdr = ctx.read(V6_UPPER).ok_or(DropReason::Malformed)?;
    match nd::nd_kind(ep, &ip, &icmp)? {
        NdKind::Other => return Ok(NdAnswer::Forward),
        NdKind::RouterSolicit => {
            let option: Option<LinkLayerOption> = ctx.read(V6_UPPER + Icmpv6Hdr::LEN);
            nd::check_router_solicit(ep, &ip, option.as_ref())?;
            return Ok(NdAnswer::Forward);
        }
        NdKind::Neighbour => {}
    }
    let message: NeighbourHdr = ctx.read(V6_UPPER).ok_or(DropReason::Malformed)?;
    let option: Option<LinkLayerOption> = ctx.read(V6_UPPER + NeighbourHdr::LEN);
    Ok(match nd::nd_query(ep, &ip, &message, option.as_ref(), |ip| has_ipv6(ep, ip))? {
        NdQuery::Absorb if absorbs(net) => NdAnswer::Absorb,
        NdQuery::Absorb | NdQuery::Forward => NdAnswer::Forward,
        NdQuery::Resolve { target } => match resolve(ep.vni, &target) {
            Some(found) => {
                *mac = found;
                NdAnswer::Reply
            }
            None => NdAnswer::Forward,
        },
    })
}

/// The MAC of an IPv6 neighbour. A link-local address contains the MAC (RFC 4291 appendix A): the
/// FDB tells whether an endpoint has that MAC.
#[inline(always)]
fn resolve(vni: u32, target: &[u8; 16]) -> Option<[u8; 6]> {
    if let Some(mac) = ipv6::mac_of_link_local(target) {
        return has(&FDB, &FdbKey::new(vni, mac)).then_some(mac);
    }
    read(&NEIGHBOURS, &NeighKey::v6(vni, *target)).map(|neighbour| neighbour.mac)
}

/// Answers a neighbour solicitation: the MAC of its target is `mac`.
#[inline(always)]
pub(crate) fn nd(sender: &Sender<'_>, mac: [u8; 6]) -> Result<Action, DropReason> {
    nd_reply(sender.ctx.skb.skb, &mac)?;
    out(sender.ifindex);
    Ok(Action::NdReply)
}

/// Turns a neighbour solicitation into its answer. A BPF function of its own, for a stack frame of
/// its own.
#[inline(never)]
fn nd_reply(skb: *mut __sk_buff, mac: &[u8; 6]) -> Result<(), DropReason> {
    let ctx = &TcContext::new(skb);
    let eth = ctx.read::<EthHdr>(0).ok_or(DropReason::HelperFailed)?;
    let ip = ctx.read::<Ipv6Hdr>(ETH_LEN).ok_or(DropReason::HelperFailed)?;
    let message = ctx.read::<NeighbourHdr>(V6_UPPER).ok_or(DropReason::HelperFailed)?;
    let frame = nd::nd_reply(eth.src, &ip, &message, *mac);
    resize(ctx, nd::NdFrame::LEN as u32)?;
    store(ctx, 0, &frame)
}

/// Sends an ICMP error to the container, because its packet is larger than `mtu` bytes. No error is
/// sent if the rules of ICMP or the rate limit forbid it. The source of the error is the
/// destination of the packet. Returns the reason for which the packet is dropped.
#[inline(always)]
pub(crate) fn too_big(sender: &Sender<'_>, eth: &EthHdr, mtu: u32) -> DropReason {
    let &Sender { ctx, ifindex, .. } = sender;
    let what = match eth.ethertype() {
        ETH_P_IP => {
            let (from, kind, code) = ([0; 4], V4_UNREACHABLE, V4_FRAG_NEEDED);
            let error = Error { from, kind, code, mtu: mtu as u16 };
            send_icmp(ctx.skb.skb, ifindex, &raw const error)
        }
        ETH_P_IPV6 => packet_too_big(ctx.skb.skb, ifindex, mtu),
        // No other protocol has such an error.
        _ => 0,
    };
    count_note(ctx, what);
    DropReason::PacketTooBig
}

/// Counts a note, given by its code; 0 for none.
#[inline(always)]
fn count_note(ctx: &TcContext, code: u32) {
    if let Some(note) = Note::from_code(code as u8) {
        count(Direction::FromContainer, Code::Note(note), ctx.len());
    }
}

/// Sends the ICMP error `error` to the container, if the rules of ICMP and the rate limit allow it.
#[inline(always)]
pub(crate) fn error(&Sender { ctx, ifindex, .. }: &Sender<'_>, error: &Error) {
    count_note(ctx, send_icmp(ctx.skb.skb, ifindex, error));
}

/// Sends an ICMPv4 error to the container behind `ifindex`. If the source in `error` is 0.0.0.0,
/// the source of the error is the destination of the packet. Returns the code of the note to count,
/// 0 for none. A global BPF function: the verifier checks it once.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_icmp(skb: *mut __sk_buff, ifindex: u32, error: *const Error) -> u32 {
    // SAFETY: the pointer is null or points to an `Error`: the verifier checks this for every
    // caller.
    let Some(error) = (unsafe { error.as_ref() }) else { return 0 };
    note_code(try_icmp(&TcContext::new(skb), ifindex, error))
}

#[inline(always)]
fn try_icmp(ctx: &TcContext, ifindex: u32, error: &Error) -> Option<Note> {
    let (sent, limited) = match (error.kind, error.code) {
        (V4_UNREACHABLE, V4_FRAG_NEEDED) => (Note::IcmpTooBigSent, Note::IcmpTooBigLimited),
        (V4_UNREACHABLE, _) => (Note::IcmpUnreachableSent, Note::IcmpLimited),
        _ => (Note::IcmpTtlSent, Note::IcmpLimited),
    };
    let eth: EthHdr = ctx.read(0)?;
    let ip: Ipv4Hdr = ctx.read(ETH_LEN)?;
    let kind = load::<u8>(ctx, ETH_LEN + ip.header_len() as usize).ok();
    if !pmtu::icmp_allowed(&eth, &ip, kind) {
        return None;
    }
    if !within_limit(ifindex) {
        return Some(limited);
    }
    let mut error = *error;
    if error.from == [0; 4] {
        error.from = ip.dst;
    }
    if usize::from(ip.tot_len()) >= QUOTE_V4_LEN {
        let quote = quote::<QUOTE_V4_LEN>(ctx)?;
        send_error::<QUOTE_V4_LEN>(ctx, &eth, &ip, &error, quote)?;
    } else {
        let quote = quote::<SHORT_QUOTE_V4_LEN>(ctx)?;
        send_error::<SHORT_QUOTE_V4_LEN>(ctx, &eth, &ip, &error, quote)?;
    }
    copy_out(ctx.skb.skb, ifindex).then_some(sent)
}

/// Replaces the frame by the ICMP error about it.
#[inline(always)]
fn send_error<const N: usize>(
    ctx: &TcContext,
    eth: &EthHdr,
    ip: &Ipv4Hdr,
    error: &Error,
    quote: &[u8; N],
) -> Option<()>
where
    [u8; N]: bytemuck::Pod,
{
    let headers = pmtu::error(eth, ip, error, N as u16, sum(quote));
    resize(ctx, (ErrorHeaders::LEN + N) as u32).ok()?;
    store(ctx, 0, &headers).ok()?;
    store(ctx, ErrorHeaders::LEN, quote).ok()
}

/// Sends an ICMPv6 "packet too big" to the container behind `ifindex`. Returns the code of the note
/// to count, 0 for none.
#[inline(never)]
fn packet_too_big(skb: *mut __sk_buff, ifindex: u32, mtu: u32) -> u32 {
    note_code(try_packet_too_big(&TcContext::new(skb), ifindex, mtu))
}

#[inline(always)]
fn try_packet_too_big(ctx: &TcContext, ifindex: u32, mtu: u32) -> Option<Note> {
    let eth: EthHdr = ctx.read(0)?;
    let ip: Ipv6Hdr = ctx.read(ETH_LEN)?;
    let kind = load::<u8>(ctx, V6_UPPER).ok();
    if !pmtu::icmpv6_allowed(&eth, &ip, kind) {
        return None;
    }
    if !within_limit(ifindex) {
        return Some(Note::IcmpTooBigLimited);
    }
    let quote = quote::<QUOTE_V6_LEN>(ctx)?;
    let headers = pmtu::packet_too_big(&eth, &ip, mtu, sum(quote));
    resize(ctx, PacketTooBigHeaders::FRAME_LEN as u32).ok()?;
    store(ctx, 0, &headers).ok()?;
    store(ctx, PacketTooBigHeaders::LEN, quote).ok()?;
    copy_out(ctx.skb.skb, ifindex).then_some(Note::IcmpTooBigSent)
}

#[inline(always)]
fn note_code(note: Option<Note>) -> u32 {
    note.map_or(0, |note| note.code().into())
}

/// Copies the first `N` bytes of the L3 packet to this CPU's scratch memory. They are too many for
/// the stack.
#[inline(always)]
fn quote<const N: usize>(ctx: &TcContext) -> Option<&'static [u8; N]> {
    let Scratch { bytes } = own(&SCRATCH, 0)?;
    let quote = bytes.first_chunk_mut::<N>()?;
    load_to(ctx.skb.skb, ETH_LEN as u32, quote, N as u32).then_some(&*quote)
}

/// Whether the endpoint's rate limit allows one more ICMP error. Counts this error if so.
#[inline(always)]
fn within_limit(ifindex: u32) -> bool {
    let limit = RateKey { kind: RateKey::ICMP, id: ifindex };
    rates::allow(limit, ICMP_INTERVAL_NS, ICMP_BURST)
}
