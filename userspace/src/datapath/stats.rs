//! The counters of the programs.

use culvert_common::abi::{Code, Counter, Direction, names, stats_index};

use super::{
    Datapath,
    error::DatapathError,
    raw::{Bytes, failed},
};

impl Datapath {
    /// All counters, zero or not, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError> {
        let mut rows = Vec::new();
        for &direction in Direction::ALL {
            for code in Code::all() {
                rows.push((direction, code, self.counter(direction, code)?));
            }
        }
        Ok(rows)
    }

    /// Packets counted under `code` in any direction.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn packets(&self, code: Code) -> Result<u64, DatapathError> {
        let mut sum = 0_u64;
        for &direction in Direction::ALL {
            let counter = self.counter(direction, code)?;
            sum = sum.wrapping_add(counter.packets);
        }
        Ok(sum)
    }

    /// A counter, summed over the CPUs.
    fn counter(&self, direction: Direction, code: Code) -> Result<Counter, DatapathError> {
        let index = stats_index(direction, code);
        let values = self.stats.get(&index, 0).map_err(|source| failed(names::STATS, source))?;
        let mut sum = Counter::default();
        for Bytes(counter) in values.iter() {
            sum.packets = sum.packets.wrapping_add(counter.packets);
            sum.bytes = sum.bytes.wrapping_add(counter.bytes);
        }
        Ok(sum)
    }
}
