//! Brings the kernel to the desired state, network by network.

use std::collections::{BTreeMap, BTreeSet};

use crate::datapath::entry::{UnderlayPath, VtepKey};

use super::{
    diff::{Op, diff},
    flood::assign_slots,
    kernel::Kernel,
    observed::Observed,
    patch::Patch,
    tables::{NetworkState, Tables},
};

/// A step that the kernel refused. The steps before it are done, those after it are not. It is
/// safe to reconcile again.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {source}")]
pub struct ApplyError<E: std::error::Error + 'static> {
    /// The step.
    pub op: Box<Op>,
    /// The kernel's error.
    pub source: E,
}

/// Number of entries of the large maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries of `FDB`.
    pub fdb: usize,
    /// Entries of `NEIGHBOURS`.
    pub neighbours: usize,
}

/// Keeps a copy of what the kernel holds, so that a change does not read the maps again.
///
/// It must be the only writer of the maps. Changes by another program are found when the maps
/// are read, at the start and in every anti-entropy pass:
///
/// 1. [`Reconciler::begin_read`] before the first map is read. From then on each step is noted.
/// 2. [`Observed::read`], on another thread if it may take long. The reconciler may write.
/// 3. [`Reconciler::adopt`] repeats the noted steps on what was read: a key that was written
///    during the read may have been read before or after the write. A change by another
///    program to such a key is found by the next read.
#[derive(Debug, Default)]
pub struct Reconciler {
    /// Copy of the kernel's tables of each VNI.
    networks: BTreeMap<u32, Tables>,
    /// The kernel's entries of `UNDERLAY`.
    underlay: BTreeMap<[u8; 4], UnderlayPath>,
    /// The path to each VTEP, in use or not.
    paths: BTreeMap<[u8; 4], UnderlayPath>,
    /// Number of networks that refer to each VTEP.
    users: BTreeMap<[u8; 4], usize>,
    /// VNI of each interface in `ENDPOINTS`.
    owners: BTreeMap<u32, u32>,
    /// The steps that were carried out since [`Reconciler::begin_read`]; `None` while the maps
    /// are not read.
    written: Option<Vec<Op>>,
    /// Sums over all of `networks`.
    counts: Counts,
}

impl Reconciler {
    /// Notes each step that is carried out from now on, until [`Reconciler::adopt`] or
    /// [`Reconciler::end_read`].
    pub fn begin_read(&mut self) {
        self.written = Some(Vec::new());
    }

    /// Gives up a read that failed.
    pub fn end_read(&mut self) {
        self.written = None;
    }

    /// Replaces the copy by the contents that were read since [`Reconciler::begin_read`], with the
    /// noted steps repeated on them.
    pub fn adopt(&mut self, mut observed: Observed) {
        for op in self.written.take().unwrap_or_default() {
            observed.apply(&op);
        }
        (self.networks, self.underlay) = observed.into_parts();
        self.users.clear();
        self.owners.clear();
        self.counts = Counts::default();
        for (vni, tables) in &self.networks {
            self.counts.fdb += tables.fdb.len();
            self.counts.neighbours += tables.neighbours.len();
            self.owners.extend(tables.endpoints.keys().map(|ifindex| (*ifindex, *vni)));
            for key in tables.vteps.keys() {
                *self.users.entry(key.ip).or_default() += 1;
            }
        }
    }

    /// Number of entries of the large maps. The time does not depend on it.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// VNIs that have an entry in the kernel.
    pub fn vnis(&self) -> BTreeSet<u32> {
        self.networks.keys().copied().collect()
    }

    /// The kernel's tables of a VNI; `None` if the kernel has no entry of it.
    pub fn network(&self, vni: u32) -> Option<&Tables> {
        self.networks.get(&vni)
    }

    /// Whether the kernel holds any published port.
    pub fn publishes(&self) -> bool {
        self.networks.values().any(|tables| !tables.published.is_empty())
    }

    /// Whether a network in the kernel has this VTEP.
    pub fn uses(&self, vtep: [u8; 4]) -> bool {
        self.users.contains_key(&vtep)
    }

    /// The kernel's entries of `UNDERLAY`.
    pub fn underlay(&self) -> &BTreeMap<[u8; 4], UnderlayPath> {
        &self.underlay
    }

