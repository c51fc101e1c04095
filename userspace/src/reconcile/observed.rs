//! The contents of the maps when they were read.

use std::collections::BTreeMap;

use super::{diff::Op, kernel::Kernel, tables::Tables};
use crate::datapath::entry::UnderlayPath;

/// The contents of the maps, by VNI. Entries that were written during the read may be old or new.
#[derive(Debug, Default)]
pub struct Observed {
    /// The tables of each VNI; none is empty.
    networks: BTreeMap<u32, Tables>,
    /// `UNDERLAY`.
    underlay: BTreeMap<[u8; 4], UnderlayPath>,
}

impl Observed {
    /// Reads the maps. One system call reads some thousand entries. All entries are in memory twice
    /// during the read.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn read<K: Kernel + ?Sized>(kernel: &K) -> Result<Self, K::Error> {
        let (networks, underlay) = kernel.dump()?.split();
        Ok(Self { networks, underlay })
    }

    /// Repeats a step that was carried out since the read began.
    pub(super) fn apply(&mut self, op: &Op) {
        let vni = match *op {
            Op::Underlay(ip, path) => {
                match path {
                    Some(path) => self.underlay.insert(ip, path),
                    None => self.underlay.remove(&ip),
                };
                return;
            }
            Op::Network(vni, _) => Some(vni),
            Op::Fdb(key, _) => Some(key.vni),
            Op::Neighbour(key, _) => Some(key.vni),
            Op::Vtep(key, _) => Some(key.vni),
            Op::FloodLocal(key, _) | Op::FloodRemote(key, _) => Some(key.vni),
            // The VNI is in the value: the key may have been another network's before.
            Op::Endpoint(key, value) => {
                self.remove(&Op::Endpoint(key, None));
                value.map(|value| value.vni)
            }
            Op::Gateway(key, value) => {
                self.remove(&Op::Gateway(key, None));
                value
            }
            Op::Published(key, value) => {
                self.remove(&Op::Published(key, None));
                value.map(|value| value.vni)
            }
            Op::Source(key, value) => {
                self.remove(&Op::Source(key, None));
                value
            }
        };
        if let Some(vni) = vni {
            op.apply_to(self.networks.entry(vni).or_default());
        }
    }

    /// Carries out a removal in every network.
    fn remove(&mut self, op: &Op) {
        self.networks.values_mut().for_each(|tables| op.apply_to(tables));
    }

    /// The tables of each VNI, and `UNDERLAY`.
    pub(super) fn into_parts(mut self) -> (BTreeMap<u32, Tables>, BTreeMap<[u8; 4], UnderlayPath>) {
        self.networks.retain(|_, tables| !tables.is_empty());
        (self.networks, self.underlay)
    }
}
