//! Culvert's TC and XDP programs.
//!
//! Each program reads a frame, asks `culvert-common` what to do, does it, and turns one
//! `Result<Action, DropReason>` into a verdict. The decisions are in
//! `culvert_common::datapath`, where they are tested without a kernel.
//!
//! A room imports only from lower floors, and not from its own; `cargo xtask check` fails on any
//! other import.
//!
//! | floor | room | what is there |
//! |---|---|---|
//! | 8 | `hooks` | entry points: read, decide, verdict |
//! | 7 | `pairs` | the flow cache |
//! | 7 | `routed` | packets that are routed or translated |
//! | 6 | `act` | a packet changed and sent |
//! | 5 | `state` | the maps that programs write |
//! | 4 | `facts` | what a packet and its sender are; reads only |
//! | 3 | `verdict` | the one exit of every hook |
//! | 2 | `count` | the counters |
//! | 1 | `maps`, `globals` | the maps, and the constants set at load time |
//! | 0 | `kernel` | helpers and context fields; nearly all `unsafe` |
#![warn(clippy::indexing_slicing)]
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod act;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod facts;
#[cfg(target_arch = "bpf")]
mod globals;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod pairs;
#[cfg(target_arch = "bpf")]
mod routed;
#[cfg(target_arch = "bpf")]
mod state;
#[cfg(target_arch = "bpf")]
mod verdict;

/// The license of the programs. The kernel allows some helpers only to programs with a
/// GPL-compatible license.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Empty: the object is for the kernel, and the host runs nothing of it.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
