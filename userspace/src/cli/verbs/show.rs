//! The verbs that show state, and `vtep`.

use std::io::Write;

use crate::{
    api::{
        Backend,
        types::{
            ConntrackShare, ConntrackStatus, FdbRow, NeighRow, RepairRow, StatsRow, Status,
            VtepChange, VtepRow,
        },
    },
    choice::Uplink,
    cli::{
        args::{Format, VtepChangeArgs, VtepCommand},
        failure::Failure,
        output::{self, Row, or_dash},
    },
};

impl Row for FdbRow {
    const HEADERS: &'static [&'static str] =
        &["NETWORK", "VNI", "MAC", "KIND", "DST", "IFNAME", "AGE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.network.clone(),
            self.vni.to_string(),
            self.mac.clone(),
            self.kind.clone(),
            or_dash(&self.dst),
            or_dash(&self.ifname),
            output::list(self.age_s.map(output::duration)),
        ]
    }
}

impl Row for NeighRow {
    const HEADERS: &'static [&'static str] = &["NETWORK", "VNI", "IP", "MAC", "KIND", "AGE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.network.clone(),
            self.vni.to_string(),
            self.ip.clone(),
            self.mac.clone(),
            self.kind.clone(),
            output::list(self.age_s.map(output::duration)),
        ]
    }
}

impl Row for VtepRow {
    const HEADERS: &'static [&'static str] =
        &["IP", "PORT", "NODE", "KIND", "ALIVE", "NETWORKS", "VIA", "INNER MTU"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.ip.clone(),
            self.port.to_string(),
            or_dash(&self.node),
            self.kind.clone(),
            output::list(self.alive.map(|alive| if alive { "yes" } else { "no" })),
            output::list(&self.networks),
            or_dash(&self.via),
            self.inner_mtu.to_string(),
        ]
    }
}

impl Row for StatsRow {
    const HEADERS: &'static [&'static str] =
        &["DIRECTION", "VERDICT", "CODE", "REASON", "PACKETS", "BYTES"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.direction.clone(),
            self.verdict.clone(),
            self.code.to_string(),
            self.reason.clone(),
            self.packets.to_string(),
            output::size(self.bytes),
        ]
    }
}

pub(crate) async fn fdb(
    backend: &dyn Backend,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    Ok(output::rows(out, format, &backend.fdb().await?)?)
}

pub(crate) async fn neighbours(
    backend: &dyn Backend,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    Ok(output::rows(out, format, &backend.neighbours().await?)?)
}

pub(crate) async fn vtep(
    backend: &dyn Backend,
    command: VtepCommand,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let change = |VtepChangeArgs { ip, network, port }| VtepChange { ip, network, port };
    match command {
        VtepCommand::Ls => output::rows(out, format, &backend.vteps().await?)?,
        VtepCommand::Add(args) => backend.vtep_add(change(args)).await?,
        VtepCommand::Rm(args) => backend.vtep_remove(change(args)).await?,
    }
    Ok(())
}

pub(crate) async fn stats(
    backend: &dyn Backend,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    Ok(output::rows(out, format, &backend.stats().await?)?)
}

pub(crate) async fn store_accept(backend: &dyn Backend) -> Result<(), Failure> {
    Ok(backend.store_accept().await?)
}

pub(crate) async fn status(
    backend: &dyn Backend,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let status = backend.status().await?;
    match format {
        Format::Json => output::json(out, &status)?,
        Format::Table => facts(&status, out)?,
    }
    Ok(())
}

/// The repairs on one line.
fn told(repairs: &[RepairRow]) -> String {
    let one = |RepairRow { kind, count, last, last_s }: &RepairRow| {
        format!("{count} of {kind}, the last {} ago: {last}", output::duration(*last_s))
    };
    match repairs {
        [] => "none".to_owned(),
        some => some.iter().map(one).collect::<Vec<_>>().join("; "),
    }
}

/// Number of containers with many or refused flows that `status` names in its text.
const NAMED: usize = 3;

