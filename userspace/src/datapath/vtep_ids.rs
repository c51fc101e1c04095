//! The numbers of the VTEPs.
//!
//! The maps refer to a VTEP by a number that this agent gives it, see
//! [`VtepId`]. The numbers are in a pinned map, so that the next
//! agent uses the same ones: learned FDB entries, path MTUs and flows hold them.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData, MapError},
    sys::SyscallError,
};
use culvert_common::abi::{MappedAddr, SealedU32, VtepId, names};

use super::{
    DatapathError, batch,
    epoch::Epoch,
    found::{Found, ip_of},
    raw::{self, Bytes, if_there, second_handle, take_map},
};

/// The numbers of the VTEPs, and the map that keeps them.
pub struct VtepIds {
    own: Ipv4Addr,
    /// The flow cache depends on the map.
    epoch: Arc<Epoch>,
    state: Mutex<State>,
}

struct State {
    map: BpfHashMap<MapData, Bytes<MappedAddr>, Bytes<SealedU32>>,
    /// A second handle of the map: aya's map type does not lend its file descriptor.
    fd: MapData,
    by_address: BTreeMap<[u8; 4], VtepId>,
    by_id: HashMap<VtepId, [u8; 4]>,
    next: u32,
}

/// First byte of an address that stands for a number without a VTEP: no VTEP has an address in
/// 0.0.0.0/8 (RFC 1122 §3.2.1.3). The other three bytes are the number.
const UNKNOWN: u8 = 0;

impl VtepIds {
    /// Takes the map out of the loaded object and reads the given numbers.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        own: Ipv4Addr,
        epoch: Arc<Epoch>,
    ) -> Result<Self, DatapathError> {
        let fd = second_handle(ebpf, names::VTEP_IDS)?;
        let map = take_map(ebpf, names::VTEP_IDS)?;
        let mut state =
            State { map, fd, by_address: BTreeMap::new(), by_id: HashMap::new(), next: 1 };
        for (address, entry) in state.read().map_err(failed)? {
            if address == MappedAddr::UNSPECIFIED {
                state.next = state.next.max(entry.value);
            } else if let Some(address) = address.as_v4() {
                state.note(address, VtepId(entry.value));
                state.next = state.next.max(entry.value.saturating_add(1));
            }
        }
        Ok(Self { own, epoch, state: Mutex::new(state) })
    }

    /// This host's own VTEP address, which has no number.
    pub(super) fn own(&self) -> Ipv4Addr {
        self.own
    }

    /// The number of the VTEP with this address; a VTEP without a number gets one.
    /// [`VtepId::NONE`] for 0.0.0.0.
    ///
    /// # Errors
    ///
    /// If the map is full or cannot be written.
    pub fn give(&self, address: [u8; 4]) -> Result<VtepId, DatapathError> {
        if let Some(id) = self.find(address) {
            return Ok(id);
        }
        let mut state = self.lock();
        let id = VtepId(state.next);
        let next = next_number(state.next.saturating_add(1));
        // The next number is written first. If the second write fails, a number is lost; in the
        // other order one number could be given to two VTEPs.
        state.map.insert(Bytes(MappedAddr::UNSPECIFIED), Bytes(next), 0).map_err(failed)?;
        state.next = next.value;
        let key = MappedAddr::v4(address);
        state.map.insert(Bytes(key), Bytes(SealedU32::new(&key, id.0)), 0).map_err(failed)?;
        state.note(address, id);
        Ok(id)
    }

    /// The number of the VTEP with this address, if it has one.
    pub fn find(&self, address: [u8; 4]) -> Option<VtepId> {
        match address {
            [0, 0, 0, 0] => Some(VtepId::NONE),
            [UNKNOWN, a, b, c] => Some(VtepId(u32::from_be_bytes([0, a, b, c]))),
            _ => self.lock().by_address.get(&address).copied(),
        }
    }

    /// The address of the VTEP with this number; all zero for [`VtepId::NONE`]. A number without a
    /// VTEP gives 0.x.y.z with the number in the last three bytes, so that an entry with such a
    /// number can be found and removed.
    pub fn address(&self, id: VtepId) -> Ipv4Addr {
        self.octets(id).into()
    }

    pub(super) fn octets(&self, id: VtepId) -> [u8; 4] {
        if let Some(address) = self.lock().by_id.get(&id) {
            return *address;
        }
        let [_, a, b, c] = id.0.to_be_bytes();
        [UNKNOWN, a, b, c]
    }

    /// Removes the VTEPs whose addresses are not `used`. Their numbers are not given again. Called
    /// when the agent starts, before any number is given.
    pub(super) fn retain(&self, used: impl Fn([u8; 4]) -> bool) -> Result<(), DatapathError> {
        let mut state = self.lock();
        let unused: Vec<_> =
            state.by_address.keys().copied().filter(|address| !used(*address)).collect();
        for address in unused {
            state.remove(&MappedAddr::v4(address))?;
            if let Some(id) = state.by_address.remove(&address) {
                state.by_id.remove(&id);
            }
        }
        Ok(())
    }

    /// Puts the map back to the numbers that were given. Notes what another program has changed.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or written.
    pub fn restore(&self, found: &mut Found) -> Result<(), DatapathError> {
        // Locked during the whole comparison, so that no number is given meanwhile.
        let mut state = self.lock();
        let (read, written) = (state.read().map_err(failed)?, state.written());
        let spell = |address: &MappedAddr| match *address {
            MappedAddr::UNSPECIFIED => "next number".to_owned(),
            address => ip_of(&address).to_string(),
        };
        let before = found.number();
        let restored =
            found.restore(names::VTEP_IDS, &written, &read, spell, |key, value| match value {
                Some(value) => state.map.insert(Bytes(*key), Bytes(*value), 0).map_err(failed),
                None => state.remove(key),
            });
        if found.number() > before {
            self.epoch.advance();
        }
        restored
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked with the lock held left only numbers that are in the map.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, address: [u8; 4], id: VtepId) {
        self.by_address.insert(address, id);
        self.by_id.insert(id, address);
    }

    /// The entries of the map, thousands of them in a system call: callers that need a number wait
    /// meanwhile.
    fn read(&self) -> Result<BTreeMap<MappedAddr, SealedU32>, MapError> {
        let most = self.fd.info()?.max_entries();
        let entries = batch::all(self.fd.fd().as_fd(), most).map_err(|io_error| {
            let call = "bpf_map_lookup_batch";
            MapError::from(SyscallError { call, io_error })
        })?;
        Ok(entries.into_iter().collect())
    }

    /// The entries that the map should have.
    fn written(&self) -> BTreeMap<MappedAddr, SealedU32> {
        // Before the first number is given, the map is empty.
        let next = (self.next > 1).then(|| (MappedAddr::UNSPECIFIED, next_number(self.next)));
        let numbers = self.by_address.iter().map(|(address, id)| {
            let key = MappedAddr::v4(*address);
            (key, SealedU32::new(&key, id.0))
        });
        next.into_iter().chain(numbers).collect()
    }

    /// Removes an entry of the map. It is no error if there is none.
    fn remove(&mut self, key: &MappedAddr) -> Result<(), DatapathError> {
        if_there(self.map.remove(&Bytes(*key))).map_err(failed)
    }
}

