//! `culvert node`.

use std::io::Write;

use super::each::for_all;
use crate::{
    api::{Backend, types::NodeRow},
    cli::{
        args::{Format, NodeCommand},
        failure::Failure,
        output::{self, Row},
    },
};

impl Row for NodeRow {
    const HEADERS: &'static [&'static str] =
        &["NODE ID", "NAME", "VTEP", "PORT", "ALIVE", "ENDPOINTS", "HERE"];

    fn cells(&self) -> Vec<String> {
        let alive = match (self.alive, self.gone_s) {
            (true, _) => "yes".to_owned(),
            (false, None) => "no".to_owned(),
            (false, Some(seconds)) => format!("no, for {}", output::duration(seconds)),
        };
        vec![
            // The first 12 characters, as in `network ls`.
            self.id.get(..12).unwrap_or(&self.id).to_owned(),
            self.name.clone(),
            self.ip.clone(),
            self.port.to_string(),
            alive,
            self.endpoints.to_string(),
            if self.here { "yes" } else { "no" }.to_owned(),
        ]
    }
}

pub(crate) async fn node(
    backend: &dyn Backend,
    command: NodeCommand,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls => Ok(output::rows(out, format, &backend.nodes().await?)?),
        NodeCommand::Rm { force, names } => {
            for_all(&names, async |name| {
                backend.node_remove(name, force).await?;
                Ok(output::line(out, name.as_str())?)
            })
            .await
        }
    }
}
