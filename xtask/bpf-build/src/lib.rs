//! Finds a rustc that can compile for BPF and builds the programs with it.
//!
//! There are two kinds of BPF-capable rustc. A machine usually has one of them:
//!
//! 1. **A prebuilt sysroot**: a stable rustc that comes with a compiled `core` for
//!    `bpfel-unknown-none`, as Debian packages it (`rustc-web` and
//!    `libstd-rust-web-dev-bpf`). Nothing has to be downloaded from a Rust channel.
//! 2. **rustup's nightly** with the `rust-src` component, where cargo compiles `core`
//!    itself (`-Zbuild-std=core`).
//!
//! [`Toolchain::find`] takes the first kind that works. Both need `bpf-linker`, which turns the
//! bitcode of all crates into one BPF object and writes its BTF.
//!
//! The crate has no dependencies: `userspace/build.rs` and `xtask` both use it, and both
//! have to compile before anything else can.
#![warn(clippy::indexing_slicing)]

mod build;
mod env;
mod probe;

pub use build::{BuildError, OBJECT_NAME, PACKAGE, PROFILE, build_programs};
pub use probe::{Compiler, Missing, Toolchain, find_linker, target_triple};
