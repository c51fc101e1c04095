//! Builds the BPF programs from source and leaves the object at `OUT_DIR/culvert.bpf.o`,
//! from where it is embedded in the binary.
#![warn(clippy::indexing_slicing)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use culvert_bpf_build::{Compiler, Toolchain, build_programs};

/// What the object is made from, relative to the workspace root.
const SOURCES: [&str; 6] =
    ["Cargo.lock", "Cargo.toml", "common/Cargo.toml", "common/src", "ebpf/Cargo.toml", "ebpf/src"];

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            println!("cargo::error={line}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the object and copies it to `OUT_DIR`.
fn embed() -> Result<(), String> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let root = manifest_dir
        .parent()
        .ok_or_else(|| format!("{}: has no parent directory", manifest_dir.display()))?;

    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    for name in ["CULVERT_BPF_RUSTC", "CULVERT_BPF_TOOLCHAIN"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // An upgraded compiler or linker makes another object.
    if let Ok(toolchain) = Toolchain::find() {
        println!("cargo::rerun-if-changed={}", toolchain.linker.display());
        if let Compiler::Prebuilt { rustc } = &toolchain.compiler {
            println!("cargo::rerun-if-changed={}", rustc.display());
        }
    }

    let object = build_programs(root, &inner_target_dir(&out_dir)).map_err(|e| e.to_string())?;
    let embedded = out_dir.join("culvert.bpf.o");
    fs::copy(&object, &embedded)
        .map(drop)
        .map_err(|e| format!("{}: cannot copy to {}: {e}", object.display(), embedded.display()))
}

/// A target directory beside the outer cargo's profiles, so that all of them (and `cargo
/// check` beside `cargo build`) share one build of the programs.
fn inner_target_dir(out_dir: &Path) -> PathBuf {
    let outer = out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    outer.unwrap_or(out_dir).join("bpf")
}

/// A variable that cargo always sets for build scripts.
fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set: build with cargo"))
}
