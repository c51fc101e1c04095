//! The interfaces of endpoints in their sandboxes, which are watched for changes by others.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    model::NetnsId,
    netlink::{Heard, NamespaceChange, NamespaceMonitor, Netlink, NetlinkError},
    sandbox::{Inside, PlugSpec},
};

/// The watched interfaces, and the socket that receives their changes.
pub(super) struct Insides {
    monitor: NamespaceMonitor,
    state: Mutex<State>,
}

/// The interfaces, and the changes that were received.
#[derive(Debug, Default)]
struct State {
    watched: Watched,
    /// Endpoints from which something may have been taken, until the engine takes them.
    harmed: BTreeSet<String>,
    /// Reading the socket has failed: there are no more events.
    has_failed: bool,
}

impl Insides {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn new(netlink: &Netlink) -> Result<Self, NetlinkError> {
        Ok(Self { monitor: netlink.monitor_namespaces()?, state: Mutex::default() })
    }

    /// Waits until something may have been taken from interfaces. Returns their endpoints.
    pub(super) async fn harmed(&self) -> BTreeSet<String> {
        loop {
            let harmed = std::mem::take(&mut self.state().harmed);
            if !harmed.is_empty() {
                return harmed;
            }
            if self.state().has_failed {
                std::future::pending::<()>().await;
            }
            if let Err(error) = self.monitor.wait(|heard| self.state().hear(heard)).await {
                self.state().has_failed = true;
                tracing::error!(
                    "events of network namespaces: {error}: changes in sandboxes are found within a minute"
                );
            }
        }
    }

    /// Begins to plug an endpoint.
    pub(super) fn begin(&self, id: &str, netns: NetnsId, spec: &PlugSpec) {
        self.state().watched.begin(id, netns, spec);
    }

    /// Watches the interface of an endpoint that is being plugged. Changes from before the call are
    /// not told.
    pub(super) fn watch(&self, id: &str, inside: Inside) {
        let mut state = self.state();
        let drained = self.monitor.drain(|heard| state.hear(heard));
        note(drained);
        state.watched.place(id, inside);
    }

    /// Ends the plugging of an endpoint, see [`Watched::end`].
    pub(super) fn end(&self, id: &str, found: Vec<String>, is_plugged: bool) -> Option<String> {
        self.state().watched.end(id, found, is_plugged)
    }

    /// Forgets an endpoint whose interface the agent removes.
    pub(super) fn remove(&self, id: &str) {
        self.state().watched.remove(id);
    }

    /// Forgets an endpoint whose sandbox is gone.
    pub(super) fn forget(&self, id: &str) {
        self.state().watched.forget(id);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked with the lock held left valid sets.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the error of a read that [`Insides::harmed`] repeats.
fn note(read: io::Result<()>) {
    if let Err(error) = read {
        tracing::debug!("events of network namespaces: {error}");
    }
}

impl State {
    fn hear(&mut self, heard: Heard<'_>) {
        match heard {
            Heard::Lost => self.harmed.extend(self.watched.by_id.keys().cloned()),
            Heard::Message(message) => {
                let Some(ids) = self.watched.by_namespace.get(&message.namespace) else { return };
                let Some(change) = message.change() else { return };
                self.harmed.extend(self.watched.harmed_by(ids, &change));
            }
        }
    }
}

/// The watched interfaces.
#[derive(Debug, Default)]
struct Watched {
    by_id: BTreeMap<String, WatchedInterface>,
    /// Endpoints by the number of the sandbox's namespace. The kernel gives the number of a
    /// namespace that has ended to another one, so that an endpoint may have a number that was its
    /// own: at worst it is looked at in vain.
    by_namespace: BTreeMap<Option<i32>, BTreeSet<String>>,
}

/// A watched interface.
#[derive(Debug)]
struct WatchedInterface {
    netns: NetnsId,
    spec: PlugSpec,
    /// Where the interface is, if that is known.
    inside: Option<Inside>,
    /// The interface was as in `spec`: what differs since was changed by others.
    is_settled: bool,
    /// What was put right by attempts that failed afterwards.
    found: Vec<String>,
}

impl Watched {
    /// Notes what is to be plugged. With another namespace or another specification, no difference
    /// counts as a change by another program.
    fn begin(&mut self, id: &str, netns: NetnsId, spec: &PlugSpec) {
        let is_same = |watch: &WatchedInterface| watch.netns == netns && watch.spec == *spec;
        if self.by_id.get(id).is_some_and(is_same) {
            return;
        }
        self.forget(id);
        let watch = WatchedInterface {
            netns,
            spec: spec.clone(),
            inside: None,
            is_settled: false,
            found: Vec::new(),
        };
        self.by_id.insert(id.to_owned(), watch);
    }

    fn place(&mut self, id: &str, inside: Inside) {
        let Some(watch) = self.by_id.get_mut(id) else { return };
        let former = watch.inside.replace(inside);
        if let Some(former) = former.filter(|former| former.namespace != inside.namespace) {
            self.leave(id, former);
        }
        self.by_namespace.entry(inside.namespace).or_default().insert(id.to_owned());
    }

    fn leave(&mut self, id: &str, former: Inside) {
        if let Some(ids) = self.by_namespace.get_mut(&former.namespace) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_namespace.remove(&former.namespace);
            }
        }
    }

