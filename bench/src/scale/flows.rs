//! Entries of an agent's conntrack table, written without packets.

use std::{net::Ipv4Addr, ops::Range, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, MapError};
use bytemuck::pod_read_unaligned;
use culvert_common::{
    abi::{EndpointInfo, Flow, FlowKey, FlowShare, Sealed as _, Tuple, kind, names, seen, zone},
    wire::ipv4::PROTO_TCP,
};

use super::maps::{Bytes, bytes, if_there, pinned};
use crate::load::flows::destination;

/// First address of the flows' destinations (RFC 2544).
const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Source port of all flows.
const SOURCE_PORT: u16 = 40_000;
/// What both sides of an established connection have sent, see [`Flow::seen`].
const ESTABLISHED: u32 = seen::PACKET | seen::SYN | seen::ACK;
/// `E2BIG` of linux/errno-base.h: the map is full.
const E2BIG: i32 = 7;

/// A container of the agent's host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowOwner {
    ip: Ipv4Addr,
    /// Interface index of the host's end of its device.
    ifindex: u32,
    vni: u32,
    /// See [`EndpointInfo::incarnation`]; 0 if its flows are in no share.
    incarnation: u32,
}

impl FlowOwner {
    /// The container as an owner whose flows count in no share.
    pub(crate) const fn without_share(self) -> Self {
        Self { incarnation: 0, ..self }
    }
}

/// The conntrack maps of one agent.
pub(crate) struct FlowMaps {
    flows: Bytes<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>,
    slots: Array<MapData, [u8; size_of::<FlowKey>()]>,
    shares: Bytes<{ size_of::<u32>() }, { size_of::<FlowShare>() }>,
    endpoints: Bytes<{ size_of::<u32>() }, { size_of::<EndpointInfo>() }>,
}

impl FlowMaps {
    /// Opens the maps that are pinned below an agent's BPF file system.
    pub(crate) fn open(bpffs: &Path) -> Result<Self> {
        Ok(Self {
            flows: Map::HashMap(pinned(bpffs, names::FLOWS)?).try_into()?,
            slots: Map::Array(pinned(bpffs, names::FLOW_SLOTS)?).try_into()?,
            shares: Map::HashMap(pinned(bpffs, names::FLOW_SHARES)?).try_into()?,
            endpoints: Map::HashMap(pinned(bpffs, names::ENDPOINTS)?).try_into()?,
        })
    }

    /// The container with the address `ip`.
    pub(crate) fn owner(&self, ip: Ipv4Addr) -> Result<FlowOwner> {
        for entry in self.endpoints.iter() {
            let (key, value) = entry.context(names::ENDPOINTS)?;
            let info: EndpointInfo = pod_read_unaligned(&value);
            if info.ipv4 == ip.octets() {
                let ifindex = u32::from_ne_bytes(key);
                let EndpointInfo { vni, incarnation, .. } = info;
                return Ok(FlowOwner { ip, ifindex, vni, incarnation });
            }
        }
        anyhow::bail!("{ip}: no container of this host has this address")
    }

    /// Writes the established TCP connections with the numbers `numbers` of a container,
    /// masqueraded with the address `host`. Each is in the slot with its number. The share of the
    /// container does not change. Returns how many there was room for.
    pub(crate) fn fill(
        &mut self,
        of: &FlowOwner,
        host: Ipv4Addr,
        numbers: Range<u32>,
    ) -> Result<u32> {
        let now = culvert::datapath::now_ns();
        let mut written = 0;
        for number in numbers {
            let Directions { key, orig, other, reply } = Directions::new(of, host, number, now);
            if !self.insert(&key, &orig)? {
                break;
            }
            if !self.insert(&other, &reply)? {
                self.remove_entry(&key)?;
                break;
            }
            self.slots.set(number, bytes(&key)?, 0).context(names::FLOW_SLOTS)?;
            written += 1;
        }
        Ok(written)
    }

    /// Removes what [`Self::fill`] has written.
    pub(crate) fn empty(
        &mut self,
        of: &FlowOwner,
        host: Ipv4Addr,
        numbers: Range<u32>,
    ) -> Result<()> {
        for number in numbers {
            let Directions { key, other, .. } = Directions::new(of, host, number, 0);
            self.remove_entry(&key)?;
            self.remove_entry(&other)?;
        }
        Ok(())
    }

