//! Look-ups of routes in the kernel (`bpf_fib_lookup`).

use aya_ebpf::{
    bindings::{BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup},
    helpers,
    programs::TcContext,
};
use culvert_common::abi::Tuple;

pub(crate) use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED as FRAG_NEEDED, BPF_FIB_LKUP_RET_NOT_FWDED as NOT_FORWARDED,
    BPF_FIB_LKUP_RET_PROHIBIT as PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS as SUCCESS,
};

/// `AF_INET` of linux/socket.h.
pub(crate) const AF_INET: u8 = 2;

/// The parameters of a route look-up. The kernel writes its answer into the same structure.
pub(crate) type Route = bpf_fib_lookup;

/// Looks up the kernel's route for a packet with the addresses and ports `to`, the protocol
/// `protocol` and the TOS `tos`, as if the packet had come in on the interface `ifindex`. The
/// kernel compares `len`, in bytes, with the MTU of the route and with the path MTU that the host
/// has learned (RFC 1191). If `len` is 0, it compares the frame with the MTU of the device. Returns
/// one of `BPF_FIB_LKUP_RET_*`; the answer is in `route`.
#[inline(always)]
pub(crate) fn ask(
    ctx: &TcContext,
    route: &mut Route,
    (to, protocol, tos): (&Tuple, u8, u8),
    ifindex: u32,
    len: u32,
) -> u32 {
    route.family = AF_INET;
    route.l4_protocol = protocol;
    route.sport = u16::from_ne_bytes(to.src_port);
    route.dport = u16::from_ne_bytes(to.dst_port);
    route.__bindgen_anon_1.tot_len = len.min(u16::MAX.into()) as u16;
    route.ifindex = ifindex;
    route.__bindgen_anon_2.flowinfo = 0;
    route.__bindgen_anon_2.tos = tos;
    route.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(to.src);
    route.__bindgen_anon_4.ipv6_dst = [u32::from_ne_bytes(to.dst), 0, 0, 0];
    let len = size_of::<Route>() as i32;
    let flags = BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC;
    // SAFETY: the context is the program's own; `len` is the size of the parameters.
    unsafe { helpers::bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut *route, len, flags) as u32 }
}

/// The MTU of the route that was found, in bytes of the L3 packet.
#[inline(always)]
pub(crate) fn mtu(route: &Route) -> u16 {
    // SAFETY: every bit pattern is valid for the members of the union.
    unsafe { route.__bindgen_anon_1.mtu_result }
}

/// The source address of the route that was found, as on the wire.
#[inline(always)]
pub(crate) fn source(route: &Route) -> [u8; 4] {
    // SAFETY: every bit pattern is valid for the members of the union.
    unsafe { route.__bindgen_anon_3.ipv4_src }.to_ne_bytes()
}

/// The next hop of the route that was found; an IPv4 address is in the first word.
#[inline(always)]
pub(crate) fn next_hop(route: &Route) -> [u32; 4] {
    // SAFETY: every bit pattern is valid for the members of the union.
    unsafe { route.__bindgen_anon_4.ipv6_dst }
}

/// Puts a cached answer into `route`.
#[inline(always)]
pub(crate) fn set_answer(
    route: &mut Route,
    (ifindex, family): (u32, u8),
    source: [u8; 4],
    next_hop: [u32; 4],
    mtu: u16,
) {
    route.ifindex = ifindex;
    route.family = family;
    route.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
    route.__bindgen_anon_4.ipv6_dst = next_hop;
    route.__bindgen_anon_1.mtu_result = mtu;
}
