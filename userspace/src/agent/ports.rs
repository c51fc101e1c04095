//! Published ports of this host: their choice for containers, and their reservation against
//! processes of the host.
//!
//! A port is held from before it is written to the store until its endpoint is removed. A
//! restarted agent holds the ports of its endpoints again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use culvert_common::abi::MAX_PUBLISHED;
use ipnetwork::{IpNetwork, Ipv4Network};

use super::platform::{Holder, PortError, PortHold, Ports};
use crate::{
    api::types::{ApiError, ErrorKind},
    model::{Name, PortRequest, Publish, PublishedPort, ipv4_source, overlapping},
    netfilter::{Rules, Translation},
};

/// Range in which free ports are chosen, first and last: the default ephemeral ports of Linux.
const FREE: (u16, u16) = (32_768, 60_999);
/// Most published ports and ranges of one container: one record of the store holds all of them.
const MOST: usize = 1024;
/// Most values of `--from` of one container: one record of the store holds all of them.
const MOST_CLIENTS: usize = 256;

/// Prefix of the keys of the problems in `status`.
pub(crate) const PROBLEM: &str = "published/";

/// A single port of an endpoint, by the endpoint's identifier.
type PortKey = (String, PublishedPort);

/// The outcome of [`Reservations::sync`].
#[derive(Debug, Default)]
pub(crate) struct Synced {
    /// The problems, a line each under a key of its own.
    pub(crate) lines: BTreeMap<String, String>,
    /// The ports at which a process of the host, or another container, serves clients: they must
    /// not be published.
    pub(crate) unclaimed: BTreeSet<PortKey>,
}

/// The ports that this agent holds. Ranges are held port by port.
#[derive(Default)]
pub(crate) struct Reservations {
    state: Mutex<State>,
}

/// A port of an endpoint that could not be held. It is published all the same if nobody serves
/// clients there: the port is the container's, and only its reservation is missing.
struct Failed {
    /// The problem, on one line.
    line: String,
    /// Somebody else serves clients there.
    is_taken: bool,
}

#[derive(Default)]
struct State {
    /// Ports of endpoints.
    held: BTreeMap<PortKey, PortHold>,
    /// Ports whose endpoint is being made, with the name of its container.
    pending: BTreeMap<PublishedPort, (Name, PortHold)>,
    /// Ports of endpoints that could not be held.
    failed: BTreeMap<PortKey, Failed>,
    /// Ports of endpoints for which no open file was left. They are tried again at the next
    /// [`Reservations::sync`].
    starved: Option<Starved>,
}

/// Ports that are not held because no open file is left.
struct Starved {
    /// The first port.
    port: PublishedPort,
    /// Its container.
    container: Name,
    /// The limit that is reached, as text.
    why: String,
    /// Number of further ports, which were not tried: they would fail in the same manner.
    more: usize,
}

impl Starved {
    /// The problem, on one line.
    fn line(&self) -> String {
        let Self { port, container, why, more } = self;
        let more = if *more == 0 { String::new() } else { format!(" and {more} more") };
        let port = spelled(port);
        format!(
            "container '{container}': port {port}: no open file is left to hold it{more}: {why}; trying again"
        )
    }
}

/// Ports whose endpoint is being made. On drop, the ports that did not become an endpoint's are
/// released.
pub(crate) struct Pending<'a> {
    reservations: &'a Reservations,
    ports: Vec<PublishedPort>,
}

impl Pending<'_> {
    /// The ports.
    pub(crate) fn ports(&self) -> &[PublishedPort] {
        &self.ports
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = self.reservations.state();
        for port in self.ports.iter().flat_map(|port| port.singles()) {
            state.pending.remove(&port);
        }
    }
}

/// Ports of the host that another system translates, and that no socket has.
#[derive(Debug, Default)]
pub(crate) struct Translated {
    /// The rules of the host's netfilter.
    pub(crate) rules: Rules,
    /// IPv4 addresses of the host.
    pub(crate) addresses: BTreeSet<Ipv4Addr>,
}

impl Translated {
    /// The first of the ports of `port` that is translated, and by what. Rules with further
    /// conditions may be for others than the clients of the port; `culvert doctor` names them.
    fn taker(&self, port: &PublishedPort) -> Option<(PublishedPort, &Translation)> {
        let (translation, host_port) = self.rules.taker(port, &self.addresses)?;
        if translation.conditional {
            return None;
        }
        Some((PublishedPort { host_port, count: 1, ..*port }, translation))
    }
}

