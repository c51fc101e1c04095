//! `culvert logs`.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    api::{Backend, types::ErrorKind},
    cli::{args::LogsArgs, failure::Failure},
    model::Name,
    sandbox::{LogReader, ReadError},
};

/// Period at which `-f` reads the log.
const PERIOD: Duration = Duration::from_millis(100);
/// Time for which the report of an end is waited for: a supervisor that was killed sends none.
const REPORT: Duration = Duration::from_secs(1);

pub(crate) async fn logs(
    backend: &dyn Backend,
    args: LogsArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let name = &args.name;
    let row = super::container::find(backend, name).await?;
    let Some(path) = row.log else {
        return Err(Failure::refusal(format!(
            "container {name} has no log: one started with 'run -d' keeps one"
        )));
    };
    let unreadable =
        |error: io::Error| Failure::refusal(format!("log {path} cannot be read: {error}"));
    let mut log = LogReader::open(Path::new(&path)).map_err(unreadable)?;
    let mut print = || {
        log.read_to(out).map_err(|error| match error {
            ReadError::Log(error) => unreadable(error),
            ReadError::Out(error) => Failure::from(error),
        })?;
        Ok::<(), Failure>(out.flush()?)
    };
    print()?;
    if args.follow {
        let ended = ended(backend, name);
        tokio::pin!(ended);
        loop {
            // An agent that does not answer does not delay the output.
            tokio::select! {
                () = &mut ended => break,
                () = sleep(PERIOD) => print()?,
            }
        }
        // The last output, from before the end was known.
        print()?;
    }
    Ok(())
}

/// Returns when the command of a container has ended and all its output is in the log.
async fn ended(backend: &dyn Backend, name: &Name) {
    let mut unreported = None;
    loop {
        match super::container::find(backend, name).await {
            // There is more to come.
            Ok(row) if row.state == "restarting" => sleep(PERIOD).await,
            // The supervisor reports the end once it has written the output.
            Ok(row) if row.exit_code.is_some() => return,
            Ok(row) if row.pid.is_none() => {
                if unreported.get_or_insert_with(Instant::now).elapsed() >= REPORT {
                    return;
                }
                sleep(PERIOD).await;
            }
            Err(error) if error.kind == ErrorKind::NotFound => return,
            // While the agent restarts, the container runs on.
            _ => sleep(PERIOD).await,
        }
    }
}
