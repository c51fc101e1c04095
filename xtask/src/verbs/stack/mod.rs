//! `stack`: how much of the BPF stack the programs take.
//!
//! The stack of a program and of all functions that it calls has 512 bytes. If a chain of calls
//! takes more, the kernel refuses the program with 'combined stack size of 4 calls is 528', and
//! names no function. This verb names them, without loading the programs.
//!
//! It computes the sum as the verifier does in `check_max_stack_depth`, with one difference: the
//! verifier counts only the accesses on the paths that it walks. So it may count fewer bytes.

mod chain;
mod code;
mod elf;
mod name;

use std::fs;

use anyhow::{Context as _, Result, anyhow, bail};
use culvert_bpf_build::build_programs;

use self::chain::{Program, Round};
use super::setup;
use crate::tools::Need;
use crate::{paths, ui};

/// Size of the stack, in bytes: `MAX_BPF_STACK` of the kernel.
const BYTES: u64 = 512;

/// The most frames of a chain: `MAX_CALL_FRAMES` of the kernel.
const FRAMES: usize = 8;

/// Options of `stack`.
#[derive(Debug, clap::Args)]
#[command(after_help = "USES: bytes of the stack that the function accesses itself. \
    COUNTS: bytes that the verifier counts for it.")]
pub(crate) struct Args {
    /// How the kernel rounds the size of a frame
    #[arg(long, value_enum, value_name = "BYTES", default_value_t)]
    round: Round,
}

/// Builds the programs and prints the deepest chain of each, the fullest program first.
///
/// # Errors
///
/// A program takes more than the kernel allows; the programs cannot be built or read.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::require(&[Need::Build])?;
    let programs = programs(args.round)?;
    for program in &programs {
        ui::heading(&summary(program));
        let rows: Vec<_> = program
            .frames
            .iter()
            .map(|frame| vec![frame.uses.to_string(), frame.counts.to_string(), frame.name.clone()])
            .collect();
        ui::table(&["USES", "COUNTS", "FUNCTION"], &rows);
    }
    refuse(&programs)
}

/// Checks that the kernel takes every program. Returns the name of the fullest one and its bytes.
///
/// # Errors
///
/// As [`main`].
pub(crate) fn check() -> Result<String> {
    let programs = programs(Round::default())?;
    refuse(&programs)
        .map_err(|error| anyhow!("{error}; 'cargo xtask stack' prints the functions"))?;
    let fullest = programs.first().context("the object has no programs")?;
    Ok(format!("{} {} of {BYTES} bytes", fullest.name, fullest.bytes))
}

/// The deepest chain of each program, the fullest program first.
fn programs(round: Round) -> Result<Vec<Program>> {
    // The directory in which the build of `culvert` builds them, too.
    let object = build_programs(&paths::root(), &paths::target().join("bpf"))?;
    let path = object.display();
    let bytes = fs::read(&object).with_context(|| format!("{path}: cannot be read"))?;
    let functions = elf::read(&bytes).with_context(|| format!("{path}: cannot be read"))?;
    let programs = functions.programs.iter();
    let programs = programs.map(|start| chain::program(&functions.all, *start, round));
    let mut programs = programs.collect::<Result<Vec<_>>>()?;
    programs.sort_by(|one, other| other.bytes.cmp(&one.bytes).then(one.name.cmp(&other.name)));
    Ok(programs)
}

/// A line about a program.
fn summary(program: &Program) -> String {
    let Program { name, bytes, longest, .. } = program;
    let rest = match BYTES.checked_sub(*bytes) {
        Some(left) => format!("{left} left"),
        None => format!("{} too many", bytes.saturating_sub(BYTES)),
    };
    format!("{name}: {bytes} of {BYTES} bytes, {rest}; at most {longest} of {FRAMES} frames")
}

/// Fails if the kernel refuses one of `programs`.
fn refuse(programs: &[Program]) -> Result<()> {
    let faults: Vec<_> = programs.iter().filter_map(fault).collect();
    if !faults.is_empty() {
        bail!("{}: the kernel refuses that", faults.join(", "));
    }
    Ok(())
}

/// The limit that `program` exceeds. None if the kernel takes it.
fn fault(program: &Program) -> Option<String> {
    let Program { name, bytes, longest, .. } = program;
    if *bytes > BYTES {
        Some(format!("{name} takes {bytes} of {BYTES} bytes of stack"))
    } else if *longest > FRAMES {
        Some(format!("{name} takes {longest} of {FRAMES} frames"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, bytes: u64, longest: usize) -> Program {
        Program { name: name.to_owned(), frames: Vec::new(), bytes, longest }
    }

    #[test]
    fn a_line_says_how_many_bytes_are_left() {
        assert_eq!(
            summary(&program("from_host", 416, 6)),
            "from_host: 416 of 512 bytes, 96 left; at most 6 of 8 frames"
        );
        assert_eq!(
            summary(&program("from_host", 528, 6)),
            "from_host: 528 of 512 bytes, 16 too many; at most 6 of 8 frames"
        );
    }

    #[test]
    fn only_what_exceeds_a_limit_is_refused() {
        let full = program("full", BYTES, FRAMES);
        refuse(std::slice::from_ref(&full)).expect("both limits are kept");
        for (bad, expected) in [
            (program("bad", BYTES + 16, 1), "bad takes 528 of 512 bytes of stack: "),
            (program("bad", 16, FRAMES + 1), "bad takes 9 of 8 frames: "),
        ] {
            let error = refuse(&[full.clone(), bad]).expect_err("too much").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
