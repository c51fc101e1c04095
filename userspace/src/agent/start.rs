//! The steps of the start.

mod fields;
mod leftovers;
mod underlay;

use std::{future::Future, io::IsTerminal as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use ipnetwork::Ipv4Network;
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::{
    files,
    host::{Host, facts},
    platform::Underlay as _,
    shared::Shared,
    store_address,
};
use crate::{
    choice::device::Device,
    config::{AgentOptions, DatapathMode, StoreAccess},
    datapath::{self, Carried, Datapath},
    doctor,
    model::{LAYOUT, Name, Node, follow_options, witness_key},
    netlink::Netlink,
    store::{
        self, FollowOptions, Follower, Health, Known, StateStore, StoreError, StoreOptions,
        StoreUrl, retry::Backoff,
    },
};

/// Least interval at which the revision of the store is kept on disk.
const REMEMBER: Duration = Duration::from_secs(2);

/// Filter for the programs' trace lines. Their target is the module of the programs' crate that
/// writes them (aya-log).
const TRACE_TARGET: &str = "culvert_ebpf::verdict=trace";

/// Writes the log to standard error, unless a subscriber is set already. With `trace` the
/// programs' trace lines are written even if the filter excludes them.
///
/// # Errors
///
/// The filter is malformed.
pub(super) fn log(filter: &str, trace: bool) -> anyhow::Result<()> {
    let mut filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?}"))?;
    if trace {
        filter = filter.add_directive(TRACE_TARGET.parse()?);
    }
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .fmt_fields(fields::Fields)
        .with_writer(std::io::stderr);
    // A test may have set a subscriber already.
    let _ = subscriber.try_init();
    Ok(())
}

/// Checks that what the agent mounts outlives it. Returns the problem, if there is one that
/// `--allow-private-mounts` permits.
///
/// # Errors
///
/// One line: the mounts end with the agent.
pub(super) fn mounts(options: &AgentOptions) -> anyhow::Result<Option<String>> {
    let fleeting = doctor::fleeting_mounts(&options.bpffs);
    if fleeting.is_empty() {
        return Ok(None);
    }
    let fault = fleeting_line(&fleeting);
    if options.allow_private_mounts {
        return Ok(Some(fault));
    }
    bail!(
        "{fault}: take PrivateTmp=, PrivateMounts=, ProtectSystem=, ReadWritePaths= and all else \
         that gives a unit mounts of its own out of the unit, or give --allow-private-mounts"
    )
}

/// What happens to the mounts in these directories.
fn fleeting_line(dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    format!(
        "mount namespace: what the agent mounts at {} does not reach the host, and ends with the \
         agent; traffic then stops",
        dirs.join(" and ")
    )
}

/// The options to open the store with. The files that they name are read by the store, for each
/// connection.
pub(super) fn store_options(access: &StoreAccess) -> StoreOptions {
    StoreOptions {
        ca: access.ca.clone(),
        cert: access.cert.clone(),
        key: access.key.clone(),
        user: access.user.clone(),
        password_file: access.password_file.clone(),
        insecure: access.insecure,
        timeout: None,
        layout: Some(LAYOUT),
    }
}

/// A host whose data plane is loaded.
pub(super) struct Started {
    pub(super) host: Host,
    pub(super) node: Node,
    /// Names of the uplinks.
    pub(super) uplinks: Vec<String>,
    /// Programs of an earlier agent that were detached, a line each.
    pub(super) detached: Vec<String>,
}

/// Waits for uplinks and VTEP address, loads the data plane, and attaches it to the uplinks.
/// `denied` are the clients that may not use published ports.
///
/// # Errors
///
/// One line: another agent serves this network namespace, an uplink is of a kind that cannot be one,
/// uplinks or VTEP address are not there within `--store-timeout`, or the kernel refuses.
pub(super) async fn host(
    options: &AgentOptions,
    name: Name,
    id: String,
    denied: Vec<Ipv4Network>,
) -> anyhow::Result<Started> {
    let netlink = Netlink::new()?;
    let (uplinks, vtep) = underlay::wait(&netlink, options).await?;
    let facts = facts::read(&netlink, &uplinks).await?;
    let node = Node {
        prefixes: facts.told_prefixes(),
        mtu: facts.mtu,
        ..Node::new(name, id, vtep, options.vxlan_port)
    };

    let detached = leftovers::check(&netlink, options).await?;

    let device = Device::choose(options.device).await.map_err(|line| anyhow!(line))?;

    let datapath_options = datapath::Options {
        bpffs: options.bpffs.clone(),
        vtep_ip: vtep,
        vxlan_port: options.vxlan_port,
        ageing: options.ageing,
        max_flows: options.conntrack.max_flows,
        flow_share: options.conntrack.share,
        flow_timeouts: options.conntrack.timeouts.table(),
        nat_ports: options.conntrack.nat_ports,
        port_share: options.conntrack.port_share,
        services: options.services.clone(),
        denied,
        ports_closed: store_address::closes_ports(options),
        trace: options.trace,
    };
    let to_load = datapath_options.clone();
    let datapath = tokio::task::spawn_blocking(move || Datapath::load(&to_load)).await??;
    let xdp = options.datapath == DatapathMode::Xdp;
    let host = Host::new(netlink, datapath, &datapath_options, uplinks.clone(), xdp, device)?;
    // Tells whether another program has the VXLAN port, which the programs must know.
    host.keep_assistants().await;
    if let Some(error) = host.attach_uplinks().await.into_iter().next() {
        return Err(error.into());
    }
    Ok(Started { host, node, uplinks, detached })
}

