//! Conversion between the agent's keys and values and the bytes in the maps.

use std::marker::PhantomData;

use bytemuck::Pod;
use culvert_common::{
    abi::{self, FdbKey, FloodKey, NeighKey, Sealed, SealedU32, VtepId},
    datapath::encap,
    wire::{EthHdr, ethernet::ETH_P_IP},
};

use super::{
    DatapathError,
    entry::{FdbEntry, LearnedEntry, NeighEntry, PathMtu, UnderlayPath, VtepInfo, VtepKey},
    vtep_ids::VtepIds,
};

/// Conversion of the entries of one map.
pub trait MapLayout: Send + Sync + 'static {
    /// Key in the agent.
    type Key: Copy + Ord + Send;
    /// Value in the agent.
    type Value: Copy + Send;
    /// Key in the map.
    type RawKey: Pod + Send;
    /// Value in the map.
    type RawValue: Pod + Send;

    /// The key in the map. A VTEP without a number gets one.
    ///
    /// # Errors
    ///
    /// If a number cannot be given.
    fn key(ids: &VtepIds, key: &Self::Key) -> Result<Self::RawKey, DatapathError>;

    /// The value in the map, under `raw_key`. A VTEP without a number gets one.
    ///
    /// # Errors
    ///
    /// If a number cannot be given.
    fn value(
        ids: &VtepIds,
        raw_key: &Self::RawKey,
        value: &Self::Value,
    ) -> Result<Self::RawValue, DatapathError>;

    /// The agent's form of an entry in the map. An entry with a wrong seal becomes an entry that
    /// is in no desired state, so that the reconciler replaces or removes it.
    fn entry(ids: &VtepIds, key: &Self::RawKey, value: &Self::RawValue)
    -> (Self::Key, Self::Value);
}

/// A map whose keys and values have the same form in the agent.
#[derive(Debug)]
pub struct Plain<K, V>(PhantomData<fn() -> (K, V)>);

impl<K: Pod + Ord + Send, V: Pod + Send> MapLayout for Plain<K, V> {
    type Key = K;
    type Value = V;
    type RawKey = K;
    type RawValue = V;

    fn key(_: &VtepIds, key: &K) -> Result<K, DatapathError> {
        Ok(*key)
    }

    fn value(_: &VtepIds, _: &K, value: &V) -> Result<V, DatapathError> {
        Ok(*value)
    }

    fn entry(_: &VtepIds, key: &K, value: &V) -> (K, V) {
        (*key, *value)
    }
}

/// A value whose seal the agent leaves at 0.
pub trait Unsealed<K>: Sealed<K> {
    /// The value with the seal `seal`.
    fn with_seal(self, seal: u32) -> Self;
}

macro_rules! unsealed {
    ($($value:ty, $key:ty);+ $(;)?) => {
        $(impl Unsealed<$key> for $value {
            fn with_seal(self, seal: u32) -> Self {
                Self { seal, ..self }
            }
        })+
    };
}

unsealed! {
    abi::EndpointInfo, u32;
    abi::NetworkInfo, u32;
    abi::PublishedEntry, abi::PublishedKey;
    abi::HeardEntry, NeighKey;
}

/// A value with a seal in the map, and a seal of 0 in the agent.
#[derive(Debug)]
pub struct WithSeal<K, V>(PhantomData<fn() -> (K, V)>);

impl<K: Pod + Ord + Send, V: Unsealed<K> + Send> MapLayout for WithSeal<K, V> {
    type Key = K;
    type Value = V;
    type RawKey = K;
    type RawValue = V;

    fn key(_: &VtepIds, key: &K) -> Result<K, DatapathError> {
        Ok(*key)
    }

    fn value(_: &VtepIds, key: &K, value: &V) -> Result<V, DatapathError> {
        Ok(value.sealed(key))
    }

    fn entry(_: &VtepIds, key: &K, value: &V) -> (K, V) {
        let seal = if value.is_of(key) { 0 } else { 1 };
        (*key, value.with_seal(seal))
    }
}

/// A number with a seal in the map.
#[derive(Debug)]
pub struct Number<K>(PhantomData<fn() -> K>);

impl<K: Pod + Ord + Send> MapLayout for Number<K>
where
    SealedU32: Sealed<K>,
{
    type Key = K;
    type Value = u32;
    type RawKey = K;
    type RawValue = SealedU32;

    fn key(_: &VtepIds, key: &K) -> Result<K, DatapathError> {
        Ok(*key)
    }

    fn value(_: &VtepIds, key: &K, value: &u32) -> Result<SealedU32, DatapathError> {
        Ok(SealedU32::new(key, *value))
    }

    fn entry(_: &VtepIds, key: &K, value: &SealedU32) -> (K, u32) {
        (*key, if value.is_of(key) { value.value } else { u32::MAX })
    }
}

