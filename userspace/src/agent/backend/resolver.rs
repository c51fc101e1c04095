//! The name servers of containers follow those of the host.
//!
//! The host gets other name servers by DHCP, a VPN or another network, while its containers run.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use super::Agent;
use crate::{
    agent::{
        containers::{Origin, Record},
        etc,
    },
    api::types::ApiError,
    datapath::Changes,
    model::Name,
    sandbox::{RESOLVER_ADVICE, ResolvConf, Resolver},
};

/// Prefix of the problems of containers, by name.
const PROBLEMS: &str = "resolv-conf/";
/// The problem of a host that has no server for its containers any more.
const NO_SERVER: &str = "resolv-conf";

/// The result of a look at a container's file.
enum Looked {
    /// It is as the host's servers say, or there is none.
    Current,
    /// It was written again.
    Rewritten,
    /// Somebody else has changed it. The problem, on one line.
    Kept(String),
}

impl Agent {
    /// Reads the host's name servers every `period`, until the agent stops. If they have changed,
    /// writes them into the files of the containers.
    pub(crate) async fn keep_resolvers(&self, period: Duration) {
        let mut before: Option<Resolver> = None;
        let mut problems = BTreeMap::new();
        loop {
            let platform = Arc::clone(&self.shared.platform);
            // The disk may hang.
            let reading = tokio::task::spawn_blocking(move || platform.resolver());
            let read = tokio::select! {
                () = self.shared.ending.shutdown.cancelled() => return,
                read = reading => read,
            };
            let Ok(now) = read else { return };
            // A program that writes a file may not have come to its end: two readings must agree.
            if before.as_ref().is_none_or(|before| *before == now) {
                problems = self.follow_resolver(&now, problems);
            }
            before = Some(now);
            tokio::select! {
                () = self.shared.ending.shutdown.cancelled() => return,
                () = tokio::time::sleep(period) => {}
            }
        }
    }

    /// Writes the host's name servers into the files of the containers that have others. Returns
    /// the problems of containers; `before` are those of the last call.
    fn follow_resolver(
        &self,
        resolver: &Resolver,
        mut before: BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let shown = &self.shared.shown;
        let fault = resolver.fault();
        let lost = fault.as_ref().filter(|_| self.has_servers()).map(|why| {
            format!(
                "{why}: containers keep the name servers that the host had before: {RESOLVER_ADVICE}"
            )
        });
        shown.problems.set(NO_SERVER, lost);
        if fault.is_some() {
            return before;
        }
        let out_of_date =
            format!("was out of date, the host has {} now", list(&resolver.conf.servers));
        let (mut changes, mut problems) = (Changes::default(), BTreeMap::new());
        for name in self.behind(&resolver.conf) {
            let key = format!("{PROBLEMS}{name}");
            // A request that is about this container comes first.
            let looked =
                self.shared.requests.turns.take(&name).map(|_turn| {
                    tokio::task::block_in_place(|| self.follow_in(&name, &resolver.conf))
                });
            let problem = match looked {
                None => before.remove(&key),
                Some(Ok(Looked::Current)) => None,
                Some(Ok(Looked::Rewritten)) => {
                    changes.note(format!("resolv.conf of container '{name}'"), &*out_of_date);
                    None
                }
                Some(Ok(Looked::Kept(line))) => Some(line),
                Some(Err(error)) => Some(error.message),
            };
            problems.extend(problem.map(|line| (key, line)));
        }
        shown.repairs.note_changes("resolv.conf", &changes);
        shown.problems.set_below(PROBLEMS, problems.clone());
        problems
    }

    /// The containers that follow the host and to whose files this agent, or an earlier one, has
    /// written something else than `conf` last.
    fn behind(&self, conf: &ResolvConf) -> Vec<Name> {
        let plain = conf.to_string();
        let containers = self.shared.containers();
        let behind = containers.iter().filter(|record| follows(record)).filter(|record| {
            // Few containers have lines of their own.
            let wanted = match record.names.given_for_resolver() {
                None => Cow::Borrowed(plain.as_str()),
                Some(_) => Cow::Owned(conf.clone().with(&record.names).to_string()),
            };
            record.resolv_conf.as_deref() != Some(&*wanted)
        });
        behind.map(|record| record.name.clone()).collect()
    }

    /// Whether a container has a name server of the host.
    fn has_servers(&self) -> bool {
        let has_server = |record: &Record| {
            let written = record.resolv_conf.as_deref().unwrap_or_default();
            follows(record) && !ResolvConf::parse(written).servers.is_empty()
        };
        self.shared.containers().iter().any(has_server)
    }

    /// Writes a container's file again, with the lines of `conf` that its options do not replace.
    /// The caller has the container's turn.
    ///
    /// # Errors
    ///
    /// The file, or the record, cannot be read or written to.
    fn follow_in(&self, name: &Name, conf: &ResolvConf) -> Result<Looked, ApiError> {
        let record = self.shared.containers().get(name).cloned();
        let Some(record) = record.filter(follows) else { return Ok(Looked::Current) };
        let directory = etc::directory(&self.shared.options.state_dir, name);
        let what = format!("container '{name}': its files in {}", directory.display());
        let refused = |error| self.shared.disk.refuse(&what, error);
        let Some(found) = etc::resolv_conf(&directory).map_err(refused)? else {
            return Ok(Looked::Current);
        };
        let wanted = conf.clone().with(&record.names);
        let text = wanted.to_string();
        let written = match record.resolv_conf.as_deref() {
            // An earlier version has not noted what it has written.
            None if etc::is_as_made(&directory, &found).map_err(refused)? => Some(found.as_str()),
            noted => noted,
        };
        let looked = if etc::is_same(&found, &text) {
            // Whoever has written it, it follows the host from now on.
            Looked::Current
        } else if written.is_some_and(|written| etc::is_same(&found, written)) {
            etc::rewrite_resolv_conf(&directory, &found, &text).map_err(refused)?;
            Looked::Rewritten
        } else {
            let servers = ResolvConf::parse(&found).servers;
            return Ok(match servers == wanted.servers {
                true => Looked::Current,
                false => Looked::Kept(kept(name, &servers, &wanted.servers)),
            });
        };
        self.shared.containers().note_resolv_conf(name, text).map_err(refused)?;
        Ok(looked)
    }
}

/// Whether the name servers of a container are those of the host, in a file of its own.
fn follows(record: &Record) -> bool {
    let has_file = match record.origin {
        Origin::Owned => true,
        // The others have the file of the container whose namespace they share.
        Origin::Shares(_) => record.resolv_conf.is_some(),
        Origin::Attached | Origin::Host => false,
    };
    has_file && record.names.servers.is_empty()
}

/// Name servers as text.
fn list(servers: &[IpAddr]) -> String {
    match servers {
        [] => "no server".to_owned(),
        servers => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// The problem, on one line, of a file that somebody else has changed.
fn kept(name: &Name, servers: &[IpAddr], wanted: &[IpAddr]) -> String {
    format!(
        "container '{name}': its /etc/resolv.conf is not what the agent has written, and is kept: it names {}, and the host has {} now: write these servers into it, or make the container again",
        list(servers),
        list(wanted)
    )
}