/// Opens the store. Tries again while the store does not answer.
///
/// # Errors
///
/// The store refuses the options.
pub(super) async fn open_store(
    shared: &Shared,
    url: &StoreUrl,
    options: &StoreOptions,
) -> anyhow::Result<Arc<dyn StateStore>> {
    let mut backoff = Backoff::unavailable();
    loop {
        match store::open(url, options).await {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::Refused(_)) => return Err(error.into()),
            Err(error) => shared.store.early_error(&error.to_string()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Waits for `reaching`, at most for `--store-timeout`.
///
/// # Errors
///
/// Those of `reaching`, or the timeout.
pub(super) async fn within<T>(
    timeout: Option<Duration>,
    reaching: impl Future<Output = anyhow::Result<T>>,
    shared: &Shared,
) -> anyhow::Result<T> {
    let Some(timeout) = timeout else { return reaching.await };
    match tokio::time::timeout(timeout, reaching).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let why = shared.store.health().error.unwrap_or_else(|| "store: no answer".to_owned());
            bail!(
                "{why}; gave up after {} s: check --store, or leave out --store-timeout to keep trying",
                timeout.as_secs_f32()
            )
        }
    }
}

/// Retires what an earlier agent has left, and logs that the agent is ready, once the first list of
/// the store is in the kernel. What cannot be retired is tried again.
pub(super) async fn tell_when_ready(shared: Arc<Shared>, host: Arc<Host>, detached: Vec<String>) {
    if shared.wait_ready().await {
        let are_versions_gone = match host.retire_other_versions() {
            Ok(retired) => {
                for (version, Carried { entries, lost }) in retired {
                    tracing::info!(
                        "map layout {version} retired: {} flows carried over, {} lost; learned \
                         FDB entries and path MTUs are learnt again",
                        entries / 2,
                        lost.div_ceil(2)
                    );
                    let line = (lost > 0).then(|| {
                        format!(
                            "{} flows of map layout {version} were lost in the upgrade: the table \
                             is full; a larger --conntrack-max takes effect after 'culvert purge'",
                            lost.div_ceil(2)
                        )
                    });
                    shared.shown.problems.set("upgrade/flows", line);
                }
                true
            }
            Err(error) => {
                tracing::warn!("{error}");
                false
            }
        };
        let mut retiring = leftovers::Retiring::new(&shared, &host, detached);
        let is_retired = retiring.attempt().await;
        if is_retired && are_versions_gone {
            host.guard_uplinks().await;
        }
        tracing::info!(
            "agent ready node={} socket={} vtep={} store={}",
            shared.node.name,
            shared.options.socket.display(),
            shared.node.vtep,
            shared.options.store
        );
        if let Ok(mtu) = host.max_mtu(crate::model::Driver::Overlay).await {
            tracing::debug!("overlay MTU at most {mtu}");
        }
        if !is_retired {
            retiring.keep().await;
            if are_versions_gone && !shared.ending.shutdown.is_cancelled() {
                host.guard_uplinks().await;
            }
        }
    }
}

/// Follows the store, and keeps its identity on disk. Returns a wrapper of the store for all users
/// except the follower: it refuses while the store is not the one that this agent knows.
pub(super) fn follow(
    shared: &Arc<Shared>,
    store: Arc<dyn StateStore>,
) -> (Follower, Arc<dyn StateStore>) {
    let known = files::known_store(&shared.options.state_dir, &shared.options.store);
    let own_key = Some(witness_key(&shared.node.id));
    let options = FollowOptions { known: known.clone(), own_key, ..follow_options() };
    let follower = Follower::spawn(Arc::clone(&store), options);
    let guarded = shared.store.watch(&follower, store);
    shared.ending.tasks.spawn(remember_store(Arc::clone(shared), follower.health(), known));
    (follower, guarded)
}

/// Keeps the identity of the followed store on disk, with the revision as it grows, and the finding
/// if the store was replaced: the operator may have the agent started again. Reports then how the
/// operator can accept the new store. `remembered` is what is on the disk. Ends with the follower.
async fn remember_store(
    shared: Arc<Shared>,
    mut health: watch::Receiver<Health>,
    mut remembered: Option<Known>,
) {
    let (dir, url) = (&shared.options.state_dir, &shared.options.store);
    loop {
        let now = health.borrow_and_update().clone();
        let (healthy, replaced) = (now.healthy, now.replaced.is_some());
        let refused = now.own_refused.as_deref().map(witness_line);
        shared.shown.problems.set("store-witness", refused);
        let known = to_remember(remembered.as_ref(), now);
        let mut again = false;
        if let Some(known) = known.filter(|known| remembered.as_ref() != Some(known)) {
            let failed = files::remember_store(dir, url, known.clone()).err();
            again = failed.is_some();
            let what = files::store_mark_path(dir).display().to_string();
            let line = failed.map(|error| shared.disk.refuse(&what, error).message);
            shared.shown.problems.set("store-mark", line);
            if !again {
                remembered = Some(known);
            }
        }
        shared.shown.problems.set(
            "store-replaced",
            replaced.then(|| {
                "store: it is not the one this agent knows, nothing is deleted and nothing is written to it: put the right one back, or if this one is meant, 'culvert store accept' on each host"
                    .to_owned()
            }),
        );
        // Each revision is a write to the disk, and one of some seconds ago serves as well.
        let mut turned = health.clone();
        tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            () = tokio::time::sleep(REMEMBER) => {}
            () = health_turned(&mut turned, healthy, replaced) => {}
        }
        if !again && health.changed().await.is_err() {
            return;
        }
    }
}

