//! Brings the kernel to the desired state, network by network.

use std::collections::{BTreeMap, BTreeSet};

use culvert_common::abi::NeighKey;

use crate::datapath::{
    Found,
    entry::{UnderlayPath, VtepInfo, VtepKey},
};

use super::{
    changes::changes,
    diff::{Op, diff},
    flood::assign_slots,
    held::Held,
    kernel::Kernel,
    moves::Moves,
    observed::Observed,
    patch::Patch,
    tables::{NetworkState, Tables},
};

/// A step that the kernel refused. The steps before it are carried out, the steps after it are not.
/// It is safe to reconcile again.
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
pub struct EntryCounts {
    /// Entries of `FDB`.
    pub fdb: usize,
    /// Entries of `NEIGHBOURS`.
    pub neighbours: usize,
}

/// Keeps a copy of what the kernel holds, so that a change does not read the maps again.
///
/// It must be the only writer of the maps. Changes by another program are found when the maps
/// are read, in every anti-entropy pass:
///
/// 1. [`Reconciler::begin_read`] before the first map is read. From then on each step is noted.
/// 2. [`Observed::read`], on another thread if it may take long. The reconciler may write.
/// 3. [`Reconciler::adopt`] repeats the noted steps on what was read: a key that was written
///    during the read may have been read before or after the write. A change by another
///    program to such a key is found by the next read. All other differences between what was
///    read and the copy are changes by other programs.
#[derive(Debug, Default)]
pub struct Reconciler {
    /// Copy of the kernel's tables of each VNI.
    networks: BTreeMap<u32, Held>,
    /// The kernel's entries of `UNDERLAY`.
    underlay: BTreeMap<[u8; 4], UnderlayPath>,
    /// `networks` and `underlay` are a copy of what the maps should have.
    adopted: bool,
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
    counts: EntryCounts,
    /// `underlay` may have entries that no network needs, or that have no path.
    unused_paths: bool,
    /// Addresses that have got another MAC.
    moves: Moves,
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
    /// noted steps repeated on them. Returns the entries that differ from the copy: another program
    /// has changed them. The first call returns none, because there is no copy before it.
    pub fn adopt(&mut self, mut observed: Observed) -> Found {
        for op in self.written.take().unwrap_or_default() {
            observed.apply(&op);
        }
        let (networks, underlay) = observed.into_parts();
        let found = if std::mem::replace(&mut self.adopted, true) {
            changes(&self.networks, &networks, &self.underlay, &underlay)
        } else {
            Found::default()
        };
        self.networks = networks.into_iter().map(|(vni, it)| (vni, it.into())).collect();
        self.underlay = underlay;
        self.unused_paths = true;
        self.users.clear();
        self.owners.clear();
        self.counts = EntryCounts::default();
        for (vni, tables) in self.networks.iter().map(|(vni, held)| (vni, held.tables())) {
            self.counts.fdb += tables.fdb.len();
            self.counts.neighbours += tables.neighbours.len();
            self.owners.extend(tables.endpoints.keys().map(|ifindex| (*ifindex, *vni)));
            for key in tables.vteps.keys() {
                *self.users.entry(key.ip).or_default() += 1;
            }
        }
        found
    }

    /// Number of entries of the large maps. The call takes the same time for any number.
    pub fn counts(&self) -> EntryCounts {
        self.counts
    }

    /// Takes the addresses whose MAC has changed since the last call, each with its new MAC.
    /// Addresses of networks that this host has left are not included.
    pub fn take_moved(&mut self) -> BTreeMap<NeighKey, [u8; 6]> {
        self.moves.take()
    }

    /// Puts back what [`Self::take_moved`] returned, for the next call. Newer moves are kept.
    pub fn put_moved_back(&mut self, moved: BTreeMap<NeighKey, [u8; 6]>) {
        self.moves.put_back(moved);
    }

    /// VNIs that have an entry in the kernel.
    pub fn vnis(&self) -> BTreeSet<u32> {
        self.networks.keys().copied().collect()
    }

    /// What the kernel holds of a VNI; `None` if it has no entry.
    pub fn network(&self, vni: u32) -> Option<&Held> {
        self.networks.get(&vni)
    }

    /// Whether the kernel holds any published port.
    pub fn publishes(&self) -> bool {
        self.networks.values().any(|held| !held.tables().published.is_empty())
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
        let laid = desired.map(|state| state.lay_out(observed.tables())).unwrap_or_default();
        let ops = diff(&laid, observed.tables());
        self.carry_out(kernel, vni, observed, &ops, Some(laid))
    }