    /// Notes the end of an attempt that has put `found` right. If the endpoint is plugged, returns
    /// what others had changed, on one line.
    fn end(&mut self, id: &str, found: Vec<String>, is_plugged: bool) -> Option<String> {
        let watch = self.by_id.get_mut(id)?;
        if watch.is_settled {
            watch.found.extend(found);
        }
        if !is_plugged {
            return None;
        }
        watch.is_settled = true;
        let found = std::mem::take(&mut watch.found);
        (!found.is_empty()).then(|| format!("{} {}", watch.spec.ifname, found.join(", ")))
    }

    /// Forgets an endpoint whose interface is being removed. What the other endpoints in the
    /// namespace then lack, such as a default route that they take over, does not count as a change
    /// by another program.
    fn remove(&mut self, id: &str) {
        let inside = self.by_id.get(id).and_then(|watch| watch.inside);
        let siblings = inside.and_then(|inside| self.by_namespace.get(&inside.namespace));
        for sibling in siblings.into_iter().flatten() {
            if let Some(watch) = self.by_id.get_mut(sibling) {
                watch.is_settled = false;
            }
        }
        self.forget(id);
    }

    fn forget(&mut self, id: &str) {
        if let Some(inside) = self.by_id.remove(id).and_then(|watch| watch.inside) {
            self.leave(id, inside);
        }
    }

