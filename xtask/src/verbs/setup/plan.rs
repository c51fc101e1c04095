//! Plan for the missing tools of this machine.

use std::process::Command;

use anyhow::Result;
use culvert_bpf_build::Compiler;

use super::spinner::with_spinner;
use super::{apt, linker};
use crate::privilege;
use crate::tools::{Probe, Tool, which};
use crate::vm::fetch;

/// The distributions whose packages we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    Debian,
    Fedora,
    Arch,
    Other,
}

impl Distribution {
    fn here() -> Self {
        if which("apt-get").is_some() {
            Self::Debian
        } else if which("dnf").is_some() {
            Self::Fedora
        } else if which("pacman").is_some() {
            Self::Arch
        } else {
            Self::Other
        }
    }
}

/// Steps that install the missing tools.
#[derive(Debug)]
pub(super) struct Plan {
    /// Debian packages to install.
    pub(super) packages: Vec<&'static str>,
    /// Whether rustup is to install the toolchain that compiles for BPF.
    nightly: bool,
    /// Components that rustup adds to the running toolchain.
    components: Vec<&'static str>,
    /// How to build bpf-linker, if it is missing.
    linker: Option<linker::Build>,
    /// The package with the emulated machine's kernel, if that is missing.
    kernel: Option<String>,
    /// Commands for the user to run: those of another distribution, or those that need a choice.
    pub(super) by_hand: Vec<String>,
}

impl Plan {
    /// Plans the installation of `missing`.
    pub(super) fn make(missing: &[&'static Tool]) -> Self {
        let distribution = Distribution::here();
        let mut plan = Self {
            packages: Vec::new(),
            nightly: false,
            components: Vec::new(),
            linker: None,
            kernel: None,
            by_hand: Vec::new(),
        };
        let mut foreign: Vec<&str> = Vec::new();
        let mut linker_missing = false;
        for tool in missing {
            match tool.probe {
                Probe::BpfRustc | Probe::BpfClippy => plan.bpf_compiler(tool, distribution),
                Probe::BpfLinker => linker_missing = true,
                Probe::VmKernel => match fetch::package() {
                    Some(package) if distribution == Distribution::Debian => {
                        plan.kernel = Some(package);
                    }
                    _ => plan.by_hand.push(fetch::BY_HAND.to_owned()),
                },
                Probe::CargoComponent(name) => {
                    let component = if name == "cargo-clippy" { "clippy" } else { name };
                    if which("rustup").is_some() {
                        plan.components.push(component);
                    } else {
                        plan.by_hand.push(format!(
                            "install {component} for your Rust toolchain (rustup component add \
                             {component})"
                        ));
                    }
                }
                Probe::Program(_) | Probe::LibcHeaders | Probe::ProtobufIncludes => {
                    match distribution {
                        Distribution::Debian => plan.packages.extend(tool.debian),
                        Distribution::Fedora => foreign.extend(tool.fedora),
                        Distribution::Arch => foreign.extend(tool.arch),
                        Distribution::Other => plan.by_hand.push(format!(
                            "install {} ({}); Debian's packages: {}",
                            tool.name,
                            tool.why,
                            tool.debian.join(" ")
                        )),
                    }
                }
            }
        }
        foreign.dedup();
        if !foreign.is_empty() {
            let command = if distribution == Distribution::Fedora {
                "sudo dnf install -y"
            } else {
                "sudo pacman -S --needed"
            };
            plan.by_hand.push(format!("{command} {}", foreign.join(" ")));
        }
        if linker_missing {
            plan.bpf_linker(distribution);
        }
        plan
    }

    /// Plans a rustc for BPF, or its clippy: Debian's packages if available, else rustup's nightly.
    fn bpf_compiler(&mut self, tool: &'static Tool, distribution: Distribution) {
        let prebuilt = distribution == Distribution::Debian
            // Checked for clippy, too: Debian's clippy works only with this compiler.
            && apt::has_candidate("libstd-rust-web-dev-bpf")
            && tool.debian.iter().all(|package| apt::has_candidate(package));
        let nightly_here = matches!(Compiler::find(), Ok(Compiler::Nightly { .. }));
        if prebuilt && !nightly_here {
            self.packages.extend(tool.debian);
        } else if which("rustup").is_some() {
            self.nightly = true;
        } else {
            self.by_hand.push(
                "install rustup (https://rustup.rs), then: rustup toolchain install nightly \
                 --profile minimal --component rust-src --component clippy"
                    .to_owned(),
            );
        }
    }

    fn bpf_linker(&mut self, distribution: Distribution) {
        let by_apt = distribution == Distribution::Debian;
        match linker::Build::find(by_apt, self.nightly) {
            Some(build) => {
                self.packages.extend(build.packages());
                self.linker = Some(build);
            }
            None => self.by_hand.push(linker::BY_HAND.to_owned()),
        }
    }

    /// Every command of the plan, for a person to run.
    pub(super) fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            let sudo = if privilege::is_root() { "" } else { "sudo " };
            commands.push(format!("{sudo}{}", apt::install_line(&self.packages)));
        }
        if self.nightly {
            commands.push(format!("rustup {}", NIGHTLY.join(" ")));
        }
        if !self.components.is_empty() {
            commands.push(format!("rustup component add {}", self.components.join(" ")));
        }
        commands.extend(self.linker.as_ref().map(linker::Build::line));
        commands.extend(self.by_hand.iter().cloned());
        commands
    }

    /// Executes the plan.
    pub(super) fn carry_out(&self) -> Result<()> {
        if !self.packages.is_empty() {
            apt::install(&self.packages)?;
        }
        if self.nightly {
            with_spinner("Installing Rust nightly with rust-src", rustup(&NIGHTLY))?;
        }
        if !self.components.is_empty() {
            let mut command = rustup(&["component", "add"]);
            command.args(&self.components);
            with_spinner("Installing components of the Rust toolchain", command)?;
        }
        if let Some(build) = &self.linker {
            with_spinner("Building bpf-linker (once)", build.command())?;
        }
        if let Some(package) = &self.kernel {
            fetch::fetch(package)?;
        }
        Ok(())
    }
}

/// The arguments of rustup that install the toolchain of `Compiler::Nightly`.
const NIGHTLY: [&str; 9] = [
    "toolchain",
    "install",
    "nightly",
    "--profile",
    "minimal",
    "--component",
    "rust-src",
    "--component",
    "clippy",
];

fn rustup(args: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(args);
    command
}
