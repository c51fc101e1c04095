//! `culvert network`.

use std::{collections::BTreeMap, io::Write};

use super::each::for_all;
use crate::{
    api::{
        Backend,
        types::{AddressChange, Connect, NetworkCreate, NetworkRow},
    },
    cli::{
        args::{AddressArgs, AddressCommand, ConnectArgs, CreateArgs, Format, NetworkCommand},
        failure::{Failure, tell},
        output::{self, Row},
    },
};

impl Row for NetworkRow {
    const HEADERS: &'static [&'static str] =
        &["NETWORK ID", "NAME", "DRIVER", "SCOPE", "VNI", "SUBNETS", "MTU", "ENDPOINTS"];

    fn cells(&self) -> Vec<String> {
        vec![
            // The first 12 characters, as Docker prints; every id is ASCII.
            self.id.get(..12).unwrap_or(&self.id).to_owned(),
            self.name.clone(),
            self.driver.clone(),
            self.scope.clone(),
            self.vni.to_string(),
            output::list(&self.subnets),
            self.mtu.to_string(),
            self.endpoints.to_string(),
        ]
    }
}

pub(crate) async fn network(
    backend: &dyn Backend,
    command: NetworkCommand,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create(args) => create(backend, args, format, out).await,
        NetworkCommand::Ls => Ok(output::rows(out, format, &backend.networks().await?)?),
        NetworkCommand::Inspect { names } => {
            // As in Docker: the array has the networks that exist; the errors name the others.
            let mut found = Vec::new();
            let result = for_all(&names, async |name| {
                found.push(backend.network_inspect(name).await?);
                Ok(())
            })
            .await;
            output::json(out, &found)?;
            result
        }
        NetworkCommand::Rm { names } => {
            for_all(&names, async |name| {
                backend.network_remove(name).await?;
                Ok(output::line(out, name.as_str())?)
            })
            .await
        }
        NetworkCommand::Connect(ConnectArgs { network, container, ips, mac }) => {
            let mut ips = ips.into_iter();
            let (ip, more_ips) = (ips.next(), ips.collect());
            let row = backend.connect(&network, Connect { container, ip, more_ips, mac }).await?;
            if format == Format::Json {
                output::rows(out, format, &[row])?;
            }
            Ok(())
        }
        NetworkCommand::Address(AddressCommand::Add(args)) => {
            let AddressArgs { network, container, ip } = args;
            Ok(backend.address_add(&network, AddressChange { container, ip }).await?)
        }
        NetworkCommand::Address(AddressCommand::Rm(args)) => {
            let AddressArgs { network, container, ip } = args;
            Ok(backend.address_remove(&network, AddressChange { container, ip }).await?)
        }
        NetworkCommand::Disconnect { network, container } => {
            Ok(backend.disconnect(&network, &container).await?)
        }
    }
}

async fn create(
    backend: &dyn Backend,
    args: CreateArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let request = NetworkCreate {
        name: args.name,
        driver: args.driver,
        subnets: args.subnets,
        gateway: args.gateway,
        vni: args.vni,
        mtu: args.mtu,
        internal: args.internal,
        learning: args.learning,
        options: unique("--opt", args.options)?,
        labels: unique("--label", args.labels)?,
    };
    let mut created = backend.network_create(request).await?;
    if let Some(warning) = created.warning.take() {
        tell(&warning);
    }
    match format {
        Format::Table => output::line(out, &created.id)?,
        Format::Json => output::json(out, &created)?,
    }
    Ok(())
}

/// The pairs as a map. It is an error if a key has two values.
fn unique(option: &str, pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value).is_some() {
            return Err(Failure::usage(format!("{option}: '{key}' is given twice: once is valid")));
        }
    }
    Ok(map)
}
