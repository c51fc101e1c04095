//! ICMP errors about packets of translated flows (RFC 5508 §4).

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use culvert_common::{
    abi::{DropReason, FlowKey, Tuple},
    datapath::nat::{self, UPPER_LEN, Upper},
    wire::{Icmpv4Hdr, Ipv4Hdr, ipv4::PROTO_ICMP},
};

use crate::{
    facts::routed::Routed,
    kernel::skb::{add_to_checksum, load, store},
    state::flows::{self, Target},
};

/// Translates the packet that the ICMP error `routed` quotes. Stores in `target` the destination
/// and the new addresses of the ICMP error itself. Fails with [`DropReason::NoFlow`] if the quoted
/// packet belongs to no flow. After an error the contents of `target` have no meaning. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn translate(
    skb: *mut __sk_buff,
    incarnation: u32,
    routed: &Routed,
    target: &mut Target,
) -> Result<(), DropReason> {
    try_translate(&TcContext::new(skb), routed, incarnation, target)
}

#[inline(always)]
fn try_translate(
    ctx: &TcContext,
    routed: &Routed,
    incarnation: u32,
    target: &mut Target,
) -> Result<(), DropReason> {
    let quoted_at = routed.l4 as usize + Icmpv4Hdr::LEN;
    let ip: Ipv4Hdr = load(ctx, quoted_at)?;
    // Each byte of the header would take eight bytes of the stack if it was kept in a register.
    let ip = core::hint::black_box(&ip);
    let header_len = ip.header_len();
    if ip.version() != 4 || header_len < Ipv4Hdr::LEN as u32 || !ip.is_first() {
        return Err(DropReason::NoFlow);
    }
    let upper_at = quoted_at + header_len as usize;
    let upper: [u8; UPPER_LEN] = load(ctx, upper_at)?;
    let upper = core::hint::black_box(&upper);
    let protocol = ip.protocol();
    let Upper::Ports(src_port, dst_port) = nat::upper(protocol, upper) else {
        return Err(DropReason::NoFlow);
    };
    let from = Tuple { src: ip.src, dst: ip.dst, src_port, dst_port };
    let from = core::hint::black_box(&from);
    let key = FlowKey::new(routed.key.zone, protocol, from.reversed());
    if !flows::current(&key, incarnation, target) {
        return Err(DropReason::NoFlow);
    }
    let becomes = nat::translate_error(&routed.ip, from, &target.to);
    let to = becomes.tuple;
    // Stored before the quote is changed: what is needed later takes stack.
    target.to = Tuple { src: becomes.src, dst: becomes.dst, ..Tuple::default() };
    target.kind = 0;

    // The checksum of the ICMP error covers the quote, so it changes with the quote.
    let new_ip = nat::readdress(ip, to.src, to.dst, false);
    store(ctx, quoted_at, &new_ip)?;
    let addresses = nat::address_difference(from, &to);
    let mut change = nat::add(addresses, nat::word_difference(ip.checksum(), new_ip.checksum()));
    let ports = nat::port_difference(protocol, from, &to);
    change = nat::add(change, ports);
    let ports_at = upper_at + nat::ports_offset(protocol) as usize;
    let covered = if protocol == PROTO_ICMP {
        store(ctx, ports_at, &nat::echo_id(&to))?;
        ports
    } else {
        store(ctx, ports_at, &[to.src_port, to.dst_port])?;
        nat::add(addresses, ports)
    };
    // The quote of a TCP segment may end before the TCP checksum (RFC 792).
    let checksum_at = upper_at + nat::checksum_offset(protocol) as usize;
    if let Ok(old) = load::<[u8; 2]>(ctx, checksum_at) {
        let new = nat::update_upper(protocol, old, covered);
        store(ctx, checksum_at, &new)?;
        change = nat::add(change, nat::bytes_difference(old, new));
    }
    let checksum = routed.l4 + nat::checksum_offset(PROTO_ICMP);
    add_to_checksum(ctx, checksum, change, 0)?;
    Ok(())
}