/// The table of flows, and the first containers with many or refused flows.
fn flows(status: &ConntrackStatus) -> String {
    let ConntrackStatus { flows, estimated, max, refused, crowded, containers, .. } = status;
    let about = if *estimated { "about " } else { "" };
    let mut parts = vec![format!("{about}{flows} flows of {max}, {refused} refused")];
    let named = containers.iter().take(NAMED);
    parts.extend(named.map(|ConntrackShare { container, flows, refused, without_port }| {
        let container = or_dash(container);
        format!("{container} {flows} flows, {refused} refused ({without_port} without a port)")
    }));
    match crowded.saturating_sub(NAMED as u64) {
        0 => {}
        more => parts.push(format!("{more} more containers")),
    }
    parts.join("; ")
}

fn facts(status: &Status, out: &mut dyn Write) -> Result<(), Failure> {
    let Status {
        node,
        agent,
        store,
        datapath,
        vteps,
        conntrack,
        path_mtu,
        counts,
        problems,
        repairs,
        connections,
    } = status;
    let health = match (&store.error, store.healthy) {
        (_, true) => "healthy".to_owned(),
        (Some(error), false) => format!("unhealthy ({error})"),
        (None, false) => "unhealthy".to_owned(),
    };
    output::facts(
        out,
        &[
            ("Node", node.clone()),
            (
                "Agent",
                format!(
                    "version {}, pid {}, up {}",
                    agent.version,
                    agent.pid,
                    output::duration(agent.uptime_s)
                ),
            ),
            ("State", agent.state_dir.clone()),
            (
                "VTEP",
                format!(
                    "{} port {} on {}",
                    agent.vtep_ip,
                    agent.vxlan_port,
                    output::list(&agent.uplinks)
                ),
            ),
            ("Store", format!("{}, {health}, revision {}", store.kind, store.revision)),
            (
                "Datapath",
                format!(
                    "{} ({}), ABI {}, pinned in {}",
                    datapath.mode, datapath.reason, datapath.abi, datapath.pins
                ),
            ),
            ("Uplinks", output::list(datapath.uplinks.iter().map(Uplink::describe))),
            ("Client links", output::list(&datapath.client_links)),
            ("Not served", output::list(&datapath.unserved_links)),
            ("Devices", format!("{} ({})", datapath.device, datapath.device_reason)),
            ("VTEPs", vteps.to_string()),
            ("Networks", counts.networks.to_string()),
            ("Endpoints", format!("{} here, {} in all", counts.local_endpoints, counts.endpoints)),
            ("FDB", counts.fdb.to_string()),
            ("Neighbours", counts.neighbours.to_string()),
            ("Conntrack", flows(conntrack)),
            (
                "Path MTUs",
                format!(
                    "{} smaller, {} hints, {} refused, {} verified, {} not verified",
                    path_mtu.smaller,
                    path_mtu.hints,
                    path_mtu.refused,
                    path_mtu.verified,
                    path_mtu.unverified
                ),
            ),
            ("API", format!("{} refused, {} too late", connections.refused, connections.late)),
            ("Restarts", counts.restarts.to_string()),
            ("Repairs", told(repairs)),
            ("Problems", if problems.is_empty() { "none".to_owned() } else { String::new() }),
        ],
    )?;
    for problem in problems {
        output::line(out, &format!("  {problem}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_with_refused_flows_are_named() {
        let mut status = ConntrackStatus { flows: 17, max: 64, ..ConntrackStatus::default() };
        assert_eq!(flows(&status), "17 flows of 64, 0 refused");
        let share = |container: &str, flows, refused, without_port| ConntrackShare {
            container: container.to_owned(),
            flows,
            refused,
            without_port,
        };
        (status.estimated, status.refused, status.crowded) = (true, 5, 5);
        status.containers = vec![
            share("web", 9, 4, 3),
            share("", 1, 1, 0),
            share("db", 40, 0, 0),
            share("x", 33, 0, 0),
        ];
        assert_eq!(
            flows(&status),
            "about 17 flows of 64, 5 refused; web 9 flows, 4 refused (3 without a port); \
             - 1 flows, 1 refused (0 without a port); db 40 flows, 0 refused (0 without a port); \
             2 more containers"
        );
    }
}
