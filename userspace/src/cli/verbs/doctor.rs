//! `culvert doctor`.

use std::{io::Write, path::Path};

use crate::{
    agent::last_certificates,
    api::{
        Backend, Client, Unreachable,
        types::{PublishedRow, may_have_clients},
    },
    choice,
    cli::{
        args::{DoctorArgs, Format},
        failure::Failure,
        output::{self, Row, or_dash},
    },
    config::StoreAccess,
    datapath::Price,
    doctor::{self, DatapathFacts, Facts, Finding, Level, Role, Subject, certificate_files},
    model::{Publish, PublishedPort},
    netlink::{Netlink, NetlinkError, default_link},
};

impl Row for Finding {
    const HEADERS: &'static [&'static str] = &["LEVEL", "CHECK", "DETAIL", "ADVICE"];

    fn cells(&self) -> Vec<String> {
        vec![self.level.to_string(), self.check.clone(), self.detail.clone(), or_dash(&self.advice)]
    }
}

/// Exit code 1 if a finding is an error.
pub(crate) async fn doctor(
    client: &Client,
    args: DoctorArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let netlink = Netlink::new().map_err(Failure::refusal)?;
    let of_datapath = args.datapath;
    let (mut subject, of_agent, running) = subject(client, args).await;
    let mut findings = vec![of_agent];
    if subject.uplinks.is_empty() {
        match default_uplink(&netlink).await {
            Ok(Some(uplink)) => subject.uplinks.push(uplink),
            Ok(None) => findings.push(finding(
                "uplink",
                Level::Warning,
                "no default route tells the uplink".to_owned(),
                "name it with --uplink",
            )),
            Err(error) => findings.push(finding("uplink", Level::Error, error.to_string(), "")),
        }
    }
    if of_datapath {
        findings.extend(datapath(&netlink, &subject, running).await);
    } else {
        let facts = Facts::collect(&netlink, subject).await;
        findings.extend(doctor::examine(&facts));
    }
    output::rows(out, format, &findings)?;
    Ok(u8::from(findings.iter().any(|finding| finding.level == Level::Error)))
}

