//! Culvert's TC and XDP programs.
//!
//! Hooks only: each program bounds-checks, asks `culvert-common` what to do,
//! does it, and turns one `Result<Action, DropReason>` into a verdict. The
//! decisions live in `culvert_common::datapath`, where they are tested without
//! a kernel.
//!
//! | module | what happens there |
//! |---|---|
//! | `container` | frames that a container sends |
//! | `underlay` | frames that arrive on an uplink, at tcx |
//! | `underlay_xdp` | the same, before there is an skb |
//! | `host` | what the host sends to containers |
//! | `loopback` | the host's own connections to published ports |
//! | `remote_host` | what another host itself sends through the tunnel |
//! | `outside` | what comes in on an uplink and is not VXLAN |
//! | `route` | what a container sends to its gateway |
//! | `way` | the kernel's routes, asked a moment ago |
//! | `parse`, `flow`, `translate` | routed packets: read, tracked, rewritten |
//! | `fragment`, `icmp_error` | fragments and ICMP errors of tracked flows |
//! | `fast` | what was judged before, in `container` and `underlay` |
//! | `encap` | outer header on, off to a VTEP |
//! | `flood` | local replicas and head-end replication |
//! | `learn` | learned FDB entries |
//! | `reply` | ARP, ND and ICMP answers to a container |
//! | `packet`, `maps`, `work`, `verdict` | access, state, working space, counting |
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod container;
#[cfg(target_arch = "bpf")]
mod encap;
#[cfg(target_arch = "bpf")]
mod fast;
#[cfg(target_arch = "bpf")]
mod flood;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod fragment;
#[cfg(target_arch = "bpf")]
mod host;
#[cfg(target_arch = "bpf")]
mod icmp_error;
#[cfg(target_arch = "bpf")]
mod learn;
#[cfg(target_arch = "bpf")]
mod loopback;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod outside;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod parse;
#[cfg(target_arch = "bpf")]
mod remote_host;
#[cfg(target_arch = "bpf")]
mod reply;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod translate;
#[cfg(target_arch = "bpf")]
mod underlay;
#[cfg(target_arch = "bpf")]
mod underlay_xdp;
#[cfg(target_arch = "bpf")]
mod verdict;
#[cfg(target_arch = "bpf")]
mod way;
#[cfg(target_arch = "bpf")]
mod work;

/// GPL-compatible, as the kernel asks of programs that use its helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The object is for the kernel; on the host there is nothing to run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