/// Why ports are not assigned.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The request is refused.
    Because(ApiError),
    /// A port cannot be held. Its holder has not been searched yet, because the search is slow.
    Port(PublishedPort, PortError),
}

impl Refused {
    /// The refusal, on one line. Searches for the holder of the port.
    pub(crate) fn explain(self, platform: &dyn Ports) -> ApiError {
        match self {
            Self::Because(error) => error,
            Self::Port(port, error) => refusal(platform, &port, &error),
        }
    }
}

fn refused(kind: ErrorKind, line: String) -> Refused {
    Refused::Because(ApiError::new(kind, line))
}

/// Reads the values of `-p` of a container.
///
/// # Errors
///
/// A value is malformed, or there are too many ports.
pub(crate) fn parse(container: &Name, given: &[String]) -> Result<Vec<PortRequest>, ApiError> {
    let mut requests = Vec::new();
    for text in given {
        let publish: Publish = text
            .parse()
            .map_err(|error: crate::model::Invalid| ApiError::new(ErrorKind::Invalid, error.0))?;
        requests.extend(publish.ports());
    }
    if requests.len() > MOST {
        return Err(ApiError::new(
            ErrorKind::Invalid,
            format!(
                "container '{container}': {} ports are too many to publish: {MOST} at most are valid",
                requests.len()
            ),
        ));
    }
    Ok(requests)
}

/// Reads the values of `--from` of a container, which publishes `ports`. Duplicates are removed.
///
/// # Errors
///
/// `ports` is empty, a value is IPv6, or there are too many values.
pub(crate) fn clients(
    container: &Name,
    ports: &[PortRequest],
    given: &[IpNetwork],
) -> Result<Vec<Ipv4Network>, ApiError> {
    let invalid = |line| ApiError::new(ErrorKind::Invalid, line);
    if ports.is_empty() && !given.is_empty() {
        return Err(invalid(format!(
            "container '{container}': --from is about published ports, and no port is published: --from with -p is valid"
        )));
    }
    let clients = given.iter().map(|from| ipv4_source(*from));
    let clients: BTreeSet<_> =
        clients.collect::<Result<_, _>>().map_err(|refusal| invalid(refusal.0))?;
    if clients.len() > MOST_CLIENTS {
        return Err(invalid(format!(
            "container '{container}': {} sources are too many: {MOST_CLIENTS} at most are valid",
            clients.len()
        )));
    }
    Ok(clients.into_iter().collect())
}

