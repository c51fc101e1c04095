//! `culvert doctor`.

use std::io::Write;

use crate::{
    api::{Backend, Client, Unreachable},
    cli::{
        args::{DoctorArgs, Format},
        failure::Failure,
        output::{self, Row, or_dash},
    },
    doctor::{self, Facts, Finding, Level, Subject},
    netlink::Netlink,
};

impl Row for Finding {
    const HEADERS: &'static [&'static str] = &["LEVEL", "CHECK", "DETAIL", "ADVICE"];

    fn cells(&self) -> Vec<String> {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        vec![level.to_owned(), self.check.clone(), self.detail.clone(), or_dash(&self.advice)]
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
    let (subject, of_agent) = subject(client, args).await;
    let facts = Facts::collect(&netlink, subject).await;
    let mut findings = vec![of_agent];
    findings.extend(doctor::examine(&facts));
    report(&findings, format, out)
}

pub(super) fn report(
    findings: &[Finding],
    format: Format,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    output::rows(out, format, findings)?;
    Ok(u8::from(findings.iter().any(|finding| finding.level == Level::Error)))
}

/// What to examine: what the agent uses, if it runs, else what the options say.
async fn subject(client: &Client, args: DoctorArgs) -> (Subject, Finding) {
    let mut subject = Subject {
        uplinks: args.uplinks,
        vxlan_port: args.vxlan_port,
        bpffs: args.bpffs,
        ..Subject::default()
    };
    let finding = |level, detail: String, advice: &str| Finding {
        check: "agent".to_owned(),
        level,
        detail,
        advice: advice.to_owned(),
    };
    let status = match client.reach().await {
        Ok(()) => client.status().await,
        Err(error @ Unreachable::NobodyListens(_)) => {
            let detail = format!("not running: nobody listens on {}", client.path().display());
            drop(error);
            return (subject, finding(Level::Warning, detail, "start it with 'culvert agent'"));
        }
        Err(error) => Err(error.into()),
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return (
                subject,
                finding(Level::Error, error.to_string(), "look into the agent's log"),
            );
        }
    };
    subject.agent_running = true;
    subject.vxlan_port = status.agent.vxlan_port;
    if subject.uplinks.is_empty() {
        subject.uplinks = status.agent.uplinks;
    }
    // Without the store the agent still lists what it knew last.
    if let Ok(networks) = client.networks().await {
        subject.networks = networks
            .into_iter()
            .filter(|network| network.driver == "overlay")
            .map(|network| (network.name, network.mtu))
            .collect();
    }
    let found = if !status.store.healthy {
        let why = status.store.error.unwrap_or_else(|| "no answer".to_owned());
        finding(
            Level::Error,
            format!("store: {why}"),
            "bring the store back, the agent waits for it",
        )
    } else if !status.problems.is_empty() {
        finding(Level::Warning, status.problems.join("; "), "see 'culvert status'")
    } else {
        finding(Level::Ok, format!("pid {}, store healthy", status.agent.pid), "")
    };
    (subject, found)
}
