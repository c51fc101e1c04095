//! The `culvert` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    culvert::cli::main(std::env::args_os())
}