/// The entry of the next number.
fn next_number(next: u32) -> SealedU32 {
    SealedU32 { value: next, seal: 0 }
}

impl std::fmt::Debug for VtepIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.lock().by_address.iter()).finish()
    }
}

fn failed(source: MapError) -> DatapathError {
    raw::failed(names::VTEP_IDS, source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{KernelTables, Options, load_object};

    /// Numbers that another program has removed, changed or added, and the number that is given
    /// next.
    #[test]
    #[ignore = "needs root"]
    fn the_numbers_are_put_back() {
        let options = Options::of_a_test();
        let mut ebpf = load_object(&options, None).unwrap();
        let tables = KernelTables::take(&mut ebpf, options.vtep_ip).unwrap();
        let ids = tables.vtep_ids();
        let mut found = Found::default();
        ids.restore(&mut found).unwrap();
        for last in 1..=3 {
            ids.give([198, 51, 100, last]).unwrap();
        }
        ids.restore(&mut found).unwrap();
        assert_eq!(found, Found::default(), "what the agent has written is no change");
        let right = ids.lock().read().unwrap();
        {
            let key = |last| MappedAddr::v4([198, 51, 100, last]);
            let mut state = ids.lock();
            state.remove(&key(1)).unwrap();
            state.remove(&MappedAddr::UNSPECIFIED).unwrap();
            for (last, number) in [(2, 3), (9, 9)] {
                let wrong = SealedU32::new(&key(last), number);
                state.map.insert(Bytes(key(last)), Bytes(wrong), 0).unwrap();
            }
        }
        ids.restore(&mut found).unwrap();
        assert_eq!(ids.lock().read().unwrap(), right);
        let line = "map VTEP_IDS: 4 entries: 198.51.100.9 added, next number removed, \
                    198.51.100.1 removed, and 1 more";
        assert_eq!(found.lines(), [(4, line.to_owned())]);
    }
}
