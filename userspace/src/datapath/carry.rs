//! Flows carried over from an agent with an older map layout.
//!
//! Maps are pinned below a directory of their ABI version. An agent of a later version makes
//! new maps and fills them from the store. The store does not have the flows: they are copied
//! before the programs of the earlier version are detached, so that established connections
//! go on. Learned FDB entries and path MTUs are learned again.

use std::{collections::HashMap as Numbers, io, path::Path};

use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use bytemuck::{Pod, Zeroable};
use culvert_common::{
    abi::{Flow, FlowKey, MappedAddr, Sealed as _, SealedU32, Tuple, kind, names, seen, zone},
    wire::ipv4::PROTO_TCP,
};

use super::{
    DatapathError,
    raw::{Bytes, failed},
    tables::KernelTables,
};

/// Value of `FLOWS` in ABI 4; its key is that of ABI 5. Each field is as in [`Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FlowV4 {
    /// As [`Flow::to`].
    pub to: Tuple,
    /// As [`Flow::zone`].
    pub zone: u32,
    /// As [`Flow::dest`].
    pub dest: u32,
    /// As [`Flow::from_incarnation`].
    pub from_incarnation: u32,
    /// As [`Flow::to_incarnation`].
    pub to_incarnation: u32,
    /// As [`Flow::kind`].
    pub kind: u32,
    /// As [`Flow::seal`].
    pub seal: u32,
    /// As [`Flow::seen`].
    pub seen: u32,
    /// As [`Flow::last_ack`].
    pub last_ack: u32,
    /// As [`Flow::slot`].
    pub slot: u32,
    /// As [`Flow::last_seen_ns`].
    pub last_seen_ns: u64,
    /// As [`Flow::packets`].
    pub packets: u64,
    /// As [`Flow::bytes`].
    pub bytes: u64,
}

const _: () = assert!(size_of::<FlowV4>() == 72);

/// Value of `FLOWS` in ABI 3; its key is that of ABI 5.
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
    let Some(map) = pinned(maps, names::FLOWS)? else { return Ok(Carried::default()) };
    copy::<FlowV3>(map, tables, |_, old| convert(old, tables).map(Some))
}

/// Copies the flows of ABI 4 to this version's table, as [`flows_of_v3`].
///
/// # Errors
///
/// If a map cannot be read or written.
pub(super) fn flows_of_v4(maps: &Path, tables: &KernelTables) -> Result<Carried, DatapathError> {
    let Some(map) = pinned(maps, names::FLOWS)? else { return Ok(Carried::default()) };
    let numbers = match pinned(maps, names::VTEP_IDS)? {
        Some(map) => vteps(map)?,
        None => Numbers::new(),
    };
    copy::<FlowV4>(map, tables, |key, old| renumbered(key, old.into(), &numbers, tables))
}

/// Copies the flows of an agent that had another BPF file system, of this version or of ABI 4.
/// `flows` and `vtep_ids` are the identifiers of its maps. An entry whose key exists in the new
/// table is not overwritten. Returns `None` if the flow table of that agent has another layout.
///
/// # Errors
///
/// If a map cannot be read or written.
pub(super) fn flows_of_another(
    flows: u32,
    vtep_ids: u32,
    tables: &KernelTables,
) -> Result<Option<Carried>, DatapathError> {
    let failed = |source| failed(names::FLOWS, source);
    let info = MapInfo::from_id(flows).map_err(failed)?;
    let value_size = info.value_size() as usize;
    if info.key_size() as usize != size_of::<FlowKey>()
        || ![size_of::<Flow>(), size_of::<FlowV4>()].contains(&value_size)
    {
        return Ok(None);
    }
    let map = MapData::from_id(vtep_ids).map_err(|source| self::failed(names::VTEP_IDS, source))?;
    let numbers = vteps(map)?;
    let map = MapData::from_id(flows).map_err(failed)?;
    let carried = if value_size == size_of::<FlowV4>() {
        copy::<FlowV4>(map, tables, |key, old| renumbered(key, old.into(), &numbers, tables))
    } else {
        copy::<Flow>(map, tables, |key, old| renumbered(key, *old, &numbers, tables))
    };
    carried.map(Some)
}

