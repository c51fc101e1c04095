//! `ports`.

use std::io::Write;

use crate::{
    api::{
        Backend,
        types::{PublishedRow, Sources},
    },
    cli::{
        args::{Format, PortsCommand, SourceArgs},
        failure::{Failure, tell},
        output::{self, Row},
    },
};

impl Row for PublishedRow {
    const HEADERS: &'static [&'static str] = &["PORT", "CONTAINER", "NETWORK", "FROM"];

    fn cells(&self) -> Vec<String> {
        let from = match self.from.as_slice() {
            [] => "any".to_owned(),
            from => from.join(", "),
        };
        vec![self.port.clone(), self.container.clone(), self.network.clone(), from]
    }
}

pub(crate) async fn ports(
    backend: &dyn Backend,
    command: PortsCommand,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match command {
        PortsCommand::Ls => {
            let ports = backend.ports().await?;
            if format == Format::Json {
                return Ok(output::json(out, &ports)?);
            }
            output::rows(out, format, &ports.published)?;
            if !ports.denied.is_empty() {
                writeln!(out)?;
                let rows = ports.denied.into_iter().map(|source| vec![source]);
                output::table(out, &["DENIED"], rows)?;
            }
        }
        PortsCommand::Deny(SourceArgs { sources }) => {
            backend.ports_deny(Sources { sources }).await?;
        }
        PortsCommand::Allow(SourceArgs { sources }) => {
            for line in backend.ports_allow(Sources { sources }).await?.still {
                tell(&line);
            }
        }
    }
    Ok(())
}
