//! Sockets of the host.

use aya_ebpf::{
    bindings::{
        __sk_buff, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    },
    helpers::{
        bpf_get_socket_cookie, bpf_get_socket_uid, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use culvert_common::{
    abi::Tuple,
    wire::ipv4::{PROTO_TCP, PROTO_UDP},
};

/// Result of [`find`]: no socket would receive the packet.
pub(crate) const NONE: u32 = 0;
/// Result of [`find`]: a TCP socket that listens.
pub(crate) const LISTENING: u32 = 1;
/// Result of [`find`]: any other socket.
pub(crate) const CONNECTED: u32 = 2;

/// `BPF_F_CURRENT_NETNS` of linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;
/// `BPF_TCP_LISTEN` of linux/bpf.h.
const TCP_LISTEN: u32 = 10;

/// Finds the socket of the host that would receive a packet with the addresses and ports `tuple`.
/// Returns [`NONE`], [`LISTENING`] or [`CONNECTED`]. A BPF function of its own, for a stack frame
/// of its own.
#[inline(never)]
pub(crate) fn find(skb: *mut __sk_buff, protocol: u8, tuple: &Tuple) -> u32 {
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
            ipv4: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: u32::from_ne_bytes(tuple.src),
                daddr: u32::from_ne_bytes(tuple.dst),
                sport: u16::from_ne_bytes(tuple.src_port),
                dport: u16::from_ne_bytes(tuple.dst_port),
            },
        },
    };
    let len = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
    // SAFETY: the pointer is the program's own context; the tuple is on the stack, and `len` is its
    // size; a socket that is found is released.
    unsafe {
        let found = match protocol {
            PROTO_TCP => bpf_skc_lookup_tcp(skb.cast(), &raw mut tuple, len, CURRENT_NETNS, 0),
            PROTO_UDP => bpf_sk_lookup_udp(skb.cast(), &raw mut tuple, len, CURRENT_NETNS, 0),
            _ => return NONE,
        };
        if found.is_null() {
            return NONE;
        }
        let listens = protocol == PROTO_TCP && (*found).state == TCP_LISTEN;
        bpf_sk_release(found.cast());
        if listens { LISTENING } else { CONNECTED }
    }
}

/// Whether a socket of this host has sent the frame.
#[inline(always)]
pub(crate) fn has_socket(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) != 0 }
}

/// The user ID of the process that made the socket which has sent the frame.
#[inline(always)]
pub(crate) fn user(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { bpf_get_socket_uid(ctx.skb.skb) }
}