impl Reservations {
    // A thread that panicked with the lock held left a valid state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses the ports of a new endpoint, and holds them. `published` returns the ports that
    /// containers of this host publish, each with the name of its container.
    ///
    /// # Errors
    ///
    /// Another container, a process or a rule in `translated` has one of the ports, or the host
    /// refuses the port. No port is held then.
    pub(crate) fn assign(
        &self,
        platform: &dyn Ports,
        published: impl FnOnce() -> Vec<(PublishedPort, Name)>,
        container: &Name,
        requests: &[PortRequest],
        translated: &Translated,
    ) -> Result<Pending<'_>, Refused> {
        if requests.is_empty() {
            return Ok(Pending { reservations: self, ports: Vec::new() });
        }
        // One request at a time: a port that is free here must still be free when it is held.
        let mut state = self.state();
        let taken = state.taken(published());
        let publisher = |port: &PublishedPort| {
            let (other, name) = taken.iter().find(|(other, _)| overlapping(other, port))?;
            Some((port.singles().find(|single| overlapping(other, single))?, name))
        };
        let published = taken.iter().map(|(port, _)| usize::from(port.count)).sum::<usize>();
        let asked = requests.iter().map(|request| usize::from(request.count)).sum::<usize>();
        if published + asked > MAX_PUBLISHED as usize {
            return Err(refused(
                ErrorKind::Conflict,
                format!(
                    "container '{container}': this host publishes {published} ports, and {asked} more are too many: {MAX_PUBLISHED} in all are valid"
                ),
            ));
        }
        let mut holds: Vec<(PublishedPort, Vec<PortHold>)> = Vec::new();
        // Ports that the agent chooses come last, so that it does not choose one that is asked for
        // by number.
        let (fixed, free): (Vec<&PortRequest>, Vec<&PortRequest>) =
            requests.iter().partition(|request| request.host_port.is_some());
        for request in fixed {
            let port = request.at(request.host_port.unwrap_or_default());
            if holds.iter().any(|(other, _)| overlapping(other, &port)) {
                return Err(refused(
                    ErrorKind::Invalid,
                    format!(
                        "container '{container}': port {} is published twice: once is valid",
                        spelled(&port)
                    ),
                ));
            }
            if let Some((single, holder)) = publisher(&port) {
                return Err(refused(
                    ErrorKind::Conflict,
                    format!(
                        "port {} is published by container '{holder}': choose another port of the host, or remove that container",
                        spelled(&single)
                    ),
                ));
            }
            if let Some((single, Translation { by, .. })) = translated.taker(&port) {
                return Err(refused(
                    ErrorKind::Conflict,
                    format!(
                        "port {} is translated already by {by}: choose another port or address of the host, or remove what has made the rule",
                        spelled(&single)
                    ),
                ));
            }
            let held = port.singles().map(|single| {
                platform
                    .hold_port(single.host_ip, single.host_port, single.protocol)
                    .map_err(|error| Refused::Port(single, error))
            });
            holds.push((port, held.collect::<Result<_, _>>()?));
        }
        for request in free {
            let free = |port: &PublishedPort| {
                publisher(port).is_none()
                    && translated.taker(port).is_none()
                    && !holds.iter().any(|(other, _)| overlapping(other, port))
            };
            let (port, hold) = choose(platform, request, free)?;
            holds.push((port, vec![hold]));
        }
        let mut ports: Vec<_> = holds.iter().map(|(port, _)| *port).collect();
        ports.sort_unstable();
        for (port, held) in holds {
            let singles = port.singles().zip(held);
            state.pending.extend(singles.map(|(single, hold)| (single, (container.clone(), hold))));
        }
        drop(state);
        Ok(Pending { reservations: self, ports })
    }

    /// Holds the ports of these endpoints (with the name of the container) and releases all
    /// others. Ports that could not be held before are tried again only if `again` is set, if no
    /// open file was left for them, or if another endpoint has released them.
    pub(crate) fn sync(
        &self,
        platform: &dyn Ports,
        wanted: &BTreeMap<PortKey, Name>,
        again: bool,
    ) -> Synced {
        let refused = self.hold(platform, wanted, again);
        if !refused.is_empty() {
            // The holder of a port is found by a search of all processes: requests for other ports
            // and other tasks do not wait for it.
            let explain = |(key, container, error): (PortKey, Name, PortError)| {
                let why = refusal(platform, &key.1, &error).message;
                let is_taken = matches!(error, PortError::InUse) && self.is_taken(platform, &key.1);
                let end = if is_taken { "; the port is not published" } else { "" };
                let line = format!("container '{container}': {why}{end}");
                (key, Failed { line, is_taken })
            };
            let failed: Vec<_> =
                tokio::task::block_in_place(|| refused.into_iter().map(explain).collect());
            self.state().failed.extend(failed);
        }
        self.synced(wanted)
    }

    /// Whether a process of the host, or another container, serves clients at a port.
    fn is_taken(&self, platform: &dyn Ports, port: &PublishedPort) -> bool {
        let another = self.state().held.keys().any(|(_, held)| overlapping(held, port));
        another || platform.is_served(port.host_ip, port.host_port, port.protocol)
    }

    /// Whether ports are not held because no open file was left.
    pub(crate) fn is_starved(&self) -> bool {
        self.state().starved.is_some()
    }

    fn synced(&self, wanted: &BTreeMap<PortKey, Name>) -> Synced {
        let state = self.state();
        let line = |((id, port), failed): (&PortKey, &Failed)| {
            (format!("{PROBLEM}{id}/{port}"), failed.line.clone())
        };
        let starved = state.starved.iter();
        let starved = starved.map(|starved| (format!("{PROBLEM}files"), starved.line()));
        let is_taken = |key: &&PortKey| state.failed.get(key).is_some_and(|failed| failed.is_taken);
        Synced {
            lines: state.failed.iter().map(line).chain(starved).collect(),
            unclaimed: wanted.keys().filter(is_taken).cloned().collect(),
        }
    }

    /// Holds and releases ports for [`Self::sync`]. Returns the ports that cannot be held for
    /// another reason than a lack of open files, with the container's name and the reason.
    fn hold(
        &self,
        platform: &dyn Ports,
        wanted: &BTreeMap<PortKey, Name>,
        again: bool,
    ) -> Vec<(PortKey, Name, PortError)> {
        let mut refused = Vec::new();
        let mut starved: Option<Starved> = None;
        let mut state = self.state();
        let mut released: Vec<PublishedPort> = Vec::new();
        state.held.retain(|key, _| {
            let is_wanted = wanted.contains_key(key);
            if !is_wanted {
                released.push(key.1);
            }
            is_wanted
        });
        state.failed.retain(|key, _| {
            let is_free = released.iter().any(|port| overlapping(port, &key.1));
            !again && !is_free && wanted.contains_key(key)
        });
        for (key, container) in wanted {
            if state.held.contains_key(key) || state.failed.contains_key(key) {
                continue;
            }
            let port = &key.1;
            if let Some((_, hold)) = state.pending.remove(port) {
                state.held.insert(key.clone(), hold);
                continue;
            }
            if let Some(starved) = &mut starved {
                starved.more += 1;
                continue;
            }
            match platform.hold_port(port.host_ip, port.host_port, port.protocol) {
                Ok(hold) => {
                    state.held.insert(key.clone(), hold);
                }
                Err(PortError::NoFiles(why)) => {
                    let container = container.clone();
                    starved = Some(Starved { port: *port, container, why, more: 0 });
                }
                Err(error) => refused.push((key.clone(), container.clone(), error)),
            }
        }
        state.starved = starved;
        refused
    }
}

