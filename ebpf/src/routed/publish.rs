//! Published ports.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use culvert_common::{
    abi::{Direction, DropReason, MappedAddr, PublishedEntry, PublishedKey, Tuple, kind, zone},
    datapath::{
        publish::{Concern, concern, is_client, is_concerned_fragment},
        source,
    },
    wire::{
        Ipv4Hdr,
        ethernet::ETH_P_IP,
        ipv4::{self, PROTO_TCP},
        tcp,
    },
};

use super::work::Work;
use crate::{
    facts::routed::Routed,
    kernel::{
        fib,
        skb::{ETH_LEN, load, push_head, store},
    },
    maps::{
        PUBLISHED, endpoint, has, is_denied, is_host_addr, is_source, is_uplink, network, read_to,
    },
    state::flows,
};

/// Offset of the EtherType in an Ethernet header.
const ETHERTYPE: usize = 12;

/// Puts an Ethernet header in front of an IPv4 packet that has none, if the packet may concern a
/// published port: the functions of this room, and the container, expect the header. Returns 1, or
/// 0 if the packet is as it was. Its MACs are 0, because `bpf_skb_change_head` clears the room. A
/// BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn frame(skb: *mut __sk_buff) -> u32 {
    let ctx = &TcContext::new(skb);
    let framed = matches!(concerns_port(ctx), Ok(true))
        && push_head(ctx, ETH_LEN as u32).is_ok()
        && store(ctx, ETHERTYPE, &ETH_P_IP.to_be_bytes()).is_ok();
    framed.into()
}

/// Whether a packet that begins with its IPv4 header may concern a published port.
#[inline(always)]
fn concerns_port(ctx: &TcContext) -> Result<bool, DropReason> {
    let ip: Ipv4Hdr = load(ctx, 0)?;
    let header_len = source::check_ipv4_shape(&ip, ctx.len())?;
    if !is_host_addr(ip.dst) {
        return Ok(false);
    }
    if ip.is_fragment() {
        return Ok(is_concerned_fragment(&ip));
    }
    let protocol = ip.protocol();
    Ok(match concern(protocol, &load(ctx, header_len as usize)?) {
        Concern::Port(port) => {
            let mut key = PublishedKey { addr: MappedAddr::v4(ip.dst), port, protocol, pad: 0 };
            if has(&PUBLISHED, &key) {
                return Ok(true);
            }
            key.addr = MappedAddr::v4([0; 4]);
            has(&PUBLISHED, &key)
        }
        Concern::Unknown => true,
        Concern::Nothing => false,
    })
}

/// Whether the packet `work.routed` is for a published port and may begin a flow. A TCP segment may
/// begin a flow only if it is a SYN: any machine may send other segments. Stores the published port
/// in `work.published`.
#[inline(always)]
pub(super) fn is_published(work: &mut Work) -> bool {
    let Work { routed, published, .. } = work;
    find(routed, published) != 0
}

/// [`is_published`] as a BPF function of its own, for a stack frame of its own. Returns 1 or 0.
#[inline(never)]
fn find(routed: &Routed, published: &mut PublishedEntry) -> u32 {
    if routed.key.protocol == PROTO_TCP && !tcp::opens(routed.tcp.flags) {
        return 0;
    }
    let tuple = &routed.key.tuple;
    let mut key = PublishedKey {
        addr: MappedAddr::v4(tuple.dst),
        port: tuple.dst_port,
        protocol: routed.key.protocol,
        pad: 0,
    };
    if read_to(&PUBLISHED, &key, published) {
        return 1;
    }
    key.addr = MappedAddr::v4([0; 4]);
    read_to(&PUBLISHED, &key, published).into()
}

/// Puts a flow to the port `work.published` into `work.new`. `from` is the interface index and
/// `incarnation` the incarnation of the container that begins the flow; both are 0 if no container
/// begins it. An external client keeps its address. For any other client the source becomes the
/// gateway's address, so that the answer of the container comes back to this host. Refuses a client
/// that may not use the port. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn prepare(work: &mut Work, from: u32, incarnation: u32) -> Result<(), DropReason> {
    let entry = &work.published;
    may_use(&work.routed, entry)?;
    let ep = endpoint(entry.ifindex).filter(|ep| ep.vni == entry.vni);
    let ep = ep.ok_or(DropReason::UnknownEndpoint)?;
    let net = network(entry.vni).ok_or(DropReason::UnknownEndpoint)?;
    let key = &work.routed.key;
    let external = key.zone == zone::EXTERNAL || zone::client_link(key.zone).is_some();
    let new = &mut work.new;
    new.key = *key;
    new.target.to = Tuple {
        src: if external { key.tuple.src } else { net.gateway_ip },
        dst: entry.addr.low(),
        src_port: key.tuple.src_port,
        dst_port: entry.port,
    };
    new.target.zone = entry.vni;
    new.target.dest = entry.ifindex;
    new.target.kind = kind::PUBLISHED;
    new.from = from;
    new.from_incarnation = incarnation;
    new.to_incarnation = ep.incarnation;
    new.of_host = !external;
    Ok(())
}

/// Refuses the client that sends `routed` if it may not use the port `published`. A BPF function of
/// its own, for a stack frame of its own.
#[inline(never)]
fn may_use(routed: &Routed, published: &PublishedEntry) -> Result<(), DropReason> {
    let key = &routed.key;
    let client = key.tuple.src;
    if !is_client(key.zone) {
        return Ok(());
    }
    let restricted = published.flags & PublishedEntry::RESTRICTED != 0;
    if is_denied(client) || (restricted && !is_source(published.ifindex, client)) {
        return Err(DropReason::Denied);
    }
    Ok(())
}

/// Begins a flow to the port `work.published` for a packet that does not come from a container.
#[inline(always)]
pub(super) fn begin(
    ctx: &TcContext,
    work: &mut Work,
    direction: Direction,
) -> Result<(), DropReason> {
    prepare(work, 0, 0)?;
    flows::begin(ctx, &work.routed, &mut work.new, &mut work.target, direction)
}

/// Whether the route back to the source of `work.routed` leads out of an uplink, or for a packet of
/// a client link out of that link (reverse-path check, RFC 3704 §2.2). Without this check, a
/// machine on that network could use the address of a container or of the host as its source. The
/// route is that of a packet that comes in on the gateway device `gateway`. Returns 1 or 0. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn leads_back(ctx: &TcContext, gateway: u32, work: &mut Work) -> u32 {
    let tuple = &work.routed.key.tuple;
    if !ipv4::is_host(&tuple.src) || is_host_addr(tuple.src) {
        return 0;
    }
    let packet = (&tuple.reversed(), work.routed.key.protocol, work.routed.ip.tos());
    match fib::ask(ctx, &mut work.route, packet, gateway, 0) {
        fib::SUCCESS | fib::FRAG_NEEDED => {}
        _ => return 0,
    }
    let back = work.route.ifindex;
    match zone::client_link(work.routed.key.zone) {
        Some(link) => (back == link).into(),
        None => is_uplink(back).into(),
    }
}