    /// Brings one network to `desired`, or removes it if that is `None`. Returns the number of
    /// steps.
    pub fn network_to<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        vni: u32,
        desired: Option<&NetworkState>,
    ) -> Result<usize, ApplyError<K::Error>> {
        let observed = self.networks.remove(&vni).unwrap_or_default();
        let laid = desired.map(|state| state.lay_out(&observed)).unwrap_or_default();
        let ops = diff(&laid, &observed);
        let after = laid.vteps.keys().map(|key| key.ip).collect();
        self.carry_out(kernel, vni, observed, &ops, &after, Some(laid))
    }

    /// Changes some entries of a network that the kernel holds.
    pub fn patch<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        patch: &Patch,
    ) -> Result<usize, ApplyError<K::Error>> {
        let vni = patch.vni;
        let held = self.networks.remove(&vni).unwrap_or_default();
        // Of the large tables only the patched keys.
        let was = Tables {
            fdb: entries_at(&held.fdb, &patch.fdb),
            neighbours: entries_at(&held.neighbours, &patch.neighbours),
            vteps: held.vteps.clone(),
            flood_remote: held.flood_remote.clone(),
            networks: held.networks.clone(),
            ..Tables::default()
        };
        let mut laid = Tables {
            fdb: wanted(&patch.fdb),
            neighbours: wanted(&patch.neighbours),
            ..was.clone()
        };
        for (ip, info) in &patch.vteps {
            let key = VtepKey { vni, ip: *ip };
            match info {
                Some(info) => laid.vteps.insert(key, *info),
                None => laid.vteps.remove(&key),
            };
        }
        let after: BTreeSet<[u8; 4]> = laid.vteps.keys().map(|key| key.ip).collect();
        laid.flood_remote = assign_slots(vni, &after, &was.flood_remote);
        if let Some(info) = laid.networks.get_mut(&vni) {
            info.remote_vteps = u32::try_from(laid.flood_remote.len()).unwrap_or(u32::MAX);
        }
        let ops = diff(&laid, &was);
        self.carry_out(kernel, vni, held, &ops, &after, None)
    }

    /// Carries out `ops` for a network. The kernel holds `observed` before, and `laid` after, if
    /// that is known.
    fn carry_out<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        vni: u32,
        observed: Tables,
        ops: &[Op],
        after: &BTreeSet<[u8; 4]>,
        laid: Option<Tables>,
    ) -> Result<usize, ApplyError<K::Error>> {
        let before: BTreeSet<[u8; 4]> = observed.vteps.keys().map(|key| key.ip).collect();
        let mut done = 0;
        let outcome = self.run(kernel, ops, &mut done, &before, after);
        self.counts.fdb -= observed.fdb.len();
        self.counts.neighbours -= observed.neighbours.len();
        let mut now = observed;
        match laid.filter(|_| outcome.is_ok()) {
            Some(laid) => now = laid,
            None => ops.iter().take(done).for_each(|op| op.apply_to(&mut now)),
        }
        // After a failure the maps hold less than `desired`: count what they hold.
        let held: BTreeSet<[u8; 4]> = now.vteps.keys().map(|key| key.ip).collect();
        for ip in before.difference(&held) {
            self.release(*ip);
        }
        for ip in held.difference(&before) {
            *self.users.entry(*ip).or_default() += 1;
        }
        self.counts.fdb += now.fdb.len();
        self.counts.neighbours += now.neighbours.len();
        if !now.is_empty() {
            self.networks.insert(vni, now);
        }
        let steps = outcome?;
        Ok(steps + self.sync_underlay(kernel, false)?)
    }

    /// Sets the paths to the VTEPs. A VTEP without an entry has no path.
    pub fn paths_to<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        paths: BTreeMap<[u8; 4], UnderlayPath>,
    ) -> Result<usize, ApplyError<K::Error>> {
        self.paths = paths;
        Ok(self.sync_underlay(kernel, true)? + self.sync_underlay(kernel, false)?)
    }

    fn release(&mut self, ip: [u8; 4]) {
        if let Some(count) = self.users.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&ip);
            }
        }
    }

    /// Notes the network of an interface. If the interface has moved, it is taken out of the
    /// copy of its former network, which must not remove it any more.
    fn own(&mut self, ifindex: u32, vni: u32) {
        let previous = self.owners.insert(ifindex, vni).filter(|previous| *previous != vni);
        if let Some(tables) = previous.and_then(|previous| self.networks.get_mut(&previous)) {
            tables.endpoints.remove(&ifindex);
        }
    }

    /// Carries out `ops`, and before them the paths of new VTEPs. Adds the number of carried out
    /// `ops` to `done`.
    fn run<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        ops: &[Op],
        done: &mut usize,
        before: &BTreeSet<[u8; 4]>,
        after: &BTreeSet<[u8; 4]>,
    ) -> Result<usize, ApplyError<K::Error>> {
        let mut steps = 0;
        for ip in after.difference(before) {
            let path = self.paths.get(ip).copied();
            if let Some(path) = path.filter(|path| self.underlay.get(ip) != Some(path)) {
                self.step(kernel, Op::Underlay(*ip, Some(path)))?;
                self.underlay.insert(*ip, path);
                steps += 1;
            }
        }
        while let Some(rest) = ops.get(*done..).filter(|rest| !rest.is_empty()) {
            let (count, failed) = kernel.put_all(rest);
            for op in rest.iter().take(count) {
                self.note(op);
            }
            if let Some(written) = &mut self.written {
                written.extend(rest.iter().take(count));
            }
            *done += count;
            if let Some(source) = failed {
                let op = rest.get(count).or(rest.last()).copied();
                return match op {
                    Some(op) => Err(ApplyError { op: Box::new(op), source }),
                    None => Ok(steps),
                };
            }
        }
        Ok(steps + *done)
    }

    /// Updates the copies of other networks after a step of one network.
    fn note(&mut self, op: &Op) {
        match op {
            Op::Endpoint(ifindex, Some(info)) => self.own(*ifindex, info.vni),
            Op::Endpoint(ifindex, None) => {
                self.owners.remove(ifindex);
            }
            // A published port that has moved must not be removed by its former network.
            Op::Published(key, Some(_)) => {
                for tables in self.networks.values_mut() {
                    tables.published.remove(key);
                }
            }
            _ => {}
        }
    }

    /// Brings `UNDERLAY` to the paths of the VTEPs in use: either all puts, or all removals.
    fn sync_underlay<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        put: bool,
    ) -> Result<usize, ApplyError<K::Error>> {
        let wanted =
            |ip: &[u8; 4]| self.paths.get(ip).copied().filter(|_| self.users.contains_key(ip));
        let ops: Vec<Op> = if put {
            self.users
                .keys()
                .filter_map(|ip| wanted(ip).map(|path| (*ip, path)))
                .filter(|(ip, path)| self.underlay.get(ip) != Some(path))
                .map(|(ip, path)| Op::Underlay(ip, Some(path)))
                .collect()
        } else {
            let unused = self.underlay.keys().filter(|ip| wanted(ip).is_none());
            unused.map(|ip| Op::Underlay(*ip, None)).collect()
        };
        for op in &ops {
            self.step(kernel, *op)?;
            if let Op::Underlay(ip, path) = op {
                match path {
                    Some(path) => self.underlay.insert(*ip, *path),
                    None => self.underlay.remove(ip),
                };
            }
        }
        Ok(ops.len())
    }

    /// Carries out a step, and notes it.
    fn step<K: Kernel + ?Sized>(&mut self, kernel: &K, op: Op) -> Result<(), ApplyError<K::Error>> {
        kernel.apply(&op).map_err(|source| ApplyError { op: Box::new(op), source })?;
        if let Some(written) = &mut self.written {
            written.push(op);
        }
        Ok(())
    }
}

/// The entries of `held` at the keys of a patch.
fn entries_at<K: Copy + Ord, V: Copy>(
    held: &BTreeMap<K, V>,
    patch: &BTreeMap<K, Option<V>>,
) -> BTreeMap<K, V> {
    patch.keys().filter_map(|key| Some((*key, *held.get(key)?))).collect()
}

/// The entries that a patch puts.
fn wanted<K: Copy + Ord, V: Copy>(patch: &BTreeMap<K, Option<V>>) -> BTreeMap<K, V> {
    patch.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect()
}
