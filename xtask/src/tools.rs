//! The tools that the verbs need: the purpose of each, the check that it is installed, and its
//! packages.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use culvert_bpf_build::{Compiler, find_linker};

use crate::vm::kernel::Kernel;

/// Verb or option that a tool is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Building the binary.
    Build,
    /// The demo and the lab.
    Demo,
    /// The tests, beyond the demo.
    Test,
    /// `check`.
    Check,
    /// `test --full`.
    Full,
    /// `bench --exact --profile`.
    Profile,
}

impl Need {
    /// Name of the verb or option, for the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Demo => "demo",
            Self::Test => "test",
            Self::Check => "check",
            Self::Full => "test --full",
            Self::Profile => "bench --exact --profile",
        }
    }
}

/// The check that a tool is installed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Probe {
    /// A program in one of the usual directories.
    Program(&'static str),
    /// A component of the running Rust toolchain. The check runs this program of it.
    CargoComponent(&'static str),
    /// The C library's headers and start files.
    LibcHeaders,
    /// protobuf's own message definitions, beside `protoc` or where distributions put them.
    ProtobufIncludes,
    /// A rustc that compiles for BPF.
    BpfRustc,
    /// clippy of the rustc that compiles for BPF.
    BpfClippy,
    /// bpf-linker.
    BpfLinker,
    /// The kernel of the emulated machine.
    VmKernel,
}

/// A tool.
#[derive(Debug)]
pub(crate) struct Tool {
    /// Name of the tool.
    pub(crate) name: &'static str,
    /// Purpose of the tool.
    pub(crate) why: &'static str,
    /// The first verb that needs it.
    pub(crate) need: Need,
    /// The check that it is installed.
    pub(crate) probe: Probe,
    /// Debian's and Ubuntu's packages.
    pub(crate) debian: &'static [&'static str],
    /// Fedora's packages.
    pub(crate) fedora: &'static [&'static str],
    /// Arch's packages.
    pub(crate) arch: &'static [&'static str],
}

/// Every tool.
pub(crate) const TOOLS: &[Tool] = &[
    Tool {
        name: "cc",
        why: "links Rust programs",
        need: Need::Build,
        probe: Probe::Program("cc"),
        debian: &["gcc"],
        fedora: &["gcc"],
        arch: &["gcc"],
    },
    Tool {
        name: "libc headers",
        why: "compiles the C parts of crates",
        need: Need::Build,
        probe: Probe::LibcHeaders,
        debian: &["libc6-dev"],
        fedora: &["glibc-devel"],
        arch: &["glibc"],
    },
    Tool {
        name: "protoc",
        why: "etcd-client's messages",
        need: Need::Build,
        probe: Probe::Program("protoc"),
        debian: &["protobuf-compiler"],
        fedora: &["protobuf-compiler"],
        arch: &["protobuf"],
    },
    Tool {
        name: "protobuf includes",
        why: "etcd-client's messages",
        need: Need::Build,
        probe: Probe::ProtobufIncludes,
        debian: &["libprotobuf-dev"],
        fedora: &["protobuf-devel"],
        arch: &["protobuf"],
    },
    Tool {
        name: "rustc for BPF",
        why: "compiles the BPF programs",
        need: Need::Build,
        probe: Probe::BpfRustc,
        debian: &["rustc-web", "libstd-rust-web-dev-bpf"],
        fedora: &[],
        arch: &[],
    },
    Tool {
        name: "bpf-linker",
        why: "links the BPF programs",
        need: Need::Build,
        probe: Probe::BpfLinker,
        debian: &[],
        fedora: &[],
        arch: &[],
    },
    Tool {
        name: "ip",
        why: "makes the hosts",
        need: Need::Demo,
        probe: Probe::Program("ip"),
        debian: &["iproute2"],
        fedora: &["iproute", "iproute-tc"],
        arch: &["iproute2"],
    },
    Tool {
        name: "nsenter",
        why: "enters the hosts",
        need: Need::Demo,
        probe: Probe::Program("nsenter"),
        debian: &["util-linux"],
        fedora: &["util-linux"],
        arch: &["util-linux"],
    },
    Tool {
        name: "etcd",
        why: "the store of several hosts",
        need: Need::Demo,
        probe: Probe::Program("etcd"),
        debian: &["etcd-server"],
        fedora: &["etcd"],
        arch: &["etcd"],
    },
    Tool {
        name: "ping",
        why: "reaches containers",
        need: Need::Demo,
        probe: Probe::Program("ping"),
        debian: &["iputils-ping"],
        fedora: &["iputils"],
        arch: &["iputils"],
    },
    Tool {
        name: "curl",
        why: "reads the containers' pages",
        need: Need::Demo,
        probe: Probe::Program("curl"),
        debian: &["curl"],
        fedora: &["curl"],
        arch: &["curl"],
    },
    Tool {
        name: "python3",
        why: "the containers' web servers",
        need: Need::Demo,
        probe: Probe::Program("python3"),
        debian: &["python3"],
        fedora: &["python3"],
        arch: &["python"],
    },
    Tool {
        name: "iperf3",
        why: "measures throughput",
        need: Need::Demo,
        probe: Probe::Program("iperf3"),
        debian: &["iperf3"],
        fedora: &["iperf3"],
        arch: &["iperf3"],
    },
    Tool {
        name: "bpftool",
        why: "looks at programs and maps",
        need: Need::Test,
        probe: Probe::Program("bpftool"),
        debian: &["bpftool"],
        fedora: &["bpftool"],
        arch: &["bpf"],
    },
    Tool {
        name: "ethtool",
        why: "sets offloads of the hosts' devices",
        need: Need::Test,
        probe: Probe::Program("ethtool"),
        debian: &["ethtool"],
        fedora: &["ethtool"],
        arch: &["ethtool"],
    },
    Tool {
        name: "iptables",
        why: "the bridge that Culvert is compared with",
        need: Need::Test,
        probe: Probe::Program("iptables"),
        debian: &["iptables"],
        fedora: &["iptables-nft"],
        arch: &["iptables"],
    },
    Tool {
        name: "tcpdump",
        why: "looks at the underlay",
        need: Need::Test,
        probe: Probe::Program("tcpdump"),
        debian: &["tcpdump"],
        fedora: &["tcpdump"],
        arch: &["tcpdump"],
    },
    Tool {
        name: "openssl",
        why: "certificates for etcd with TLS",
        need: Need::Test,
        probe: Probe::Program("openssl"),
        debian: &["openssl"],
        fedora: &["openssl"],
        arch: &["openssl"],
    },
    Tool {
        name: "rustfmt",
        why: "formatting",
        need: Need::Check,
        probe: Probe::CargoComponent("rustfmt"),
        debian: &[],
        fedora: &[],
        arch: &[],
    },
    Tool {
        name: "clippy",
        why: "lints",
        need: Need::Check,
        probe: Probe::CargoComponent("cargo-clippy"),
        debian: &[],
        fedora: &[],
        arch: &[],
    },
    Tool {
        name: "clippy for BPF",
        why: "lints of the BPF programs",
        need: Need::Check,
        probe: Probe::BpfClippy,
        debian: &["rust-web-clippy"],
        fedora: &[],
        arch: &[],
    },
    Tool {
        name: "qemu",
        why: "runs the tests on another kernel",
        need: Need::Full,
        probe: Probe::Program("qemu-system-x86_64"),
        debian: &["qemu-system-x86"],
        fedora: &["qemu-system-x86-core"],
        arch: &["qemu-system-x86"],
    },
    Tool {
        name: "busybox",
        why: "the emulated machine's first programs",
        need: Need::Full,
        probe: Probe::Program("busybox"),
        debian: &["busybox-static"],
        fedora: &["busybox"],
        arch: &["busybox"],
    },
    Tool {
        name: "modprobe",
        why: "the emulated machine's modules",
        need: Need::Full,
        probe: Probe::Program("modprobe"),
        debian: &["kmod"],
        fedora: &["kmod"],
        arch: &["kmod"],
    },
    Tool {
        name: "xz",
        why: "the emulated machine's modules",
        need: Need::Full,
        probe: Probe::Program("xz"),
        debian: &["xz-utils"],
        fedora: &["xz"],
        arch: &["xz"],
    },
    Tool {
        name: "perf",
        why: "samples the emulated machine",
        need: Need::Profile,
        probe: Probe::Program("perf"),
        debian: &["linux-perf"],
        fedora: &["perf"],
        arch: &["perf"],
    },
    Tool {
        name: "kernel with netkit",
        why: "another kernel, unpacked and not installed",
        need: Need::Full,
        probe: Probe::VmKernel,
        debian: &[],
        fedora: &[],
        arch: &[],
    },
];