    /// Changes some entries of a network that the kernel has. The time does not depend on the
    /// number of the other entries; if a VTEP is added or removed, on the number of VTEPs.
    pub fn patch<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        patch: &Patch,
    ) -> Result<usize, ApplyError<K::Error>> {
        let vni = patch.vni;
        let held = self.networks.remove(&vni).unwrap_or_default();
        let tables = held.tables();
        let vteps: BTreeMap<VtepKey, Option<VtepInfo>> =
            patch.vteps.iter().map(|(ip, info)| (VtepKey { vni, ip: *ip }, *info)).collect();
        // Of the large tables, `was` has only the patched keys.
        let mut was = Tables {
            fdb: entries_at(&tables.fdb, &patch.fdb),
            neighbours: entries_at(&tables.neighbours, &patch.neighbours),
            vteps: entries_at(&tables.vteps, &vteps),
            endpoints: entries_at(&tables.endpoints, &patch.endpoints),
            published: entries_at(&tables.published, &patch.published),
            sources: entries_at(&tables.sources, &patch.sources),
            ..Tables::default()
        };
        let mut laid = Tables {
            fdb: wanted(&patch.fdb),
            neighbours: wanted(&patch.neighbours),
            vteps: wanted(&vteps),
            endpoints: wanted(&patch.endpoints),
            published: wanted(&patch.published),
            sources: wanted(&patch.sources),
            ..Tables::default()
        };
        let mut info = tables.networks.get(&vni).copied();
        // An interface that another network has taken over is not in `ENDPOINTS` of this one, but
        // may still have its slot.
        let mut interfaces = patch.endpoints.iter();
        let is_relisted =
            interfaces.any(|(ifindex, entry)| entry.is_some() != held.is_listed(*ifindex));
        if is_relisted || !was.endpoints.keys().eq(laid.endpoints.keys()) {
            let only_in = |one: &Tables, other: &Tables| -> BTreeSet<u32> {
                let interfaces = one.endpoints.keys().copied();
                interfaces.filter(|ifindex| !other.endpoints.contains_key(ifindex)).collect()
            };
            let (gone, new) = (only_in(&was, &laid), only_in(&laid, &was));
            let slots = held.change_ports(vni, &gone, &new);
            was.flood_local = entries_at(&tables.flood_local, &slots);
            laid.flood_local = wanted(&slots);
            if let Some(info) = &mut info {
                let number = tables.endpoints.len() + new.len() - gone.len();
                info.local_endpoints = u32::try_from(number).unwrap_or(u32::MAX);
            }
        }
        if !was.vteps.keys().eq(laid.vteps.keys()) {
            was.flood_remote.clone_from(&tables.flood_remote);
            let others = tables.vteps.keys().filter(|key| !vteps.contains_key(key));
            let members = others.chain(laid.vteps.keys()).map(|key| key.ip).collect();
            laid.flood_remote = assign_slots(vni, &members, &was.flood_remote);
            if let Some(info) = &mut info {
                info.remote_vteps = u32::try_from(laid.flood_remote.len()).unwrap_or(u32::MAX);
            }
        }
        was.networks.clone_from(&tables.networks);
        laid.networks.extend(info.map(|info| (vni, info)));
        let ops = diff(&laid, &was);
        self.carry_out(kernel, vni, held, &ops, None)
    }

    /// Carries out `ops` for a network. `observed` are the kernel's tables before the steps, `laid`
    /// the tables after the steps, if they are known.
    fn carry_out<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        vni: u32,
        observed: Held,
        ops: &[Op],
        laid: Option<Tables>,
    ) -> Result<usize, ApplyError<K::Error>> {
        let had = |key: &VtepKey| observed.tables().vteps.contains_key(key);
        let mut done = 0;
        let outcome = self.run(kernel, ops, &mut done, had);
        // After an error the kernel may have the path of a VTEP, but not the VTEP.
        self.unused_paths |= outcome.is_err();
        // After a failure the maps hold less than `desired`: count what they hold.
        for op in ops.iter().take(done) {
            match op {
                Op::Vtep(key, Some(_)) if !had(key) => {
                    *self.users.entry(key.ip).or_default() += 1;
                }
                Op::Vtep(key, None) if had(key) => self.release(key.ip),
                _ => {}
            }
        }
        // If the host has no endpoint of the network, no container needs an announcement.
        if !laid.as_ref().is_some_and(Tables::is_empty) {
            for op in ops.iter().take(done) {
                if let Op::Neighbour(key, after) = op {
                    let before = observed.tables().neighbours.get(key).map(|entry| entry.mac);
                    self.moves.note(*key, before, after.map(|entry| entry.mac));
                }
            }
        }
        self.counts.fdb -= observed.tables().fdb.len();
        self.counts.neighbours -= observed.tables().neighbours.len();
        let mut now = observed;
        match laid.filter(|_| outcome.is_ok()) {
            Some(laid) => now = laid.into(),
            None => ops.iter().take(done).for_each(|op| now.apply(op)),
        }
        self.counts.fdb += now.tables().fdb.len();
        self.counts.neighbours += now.tables().neighbours.len();
        if !now.tables().is_empty() {
            self.networks.insert(vni, now);
        }
        let steps = outcome?;
        Ok(steps + self.remove_unused_paths(kernel)?)
    }

    /// Sets the paths to the VTEPs. A VTEP without an entry has no path.
    pub fn paths_to<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        paths: BTreeMap<[u8; 4], UnderlayPath>,
    ) -> Result<usize, ApplyError<K::Error>> {
        self.paths = paths;
        self.unused_paths = true;
        let puts: Vec<_> = self.users.keys().filter_map(|ip| self.new_path(ip)).collect();
        for (ip, path) in &puts {
            self.put_path(kernel, *ip, *path)?;
        }
        Ok(puts.len() + self.remove_unused_paths(kernel)?)
    }

    /// The path to a VTEP, unless the kernel has it already.
    fn new_path(&self, ip: &[u8; 4]) -> Option<([u8; 4], UnderlayPath)> {
        let path = self.paths.get(ip).filter(|path| self.underlay.get(ip) != Some(path))?;
        Some((*ip, *path))
    }

    fn release(&mut self, ip: [u8; 4]) {
        if let Some(count) = self.users.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&ip);
                self.unused_paths = true;
            }
        }
    }

    /// Notes the network of an interface. If the interface has moved, it is taken out of the
    /// copy of its former network, which must not remove it any more.
    fn own(&mut self, ifindex: u32, vni: u32) {
        let previous = self.owners.insert(ifindex, vni).filter(|previous| *previous != vni);
        if let Some(held) = previous.and_then(|previous| self.networks.get_mut(&previous)) {
            held.apply(&Op::Endpoint(ifindex, None));
        }
    }

    /// Puts the paths of the VTEPs that the network does not have yet (`had`), and then carries out
    /// `ops`. Adds the number of carried out `ops` to `done`.
    fn run<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        ops: &[Op],
        done: &mut usize,
        had: impl Fn(&VtepKey) -> bool,
    ) -> Result<usize, ApplyError<K::Error>> {
        let mut steps = 0;
        for op in ops {
            if let Op::Vtep(key, Some(_)) = op
                && !had(key)
                && let Some((ip, path)) = self.new_path(&key.ip)
            {
                self.put_path(kernel, ip, path)?;
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
                for held in self.networks.values_mut() {
                    held.apply(&Op::Published(*key, None));
                }
            }
            // The clients of an interface that has moved must not be removed by its former network.
            Op::Source(key, Some(_)) => {
                for held in self.networks.values_mut() {
                    held.apply(&Op::Source(*key, None));
                }
            }
            _ => {}
        }
    }

    /// Puts the path of a VTEP that is in use, or that the next steps use.
    fn put_path<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        ip: [u8; 4],
        path: UnderlayPath,
    ) -> Result<(), ApplyError<K::Error>> {
        self.step(kernel, Op::Underlay(ip, Some(path)))?;
        self.underlay.insert(ip, path);
        Ok(())
    }

    /// Removes the entries of `UNDERLAY` that no network needs, or that have no path, if there may
    /// be any.
    fn remove_unused_paths<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
    ) -> Result<usize, ApplyError<K::Error>> {
        if !self.unused_paths {
            return Ok(0);
        }
        let needed = |ip: &[u8; 4]| self.users.contains_key(ip) && self.paths.contains_key(ip);
        let unused: Vec<_> = self.underlay.keys().copied().filter(|ip| !needed(ip)).collect();
        for ip in &unused {
            self.step(kernel, Op::Underlay(*ip, None))?;
            self.underlay.remove(ip);
        }
        self.unused_paths = false;
        Ok(unused.len())
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
