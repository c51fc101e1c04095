//! `culvert logs`.

use std::{
    fs::File,
    io::{self, Read, Write},
    time::Duration,
};

use crate::{
    api::Backend,
    cli::{args::LogsArgs, failure::Failure},
};

/// Period at which `-f` reads the log.
const PERIOD: Duration = Duration::from_millis(100);

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
    let mut log = File::open(&path).map_err(unreadable)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Asked before the read: once the command has ended, this read has its
        // last output.
        let running = args.follow
            && match super::container::find(backend, name).await {
                Ok(row) => row.pid.is_some(),
                Err(error) if error.kind == crate::api::types::ErrorKind::NotFound => false,
                // The agent restarts; the container runs on.
                Err(_) => true,
            };
        loop {
            match log.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => out.write_all(buffer.get(..read).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        out.flush()?;
        if !running {
            return Ok(());
        }
        tokio::time::sleep(PERIOD).await;
    }
}
