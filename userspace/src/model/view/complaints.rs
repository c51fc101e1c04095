//! Records that are skipped, or contradict each other.

use std::{collections::BTreeSet, net::IpAddr, ops::Bound};

use super::{Brief, Id, Touched, View, faults::Faults};
use crate::model::{
    Name, ROOT,
    record::{KEY_LIMIT, one_line},
};

/// Greatest length of a line about records that contradict each other, in characters.
const LINE_LIMIT: usize = 600;

impl View {
    /// All skipped or contradictory records, one line each. For tests only: clones the view and
    /// looks at all records.
    pub fn complaints(&self) -> Vec<String> {
        let mut anew = self.clone();
        anew.doubt_all();
        anew.first_complaints(usize::MAX).0
    }

    /// As [`Self::complaints`], of each kind the first `most`, and the number of the others. The
    /// view keeps them from change to change: the time does not depend on the number of endpoints,
    /// with two exceptions. After a change that concerns a network, all its endpoints are looked
    /// at. After a change of an endpoint with a MAC of its own, all such endpoints of its network
    /// are.
    pub fn first_complaints(&mut self, most: usize) -> (Vec<String>, usize) {
        let skipped = self.problems.iter().take(most).map(|(key, why)| problem_line(key, why));
        let mut lines: Vec<String> = skipped.collect();
        let skipped = self.problems.len() - lines.len();
        let (faults, more) = self.first_faults(most);
        // A name in a record may have any length.
        lines.extend(faults.iter().map(|line| one_line(line, LINE_LIMIT)));
        (lines, skipped + more)
    }

    /// The line about the record at a key that is skipped. `None` if it is not.
    pub fn problem_line(&self, key: &str) -> Option<String> {
        self.problems.get(key).map(|why| problem_line(key, why))
    }

    /// The reason why the record at a key is skipped. `None` if it is not.
    pub fn problem_at(&self, key: &str) -> Option<&str> {
        self.problems.get(key).map(String::as_str)
    }

