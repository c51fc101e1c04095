//! The instructions that a program executes on a packet: the emulator runs the program step by step
//! and reports the address of each instruction.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    ops::Range,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::programs::Known;

/// The serial port at which the emulator answers.
const PORT: &str = "/dev/ttyS1";
/// Settings (file, value) with which the kernel names programs and functions.
const NAMES: [(&str, &str); 2] =
    [("/proc/sys/net/core/bpf_jit_kallsyms", "1"), ("/proc/sys/kernel/kptr_restrict", "0")];

/// Makes the kernel name its functions and the programs' in `/proc/kallsyms`.
pub(super) fn name_functions() -> Result<()> {
    NAMES.iter().try_for_each(|(file, value)| {
        fs::write(file, value).with_context(|| format!("{file}: cannot be written"))
    })
}

/// Counts of what a program executes on a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Executed {
    /// Instructions of the program's own machine code.
    pub(super) own: u64,
    /// Instructions of the helpers.
    pub(super) helpers: u64,
    /// Calls by name of the helper.
    pub(super) calls: BTreeMap<String, u64>,
}

/// The connection to the emulator, and the names of the kernel's functions.
pub(super) struct Stepper {
    port: File,
    lines: BufReader<File>,
    names: BTreeMap<u64, String>,
}

impl Stepper {
    /// Opens the connection.
    pub(super) fn open() -> Result<Self> {
        name_functions()?;
        let port = OpenOptions::new().read(true).write(true).open(PORT).context(PORT)?;
        // Raw mode without echo.
        let raw = Command::new("stty").args(["-F", PORT, "raw", "-echo"]).status();
        ensure!(raw.context("stty")?.success(), "{PORT}: stty failed");
        let lines = BufReader::new(port.try_clone().context(PORT)?);
        let symbols = fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
        Ok(Self { port, lines, names: names(&symbols) })
    }

    /// Runs the program on its packet twice, the second time step by step.
    pub(super) fn step(&mut self, known: &Known<'_>) -> Result<Executed> {
        let functions = known.functions()?;
        let Some(entry) = functions.first() else { bail!("the kernel hides its machine code") };
        writeln!(self.port, "steps {:x}", entry.start).context(PORT)?;
        ensure!(
            self.line()? == "ready",
            "the emulator's GDB stub refused; the reason is printed by cargo xtask"
        );
        // The first run renews cache entries of the program that expire. The second is stepped.
        known.once()?;
        known.once()?;
        let mut addresses = Vec::new();
        loop {
            match self.line()?.as_str() {
                "end" => break,
                "failed" => {
                    bail!("the emulator's GDB stub refused; the reason is printed by cargo xtask")
                }
                line => addresses.push(u64::from_str_radix(line, 16).context("an address")?),
            }
        }
        Ok(executed(&addresses, &functions, &self.names))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).context(PORT)?;
        Ok(line.trim().to_owned())
    }
}

/// The functions of `/proc/kallsyms` by address.
fn names(symbols: &str) -> BTreeMap<u64, String> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address, words.nth(1)?.to_owned()))
    };
    symbols.lines().filter_map(of_line).collect()
}

/// Counts `addresses`, which were executed in this order.
fn executed(
    addresses: &[u64],
    functions: &[Range<u64>],
    names: &BTreeMap<u64, String>,
) -> Executed {
    let mut all = Executed::default();
    let mut inside = true;
    for address in addresses {
        let own = functions.iter().any(|function| function.contains(address));
        if own {
            all.own += 1;
        } else {
            all.helpers += 1;
            // A helper that goes on after a callback into the program is not a new call.
            if inside && names.contains_key(address) {
                let name = names.get(address).cloned().unwrap_or_default();
                *all.calls.entry(name).or_default() += 1;
            }
        }
        inside = own;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_instructions_and_calls_of_helpers_are_told_apart() {
        let symbols = "ffff0100 T bpf_redirect\nffff0200 t helper_b\n0000abcd t other\t[veth]\n";
        let names = names(symbols);
        // Two functions of the program; it calls a helper twice and another once. What a helper
        // calls is a part of it.
        let functions = [0x1000..0x1010, 0x2000..0x2008];
        let addresses = [
            0x1000,
            0x1004,
            0xffff_0100,
            0xffff_0200,
            0xffff_0104,
            0x1008,
            0x2000,
            0xffff_0100,
            0x2004,
            0xffff_0200,
            0x100c,
        ];
        let found = executed(&addresses, &functions, &names);
        assert_eq!((found.own, found.helpers), (6, 5));
        let calls = [("bpf_redirect".to_owned(), 2), ("helper_b".to_owned(), 1)];
        assert_eq!(found.calls, calls.into());
    }
}