/// An address that no VTEP has, in no desired state.
const NOWHERE: [u8; 4] = [0xff; 4];

/// `FLOOD_REMOTE`: slot → VTEP.
#[derive(Debug)]
pub struct FloodRemote;

impl MapLayout for FloodRemote {
    type Key = FloodKey;
    type Value = [u8; 4];
    type RawKey = FloodKey;
    type RawValue = SealedU32;

    fn key(_: &VtepIds, key: &FloodKey) -> Result<FloodKey, DatapathError> {
        Ok(*key)
    }

    fn value(ids: &VtepIds, key: &FloodKey, value: &[u8; 4]) -> Result<SealedU32, DatapathError> {
        Ok(SealedU32::new(key, ids.give(*value)?.0))
    }

    fn entry(ids: &VtepIds, key: &FloodKey, value: &SealedU32) -> (FloodKey, [u8; 4]) {
        (*key, if value.is_of(key) { ids.octets(VtepId(value.value)) } else { NOWHERE })
    }
}

/// `FDB`.
#[derive(Debug)]
pub struct Fdb;

impl MapLayout for Fdb {
    type Key = FdbKey;
    type Value = FdbEntry;
    type RawKey = FdbKey;
    type RawValue = abi::FdbEntry;

    fn key(_: &VtepIds, key: &FdbKey) -> Result<FdbKey, DatapathError> {
        Ok(*key)
    }

    fn value(
        ids: &VtepIds,
        key: &FdbKey,
        value: &FdbEntry,
    ) -> Result<abi::FdbEntry, DatapathError> {
        let vtep = ids.give(value.vtep)?;
        Ok(abi::FdbEntry { ifindex: value.ifindex, vtep, seal: 0 }.sealed(key))
    }

    fn entry(ids: &VtepIds, key: &FdbKey, value: &abi::FdbEntry) -> (FdbKey, FdbEntry) {
        let vtep = if value.is_of(key) { ids.octets(value.vtep) } else { NOWHERE };
        (*key, FdbEntry { ifindex: value.ifindex, vtep })
    }
}

/// `FDB_LEARNED`.
#[derive(Debug)]
pub struct FdbLearned;

impl MapLayout for FdbLearned {
    type Key = FdbKey;
    type Value = LearnedEntry;
    type RawKey = FdbKey;
    type RawValue = abi::LearnedEntry;

    fn key(_: &VtepIds, key: &FdbKey) -> Result<FdbKey, DatapathError> {
        Ok(*key)
    }

    fn value(
        ids: &VtepIds,
        key: &FdbKey,
        value: &LearnedEntry,
    ) -> Result<abi::LearnedEntry, DatapathError> {
        let &LearnedEntry { last_seen_ns, ifindex, vtep } = value;
        let vtep = ids.give(vtep)?;
        Ok(abi::LearnedEntry { last_seen_ns, ifindex, vtep, seal: 0, pad: 0 }.sealed(key))
    }

    fn entry(ids: &VtepIds, key: &FdbKey, value: &abi::LearnedEntry) -> (FdbKey, LearnedEntry) {
        let vtep = if value.is_of(key) { ids.octets(value.vtep) } else { NOWHERE };
        let &abi::LearnedEntry { last_seen_ns, ifindex, .. } = value;
        (*key, LearnedEntry { last_seen_ns, vtep, ifindex })
    }
}

/// `NEIGHBOURS`.
#[derive(Debug)]
pub struct Neighbours;

impl MapLayout for Neighbours {
    type Key = NeighKey;
    type Value = NeighEntry;
    type RawKey = NeighKey;
    type RawValue = abi::NeighEntry;

    fn key(_: &VtepIds, key: &NeighKey) -> Result<NeighKey, DatapathError> {
        Ok(*key)
    }

    fn value(
        _: &VtepIds,
        key: &NeighKey,
        value: &NeighEntry,
    ) -> Result<abi::NeighEntry, DatapathError> {
        Ok(abi::NeighEntry { mac: value.mac, ..abi::NeighEntry::default() }.sealed(key))
    }

    fn entry(_: &VtepIds, key: &NeighKey, value: &abi::NeighEntry) -> (NeighKey, NeighEntry) {
        // No endpoint has a group address: the entry is in no desired state.
        (*key, NeighEntry { mac: if value.is_of(key) { value.mac } else { [0xff; 6] } })
    }
}

/// `VTEPS`.
#[derive(Debug)]
pub struct Vteps;

impl MapLayout for Vteps {
    type Key = VtepKey;
    type Value = VtepInfo;
    type RawKey = abi::VtepKey;
    type RawValue = u32;

    fn key(ids: &VtepIds, key: &VtepKey) -> Result<abi::VtepKey, DatapathError> {
        Ok(abi::VtepKey { vni: key.vni, vtep: ids.give(key.ip)? })
    }