    /// The first unreadable key below a prefix.
    pub fn problem_below(&self, prefix: &str) -> Option<(&str, &str)> {
        debug_assert!(prefix.starts_with(ROOT), "{prefix}");
        self.problems
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .next()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, why)| (key.as_str(), why.as_str()))
    }

    /// Looks again at what has been touched by changes. The cost depends only on the number of
    /// changes: if all endpoints of a network are concerned, they are only marked, and checked on
    /// demand. `are_many`: changed endpoints are also only marked. Foreign VTEPs concern no
    /// endpoint.
    pub(super) fn note_faults(&mut self, touched: &Touched, are_many: bool) {
        for name in &touched.networks {
            let is_faulty = self.networks.contains_key(name) && self.usable_network(name).is_err();
            if is_faulty {
                add(&mut self.faults.networks, name);
            } else {
                self.faults.networks.remove(name);
            }
            if self.endpoints.count_in(name) > 0 {
                add(&mut self.faults.stale, name);
                add(&mut self.faults.stale_macs, name);
            }
        }
        for (network, former) in &touched.former {
            let derived = former.mac.to_ipv4().map(IpAddr::V4);
            if derived.is_none_or(|ip| former.addresses.first() != Some(&ip)) {
                add(&mut self.faults.stale_macs, network);
            }
        }
        for (network, id) in &touched.endpoints {
            if are_many {
                add(&mut self.faults.stale, network);
                add(&mut self.faults.stale_macs, network);
                continue;
            }
            // The owner in a claim may be any text.
            let Some(id) = Id::parse(id) else { continue };
            let brief = self.endpoints.brief(network, &id);
            let has_own_mac = brief.as_ref().is_some_and(|brief| !brief.has_derived_mac());
            let is_stale = self.faults.stale.contains(network);
            let is_unusable =
                !is_stale && brief.is_some_and(|brief| self.is_fault(network, &brief));
            if has_own_mac {
                add(&mut self.faults.stale_macs, network);
            }
            if !is_stale {
                self.faults.looks += 1;
                self.faults.set_endpoint(network, id, is_unusable);
            }
        }
    }

    /// Whether an endpoint is unusable. Those of a network that is unusable are not: the network is
    /// named, and not each of its endpoints.
    fn is_fault(&self, network: &Name, endpoint: &Brief<'_>) -> bool {
        match self.usable_network(network) {
            Ok(network) => !self.is_usable(network, endpoint),
            Err(_) => !self.networks.contains_key(network),
        }
    }

    /// Looks at all that is to be looked at again.
    fn settle_faults(&mut self) {
        for name in std::mem::take(&mut self.faults.stale) {
            let unusable = match self.usable_network(&name) {
                // The network is named.
                Err(_) if self.networks.contains_key(&name) => BTreeSet::new(),
                usable => {
                    let network = usable.ok();
                    let briefs = self.endpoints.briefs(&name);
                    let unusable =
                        briefs.filter(|ep| network.is_none_or(|net| !self.is_usable(net, ep)));
                    unusable.map(|brief| brief.id).collect()
                }
            };
            self.faults.looks += self.endpoints.count_in(&name);
            self.faults.set_endpoints(name, unusable);
        }
        for name in std::mem::take(&mut self.faults.stale_macs) {
            let repeated = self.endpoints.repeated_macs(&name);
            // If one of them has a claim, the others are not usable, and named already.
            let unclaimed = repeated.filter(|(mac, ..)| self.mac_claim(&name, *mac).is_none());
            let macs: Vec<_> = unclaimed.collect();
            if macs.is_empty() {
                self.faults.macs.remove(&name);
            } else {
                self.faults.macs.insert(name, macs);
            }
        }
    }

    /// Forgets what was looked at: everything is looked at again.
    fn doubt_all(&mut self) {
        let is_faulty = |name: &&Name| self.usable_network(name).is_err();
        let networks = self.networks.keys().filter(is_faulty).cloned().collect();
        let stale: BTreeSet<Name> = self.endpoints.networks().cloned().collect();
        let stale_macs = stale.clone();
        self.faults = Faults { networks, stale, stale_macs, ..Faults::default() };
    }

    /// What is wrong with networks, endpoints and MACs, a line each: of each kind the first `most`,
    /// and the number of the others.
    fn first_faults(&mut self, most: usize) -> (Vec<String>, usize) {
        self.settle_faults();
        let (view, faults) = (&*self, &self.faults);
        let mut lines = Vec::new();
        let networks = faults.networks.iter().take(most);
        lines.extend(networks.filter_map(|name| view.usable_network(name).err()));
        let endpoints = faults.endpoints.iter();
        let endpoints = endpoints.flat_map(|(name, ids)| ids.iter().map(move |id| (name, id)));
        lines.extend(endpoints.take(most).filter_map(|(name, id)| {
            let endpoint = view.endpoints.brief(name, id)?.unpack(name)?;
            view.usable_endpoint(&endpoint).err()
        }));
        let macs = faults.macs.iter();
        let macs = macs.flat_map(|(name, macs)| macs.iter().map(move |found| (name, found)));
        lines.extend(macs.take(most).map(|(name, (mac, first, other))| {
            format!(
                "endpoint {} in network '{name}': MAC {mac} is that of endpoint {}, too, and nobody has claimed it",
                other.text(),
                first.text()
            )
        }));
        let macs: usize = faults.macs.values().map(Vec::len).sum();
        let all = faults.networks.len() + faults.endpoint_count + macs;
        let more = all.saturating_sub(lines.len());
        (lines, more)
    }

    /// Number of endpoints that have been looked at, for faults, since the view was made: a measure
    /// of what changes and lists have cost.
    pub const fn looks(&self) -> usize {
        self.faults.looks
    }
}

/// Adds a name to a set that has it in most cases.
fn add(names: &mut BTreeSet<Name>, name: &Name) {
    if !names.contains(name) {
        names.insert(name.clone());
    }
}

/// The line about a key whose record is skipped.
fn problem_line(key: &str, why: &str) -> String {
    format!("{}: {why}", one_line(key, KEY_LIMIT))
}