impl State {
    /// Ports that containers publish or are about to publish, each with the name of its container.
    fn taken(&self, mut published: Vec<(PublishedPort, Name)>) -> Vec<(PublishedPort, Name)> {
        let pending = self.pending.iter().map(|(port, (name, _))| (*port, name.clone()));
        published.extend(pending);
        published
    }
}

/// Holds a free port of the host. The search begins at a random port of the range, so that a
/// port that was just released is not chosen next.
fn choose(
    platform: &dyn Ports,
    request: &PortRequest,
    free: impl Fn(&PublishedPort) -> bool,
) -> Result<(PublishedPort, PortHold), Refused> {
    let (first, last) = FREE;
    let start = rand::random_range(first..=last);
    for host_port in (start..=last).chain(first..start) {
        let port = request.at(host_port);
        if !free(&port) {
            continue;
        }
        match platform.hold_port(port.host_ip, port.host_port, port.protocol) {
            Ok(hold) => return Ok((port, hold)),
            Err(PortError::InUse) => {}
            Err(error) => return Err(Refused::Port(port, error)),
        }
    }
    Err(refused(
        ErrorKind::Conflict,
        format!(
            "port {}/{} of the container: no port of the host from {first} to {last} is free: name one",
            request.container_port, request.protocol
        ),
    ))
}

/// The text of a port of the host in messages.
fn spelled(port: &PublishedPort) -> String {
    let PublishedPort { host_ip, protocol, .. } = port;
    let host_port = match port.host_ports() {
        Some((first, last)) if first != last => format!("{first}-{last}"),
        _ => port.host_port.to_string(),
    };
    if *host_ip == Ipv4Addr::UNSPECIFIED {
        format!("{host_port}/{protocol}")
    } else {
        format!("{host_ip}:{host_port}/{protocol}")
    }
}

/// The refusal for a port that cannot be held, on one line.
fn refusal(platform: &dyn Ports, port: &PublishedPort, error: &PortError) -> ApiError {
    let &PublishedPort { host_ip, host_port, protocol, .. } = port;
    let name = spelled(port);
    let (kind, line) = match error {
        PortError::InUse => {
            let by = match platform.port_holder(host_ip, host_port, protocol) {
                Holder::Process { name, pid } => {
                    format!("'{name}' (pid {pid}): choose another port or stop it")
                }
                Holder::Ending => {
                    "a connection that is ending: choose another port or try again in a minute"
                        .to_owned()
                }
                Holder::Unseen => "another process: choose another port or stop it".to_owned(),
            };
            (ErrorKind::Conflict, format!("port {name} is in use by {by}"))
        }
        PortError::Denied { from } => (
            ErrorKind::Conflict,
            format!(
                "port {name}: permission denied: a port below {from} (net.ipv4.ip_unprivileged_port_start) needs CAP_NET_BIND_SERVICE: give it to the agent, or choose a port from {from} on"
            ),
        ),
        PortError::NoSuchAddress => (
            ErrorKind::Invalid,
            format!(
                "port {name}: {host_ip} is not an address of this host: one that it has, or 0.0.0.0 for every one, is valid"
            ),
        ),
        PortError::NoFiles(why) => {
            (ErrorKind::Unavailable, format!("port {name}: no open file is left to hold it: {why}"))
        }
        PortError::Other(why) => (
            ErrorKind::Internal,
            format!("port {name}: it cannot be taken ({why}): see the agent's log and limits"),
        ),
    };
    ApiError::new(kind, line)
}