    /// Removes all flows, and counts none in the share of a container.
    pub(crate) fn clear(&mut self, of: &FlowOwner) -> Result<()> {
        let keys = self.flows.keys().collect::<Result<Vec<_>, MapError>>().context(names::FLOWS)?;
        for key in keys {
            self.remove_entry(&pod_read_unaligned(&key))?;
        }
        self.set_share(of, 0)
    }

    /// Sets the number of flows in the share of a container.
    pub(crate) fn set_share(&mut self, of: &FlowOwner, flows: u32) -> Result<()> {
        let key = of.incarnation.to_ne_bytes();
        let share: FlowShare = match self.shares.get(&key, 0) {
            Ok(share) => pod_read_unaligned(&share),
            Err(MapError::KeyNotFound) => FlowShare::default(),
            Err(error) => return Err(error).context(names::FLOW_SHARES),
        };
        let share = FlowShare { flows, ..share };
        self.shares.insert(key, bytes(&share)?, 0).context(names::FLOW_SHARES)
    }

    /// Inserts an entry. Returns false if there is no room for it.
    fn insert(&mut self, key: &FlowKey, flow: &Flow) -> Result<bool> {
        match self.flows.insert(bytes(key)?, bytes(flow)?, 0) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(E2BIG) => {
                Ok(false)
            }
            Err(error) => Err(error).context(names::FLOWS),
        }
    }

    /// Removes an entry. It is no error if there is none.
    fn remove_entry(&mut self, key: &FlowKey) -> Result<()> {
        if_there(self.flows.remove(&bytes(key)?)).context(names::FLOWS)
    }
}

/// Both entries of a flow, each with its key.
struct Directions {
    key: FlowKey,
    orig: Flow,
    other: FlowKey,
    reply: Flow,
}

impl Directions {
    /// See [`FlowMaps::fill`]. `now` is the time of the last packets, in ns.
    fn new(of: &FlowOwner, host: Ipv4Addr, number: u32, now: u64) -> Self {
        let to = destination(NOBODY, number);
        let sent: Tuple = Tuple {
            src: of.ip.octets(),
            dst: to.ip().octets(),
            src_port: SOURCE_PORT.to_be_bytes(),
            dst_port: to.port().to_be_bytes(),
        };
        let key: FlowKey = FlowKey::new(of.vni, PROTO_TCP, sent);
        let both: Flow = Flow {
            kind: kind::MASQUERADE,
            seen: ESTABLISHED,
            last_seen_ns: now,
            packets: 5,
            bytes: 400,
            ..Flow::default()
        };
        let orig: Flow = Flow {
            to: Tuple { src: host.octets(), ..sent },
            zone: zone::EXTERNAL,
            from_incarnation: of.incarnation,
            kind: both.kind | kind::ORIG,
            slot: number + 1,
            ..both
        };
        let other = key.other(&orig);
        let reply: Flow = Flow {
            to: sent.reversed(),
            zone: of.vni,
            dest: of.ifindex,
            to_incarnation: of.incarnation,
            ..both
        };
        Self { key, orig: orig.sealed(&key), other, reply: reply.sealed(&other) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_entries_are_one_flow_of_the_container() {
        let of =
            FlowOwner { ip: Ipv4Addr::new(172, 17, 0, 2), ifindex: 9, vni: 256, incarnation: 77 };
        let host = Ipv4Addr::new(192, 0, 2, 1);
        let Directions { key, orig, other, reply } = Directions::new(&of, host, 70_000, 5);
        assert_eq!((key.zone, key.tuple.src, orig.to.src), (256, of.ip.octets(), host.octets()));
        assert_eq!((other, other.other(&reply)), (key.other(&orig), key));
        assert_eq!((orig.owner(), reply.owner(), orig.slot), (77, 77, 70_001));
        assert!(orig.is_of(&key) && reply.is_of(&other));
        let without = Directions::new(&of.without_share(), host, 70_000, 5);
        assert_eq!((without.key, without.other, without.orig.owner()), (key, other, 0));
    }
}