/// The problem, on one line, that the store refuses this host's own witness.
fn witness_line(why: &str) -> String {
    let remedy = if why.contains("permission denied") {
        "; give the store's user read and write permission on the prefix /culvert/"
    } else {
        ""
    };
    format!(
        "store: the witness of this host cannot be written, a roll-back may not be noticed once the history is compacted: {why}{remedy}"
    )
}

/// What of a store with this health is to be on the disk, where `kept` is now. `None`: nothing else.
fn to_remember(kept: Option<&Known>, health: Health) -> Option<Known> {
    let Health { healthy, revision, mark, witness, own, replaced, .. } = health;
    match mark {
        Some(mark) if healthy || replaced.is_some() => {
            Some(Known { mark, revision, witness, own, replaced })
        }
        // This run has not trusted the store yet.
        None if replaced.is_some() => Some(Known { replaced, ..kept?.clone() }),
        _ => None,
    }
}

/// Waits until the store's health is `healthy` no more, or `replaced` no more.
async fn health_turned(health: &mut watch::Receiver<Health>, healthy: bool, replaced: bool) {
    let turned = |now: &Health| now.healthy != healthy || now.replaced.is_some() != replaced;
    // An error means that the follower has ended. The caller's `changed` returns it, too.
    let _ = health.wait_for(turned).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_that_is_refused_for_a_permission_has_a_remedy() {
        let line = witness_line("etcd h:1: permission denied");
        assert!(line.ends_with("permission on the prefix /culvert/"), "{line}");
        let line = witness_line("etcd h:1: mvcc: database space exceeded");
        assert!(line.ends_with("space exceeded"), "{line}");
    }

    /// A finding is kept with the store as it was known, and forgotten with the next trust.
    #[test]
    fn a_finding_is_kept_with_what_was_known() {
        let kept =
            Known { mark: "m".to_owned(), revision: 7, witness: None, own: None, replaced: None };
        let finding = Some("store: replaced: it is at revision 3".to_owned());
        let starting = Health { replaced: finding.clone(), ..Health::default() };
        let found = Known { replaced: finding, ..kept.clone() };
        assert_eq!(to_remember(Some(&kept), starting.clone()), Some(found.clone()));
        assert_eq!(to_remember(None, starting), None);
        // The store was trusted before, up to a later revision than the one on the disk.
        let running = Health {
            mark: Some("m".to_owned()),
            revision: 9,
            replaced: found.replaced.clone(),
            ..Health::default()
        };
        let later = Known { revision: 9, ..found.clone() };
        assert_eq!(to_remember(Some(&kept), running.clone()), Some(later));
        let silent = Health { replaced: None, ..running };
        assert_eq!(to_remember(Some(&found), silent.clone()), None);
        let trusted = Health { healthy: true, ..silent };
        let expected = Known { revision: 9, ..kept };
        assert_eq!(to_remember(Some(&found), trusted), Some(expected));
    }
}
