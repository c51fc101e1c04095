//! `attach`, `detach`, `ps`, `rm`.

use std::{io::Write, path::Path};

use super::each::for_all;
use crate::{
    api::{
        Backend,
        types::{
            ApiError, ContainerCreate, ContainerNetwork, ContainerRow, ErrorKind, may_have_clients,
        },
    },
    cli::{
        args::{AttachArgs, DetachArgs, Format, RmArgs},
        failure::{Failure, tell},
        output::{self, Row},
    },
    model::{Isolation, Name, NameOptions, Privileges},
    sandbox,
};

impl Row for ContainerRow {
    const HEADERS: &'static [&'static str] =
        &["NAME", "MODE", "STATUS", "PID", "NETWORKS", "IP", "MAC", "PORTS", "COMMAND"];

    fn cells(&self) -> Vec<String> {
        let networks = &self.networks;
        let addresses = networks.iter().map(|network| {
            // The address of an endpoint without IPv4 is its IPv6 address.
            let ip6 = network.ip6.iter().filter(|ip6| **ip6 != network.ip);
            let primary = Some(&network.ip).filter(|ip| !ip.is_empty()).into_iter().chain(ip6);
            let all: Vec<&str> = primary.chain(&network.additional).map(String::as_str).collect();
            all.join(" ")
        });
        vec![
            self.name.clone(),
            match &self.shares {
                Some(other) => format!("{}:{other}", self.mode),
                None => self.mode.clone(),
            },
            status(self),
            output::list(self.pid),
            output::list(networks.iter().map(|network| &network.name)),
            output::list(addresses),
            output::list(networks.iter().map(|network| &network.mac)),
            output::list(networks.iter().flat_map(ports)),
            shorten(&self.command.join(" ")),
        ]
    }
}

/// The cell about a container's command.
fn status(row: &ContainerRow) -> String {
    let state = match (row.state.as_str(), row.pid, row.exit_code) {
        // An agent of an earlier version.
        ("", Some(_), _) => "running".to_owned(),
        ("", None, Some(code)) | ("exited", _, Some(code)) => format!("exited ({code})"),
        ("", None, None) if row.mode == "attached" => "attached".to_owned(),
        ("", None, None) => "created".to_owned(),
        ("restarting", _, Some(code)) => format!("restarting ({code})"),
        (state, _, _) => state.to_owned(),
    };
    match row.restarts {
        0 => state,
        1 => format!("{state}, 1 restart"),
        many => format!("{state}, {many} restarts"),
    }
}

/// Published ports, each with the clients that may use it, unless all may, and with the interfaces
/// through which clients do not reach it.
fn ports(network: &ContainerNetwork) -> impl Iterator<Item = String> {
    let from = match network.from.as_slice() {
        [] => String::new(),
        from => format!(" from {}", from.join("+")),
    };
    let unserved = match network.unserved.as_slice() {
        [] => String::new(),
        names => format!(" not through {}", some(names)),
    };
    network.ports.iter().map(move |port| {
        let unserved = if may_have_clients(port) { unserved.as_str() } else { "" };
        format!("{port}{from}{unserved}")
    })
}

/// The first names, and the number of the others: a host may have very many tunnels.
fn some(names: &[String]) -> String {
    const MOST: usize = 3;
    let shown = names.get(..MOST).unwrap_or(names).join("+");
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown}+{more} more"),
    }
}

/// Prints the warnings in the answer to [`ContainerCreate`]. The row of a container has none.
pub(super) fn tell_warnings(row: &mut ContainerRow) {
    for warning in std::mem::take(&mut row.warnings) {
        tell(&warning);
    }
}

/// A command line in at most 40 characters, control characters made visible.
fn shorten(command: &str) -> String {
    const MOST: usize = 40;
    let mut shown: String = command
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .take(MOST + 1)
        .collect();
    if let Some((cut, _)) = shown.char_indices().nth(MOST) {
        // One character less, for the ellipsis.
        let end = shown[..cut].char_indices().next_back().map_or(0, |(last, _)| last);
        shown.truncate(end);
        shown.push('…');
    }
    output::or_dash(shown)
}