    /// Those of the endpoints `ids` from which the change may have taken something.
    fn harmed_by<'a>(
        &'a self,
        ids: &'a BTreeSet<String>,
        change: &'a NamespaceChange,
    ) -> impl Iterator<Item = String> + 'a {
        let is_harmed = move |id: &&String| {
            self.by_id.get(*id).is_some_and(|watch| {
                let inside = watch.inside;
                inside.is_some_and(|inside| watch.spec.is_harmed_by(inside.ifindex, change))
            })
        };
        ids.iter().filter(is_harmed).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::MacAddr,
        netlink::{Link, PairKind},
    };

    const NETNS: NetnsId = NetnsId { dev: 4, ino: 1 };
    const INSIDE: Inside = Inside { namespace: Some(3), ifindex: 7 };

    fn spec(ifname: &str) -> PlugSpec {
        PlugSpec {
            endpoint_id: "01".to_owned(),
            kind: PairKind::Veth,
            host_ifname: "cv01".to_owned(),
            ifname: ifname.to_owned(),
            mac: MacAddr([2; 6]),
            mtu: 1450,
            addrs: Vec::new(),
            additional: Vec::new(),
            neighbours: Vec::new(),
            routes: Vec::new(),
        }
    }

    /// Plugs the endpoint `01`, of which `found` was put right.
    fn plug(watched: &mut Watched, spec: &PlugSpec, found: &[&str], ends: bool) -> Option<String> {
        watched.begin("01", NETNS, spec);
        watched.place("01", INSIDE);
        watched.end("01", found.iter().map(|&found| found.to_owned()).collect(), ends)
    }

    #[test]
    fn only_what_was_right_before_is_told() {
        let mut watched = Watched::default();
        let eth0 = spec("eth0");
        assert_eq!(plug(&mut watched, &eth0, &["was missing"], true), None, "the first time");
        assert_eq!(plug(&mut watched, &eth0, &[], true), None);
        let found = plug(&mut watched, &eth0, &["was down", "had MTU 1200"], true);
        assert_eq!(found.as_deref(), Some("eth0 was down, had MTU 1200"));
        assert_eq!(plug(&mut watched, &eth0, &[], true), None, "once");
        // The store has changed the endpoint.
        let eth1 = spec("eth1");
        assert_eq!(plug(&mut watched, &eth1, &["was named eth0"], false), None);
        assert_eq!(plug(&mut watched, &eth1, &["was down"], true), None);
        assert_eq!(
            plug(&mut watched, &eth1, &["was down"], true).as_deref(),
            Some("eth1 was down")
        );
        // Another namespace has the path.
        watched.begin("01", NetnsId { ino: 2, ..NETNS }, &eth1);
        assert_eq!(watched.end("01", vec!["was missing".to_owned()], true), None);
    }

    #[test]
    fn what_a_failed_attempt_has_put_right_is_told_by_the_next() {
        let mut watched = Watched::default();
        let eth0 = spec("eth0");
        plug(&mut watched, &eth0, &[], true);
        assert_eq!(plug(&mut watched, &eth0, &["was down"], false), None);
        let found = plug(&mut watched, &eth0, &["had lost address 10.0.0.2/24"], true);
        assert_eq!(found.as_deref(), Some("eth0 was down, had lost address 10.0.0.2/24"));
    }

    /// A container that leaves a network gets its default route through the other one.
    #[test]
    fn what_a_removed_endpoint_leaves_to_another_is_not_told() {
        let mut watched = Watched::default();
        let (eth0, eth1) = (spec("eth0"), spec("eth1"));
        plug(&mut watched, &eth0, &[], true);
        watched.begin("02", NETNS, &eth1);
        watched.place("02", Inside { ifindex: 8, ..INSIDE });
        watched.end("02", Vec::new(), true);
        watched.remove("01");
        let taken = || vec!["had lost the route to 0.0.0.0/0".to_owned()];
        assert_eq!(watched.end("02", taken(), true), None);
        assert!(watched.end("02", taken(), true).is_some());
        assert!(!watched.by_id.contains_key("01"));
    }

    #[test]
    fn changes_concern_the_endpoints_of_the_namespace() {
        let mut watched = Watched::default();
        plug(&mut watched, &spec("eth0"), &[], true);
        let down = NamespaceChange::Link(Link { index: INSIDE.ifindex, ..Link::default() });
        let harmed = |watched: &Watched, namespace: Option<i32>| -> Vec<String> {
            let ids = watched.by_namespace.get(&namespace);
            ids.map(|ids| watched.harmed_by(ids, &down).collect()).unwrap_or_default()
        };
        assert_eq!(harmed(&watched, INSIDE.namespace), ["01"]);
        assert!(harmed(&watched, Some(4)).is_empty() && harmed(&watched, None).is_empty());
        // The sandbox was made again, and has another number.
        watched.place("01", Inside { namespace: Some(4), ..INSIDE });
        assert!(harmed(&watched, INSIDE.namespace).is_empty());
        assert_eq!(harmed(&watched, Some(4)), ["01"]);
        watched.forget("01");
        assert!(watched.by_id.is_empty() && watched.by_namespace.is_empty());
    }
}
