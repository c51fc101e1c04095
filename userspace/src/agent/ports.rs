//! Published ports of this host: which container gets which, and that no process
//! gets them, too.
//!
//! A port is held from before it is written to the store until its endpoint is
//! gone. A restarted agent takes those of its endpoints again.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::platform::{Holder, PortError, PortHold, Ports};
use crate::{
    api::types::{ApiError, ErrorKind},
    model::{Name, PortRequest, Publish, PublishedPort, View, overlapping},
};

/// Where free ports are looked for, first and last: Linux's default ephemeral ones.
const FREE: (u16, u16) = (32_768, 60_999);
/// Most ports of one container: they lie in one record of the store.
const MOST: usize = 1024;

/// A port of an endpoint, by the endpoint's identifier.
type Key = (String, PublishedPort);

/// The ports that this agent holds.
#[derive(Default)]
pub(crate) struct Reservations {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Those of endpoints.
    held: BTreeMap<Key, PortHold>,
    /// Those whose endpoint is being made, with the name of its container.
    pending: BTreeMap<PublishedPort, (Name, PortHold)>,
    /// Those of endpoints that could not be had, and why.
    failed: BTreeMap<Key, String>,
}

/// Ports whose endpoint is being made. When it is dropped, those that did not
/// become an endpoint's are let go.
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
            state.pending.remove(port);
        }
    }
}

/// Why ports are not assigned.
#[derive(Debug)]
pub(crate) enum Refused {
    /// For this reason.
    Because(ApiError),
    /// The host does not let go of one. Who has it is still to be found out, which
    /// takes a while.
    Port(PublishedPort, PortError),
}

impl Refused {
    /// The refusal, in one line.
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
/// One is malformed, or there are too many.
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

impl Reservations {
    // What a thread that panicked left behind is as good as before.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses the ports of a new endpoint on `node`, and holds them.
    ///
    /// # Errors
    ///
    /// Another container or a process has one, or it cannot be had. None is held then.
    pub(crate) fn assign(
        &self,
        platform: &dyn Ports,
        view: &View,
        node: &Name,
        container: &Name,
        requests: &[PortRequest],
    ) -> Result<Pending<'_>, Refused> {
        // One at a time: what is looked at here must not change before it is held.
        let mut state = self.state();
        let taken = state.taken(view, node);
        let publisher = |port: &PublishedPort| {
            taken.iter().find(|(other, _)| overlapping(other, port)).map(|(_, name)| name)
        };
        let mut holds: Vec<(PublishedPort, PortHold)> = Vec::new();
        // Chosen ones last, so that they leave alone what is asked for by number.
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
            if let Some(holder) = publisher(&port) {
                return Err(refused(
                    ErrorKind::Conflict,
                    format!(
                        "port {} is published by container '{holder}': choose another port of the host, or remove that container",
                        spelled(&port)
                    ),
                ));
            }
            let hold = platform
                .hold_port(port.host_ip, port.host_port, port.protocol)
                .map_err(|error| Refused::Port(port, error))?;
            holds.push((port, hold));
        }
        for request in free {
            let free = |port: &PublishedPort| {
                publisher(port).is_none()
                    && !holds.iter().any(|(other, _)| overlapping(other, port))
            };
            let chosen = choose(platform, request, free)?;
            holds.push(chosen);
        }
        let mut ports: Vec<_> = holds.iter().map(|(port, _)| *port).collect();
        ports.sort_unstable();
        let pending = holds.into_iter().map(|(port, hold)| (port, (container.clone(), hold)));
        state.pending.extend(pending);
        drop(state);
        Ok(Pending { reservations: self, ports })
    }

    /// Holds the ports of these endpoints (with the name of the container) and lets
    /// go of all others'. Those that could not be had are tried only `again`.
    /// Returns what is wrong, a line each under a key of its own.
    pub(crate) fn sync(
        &self,
        platform: &dyn Ports,
        wanted: &BTreeMap<Key, Name>,
        again: bool,
    ) -> BTreeMap<String, String> {
        let refused = self.hold(platform, wanted, again);
        if refused.is_empty() {
            return self.failures();
        }
        // To find out who has a port takes a look at all processes: requests for other ports do
        // not wait for it, nor do other tasks.
        let explain = |(key, container, error): (Key, Name, PortError)| {
            let why = refusal(platform, &key.1, &error).message;
            (key, format!("container '{container}': {why}"))
        };
        let failed: Vec<_> =
            tokio::task::block_in_place(|| refused.into_iter().map(explain).collect());
        self.state().failed.extend(failed);
        self.failures()
    }

    /// The ports of endpoints that cannot be had, a line each under a key of its own.
    fn failures(&self) -> BTreeMap<String, String> {
        let state = self.state();
        let line =
            |((id, port), line): (&Key, &String)| (format!("port/{id}/{port}"), line.clone());
        state.failed.iter().map(line).collect()
    }

    /// Holds and lets go as [`Self::sync`]. Returns the ports that cannot be had, with the
    /// container's name and the reason.
    fn hold(
        &self,
        platform: &dyn Ports,
        wanted: &BTreeMap<Key, Name>,
        again: bool,
    ) -> Vec<(Key, Name, PortError)> {
        let mut refused = Vec::new();
        let mut state = self.state();
        state.held.retain(|key, _| wanted.contains_key(key));
        state.failed.retain(|key, _| !again && wanted.contains_key(key));
        for (key, container) in wanted {
            if state.held.contains_key(key) || state.failed.contains_key(key) {
                continue;
            }
            let port = &key.1;
            if let Some((_, hold)) = state.pending.remove(port) {
                state.held.insert(key.clone(), hold);
                continue;
            }
            match platform.hold_port(port.host_ip, port.host_port, port.protocol) {
                Ok(hold) => {
                    state.held.insert(key.clone(), hold);
                }
                Err(error) => refused.push((key.clone(), container.clone(), error)),
            }
        }
        refused
    }
}

impl State {
    /// Ports that containers of the node publish, or are about to, with the name of
    /// each.
    fn taken(&self, view: &View, node: &Name) -> Vec<(PublishedPort, Name)> {
        let published = view.endpoints_on(node).flat_map(|ep| {
            ep.record.ports.into_iter().map(move |port| (port, ep.record.container.clone()))
        });
        let pending = self.pending.iter().map(|(port, (name, _))| (*port, name.clone()));
        published.chain(pending).collect()
    }
}

/// A free port of the host. The search begins anywhere in the range, so that one
/// that was just given up is not the next to be taken.
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

/// A port of the host, for a message.
fn spelled(port: &PublishedPort) -> String {
    let PublishedPort { host_ip, host_port, protocol, .. } = port;
    if *host_ip == Ipv4Addr::UNSPECIFIED {
        format!("{host_port}/{protocol}")
    } else {
        format!("{host_ip}:{host_port}/{protocol}")
    }
}

/// Why a port is not to be had, in one line.
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
        PortError::Other(why) => (
            ErrorKind::Internal,
            format!("port {name}: it cannot be taken ({why}): see the agent's log and limits"),
        ),
    };
    ApiError::new(kind, line)
}