    fn value(_: &VtepIds, _: &abi::VtepKey, value: &VtepInfo) -> Result<u32, DatapathError> {
        Ok(value.foreign)
    }

    fn entry(ids: &VtepIds, key: &abi::VtepKey, value: &u32) -> (VtepKey, VtepInfo) {
        (VtepKey { vni: key.vni, ip: ids.octets(key.vtep) }, VtepInfo { foreign: *value })
    }
}

/// `PATH_MTU`.
#[derive(Debug)]
pub struct PathMtus;

impl MapLayout for PathMtus {
    type Key = [u8; 4];
    type Value = PathMtu;
    type RawKey = VtepId;
    type RawValue = abi::PathMtu;

    fn key(ids: &VtepIds, key: &[u8; 4]) -> Result<VtepId, DatapathError> {
        ids.give(*key)
    }

    fn value(_: &VtepIds, key: &VtepId, value: &PathMtu) -> Result<abi::PathMtu, DatapathError> {
        let &PathMtu { expires_ns, inner_mtu } = value;
        Ok(abi::PathMtu { expires_ns, inner_mtu, seal: 0 }.sealed(key))
    }

    fn entry(ids: &VtepIds, key: &VtepId, value: &abi::PathMtu) -> ([u8; 4], PathMtu) {
        // The programs do not use an entry with a wrong seal.
        let expires_ns = if value.is_of(key) { value.expires_ns } else { 0 };
        (ids.octets(*key), PathMtu { expires_ns, inner_mtu: value.inner_mtu })
    }
}

/// `PATH_HINTS`.
#[derive(Debug)]
pub struct PathHints;

impl MapLayout for PathHints {
    type Key = [u8; 4];
    type Value = u32;
    type RawKey = VtepId;
    type RawValue = SealedU32;

    fn key(ids: &VtepIds, key: &[u8; 4]) -> Result<VtepId, DatapathError> {
        ids.give(*key)
    }

    fn value(_: &VtepIds, key: &VtepId, value: &u32) -> Result<SealedU32, DatapathError> {
        Ok(SealedU32::new(key, *value))
    }

    fn entry(ids: &VtepIds, key: &VtepId, value: &SealedU32) -> ([u8; 4], u32) {
        // A hint of so large a packet is none.
        (ids.octets(*key), if value.is_of(key) { value.value } else { u32::MAX })
    }
}

/// `UNDERLAY`.
#[derive(Debug)]
pub struct Underlay;

impl Underlay {
    /// The path in the map, with the header template towards the VTEP.
    fn raw(ids: &VtepIds, key: VtepId, path: &UnderlayPath) -> abi::UnderlayPath {
        let &UnderlayPath { ifindex, next_hop, port, inner_mtu, next_hop_mac, uplink_mac } = path;
        let eth = EthHdr::new(next_hop_mac, uplink_mac, ETH_P_IP);
        let own = ids.own().octets();
        abi::UnderlayPath {
            template: encap::ipv4_template(eth, own, ids.octets(key), port),
            next_hop: abi::UnderlayPath::next_hop_v4(next_hop),
            ifindex,
            family: abi::UnderlayPath::AF_INET,
            port,
            inner_mtu,
            header_len: HEADER_LEN,
            link_len: LINK_LEN,
            seal: 0,
        }
        .sealed(&key)
    }
}

/// Bytes of an Ethernet header.
const LINK_LEN: u8 = EthHdr::LEN as u8;
/// Bytes of Ethernet, IPv4, UDP and VXLAN header.
const HEADER_LEN: u8 = LINK_LEN + encap::OuterHeader::LEN as u8;

impl MapLayout for Underlay {
    type Key = [u8; 4];
    type Value = UnderlayPath;
    type RawKey = VtepId;
    type RawValue = abi::UnderlayPath;

    fn key(ids: &VtepIds, key: &[u8; 4]) -> Result<VtepId, DatapathError> {
        ids.give(*key)
    }

    fn value(
        ids: &VtepIds,
        key: &VtepId,
        value: &UnderlayPath,
    ) -> Result<abi::UnderlayPath, DatapathError> {
        Ok(Self::raw(ids, *key, value))
    }

    fn entry(ids: &VtepIds, key: &VtepId, value: &abi::UnderlayPath) -> ([u8; 4], UnderlayPath) {
        let [a, b, c, d, ..] = value.next_hop;
        let mut path = UnderlayPath {
            ifindex: value.ifindex,
            next_hop: [a, b, c, d],
            port: value.port,
            inner_mtu: value.inner_mtu,
            next_hop_mac: value.template.eth.dst,
            uplink_mac: value.template.eth.src,
        };
        if Self::raw(ids, *key, &path) != *value {
            path.ifindex = u32::MAX;
        }
        (ids.octets(*key), path)
    }
}