pub(crate) async fn attach(
    backend: &dyn Backend,
    args: AttachArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (name, network, restricted) =
        (args.name.clone(), args.network.clone(), !args.from.is_empty());
    let mut ips = args.ips.into_iter();
    let mut row = backend
        .container_create(ContainerCreate {
            name: args.name,
            network: args.network.into(),
            ip: ips.next(),
            more_ips: ips.collect(),
            mac: args.mac,
            ports: args.ports,
            from: args.from,
            expose: Vec::new(),
            ifname: args.ifname,
            netns: args.target.netns,
            pid: args.target.pid,
            auto_remove: false,
            command: Vec::new(),
            names: NameOptions::default(),
            rerun: None,
            privileges: Privileges::default(),
            isolation: Isolation::default(),
        })
        .await?;
    tell_warnings(&mut row);
    if restricted && open_to_all(&row, network.as_str()) {
        // The new attachment alone: the name may have others.
        if let Err(error) = backend.disconnect(&network, &name).await {
            tell(&format!(
                "container {name} is left in network {network}, with ports that everybody may use: {error}"
            ));
        }
        return Err(Failure::refusal(FROM_UNKNOWN));
    }
    created(row, format, out)
}

/// The refusal if an agent has left `--from` out.
pub(super) const FROM_UNKNOWN: &str =
    "--from: the agent is of an earlier version and does not know it: restart it with this one";

/// Whether a container has published ports in the network that all clients may use.
pub(super) fn open_to_all(row: &ContainerRow, network: &str) -> bool {
    let mut networks = row.networks.iter().filter(|has| has.name == network);
    networks.any(|network| !network.ports.is_empty() && network.from.is_empty())
}

/// Prints a container that was made: its name, or its row.
pub(super) fn created(
    row: ContainerRow,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match format {
        Format::Table => output::line(out, &row.name)?,
        Format::Json => output::rows(out, format, &[row])?,
    }
    Ok(())
}

pub(crate) async fn detach(backend: &dyn Backend, args: DetachArgs) -> Result<(), Failure> {
    match args.network {
        Some(network) => backend.disconnect(&network, &args.name).await?,
        None => backend.container_remove(&args.name, false).await?,
    }
    Ok(())
}

pub(crate) async fn ps(
    backend: &dyn Backend,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    Ok(output::rows(out, format, &backend.containers().await?)?)
}

pub(crate) async fn rm(
    backend: &dyn Backend,
    args: RmArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    for_all(&args.names, async |name| {
        let log = find(backend, name).await?.log;
        backend.container_remove(name, args.force).await?;
        if let Some(log) = log {
            remove_log(Path::new(&log))?;
        }
        Ok(output::line(out, name.as_str())?)
    })
    .await
}

/// Removes the log of a removed container.
pub(super) fn remove_log(log: &Path) -> Result<(), Failure> {
    sandbox::remove_log(log).map_err(|error| {
        Failure::refusal(format!("log {} cannot be removed: {error}", log.display()))
    })
}

/// The container called `name`.
pub(super) async fn find(backend: &dyn Backend, name: &Name) -> Result<ContainerRow, ApiError> {
    let rows = backend.containers().await?;
    rows.into_iter().find(|row| row.name == name.as_str()).ok_or_else(|| {
        ApiError::new(
            ErrorKind::NotFound,
            format!("container {name} does not exist on this host: see 'culvert ps'"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{shorten, some};

    #[test]
    fn many_interfaces_are_counted() {
        let names = |count: usize| (0..count).map(|i| format!("ppp{i}")).collect::<Vec<_>>();
        assert_eq!(some(&names(1)), "ppp0");
        assert_eq!(some(&names(3)), "ppp0+ppp1+ppp2");
        assert_eq!(some(&names(500)), "ppp0+ppp1+ppp2+497 more");
    }

    #[test]
    fn commands_are_shortened_by_characters() {
        assert_eq!(shorten(""), "-");
        assert_eq!(shorten("sleep 1"), "sleep 1");
        assert_eq!(shorten(&"x".repeat(40)), "x".repeat(40));
        assert_eq!(shorten(&"ü".repeat(41)), format!("{}…", "ü".repeat(39)));
        assert_eq!(shorten("sh -c a\nb"), "sh -c a\\nb");
    }
}
