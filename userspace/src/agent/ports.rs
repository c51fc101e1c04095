//! Published ports of this host: their choice for containers, and their reservation against
//! processes of the host.
//!
//! A port is held from before it is written to the store until its endpoint is removed. A
//! restarted agent holds the ports of its endpoints again. Each port takes a socket of its own
//! (ADR 0021), so a range takes time: no lock is held while a request binds one, and the engine
//! binds and closes [`BATCH`] sockets at a time.

mod request;
mod room;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
};

use culvert_common::abi::MAX_PUBLISHED;
use tokio::sync::Notify;

pub(crate) use self::request::{clients, parse};
use self::words::{refusal, refusal_by, spelled};
use super::platform::{Files, Holder, PortError, PortHold, Ports};
use crate::{
    api::types::{ApiError, ErrorKind},
    model::{Name, PortRequest, Protocol, PublishedPort, overlapping},
    netfilter::{Rules, Translation},
};

/// Range in which free ports are chosen, first and last: the default ephemeral ports of Linux.
const FREE: (u16, u16) = (32_768, 60_999);

/// Most sockets that [`Reservations::sync`] binds, and most that it closes, before it returns: some
/// 10 µs each.
const BATCH: usize = 4096;
/// Most ports whose holders [`Reservations::sync`] searches: each search reads the open files of all
/// processes.
const MOST_SEARCHED: usize = 16;

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
    /// Locked while sockets of [`State::released`] are closed, before `state`.
    closing: Mutex<()>,
    /// Notified after a request has closed released sockets.
    closed: Notify,
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
    /// Ports and ranges whose endpoint is being made, with the name of its container.
    claimed: BTreeMap<PublishedPort, Name>,
    /// The ports of `claimed` that are held, each on its own.
    pending: BTreeMap<PublishedPort, PortHold>,
    /// Ports of endpoints that could not be held.
    failed: BTreeMap<PortKey, Failed>,
    /// Ports of endpoints for which no open file was left. They are tried again at the next
    /// [`Reservations::sync`].
    starved: Option<Starved>,
    /// Ports of endpoints that are gone. Whoever binds ports closes these first.
    released: Vec<PortHold>,
    /// The last [`Reservations::sync`] has left ports to the next one.
    unfinished: bool,
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
        for port in &self.ports {
            state.claimed.remove(port);
        }
        let singles = self.ports.iter().flat_map(|port| port.singles());
        let let_go: Vec<_> = singles.filter_map(|port| state.pending.remove(&port)).collect();
        drop(state);
        drop(let_go);
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

impl Reservations {
    // A thread that panicked with the lock held left a valid state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses the ports of a new endpoint, and holds them. `published` has the ports that containers
    /// of this node publish, each with the name of its container.
    ///
    /// # Errors
    ///
    /// Another container, a process or a rule in `translated` has one of the ports, the host refuses
    /// the port, or too few open files or ports of the host would be left. No port is held then.
    pub(crate) fn assign(
        &self,
        platform: &dyn Ports,
        published: &dyn Fn() -> Vec<(PublishedPort, Name)>,
        container: &Name,
        requests: &[PortRequest],
        translated: &Translated,
    ) -> Result<Pending<'_>, Refused> {
        let mut pending = Pending { reservations: self, ports: Vec::new() };
        if requests.is_empty() {
            return Ok(pending);
        }
        // One request at a time: a port that is free here must still be free when it is claimed.
        let mut state = self.state();
        let mut taken = published();
        // The endpoint of a request that has not ended yet may be in the store already.
        let known: BTreeSet<PublishedPort> = taken.iter().map(|(port, _)| *port).collect();
        let claimed = state.claimed.iter().filter(|(port, _)| !known.contains(*port));
        taken.extend(claimed.map(|(port, name)| (*port, name.clone())));
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
        let mut ports: Vec<PublishedPort> = Vec::new();
        let (fixed, free): (Vec<&PortRequest>, Vec<&PortRequest>) =
            requests.iter().partition(|request| request.host_port.is_some());
        for request in fixed {
            let port = request.at(request.host_port.unwrap_or_default());
            if ports.iter().any(|other| overlapping(other, &port)) {
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
            ports.push(port);
        }
        room::check(platform, container, &taken, &ports, &free).map_err(Refused::Because)?;
        let named = ports.len();
        let mut holds: Vec<(PublishedPort, PortHold)> = Vec::new();
        // Ports that the agent chooses come last, so that it does not choose one that is asked for
        // by number.
        for request in free {
            let free = |port: &PublishedPort| {
                publisher(port).is_none()
                    && translated.taker(port).is_none()
                    && !ports.iter().any(|other| overlapping(other, port))
            };
            let (port, hold) = choose(platform, request, free)?;
            ports.push(port);
            holds.push((port, hold));
        }
        state.claimed.extend(ports.iter().map(|port| (*port, container.clone())));
        drop(state);
        // From here on, an error lets go of what is claimed.
        pending.ports.clone_from(&ports);
        pending.ports.sort_unstable();
        // The engine and other requests need the lock of the state, and a range takes long.
        self.close_all();
        for single in ports.iter().take(named).flat_map(|port| port.singles()) {
            let hold = platform.hold_port(single.host_ip, single.host_port, single.protocol);
            holds.push((single, hold.map_err(|error| Refused::Port(single, error))?));
        }
        self.state().pending.extend(holds);
        Ok(pending)
    }

