//! The command line: parses it, sends requests to the agent, prints the answers.
//!
//! Standard output has results only. An error is one line on standard error,
//! `culvert: THING: WRONG: RIGHT`. Exit codes: 0; 1 for a refusal; 2 for wrong usage; `run` and
//! `exec` end with the code of their command.

mod accounts;
mod args;
mod failure;
mod output;
mod usage;
mod value;
mod verbs;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches};

use self::{
    args::{Cli, Command, FdbCommand, Format, NatCommand, NeighCommand, StoreCommand},
    failure::{Failure, tell},
    value::Limit,
};
use crate::api::Client;

/// Runs the command line `args`, whose first item is the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Standard output is not locked: the agent's threads may print as well.
    let mut out = io::BufWriter::new(io::stdout());
    let parsed = Cli::command()
        .try_get_matches_from(args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let result = match parsed {
        Ok(cli) => dispatch(cli, &mut out),
        Err(error) => usage::report(&error, &mut out),
    };
    // The rest of the buffer must be written, and an error (a full disk) reported.
    let flushed = out.flush();
    let code = match result.and_then(|code| Ok(flushed.map(|()| code)?)) {
        Ok(code) => code,
        Err(failure) => {
            if let Some(line) = &failure.line {
                tell(line);
            }
            failure.code
        }
    };
    ExitCode::from(code)
}

/// Arguments of every verb that sends requests to the agent.
struct Context<'a> {
    client: Client,
    socket: PathBuf,
    timeout: Limit,
    format: Format,
    out: &'a mut dyn Write,
}

/// Runs the verb. Returns the exit code.
fn dispatch(cli: Cli, out: &mut dyn Write) -> Result<u8, Failure> {
    // The supervisor of `run -d` has another working directory.
    let socket = value::absolute(cli.global.socket).map_err(|invalid| Failure::usage(invalid.0))?;
    match cli.command {
        Command::Agent(args) => {
            let options = args.into_options(socket).map_err(|invalid| Failure::usage(invalid.0))?;
            verbs::agent(options)
        }
        Command::Completion { shell } => verbs::completion(shell, &mut Cli::command(), out),
        command => {
            let timeout = cli.global.timeout;
            let client = Client::new(&socket).with_timeout(timeout.0);
            let context = Context { client, socket, timeout, format: cli.global.format, out };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::refusal(format!("runtime cannot be started: {error}")))?;
            let result = runtime.block_on(ask(command, cli.auto_remove, context));
            // Does not wait for blocking calls of a verb, such as a read of a terminal.
            runtime.shutdown_background();
            result
        }
    }
}

/// The verbs that need a runtime.
async fn ask(command: Command, auto_remove: bool, mut context: Context<'_>) -> Result<u8, Failure> {
    let Context { client, socket, timeout, format, out } = &mut context;
    let (format, out) = (*format, &mut **out);
    match command {
        Command::Network(command) => verbs::network(client, command, format, out).await?,
        Command::Run(args) => {
            // The supervisor of `run -d` sends its requests to the same agent.
            let global: Vec<OsString> = vec![
                "--socket".into(),
                socket.clone().into(),
                "--timeout".into(),
                timeout.to_string().into(),
            ];
            return verbs::run(client, global, *args, format, out).await;
        }
        Command::Supervise { spec } => {
            return verbs::supervise_detached(client, &spec, auto_remove).await;
        }
        Command::Starter => verbs::starter().await?,
        Command::Exec(args) => return verbs::exec(client, args).await,
        Command::Attach(args) => verbs::attach(client, args, format, out).await?,
        Command::Detach(args) => verbs::detach(client, args).await?,
        Command::Ps => verbs::ps(client, format, out).await?,
        Command::Rm(args) => verbs::rm(client, args, out).await?,
        Command::Logs(args) => verbs::logs(client, args, out).await?,
        Command::Fdb(FdbCommand::Show) => verbs::fdb(client, format, out).await?,
        Command::Neigh(NeighCommand::Show) => verbs::neighbours(client, format, out).await?,
        Command::Nat(NatCommand::Ls(args)) => verbs::nat(client, args, format, out).await?,
        Command::Ports(command) => verbs::ports(client, command, format, out).await?,
        Command::Vtep(command) => verbs::vtep(client, command, format, out).await?,
        Command::Store(StoreCommand::Accept) => verbs::store_accept(client).await?,
        Command::Node(command) => verbs::node(client, command, format, out).await?,
        Command::Status => verbs::status(client, format, out).await?,
        Command::Stats => verbs::stats(client, format, out).await?,
        Command::Doctor(args) => return verbs::doctor(client, args, format, out).await,
        Command::Purge(args) => {
            let options = args
                .into_options(std::mem::take(socket))
                .map_err(|invalid| Failure::usage(invalid.0))?;
            verbs::purge(client, options).await?;
        }
        Command::Agent(_) | Command::Completion { .. } => {}
    }
    Ok(0)
}
