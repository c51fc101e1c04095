//! The maps as the reconciler uses them, and the implementation by BPF maps.

use super::{diff::Op, tables::Tables};
use crate::datapath::{Datapath, DatapathError, Table};

/// The maps that the reconciler reads and writes.
pub trait Kernel {
    /// Why a map could not be read or written.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads every table. Entries may change during the call: each is read in a state that it had
    /// at some time during the call.
    fn dump(&self) -> Result<Tables, Self::Error>;

    /// Carries out one step. It is no error to put an entry that exists, or to remove one that
    /// does not.
    fn apply(&self, op: &Op) -> Result<(), Self::Error>;

    /// Carries out the first steps of `ops`, at least one. Returns their number, and the error that
    /// stopped it.
    fn put_all(&self, ops: &[Op]) -> (usize, Option<Self::Error>) {
        match ops.first().map(|op| self.apply(op)) {
            Some(Ok(())) => (1, None),
            Some(Err(error)) => (0, Some(error)),
            None => (0, None),
        }
    }
}

impl Kernel for Datapath {
    type Error = DatapathError;

    fn dump(&self) -> Result<Tables, DatapathError> {
        let maps = self.tables();
        Ok(Tables {
            endpoints: maps.endpoints.dump()?,
            networks: maps.networks.dump()?,
            fdb: maps.fdb.dump()?,
            neighbours: maps.neighbours.dump()?,
            vteps: maps.vteps.dump()?,
            underlay: maps.underlay.dump()?,
            flood_local: maps.flood_local.dump()?,
            flood_remote: maps.flood_remote.dump()?,
            gateways: maps.gateways.dump()?,
            published: maps.published.dump()?,
            sources: maps.sources.dump()?,
        })
    }

    fn put_all(&self, ops: &[Op]) -> (usize, Option<DatapathError>) {
        let maps = self.tables();
        match ops.first() {
            Some(Op::Fdb(_, Some(_))) => {
                let entries = ops.iter().map_while(|op| match op {
                    Op::Fdb(key, value) => Some((*key, (*value)?)),
                    _ => None,
                });
                maps.fdb.insert_all(&entries.collect::<Vec<_>>())
            }
            Some(Op::Neighbour(_, Some(_))) => {
                let entries = ops.iter().map_while(|op| match op {
                    Op::Neighbour(key, value) => Some((*key, (*value)?)),
                    _ => None,
                });
                maps.neighbours.insert_all(&entries.collect::<Vec<_>>())
            }
            Some(Op::Published(_, Some(_))) => {
                let entries = ops.iter().map_while(|op| match op {
                    Op::Published(key, value) => Some((*key, (*value)?)),
                    _ => None,
                });
                maps.published.insert_all(&entries.collect::<Vec<_>>())
            }
            Some(op) => match self.apply(op) {
                Ok(()) => (1, None),
                Err(error) => (0, Some(error)),
            },
            None => (0, None),
        }
    }

    fn apply(&self, op: &Op) -> Result<(), DatapathError> {
        let maps = self.tables();
        match op {
            Op::Endpoint(key, value) => set(&maps.endpoints, key, value.as_ref()),
            Op::Network(key, value) => set(&maps.networks, key, value.as_ref()),
            Op::Fdb(key, value) => set(&maps.fdb, key, value.as_ref()),
            Op::Neighbour(key, value) => set(&maps.neighbours, key, value.as_ref()),
            Op::Vtep(key, value) => set(&maps.vteps, key, value.as_ref()),
            Op::Underlay(key, value) => set(&maps.underlay, key, value.as_ref()),
            Op::FloodLocal(key, value) => set(&maps.flood_local, key, value.as_ref()),
            Op::FloodRemote(key, value) => set(&maps.flood_remote, key, value.as_ref()),
            Op::Gateway(key, value) => set(&maps.gateways, key, value.as_ref()),
            Op::Published(key, value) => set(&maps.published, key, value.as_ref()),
            Op::Source(key, value) => set(&maps.sources, key, value.as_ref()),
        }
    }
}

fn set<K, V>(table: &dyn Table<K, V>, key: &K, value: Option<&V>) -> Result<(), DatapathError> {
    match value {
        Some(value) => table.insert(key, value),
        None => table.remove(key),
    }
}
