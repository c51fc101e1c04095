//! The `culvert` binary.
#![warn(clippy::indexing_slicing)]

use std::process::ExitCode;

fn main() -> ExitCode {
    culvert::cli::main(std::env::args_os())
}