impl Tool {
    /// Path or version of the tool, if it is installed.
    pub(crate) fn found(&self) -> Option<String> {
        match self.probe {
            Probe::Program(name) => which(name).map(|path| path.display().to_string()),
            // rustup has a proxy for each component, installed or not: only running it shows
            // whether it is.
            Probe::CargoComponent(name) => {
                let mut command = Command::new(which(name)?);
                let said = command.arg("--version").stderr(Stdio::null()).output().ok()?;
                let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
                said.status.success().then_some(text)
            }
            Probe::LibcHeaders => {
                let file = "/usr/include/stdio.h";
                Path::new(file).is_file().then(|| file.to_owned())
            }
            Probe::ProtobufIncludes => protobuf_includes().map(|dir| dir.display().to_string()),
            Probe::BpfRustc => Compiler::find().ok().map(|compiler| compiler.describe()),
            Probe::BpfClippy => {
                let clippy = Compiler::find().ok().and_then(|compiler| compiler.clippy());
                clippy.map(|path| path.display().to_string())
            }
            Probe::BpfLinker => find_linker().map(|path| path.display().to_string()),
            Probe::VmKernel => Kernel::find().ok().map(|kernel| kernel.image.display().to_string()),
        }
    }
}

/// The missing tools of `needs`.
pub(crate) fn missing(needs: &[Need]) -> Vec<&'static Tool> {
    TOOLS.iter().filter(|t| needs.contains(&t.need) && t.found().is_none()).collect()
}

/// Path of the program `name`: from `PATH`, or from the directories of administrators' programs,
/// which a user's `PATH` may lack.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(more)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| {
            let executable =
                |meta: fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
            fs::metadata(file).is_ok_and(executable)
        })
}

/// The directory that holds `google/protobuf`.
fn protobuf_includes() -> Option<PathBuf> {
    let named = env::var_os("PROTOC_INCLUDE").map(PathBuf::from);
    let beside =
        which("protoc").and_then(|protoc| Some(protoc.parent()?.parent()?.join("include")));
    named
        .into_iter()
        .chain(beside)
        .chain(["/usr/include", "/usr/local/include"].map(PathBuf::from))
        .find(|dir| dir.join("google/protobuf/descriptor.proto").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name() {
        assert!(which("sh").is_some());
        assert_eq!(which("no-such-program-of-that-name"), None);
    }

    #[test]
    fn tools_are_told_apart_by_name() {
        for (i, tool) in TOOLS.iter().enumerate() {
            assert!(TOOLS.iter().skip(i + 1).all(|t| t.name != tool.name), "{}", tool.name);
        }
    }
}
