//! The verbs of this repository: `cargo xtask setup`, `build`, `run`, `demo`, `lab`, `test`,
//! `check`, `stack`, `bench`, `article`, `clean`.
//!
//! Every verb first checks that its tools are installed, and runs `setup` for the missing ones.
//! An error that a user can cause is one line on standard error and exit code 1.

#![warn(clippy::indexing_slicing)]

mod files;
mod lab;
mod paths;
mod privilege;
mod process;
mod signals;
mod tools;
mod ui;
mod verbs;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Work on Culvert.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install or name everything that is missing to build, run and test
    Setup(verbs::setup::Args),
    /// Build the culvert binary with its BPF programs: target/release/culvert
    Build,
    /// Build and start an agent on this host with the embedded store; Ctrl-C removes all of it
    Run(verbs::run::Args),
    /// The five network modes on two hosts, narrated; needs nothing but this machine
    Demo(verbs::demo::Args),
    /// Hosts in namespaces, with etcd and an agent each, for experiments
    Lab(verbs::lab::Args),
    /// Build, run every test, and the demo as the last of them
    Test(verbs::test::Args),
    /// Formatting, lints, BPF stack, documentation, rooms, dependencies, licences
    Check(verbs::check::Args),
    /// The deepest chain of calls of each BPF program, and how much of the stack it takes
    Stack(verbs::stack::Args),
    /// Run the benchmarks; all arguments go to culvert-bench
    Bench(verbs::bench::Args),
    /// Measure the article's table of throughputs, A to F: the one in docs/ARTICLE.md
    Article(verbs::article::Args),
    /// Remove build output and whatever run, demo or lab left behind
    Clean,
    /// Process 1 of the demo's or the lab's namespaces
    #[command(hide = true)]
    Inside(verbs::inside::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = signals::install().and_then(|()| match cli.verb {
        Verb::Setup(args) => verbs::setup::main(&args),
        Verb::Build => verbs::build::main(),
        Verb::Run(args) => verbs::run::main(&args),
        Verb::Demo(args) => verbs::demo::main(&args),
        Verb::Lab(args) => verbs::lab::main(&args),
        Verb::Test(args) => verbs::test::main(&args),
        Verb::Check(args) => verbs::check::main(&args),
        Verb::Stack(args) => verbs::stack::main(&args),
        Verb::Bench(args) => verbs::bench::main(&args),
        Verb::Article(args) => verbs::article::main(&args),
        Verb::Clean => verbs::clean::main(),
        Verb::Inside(args) => verbs::inside::main(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if signals::interrupted() => {
            ui::warn("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            ui::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