/// A value of the table of flows of some version.
trait OldFlow: Pod {
    /// Bits of [`Flow::seen`], and [`Flow::last_ack`]. `None`: [`Flow::first_seq`] and
    /// [`Flow::next_seq`] are in the value, so they need not be made of these.
    fn acknowledged(&self) -> Option<(u32, u32)>;
}

impl OldFlow for FlowV3 {
    fn acknowledged(&self) -> Option<(u32, u32)> {
        Some((self.flags >> 16, self.last_ack))
    }
}

impl OldFlow for FlowV4 {
    fn acknowledged(&self) -> Option<(u32, u32)> {
        Some((self.seen, self.last_ack))
    }
}

impl OldFlow for Flow {
    fn acknowledged(&self) -> Option<(u32, u32)> {
        None
    }
}

/// Opens a pinned map. `None` if there is no pin of this name.
fn pinned(maps: &Path, name: &'static str) -> Result<Option<MapData>, DatapathError> {
    let pin = maps.join(name);
    match MapData::from_pin(&pin) {
        Ok(map) => Ok(Some(map)),
        Err(_) if !pin.exists() => Ok(None),
        Err(source) => Err(failed(name, source)),
    }
}

/// Copies the entries of `map`. `convert` returns an entry in the form of this version, or `None`
/// if it is not to be copied.
fn copy<T: OldFlow>(
    map: MapData,
    tables: &KernelTables,
    convert: impl Fn(&FlowKey, &T) -> Result<Option<Flow>, DatapathError>,
) -> Result<Carried, DatapathError> {
    let failed = |source| failed(names::FLOWS, source);
    let old: HashMap<_, Bytes<FlowKey>, Bytes<T>> =
        HashMap::try_from(Map::HashMap(map)).map_err(failed)?;
    let mut carried = Carried::default();
    for item in old.iter() {
        let (Bytes(key), Bytes(value)) = match item {
            Ok(item) => item,
            // The programs removed it between the two system calls.
            Err(MapError::KeyNotFound) => continue,
            Err(error) => return Err(failed(error)),
        };
        let Some(mut flow) = convert(&key, &value)? else { continue };
        if value.acknowledged().is_some() && key.protocol == PROTO_TCP {
            let other = match old.get(&Bytes(key.other(&flow)), 0) {
                Ok(Bytes(other)) => other.acknowledged(),
                Err(MapError::KeyNotFound) => None,
                Err(error) => return Err(failed(error)),
            };
            flow = numbered(flow, other.unwrap_or_default());
        }
        carried.put(tables, &key, flow)?;
    }
    Ok(carried)
}

/// The entry of a TCP flow of a version that did not keep [`Flow::first_seq`] and
/// [`Flow::next_seq`]. `other` is the [`OldFlow::acknowledged`] of the other direction: what it has
/// acknowledged is what this direction had sent. Without that the next segments tell the numbers,
/// and whether there is a connection. The numbers of both directions may be stale, as the earlier
/// programs still forward: the programs take up those that both sides confirm, see
/// [`TcpSegment::ahead`](culvert_common::datapath::segment::TcpSegment::ahead).
fn numbered(flow: Flow, (other_seen, other_ack): (u32, u32)) -> Flow {
    let orig = flow.kind & kind::ORIG != 0;
    // The SYN of the reply direction acknowledges the SYN of the other one.
    if other_seen & seen::ACK != 0 || (orig && other_seen & seen::SYN != 0) {
        let seen = flow.seen | seen::PACKET;
        Flow { first_seq: other_ack, next_seq: other_ack, seen, ..flow }
    } else {
        Flow { seen: flow.seen & seen::RST, ..flow }
    }
}

