//! Where a BPF-capable rustc and the BPF linker are on this machine.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::env::scrub;

/// The rustc that Debian's `rustc-web` package installs.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// Names the rustc with a prebuilt BPF `core` to use; it must then work.
const RUSTC_VARIABLE: &str = "CULVERT_BPF_RUSTC";

/// Names the rustup toolchain of [`Compiler::Nightly`]. The default is `nightly`.
const TOOLCHAIN_VARIABLE: &str = "CULVERT_BPF_TOOLCHAIN";

/// Kind of a BPF-capable rustc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// A rustc whose sysroot holds a compiled `core` for the BPF target.
    Prebuilt {
        /// The rustc.
        rustc: PathBuf,
    },
    /// A rustup toolchain with the standard library's sources.
    Nightly {
        /// Name of the toolchain in rustup, such as `nightly`.
        toolchain: String,
    },
}

/// A rustc that can compile for BPF, and the linker for its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Kind of the rustc, with its path or its toolchain.
    pub compiler: Compiler,
    /// `bpf-linker`.
    pub linker: PathBuf,
}

/// A tool that is not installed. Its [`Display`](fmt::Display) is one line that says how to
/// install it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No BPF-capable rustc of either kind is installed.
    Rustc,
    /// `CULVERT_BPF_RUSTC` names a rustc that has no compiled `core` for BPF.
    NamedRustc(PathBuf),
    /// There is a rustc but no `bpf-linker`.
    Linker,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustc => f.write_str(
                "no rustc that compiles for BPF: run 'cargo xtask setup' (on Debian it installs \
                 rustc-web and libstd-rust-web-dev-bpf; elsewhere: rustup toolchain install \
                 nightly --component rust-src)",
            ),
            Self::NamedRustc(path) => write!(
                f,
                "{RUSTC_VARIABLE}={}: this rustc has no core for {}: unset it or run \
                 'cargo xtask setup'",
                path.display(),
                target_triple()
            ),
            Self::Linker => f.write_str(
                "no bpf-linker: run 'cargo xtask setup' (it runs cargo install bpf-linker with \
                 the LLVM that is there)",
            ),
        }
    }
}

impl std::error::Error for Missing {}

impl Toolchain {
    /// Finds a BPF-capable rustc and `bpf-linker`.
    ///
    /// # Errors
    ///
    /// [`Missing`] if the rustc or the linker is not on this machine.
    pub fn find() -> Result<Self, Missing> {
        let compiler = Compiler::find()?;
        let linker = find_linker().ok_or(Missing::Linker)?;
        Ok(Self { compiler, linker })
    }

    /// A cargo that runs `verb` (`build`, `clippy`, …) for the BPF target: environment,
    /// target and linker are set, so that only packages, profile and target directory are
    /// left to add.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = match &self.compiler {
            Compiler::Prebuilt { rustc } => {
                let mut command = self.compiler.cargo(verb);
                // cargo passes RUSTC on to cargo-clippy, which does not find this rustc otherwise.
                command.env("RUSTC", rustc);
                // The BPF targets are tier 3, and aya uses unstable features on them.
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Compiler::Nightly { .. } => {
                let mut command = self.compiler.cargo(verb);
                command.arg("-Zbuild-std=core");
                command
            }
        };
        let arch = host_arch();
        let flags = [
            OsString::from(format!("--cfg=bpf_target_arch=\"{arch}\"")),
            OsString::from("-Cdebuginfo=2"),
            join("-Clinker=", self.linker.as_os_str()),
            // The kernel needs BTF for map types and for function names in traces.
            OsString::from("-Clink-arg=--btf"),
        ];
        // CARGO_ENCODED_RUSTFLAGS overrides every other source of flags, and allows spaces in
        // the linker's path. With --target, cargo does not apply the flags to build scripts.
        command
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\x1f")))
            .env("CARGO_CFG_BPF_TARGET_ARCH", arch)
            // Incremental compilation, which the profile may inherit, splits a crate into parts
            // that are not inlined into each other. The verifier refuses such a program.
            .env("CARGO_INCREMENTAL", "0")
            .args(["--target", target_triple()]);
        command
    }
}

impl Compiler {
    /// Finds the first kind of BPF-capable rustc that is installed.
    ///
    /// # Errors
    ///
    /// [`Missing::NamedRustc`] if `CULVERT_BPF_RUSTC` names a rustc without a compiled `core` for
    /// BPF. [`Missing::Rustc`] if no BPF-capable rustc is installed.
    pub fn find() -> Result<Self, Missing> {
        if let Some(named) = env::var_os(RUSTC_VARIABLE).filter(|v| !v.is_empty()) {
            let rustc = PathBuf::from(named);
            return if has_prebuilt_core(&rustc) {
                Ok(Self::Prebuilt { rustc })
            } else {
                Err(Missing::NamedRustc(rustc))
            };
        }
        let system = PathBuf::from(SYSTEM_RUSTC);
        if has_prebuilt_core(&system) {
            return Ok(Self::Prebuilt { rustc: system });
        }
        let toolchain = env::var(TOOLCHAIN_VARIABLE)
            .ok()
            .filter(|v| !v.is_empty())
            .unwrap_or_else(|| "nightly".to_owned());
        if has_sources(&toolchain) {
            return Ok(Self::Nightly { toolchain });
        }
        Err(Missing::Rustc)
    }