/// The findings of `--datapath`. `running` is the mode of the running agent.
async fn datapath(netlink: &Netlink, subject: &Subject, running: Option<String>) -> Vec<Finding> {
    let port = subject.vxlan_port;
    let uplinks = choice::read(netlink, &subject.uplinks, port).await;
    let links = netlink.links().await.unwrap_or_default();
    let measured = tokio::task::spawn_blocking(Price::measure).await;
    let price = match measured {
        Ok(price) => price.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let mut findings: Vec<Finding> = subject
        .uplinks
        .iter()
        .filter(|name| uplinks.iter().all(|uplink| uplink.name != **name))
        .map(|name| {
            let detail = format!("uplink {name} does not exist");
            finding("uplink", Level::Error, detail, "name an interface of 'ip link' with --uplink")
        })
        .collect();
    findings.extend(doctor::examine_datapath(&DatapathFacts {
        uplinks,
        price,
        port,
        knows_vxlan: links.iter().any(|link| link.vxlan_port == Some(port) && link.up),
        running,
    }));
    findings
}

/// The interface of the IPv4 default route, which the agent uses as uplink by default.
async fn default_uplink(netlink: &Netlink) -> Result<Option<String>, NetlinkError> {
    let (links, routes) = (netlink.links().await?, netlink.routes().await?);
    Ok(default_link(&links, &routes).map(|link| link.name.clone()))
}

fn finding(check: &str, level: Level, detail: String, advice: &str) -> Finding {
    Finding { check: check.to_owned(), level, detail, advice: advice.to_owned() }
}

/// The subject of the checks: the values of the running agent, or else of the options. The last
/// value is the mode of the running agent.
async fn subject(client: &Client, args: DoctorArgs) -> (Subject, Finding, Option<String>) {
    let mut subject = Subject {
        uplinks: args.uplinks,
        vxlan_port: args.vxlan_port,
        bpffs: args.bpffs,
        networks: Vec::new(),
        clock_offset_ms: None,
        alarms: Vec::new(),
        certificates: certificate_files(&StoreAccess {
            ca: args.store_ca,
            cert: args.store_cert,
            ..StoreAccess::default()
        }),
        open_store: false,
        shared_port: false,
        open_ports: 0,
        external_ports: 0,
        published: Vec::new(),
        services: Vec::new(),
        agent_running: false,
    };
    let finding = |level, detail, advice: &str| finding("agent", level, detail, advice);
    let status = match client.reach().await {
        Ok(()) => client.status().await,
        Err(Unreachable::NobodyListens(path)) => {
            if subject.certificates.is_empty() {
                subject.certificates = last_certificates(&args.state_dir);
            }
            let detail = format!("not running: nobody listens on {}", path.display());
            let found = finding(Level::Warning, detail, "start it with 'culvert agent'");
            return (subject, found, None);
        }
        Err(error) => Err(error.into()),
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return (
                subject,
                finding(Level::Error, error.to_string(), "look into the agent's log"),
                None,
            );
        }
    };
    subject.agent_running = true;
    subject.clock_offset_ms = status.store.clock_offset_ms;
    subject.alarms = status.store.alarms;
    subject.open_store = status.store.open;
    if subject.certificates.is_empty() {
        let files = status.store.certificates.into_iter();
        subject.certificates = files
            .filter_map(|file| Some((Role::of_option(&file.option)?, file.file.into())))
            .collect();
    }
    subject.vxlan_port = status.agent.vxlan_port;
    subject.shared_port = status.datapath.shared_port;
    // `pins` is the directory of the ABI version: its parent is the BPF file system.
    if let Some(bpffs) = Path::new(&status.datapath.pins).parent() {
        subject.bpffs = bpffs.to_owned();
    }
    if subject.uplinks.is_empty() {
        subject.uplinks = status.agent.uplinks;
    }
    subject.services = status.agent.services;
    // Without the store the agent lists the networks as it last read them.
    if let Ok(networks) = client.networks().await {
        subject.networks = networks
            .into_iter()
            .filter(|network| network.driver == "overlay")
            .map(|network| (network.name, network.mtu))
            .collect();
    }
    if let Ok(ports) = client.ports().await {
        let external: Vec<&PublishedRow> =
            ports.published.iter().filter(|port| may_have_clients(&port.port)).collect();
        subject.external_ports = external.len();
        subject.open_ports = external.iter().filter(|port| port.from.is_empty()).count();
        subject.published = ports.published.iter().filter_map(published).collect();
    }
    let found = if !status.store.healthy {
        let why =
            status.store.error.as_deref().unwrap_or("no answer").trim_start_matches("store: ");
        finding(Level::Error, format!("store: {why}"), remedy(status.store.replaced))
    } else if !status.problems.is_empty() {
        finding(Level::Warning, status.problems.join("; "), "see 'culvert status'")
    } else {
        finding(Level::Ok, format!("pid {}, store healthy", status.agent.pid), "")
    };
    (subject, found, Some(status.datapath.mode))
}

/// The container and the published port of a row.
fn published(row: &PublishedRow) -> Option<(String, PublishedPort)> {
    // With a colon in place of the arrow, the text has the form of `-p`.
    let publish: Publish = row.port.replace("->", ":").parse().ok()?;
    let port = publish.ports().next()?;
    Some((row.container.clone(), port.at(port.host_port?)))
}

/// What an operator does about a store that is not healthy. `replaced`: it is not the one that the
/// agent knows.
const fn remedy(replaced: bool) -> &'static str {
    if replaced {
        "put the right store back, or if this one is meant, 'culvert store accept' on each host"
    } else {
        "bring the store back, the agent waits for it"
    }
}

#[cfg(test)]
mod tests {
    use super::{PublishedRow, published, remedy};

    #[test]
    fn published_ports_are_read_back() {
        for port in ["0.0.0.0:8080->80/tcp", "127.0.0.1:8000-8010->9000-9010/udp"] {
            let (container, network) = ("web".to_owned(), "net".to_owned());
            let row = PublishedRow { container, network, port: port.to_owned(), from: Vec::new() };
            let (container, read) = published(&row).unwrap();
            assert_eq!((container.as_str(), read.to_string().as_str()), ("web", port));
        }
    }

    #[test]
    fn a_replaced_store_is_put_back_or_accepted() {
        assert!(remedy(true).contains("'culvert store accept'"));
        assert!(!remedy(false).contains("accept"));
    }
}