/// The entry of another agent with the same seals, with this agent's number of the VTEP. `numbers`
/// are the other agent's VTEPs. `None` if the entry was being removed, or if its VTEP is gone.
fn renumbered(
    key: &FlowKey,
    mut flow: Flow,
    numbers: &Numbers<u32, [u8; 4]>,
    tables: &KernelTables,
) -> Result<Option<Flow>, DatapathError> {
    if !flow.is_of(key) {
        return Ok(None);
    }
    if flow.zone == zone::TUNNEL {
        // A number without an address belonged to a VTEP that is gone. Its flows are not copied.
        let Some(address) = numbers.get(&flow.dest) else { return Ok(None) };
        flow.dest = tables.vtep_ids().give(*address)?.0;
    }
    // The slot is an index into the other agent's map.
    flow.slot = 0;
    Ok(Some(flow))
}

impl From<&FlowV4> for Flow {
    fn from(old: &FlowV4) -> Self {
        Self {
            to: old.to,
            zone: old.zone,
            dest: old.dest,
            from_incarnation: old.from_incarnation,
            to_incarnation: old.to_incarnation,
            kind: old.kind,
            seal: old.seal,
            seen: old.seen,
            last_ack: old.last_ack,
            last_seen_ns: old.last_seen_ns,
            packets: old.packets,
            bytes: old.bytes,
            ..Self::default()
        }
    }
}

/// The addresses of the VTEPs of another agent, by the numbers that it gave them.
fn vteps(map: MapData) -> Result<Numbers<u32, [u8; 4]>, DatapathError> {
    let failed = |source| failed(names::VTEP_IDS, source);
    let map: HashMap<_, Bytes<MappedAddr>, Bytes<SealedU32>> =
        HashMap::try_from(Map::HashMap(map)).map_err(failed)?;
    let mut numbers = Numbers::new();
    for item in map.iter() {
        let (Bytes(address), Bytes(number)) = item.map_err(failed)?;
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

/// Converts a flow of ABI 3 to the form of this version, without a seal and without numbers.
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
        seen: old.flags >> 16,
        last_ack: old.last_ack,
        last_seen_ns: old.last_seen_ns,
        packets: old.packets,
        bytes: old.bytes,
        ..Flow::default()
    })
}

fn is_full(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error)
        if error.io_error.raw_os_error() == Some(nix::libc::E2BIG)
            || error.io_error.kind() == io::ErrorKind::OutOfMemory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u32 = seen::PACKET | seen::SYN | seen::ACK;

    #[test]
    fn what_the_other_side_has_acknowledged_was_sent() {
        let orig = Flow { kind: kind::ORIG, seen: ESTABLISHED, last_ack: 7, ..Flow::default() };
        let both = numbered(orig, (ESTABLISHED, 1000));
        assert_eq!((both.first_seq, both.next_seq, both.last_ack), (1000, 1000, 7));
        assert_eq!(both.seen, ESTABLISHED);
        // The answer to the SYN acknowledges it. A SYN that begins a flow acknowledges nothing.
        assert_eq!(numbered(orig, (seen::PACKET | seen::SYN, 1000)), both);
        let reply = Flow { kind: 0, ..orig };
        let unknown = numbered(reply, (seen::PACKET | seen::SYN, 1000));
        assert_eq!((unknown.next_seq, unknown.seen), (0, 0));
        // A flow that was reset stays so.
        let reset = Flow { seen: ESTABLISHED | seen::RST, ..orig };
        assert_eq!(numbered(reset, (0, 0)).seen, seen::RST);
    }

    #[test]
    fn a_flow_of_layout_4_has_the_same_seal() {
        let key = FlowKey::new(256, PROTO_TCP, Tuple { dst: [192, 0, 2, 1], ..Tuple::default() });
        let flow = Flow { zone: 3, dest: 4, kind: kind::ORIG, ..Flow::default() }.sealed(&key);
        let old =
            FlowV4 { zone: 3, dest: 4, kind: kind::ORIG, seal: flow.seal, ..FlowV4::zeroed() };
        assert!(Flow::from(&old).is_of(&key));
    }
}
