//! bpf-linker: built by cargo against an LLVM that reads the BPF compiler's bitcode.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use culvert_bpf_build::Compiler;

use super::apt;
use crate::tools::which;

/// The version that the programs are built with.
const VERSION: &str = "0.13.0";

/// LLVM versions for which this version of bpf-linker has a feature, oldest first.
const SUPPORTED: [u32; 3] = [21, 22, 23];

/// LLVM version of Debian's rustc-web, for a machine on which rustc-web is not installed yet.
const DEBIAN_LLVM: u32 = 22;

/// The instruction if no known package has a fitting LLVM.
pub(super) const BY_HAND: &str = "cargo install cargo-binstall && cargo binstall bpf-linker   (or: \
    install LLVM's development files, as new as rustc's LLVM, and cargo install bpf-linker)";

/// A method to build bpf-linker on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Build {
    /// With this LLVM, which Debian packages under `/usr/lib/llvm-N`.
    Debian(u32),
    /// With cargo-binstall, which fetches bpf-linker's own build with LLVM inside.
    Binstall,
}

impl Build {
    /// Finds a method. `by_apt`: apt can install packages. `nightly`: the compiler will be rustup's
    /// nightly.
    pub(super) fn find(by_apt: bool, nightly: bool) -> Option<Self> {
        let needed = if nightly { None } else { compilers_llvm() };
        // The compiler is not installed yet. Debian's compiler has Debian's LLVM, and the LLVM of
        // nightly is close to the newest.
        let needed = needed.unwrap_or(if nightly { SUPPORTED[2] } else { DEBIAN_LLVM });
        // An LLVM reads bitcode of its own version and of older versions.
        let fitting = || SUPPORTED.into_iter().filter(|version| *version >= needed);
        if by_apt {
            let installed =
                fitting().find(|version| prefix(*version).join("include/llvm-c").is_dir());
            let found = installed
                .or_else(|| fitting().find(|version| apt::has_candidate(package(*version))));
            if let Some(version) = found {
                return Some(Self::Debian(version));
            }
        }
        which("cargo-binstall").map(|_| Self::Binstall)
    }

    /// Missing Debian packages that the build needs.
    pub(super) fn packages(self) -> Vec<&'static str> {
        let Self::Debian(version) = self else {
            return Vec::new();
        };
        let mut packages = Vec::new();
        if !prefix(version).join("include/llvm-c").is_dir() {
            packages.push(package(version));
        }
        // libLLVM is C++: the linker needs libstdc++.so, which comes with g++.
        if which("g++").is_none() {
            packages.push("g++");
        }
        packages
    }

    /// The command that builds bpf-linker.
    pub(super) fn command(self) -> Command {
        let mut command = Command::new("cargo");
        match self {
            Self::Debian(version) => {
                command.env("LLVM_PREFIX", prefix(version)).args([
                    "install",
                    "bpf-linker",
                    "--version",
                    VERSION,
                    "--no-default-features",
                    "--features",
                    &format!("llvm-{version}"),
                    "--locked",
                ]);
            }
            Self::Binstall => {
                command.args(["binstall", "--no-confirm", &format!("bpf-linker@{VERSION}")]);
            }
        }
        command
    }

    /// The command for a person to run.
    pub(super) fn line(&self) -> String {
        let command = self.command();
        let mut words: Vec<String> = command
            .get_envs()
            .filter_map(|(name, value)| {
                Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy()))
            })
            .collect();
        words.push(command.get_program().to_string_lossy().into_owned());
        words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
        words.join(" ")
    }
}

fn prefix(version: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{version}"))
}

/// Debian's package of the development files of LLVM `version`.
fn package(version: u32) -> &'static str {
    match version {
        21 => "llvm-21-dev",
        22 => "llvm-22-dev",
        _ => "llvm-23-dev",
    }
}

/// Major version of the LLVM inside the compiler that compiles for BPF.
fn compilers_llvm() -> Option<u32> {
    let mut command = match Compiler::find().ok()? {
        Compiler::Prebuilt { rustc } => Command::new(rustc),
        Compiler::Nightly { toolchain } => {
            let mut command = Command::new("rustup");
            command.args(["run", &toolchain, "rustc"]);
            command
        }
    };
    let said = command.arg("-vV").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    parse_llvm(&String::from_utf8_lossy(&said.stdout))
}

/// The major version in `LLVM version: 22.1.8`.
fn parse_llvm(text: &str) -> Option<u32> {
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version:"))?;
    version.trim().split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_rustc() {
        assert_eq!(parse_llvm("release: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(parse_llvm("release: 1.96.0\n"), None);
    }

    #[test]
    fn the_line_is_one_that_a_person_can_type() {
        assert_eq!(
            Build::Debian(22).line(),
            "LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \
             --no-default-features --features llvm-22 --locked"
        );
    }
}
