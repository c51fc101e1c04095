//! Published ports.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{Direction, DropReason, MappedAddr, PublishedEntry, PublishedKey, Tuple, kind, zone},
    wire::{
        ipv4::{self, PROTO_TCP},
        tcp,
    },
};

use super::work::Work;
use crate::{
    facts::routed::Routed,
    kernel::fib,
    maps::{PUBLISHED, endpoint, is_host_addr, is_uplink, network, read},
    state::flows,
};

/// The container that a published port leads to, if the packet may begin a flow: of
/// TCP a SYN only, as anybody may send anything.
#[inline(always)]
pub(super) fn published(routed: &Routed) -> Option<PublishedEntry> {
    const OPENING: u8 = tcp::SYN | tcp::ACK | tcp::RST;
    if routed.key.protocol == PROTO_TCP && routed.tcp_flags & OPENING != tcp::SYN {
        return None;
    }
    let tuple = &routed.key.tuple;
    let mut key = PublishedKey {
        addr: MappedAddr::v4(tuple.dst),
        port: tuple.dst_port,
        protocol: routed.key.protocol,
        pad: 0,
    };
    if let Some(entry) = read(&PUBLISHED, &key) {
        return Some(entry);
    }
    key.addr = MappedAddr::v4([0; 4]);
    read(&PUBLISHED, &key)
}

/// Puts a flow to a published port into `work.new`; `from` and `incarnation` are
/// those of the container that begins it, 0 if none does. An external client keeps
/// its address; for any other the source becomes the gateway, so that the container's answer
/// comes back to this host. A BPF function of its own, for its stack.
#[inline(never)]
pub(super) fn prepare(
    work: &mut Work,
    entry: &PublishedEntry,
    from: u32,
    incarnation: u32,
) -> Result<(), DropReason> {
    let ep = endpoint(entry.ifindex).filter(|ep| ep.vni == entry.vni);
    let ep = ep.ok_or(DropReason::UnknownEndpoint)?;
    let net = network(entry.vni).ok_or(DropReason::UnknownEndpoint)?;
    let key = &work.routed.key;
    let external = key.zone == zone::EXTERNAL;
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

/// Begins a flow to a published port that no container has begun.
#[inline(always)]
pub(super) fn begin(
    ctx: &TcContext,
    work: &mut Work,
    direction: Direction,
    entry: &PublishedEntry,
) -> Result<(), DropReason> {
    prepare(work, entry, 0, 0)?;
    flows::begin(ctx, &work.routed, &mut work.new, &mut work.target, direction)
}

/// Whether the route back to the source of `work.routed` leads out of an uplink, as seen
/// from a gateway device: else a neighbour could speak for a container or the host
/// (RFC 3704 §2.2). Returns 1 if so. A BPF function of its own, for its stack.
#[inline(never)]
pub(super) fn comes_from_external(ctx: &TcContext, gateway: u32, work: &mut Work) -> u32 {
    let tuple = &work.routed.key.tuple;
    if !ipv4::is_host(&tuple.src) || is_host_addr(tuple.src) {
        return 0;
    }
    let packet = (&tuple.reversed(), work.routed.key.protocol, work.routed.ip.tos());
    match fib::ask(ctx, &mut work.route, packet, gateway, 0) {
        fib::SUCCESS | fib::FRAG_NEEDED => is_uplink(work.route.ifindex).into(),
        _ => 0,
    }
}
