//! Flows carried over from an agent with an older map layout.
//!
//! Maps are pinned below a directory of their ABI version. An agent of a later version makes
//! new maps and fills them from the store. The store does not have the flows: they are copied
//! before the programs of the earlier version are detached, so that established connections
//! go on. Learned FDB entries and path MTUs are learned again.

use std::{collections::HashMap as Numbers, io, path::Path};

use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use bytemuck::{Pod, Zeroable};
use culvert_common::abi::{
    Flow, FlowKey, MappedAddr, Sealed as _, SealedU32, Tuple, kind, names, zone,
};

use super::{DatapathError, raw::Bytes, tables::KernelTables};

/// Value of `FLOWS` in ABI 3; its key is that of ABI 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FlowV3 {
    /// As [`Flow::last_seen_ns`].
    pub last_seen_ns: u64,
    /// As [`Flow::packets`].
    pub packets: u64,
    /// As [`Flow::bytes`].
    pub bytes: u64,
    /// As [`Flow::to`].
    pub to: Tuple,
    /// As [`Flow::zone`].
    pub zone: u32,
    /// As [`Flow::dest`], but with the address of the VTEP where the zone is
    /// [`zone::TUNNEL`].
    pub ifindex: u32,
    /// As [`Flow::from_incarnation`].
    pub from_generation: u32,
    /// As [`Flow::to_incarnation`].
    pub to_generation: u32,
    /// [`Flow::kind`] in the lower half, [`Flow::seen`] in the upper one.
    pub flags: u32,
    /// As [`Flow::last_ack`].
    pub last_ack: u32,
    /// Padding.
    pub pad: u32,
}

const _: () = assert!(size_of::<FlowV3>() == 64);

/// Result of carrying over the flows of an earlier version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Entries that are now in this version's table; a flow has two.
    pub entries: usize,
    /// Entries that could not be taken over: the table is full.
    pub lost: usize,
}

/// Copies the flows of ABI 3 to this version's table. `maps` is the directory of the pinned
/// maps of ABI 3. An entry whose key exists in the new table is not overwritten.
///
/// # Errors
///
/// If a map cannot be read or written.
pub(super) fn flows_of_v3(maps: &Path, tables: &KernelTables) -> Result<Carried, DatapathError> {
    let failed = |source| DatapathError::Map { map: names::FLOWS, source: Box::new(source) };
    let pin = maps.join(names::FLOWS);
    let map = match MapData::from_pin(&pin) {
        Ok(map) => map,
        Err(_) if !pin.exists() => return Ok(Carried::default()),
        Err(error) => return Err(failed(error)),
    };
    let old: HashMap<_, Bytes<FlowKey>, Bytes<FlowV3>> =
        HashMap::try_from(Map::HashMap(map)).map_err(failed)?;
    let mut carried = Carried::default();
    for item in old.iter() {
        let (Bytes(key), Bytes(old)) = match item {
            Ok(item) => item,
            // The programs removed it between the two system calls.
            Err(MapError::KeyNotFound) => continue,
            Err(error) => return Err(failed(error)),
        };
        carried.put(tables, &key, convert(&old, tables)?)?;
    }
    Ok(carried)
}

/// Copies the flows of an agent of this version that had another BPF file system. `flows` and
/// `vtep_ids` are the identifiers of its maps. An entry whose key exists in the new table is not
/// overwritten. Returns `None` if the flow table of that agent has another layout.
///
/// # Errors
///
/// If a map cannot be read or written.
pub(super) fn flows_of_another(
    flows: u32,
    vtep_ids: u32,
    tables: &KernelTables,
) -> Result<Option<Carried>, DatapathError> {
    let failed = |source| DatapathError::Map { map: names::FLOWS, source: Box::new(source) };
    let info = MapInfo::from_id(flows).map_err(failed)?;
    if (info.key_size() as usize, info.value_size() as usize)
        != (size_of::<FlowKey>(), size_of::<Flow>())
    {
        return Ok(None);
    }
    let numbers = vteps(vtep_ids)
        .map_err(|source| DatapathError::Map { map: names::VTEP_IDS, source: Box::new(source) })?;
    let old: HashMap<_, Bytes<FlowKey>, Bytes<Flow>> = MapData::from_id(flows)
        .and_then(|map| HashMap::try_from(Map::HashMap(map)))
        .map_err(failed)?;
    let mut carried = Carried::default();
    for item in old.iter() {
        let (Bytes(key), Bytes(mut flow)) = match item {
            Ok(item) => item,
            // The programs removed it between the two system calls.
            Err(MapError::KeyNotFound) => continue,
            Err(error) => return Err(failed(error)),
        };
        if !flow.is_of(&key) {
            continue;
        }
        if flow.zone == zone::TUNNEL {
            // A number without an address belonged to a VTEP that is gone. Its flows are not
            // copied.
            let Some(address) = numbers.get(&flow.dest) else { continue };
            flow.dest = tables.vtep_ids().give(*address)?.0;
        }
        // The slot is an index into the other agent's map.
        flow.slot = 0;
        carried.put(tables, &key, flow)?;
    }
    Ok(Some(carried))
}

/// The addresses of the VTEPs of another agent, by the numbers that it gave them.
fn vteps(map: u32) -> Result<Numbers<u32, [u8; 4]>, MapError> {
    let map: HashMap<_, Bytes<MappedAddr>, Bytes<SealedU32>> =
        HashMap::try_from(Map::HashMap(MapData::from_id(map)?))?;
    let mut numbers = Numbers::new();
    for item in map.iter() {
        let (Bytes(address), Bytes(number)) = item?;
        if let Some(octets) = address.as_v4().filter(|_| number.is_of(&address)) {
            numbers.insert(number.value, octets);
        }
    }
    Ok(numbers)
}

impl Carried {
    /// Writes a flow to this version's table.
    fn put(
        &mut self,
        tables: &KernelTables,
        key: &FlowKey,
        flow: Flow,
    ) -> Result<(), DatapathError> {
        let flow = Flow { seal: 0, ..flow }.sealed(key);
        match tables.flows.insert_new(key, &flow) {
            Ok(()) => self.entries += 1,
            Err(DatapathError::Map { source, .. }) if is_full(&source) => self.lost += 1,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Converts a flow of ABI 3 to the form of ABI 4, without a seal.
fn convert(old: &FlowV3, tables: &KernelTables) -> Result<Flow, DatapathError> {
    let dest = if old.zone == zone::TUNNEL {
        tables.vtep_ids().give(old.ifindex.to_ne_bytes())?.0
    } else {
        old.ifindex
    };
    Ok(Flow {
        to: old.to,
        zone: old.zone,
        dest,
        from_incarnation: old.from_generation,
        to_incarnation: old.to_generation,
        kind: old.flags & (kind::ORIG | kind::MASQUERADE | kind::PUBLISHED),
        seal: 0,
        seen: old.flags >> 16,
        last_ack: old.last_ack,
        slot: 0,
        last_seen_ns: old.last_seen_ns,
        packets: old.packets,
        bytes: old.bytes,
    })
}

fn is_full(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(nix::libc::E2BIG)
            || error.io_error.kind() == io::ErrorKind::OutOfMemory)
}
