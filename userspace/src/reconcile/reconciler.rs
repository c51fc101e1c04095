//! Brings the kernel to the desired state, network by network.

use std::collections::{BTreeMap, BTreeSet};

use culvert_common::abi::UnderlayPath;

use super::{
    diff::{Op, diff},
    tables::{NetworkState, Tables},
};

/// The maps, as the reconciler sees them.
pub trait Kernel {
    /// Why a map could not be read or written.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads every table.
    fn dump(&self) -> Result<Tables, Self::Error>;

    /// Carries out one step. To put what is there and to remove what is not
    /// are no errors.
    fn apply(&self, op: &Op) -> Result<(), Self::Error>;
}

/// A step that the kernel refused. The steps before it are done, those after
/// it are not; to reconcile again is safe.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {source}")]
pub struct ApplyError<E: std::error::Error + 'static> {
    /// The step.
    pub op: Box<Op>,
    /// What the kernel said.
    pub source: E,
}

/// Knows what the kernel holds, without reading it again for every change.
///
/// It must be the only writer of the maps. [`Reconciler::adopt`] reads them, at
/// the start and for every anti-entropy pass; what others changed is found then.
#[derive(Debug, Default)]
pub struct Reconciler {
    /// What the kernel holds of each VNI.
    networks: BTreeMap<u32, Tables>,
    /// What the kernel holds in `UNDERLAY`.
    underlay: BTreeMap<[u8; 4], UnderlayPath>,
    /// How each VTEP is reached, needed now or not.
    paths: BTreeMap<[u8; 4], UnderlayPath>,
    /// How many networks refer to each VTEP.
    users: BTreeMap<[u8; 4], usize>,
    /// VNI that each interface in `ENDPOINTS` belongs to.
    owners: BTreeMap<u32, u32>,
}

impl Reconciler {
    /// Takes over what the maps hold now.
    pub fn adopt<K: Kernel + ?Sized>(&mut self, kernel: &K) -> Result<(), K::Error> {
        (self.networks, self.underlay) = kernel.dump()?.split();
        self.users.clear();
        self.owners.clear();
        for (vni, tables) in &self.networks {
            self.owners.extend(tables.endpoints.keys().map(|ifindex| (*ifindex, *vni)));
            for key in tables.vteps.keys() {
                *self.users.entry(key.ip).or_default() += 1;
            }
        }
        Ok(())
    }

    /// VNIs of which the kernel holds anything.
    pub fn vnis(&self) -> BTreeSet<u32> {
        self.networks.keys().copied().collect()
    }

    /// What the kernel holds of a VNI.
    pub fn network(&self, vni: u32) -> Option<&Tables> {
        self.networks.get(&vni)
    }

    /// Whether the kernel holds any published port.
    pub fn publishes(&self) -> bool {
        self.networks.values().any(|tables| !tables.published.is_empty())
    }

    /// Whether a network of which the kernel holds anything has this VTEP.
    pub fn uses(&self, vtep: [u8; 4]) -> bool {
        self.users.contains_key(&vtep)
    }

    /// What the kernel holds in `UNDERLAY`.
    pub fn underlay(&self) -> &BTreeMap<[u8; 4], UnderlayPath> {
        &self.underlay
    }

    /// Brings one network to `desired`, or removes it where that is `None`.
    /// Answers with the number of steps that it took.
    pub fn network_to<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        vni: u32,
        desired: Option<&NetworkState>,
    ) -> Result<usize, ApplyError<K::Error>> {
        let observed = self.networks.remove(&vni).unwrap_or_default();
        let laid = desired.map(|state| state.lay_out(&observed)).unwrap_or_default();
        let ops = diff(&laid, &observed);
        let before: BTreeSet<[u8; 4]> = observed.vteps.keys().map(|key| key.ip).collect();
        let after: BTreeSet<[u8; 4]> = laid.vteps.keys().map(|key| key.ip).collect();
        let mut now = observed;
        let outcome = self.run(kernel, &ops, &mut now, &before, &after);
        // After a failure, count what the maps hold, not what was wanted.
        let held: BTreeSet<[u8; 4]> = now.vteps.keys().map(|key| key.ip).collect();
        for ip in before.difference(&held) {
            self.release(*ip);
        }
        for ip in held.difference(&before) {
            *self.users.entry(*ip).or_default() += 1;
        }
        if !now.is_empty() {
            self.networks.insert(vni, now);
        }
        let steps = outcome?;
        Ok(steps + self.sync_underlay(kernel, false)?)
    }

    /// Sets how VTEPs are reached. A VTEP without an entry has no path.
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

    /// Notes whose an interface is: one that moved is no longer the old network's
    /// to remove.
    fn own(&mut self, ifindex: u32, vni: u32) {
        let previous = self.owners.insert(ifindex, vni).filter(|previous| *previous != vni);
        if let Some(tables) = previous.and_then(|previous| self.networks.get_mut(&previous)) {
            tables.endpoints.remove(&ifindex);
        }
    }

    /// Applies `ops`, paths of new VTEPs first.
    fn run<K: Kernel + ?Sized>(
        &mut self,
        kernel: &K,
        ops: &[Op],
        now: &mut Tables,
        before: &BTreeSet<[u8; 4]>,
        after: &BTreeSet<[u8; 4]>,
    ) -> Result<usize, ApplyError<K::Error>> {
        let mut steps = 0;
        for ip in after.difference(before) {
            let path = self.paths.get(ip).copied();
            if let Some(path) = path.filter(|path| self.underlay.get(ip) != Some(path)) {
                step(kernel, Op::Underlay(*ip, Some(path)))?;
                self.underlay.insert(*ip, path);
                steps += 1;
            }
        }
        for op in ops {
            step(kernel, *op)?;
            op.apply_to(now);
            match op {
                Op::Endpoint(ifindex, Some(info)) => self.own(*ifindex, info.vni),
                Op::Endpoint(ifindex, None) => {
                    self.owners.remove(ifindex);
                }
                // A port that moved is no longer the old network's to remove.
                Op::Published(key, Some(_)) => {
                    for tables in self.networks.values_mut() {
                        tables.published.remove(key);
                    }
                }
                _ => {}
            }
            steps += 1;
        }
        Ok(steps)
    }

    /// Brings `UNDERLAY` to the paths of the VTEPs in use: either what is to be
    /// put, or what is to be removed.
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
            step(kernel, *op)?;
            if let Op::Underlay(ip, path) = op {
                match path {
                    Some(path) => self.underlay.insert(*ip, *path),
                    None => self.underlay.remove(ip),
                };
            }
        }
        Ok(ops.len())
    }
}

fn step<K: Kernel + ?Sized>(kernel: &K, op: Op) -> Result<(), ApplyError<K::Error>> {
    kernel.apply(&op).map_err(|source| ApplyError { op: Box::new(op), source })
}
