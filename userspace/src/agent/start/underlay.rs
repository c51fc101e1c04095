//! Uplinks and VTEP address. At boot they may appear after the start of the agent.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{anyhow, bail};
use tokio::time::Instant;

use crate::{
    agent::{host::chosen, platform::UplinkFault},
    config::AgentOptions,
    netlink::Netlink,
};

/// Interval at which the host is checked.
const EVERY: Duration = Duration::from_millis(500);

/// The names of the uplinks, and the VTEP address. Waits for them up to `--store-timeout`. Logs
/// each missing thing once.
///
/// # Errors
///
/// An uplink is of a kind that cannot be one; `--store-timeout` has passed; the kernel does not
/// answer.
pub(super) async fn wait(
    netlink: &Netlink,
    options: &AgentOptions,
) -> anyhow::Result<(Vec<String>, Ipv4Addr)> {
    let began = Instant::now();
    let mut told = None;
    loop {
        let (links, routes) = (netlink.links().await?, netlink.routes().await?);
        let line = match chosen::find(&options.uplinks, options.vtep_ip, &links, &routes) {
            Ok(found) => return Ok(found),
            Err(UplinkFault::Wrong(line)) => bail!(line),
            Err(UplinkFault::Absent(line)) => line,
        };
        if options.store_timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            return Err(anyhow!(line));
        }
        if told.as_ref() != Some(&line) {
            tracing::warn!("{line}; waiting for it");
            told = Some(line);
        }
        tokio::time::sleep(EVERY).await;
    }
}