    /// Description of the rustc for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Prebuilt { rustc } => {
                format!("{} with a prebuilt core for {}", rustc.display(), target_triple())
            }
            Self::Nightly { toolchain } => format!("rustup's {toolchain} with rust-src"),
        }
    }

    /// `cargo-clippy` that belongs to the same compiler, if it is installed.
    pub fn clippy(&self) -> Option<PathBuf> {
        match self {
            Self::Prebuilt { rustc } => {
                // clippy-driver is a compiler itself: only the one from the same packages
                // reads the prebuilt core.
                let dir = rustc.parent()?;
                let found = is_executable(&dir.join("clippy-driver"));
                found.then(|| dir.join("cargo-clippy")).filter(|p| is_executable(p))
            }
            Self::Nightly { toolchain } => {
                let mut command = Command::new("rustup");
                scrub(&mut command);
                command.args(["which", "--toolchain", toolchain, "cargo-clippy"]);
                first_line(&mut command).map(PathBuf::from).filter(|p| is_executable(p))
            }
        }
    }

    /// cargo (or cargo's subcommand `clippy` as a program) with `verb` and a scrubbed
    /// environment.
    fn cargo(&self, verb: &str) -> Command {
        match self {
            Self::Prebuilt { .. } => {
                let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                // rustup's cargo looks for cargo-clippy in its own toolchain first. That
                // cargo-clippy belongs to another compiler.
                let clippy = if verb == "clippy" { self.clippy() } else { None };
                let mut command = Command::new(clippy.as_deref().map_or(&*cargo, Path::as_os_str));
                scrub(&mut command);
                if clippy.is_some() {
                    command.env("CARGO", &cargo);
                }
                command.arg(verb);
                command
            }
            Self::Nightly { toolchain } => {
                let mut command = Command::new("rustup");
                scrub(&mut command);
                command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC_BOOTSTRAP");
                command.args(["run", toolchain, "cargo", verb]);
                command
            }
        }
    }
}

/// The BPF target with this machine's byte order. Inside a build script, the byte order is that
/// of the machine that the build is for.
pub fn target_triple() -> &'static str {
    let big = match env::var("CARGO_CFG_TARGET_ENDIAN") {
        Ok(endian) => endian == "big",
        Err(_) => cfg!(target_endian = "big"),
    };
    if big { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

/// The architecture whose kernel will run the programs (aya picks register layouts by it).
fn host_arch() -> String {
    env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned())
}

/// `bpf-linker` on `PATH`, else where `cargo install` puts it.
pub fn find_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("bpf-linker"))
        .find(|file| is_executable(file))
}

/// Whether `rustc`'s sysroot holds a compiled `core` for the BPF target.
fn has_prebuilt_core(rustc: &Path) -> bool {
    let mut command = Command::new(rustc);
    scrub(&mut command);
    // A stable rustc knows tier-3 targets, too.
    command.args(["--print", "target-libdir", "--target", target_triple()]);
    let Some(libdir) = first_line(&mut command) else {
        return false;
    };
    let Ok(entries) = fs::read_dir(libdir) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// Whether rustup's `toolchain` is installed with the `rust-src` component.
fn has_sources(toolchain: &str) -> bool {
    let mut command = Command::new("rustup");
    scrub(&mut command);
    command
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        // A probe must not download a toolchain.
        .env("RUSTUP_AUTO_INSTALL", "0");
    first_line(&mut command).is_some_and(|sysroot| {
        Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
    })
}

/// The first line that `command` prints, if it succeeds.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// Whether `path` is a file that someone may execute.
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `prefix` followed by `rest`.
fn join(prefix: &str, rest: &OsStr) -> OsString {
    let mut whole = OsString::from(prefix);
    whole.push(rest);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_is_one_line_that_says_how_to_get_it() {
        for missing in [Missing::Rustc, Missing::Linker, Missing::NamedRustc("/opt/rustc".into())] {
            let text = missing.to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains("cargo xtask setup"), "{text}");
        }
    }

    #[test]
    fn a_rustc_that_is_not_there_has_no_core() {
        assert!(!has_prebuilt_core(Path::new("/nonexistent/rustc")));
        assert!(!has_prebuilt_core(Path::new("/bin/true")));
    }

    #[test]
    fn the_command_names_target_and_linker() {
        let toolchain = Toolchain {
            compiler: Compiler::Prebuilt { rustc: "/opt/bin/rustc".into() },
            linker: "/opt/a b/bpf-linker".into(),
        };
        let command = toolchain.command("build");
        let args: Vec<_> = command.get_args().collect();
        assert!(args.windows(2).any(|w| w[0] == "--target" && w[1] == target_triple()));
        let flags = command
            .get_envs()
            .find_map(|(k, v)| (k == "CARGO_ENCODED_RUSTFLAGS").then_some(v?))
            .expect("flags are set");
        let flags = flags.to_str().expect("utf-8");
        assert!(flags.split('\x1f').any(|f| f == "-Clinker=/opt/a b/bpf-linker"), "{flags}");
    }

    #[test]
    fn nightly_builds_core_itself() {
        let toolchain = Toolchain {
            compiler: Compiler::Nightly { toolchain: "nightly-x".into() },
            linker: "/opt/bpf-linker".into(),
        };
        let command = toolchain.command("build");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args[..4], ["run", "nightly-x", "cargo", "build"]);
        assert!(args.contains(&OsStr::new("-Zbuild-std=core")));
    }
}