    /// Closes all sockets of ports whose endpoints are gone, or waits until another thread has.
    fn close_all(&self) {
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        let released = std::mem::take(&mut self.state().released);
        drop(released);
        drop(closing);
        self.closed.notify_one();
    }

    /// Waits until a request has closed released sockets. While the request closes them,
    /// [`Self::is_unfinished`] is false, and [`Self::sync`] binds none.
    pub(crate) async fn closed(&self) {
        self.closed.notified().await;
    }

    /// Closes up to [`BATCH`] of these sockets. Returns whether all are closed.
    fn close_some(&self) -> bool {
        let _closing = match self.closing.try_lock() {
            Ok(closing) => closing,
            Err(TryLockError::Poisoned(closing)) => closing.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let (batch, is_last) = {
            let mut state = self.state();
            let left = state.released.len().saturating_sub(BATCH);
            (state.released.split_off(left), left == 0)
        };
        drop(batch);
        is_last
    }

    /// Holds the ports of these endpoints (with the name of the container) and releases all
    /// others. Ports that could not be held before are tried again only if `again` is set, if no
    /// open file was left for them, or if another endpoint has released them. Does [`BATCH`] ports at
    /// most, and leaves the others to the next call, see [`Self::is_unfinished`].
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
            let failed = tokio::task::block_in_place(|| self.explain(platform, refused));
            self.state().failed.extend(failed);
        }
        self.synced(wanted)
    }

    /// Says why ports are not held. Searches for the holders of the first of them only.
    fn explain(
        &self,
        platform: &dyn Ports,
        refused: Vec<(PortKey, Name, PortError)>,
    ) -> Vec<(PortKey, Failed)> {
        let in_use = refused.iter().filter(|(_, _, error)| *error == PortError::InUse);
        let in_use: Vec<PublishedPort> = in_use.map(|((_, port), ..)| *port).collect();
        let served = platform.served(&in_use);
        let mut held: BTreeMap<(Protocol, u16), Vec<PublishedPort>> = BTreeMap::new();
        if !in_use.is_empty() {
            for (_, port) in self.state().held.keys() {
                held.entry((port.protocol, port.host_port)).or_default().push(*port);
            }
        }
        let is_taken = |port: &PublishedPort| {
            let mut same = held.get(&(port.protocol, port.host_port)).into_iter().flatten();
            served.contains(port) || same.any(|other| overlapping(other, port))
        };
        let failed = |(number, (key, container, error)): (usize, (PortKey, Name, PortError))| {
            let port = &key.1;
            let refusal = match number {
                0..MOST_SEARCHED => refusal(platform, port, &error),
                _ => refusal_by(&Holder::Unseen, port, &error),
            };
            let is_taken = error == PortError::InUse && is_taken(port);
            let end = if is_taken { "; the port is not published" } else { "" };
            let line = format!("container '{container}': {}{end}", refusal.message);
            (key, Failed { line, is_taken })
        };
        refused.into_iter().enumerate().map(failed).collect()
    }

    /// Whether the last [`Self::sync`] has left ports to the next one.
    pub(crate) fn is_unfinished(&self) -> bool {
        // A request that closes ports finishes this itself, and nothing can be done meanwhile.
        let is_closing = matches!(self.closing.try_lock(), Err(TryLockError::WouldBlock));
        let state = self.state();
        !is_closing && (state.unfinished || !state.released.is_empty())
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

    /// Releases the ports that nobody wants, for [`Self::sync`], and forgets the failures that may be
    /// over.
    fn release(&self, wanted: &BTreeMap<PortKey, Name>, again: bool) {
        let mut state = self.state();
        let gone = state.held.keys().filter(|key| !wanted.contains_key(*key));
        let gone: Vec<PortKey> = gone.cloned().collect();
        let mut freed: BTreeSet<(Protocol, u16)> = BTreeSet::new();
        for key in gone {
            freed.insert((key.1.protocol, key.1.host_port));
            let hold = state.held.remove(&key);
            state.released.extend(hold);
        }
        state.failed.retain(|key, _| {
            let is_free = freed.contains(&(key.1.protocol, key.1.host_port));
            !again && !is_free && wanted.contains_key(key)
        });
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
        self.release(wanted, again);
        // A port that an endpoint has released may be another's now.
        let is_closed = self.close_some();
        let mut state = self.state();
        let missing = wanted.len().saturating_sub(state.held.len() + state.failed.len());
        let mut files = (missing >= room::MANY).then(|| platform.files());
        let mut left = if is_closed { BATCH } else { 0 };
        state.unfinished = false;
        for (key, container) in wanted {
            if state.held.contains_key(key) || state.failed.contains_key(key) {
                continue;
            }
            let port = &key.1;
            if let Some(hold) = state.pending.remove(port) {
                state.held.insert(key.clone(), hold);
                continue;
            }
            if let Some(starved) = &mut starved {
                starved.more += 1;
                continue;
            }
            if left == 0 {
                state.unfinished = true;
                continue;
            }
            left -= 1;
            let held = match &files {
                Some(Files { spare: 0, limit }) => Err(PortError::NoFiles(limit.clone())),
                _ => platform.hold_port(port.host_ip, port.host_port, port.protocol),
            };
            match held {
                Ok(hold) => {
                    if let Some(files) = &mut files {
                        files.spare = files.spare.saturating_sub(1);
                    }
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
