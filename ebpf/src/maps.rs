//! The maps, and how a program reads them. Names, keys and values are described in
//! `culvert_common::abi`.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
};
use bytemuck::Pod;
use culvert_common::abi::{
    Counter, DEFAULT_FLOWS, EndpointInfo, FdbEntry, FdbKey, FloodKey, Flow, FlowKey, FlowShare,
    FragmentInfo, FragmentKey, HeardEntry, HeldFragment, LearnedEntry, MAX_BLOCKED,
    MAX_CLIENT_LINKS, MAX_DENIED, MAX_ENDPOINTS, MAX_FRAGMENTED, MAX_HEARD, MAX_HELD_FRAGMENTS,
    MAX_HOST_ADDRS, MAX_LEARNED, MAX_LOCAL_ENDPOINTS, MAX_NETWORKS, MAX_PUBLISHED, MAX_QUERIERS,
    MAX_RATES, MAX_SERVICES, MAX_SHARES, MAX_SOURCES, MAX_UPLINKS, MAX_VTEP_MEMBERSHIPS, MAX_VTEPS,
    MappedAddr, NeighEntry, NeighKey, NetworkInfo, PathMtu, PublishedEntry, PublishedKey,
    QuerierKey, RESERVED_ENTRIES, RateKey, STATS_ENTRIES, Scratch, Sealed, SealedU32, SourceKey,
    UnderlayPath, UplinkInfo, V4, VtepId, VtepKey,
};

use crate::kernel::memory::own;

#[map]
pub(crate) static ENDPOINTS: HashMap<u32, EndpointInfo> =
    HashMap::with_max_entries(MAX_LOCAL_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static NETWORKS: HashMap<u32, NetworkInfo> =
    HashMap::with_max_entries(MAX_NETWORKS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FDB: HashMap<FdbKey, FdbEntry> =
    HashMap::with_max_entries(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FDB_LEARNED: LruHashMap<FdbKey, LearnedEntry> =
    LruHashMap::with_max_entries(MAX_LEARNED, 0);
#[map]
pub(crate) static NEIGHBOURS: HashMap<NeighKey, NeighEntry> =
    HashMap::with_max_entries(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static NEIGHBOURS_HEARD: LruHashMap<NeighKey, HeardEntry> =
    LruHashMap::with_max_entries(MAX_HEARD, 0);
#[map]
pub(crate) static VTEPS: HashMap<VtepKey, u32> =
    HashMap::with_max_entries(MAX_VTEP_MEMBERSHIPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static VTEP_IDS: HashMap<MappedAddr, SealedU32> =
    HashMap::with_max_entries(MAX_VTEPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static UNDERLAY: HashMap<VtepId, UnderlayPath> =
    HashMap::with_max_entries(MAX_VTEPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static PATH_MTU: LruHashMap<VtepId, PathMtu> =
    LruHashMap::with_max_entries(MAX_VTEPS, 0);
#[map]
pub(crate) static PATH_HINTS: HashMap<VtepId, SealedU32> =
    HashMap::with_max_entries(MAX_VTEPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOOD_LOCAL: HashMap<FloodKey, SealedU32> =
    HashMap::with_max_entries(MAX_LOCAL_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOOD_REMOTE: HashMap<FloodKey, SealedU32> =
    HashMap::with_max_entries(MAX_VTEP_MEMBERSHIPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static QUERIERS: LruHashMap<QuerierKey, u64> =
    LruHashMap::with_max_entries(MAX_QUERIERS, 0);
#[map]
pub(crate) static RATES: LruHashMap<RateKey, u64> = LruHashMap::with_max_entries(MAX_RATES, 0);
#[map]
pub(crate) static GATEWAYS: HashMap<u32, SealedU32> =
    HashMap::with_max_entries(MAX_NETWORKS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOWS: HashMap<FlowKey<V4>, Flow<V4>> =
    HashMap::with_max_entries(2 * DEFAULT_FLOWS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOW_SLOTS: Array<FlowKey<V4>> = Array::with_max_entries(2 * DEFAULT_FLOWS, 0);
#[map]
pub(crate) static FLOW_SHARES: HashMap<u32, FlowShare> =
    HashMap::with_max_entries(MAX_SHARES, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static PUBLISHED: HashMap<PublishedKey, PublishedEntry> =
    HashMap::with_max_entries(MAX_PUBLISHED, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static BLOCKED: HashMap<PublishedKey, SealedU32> =
    HashMap::with_max_entries(MAX_BLOCKED, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static HOST_ADDRS: HashMap<MappedAddr, u32> =
    HashMap::with_max_entries(MAX_HOST_ADDRS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static UPLINKS: HashMap<u32, UplinkInfo> =
    HashMap::with_max_entries(MAX_UPLINKS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static CLIENT_LINKS: HashMap<u32, u32> =
    HashMap::with_max_entries(MAX_CLIENT_LINKS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SERVICES: LpmTrie<[u8; 4], u32> =
    LpmTrie::with_max_entries(MAX_SERVICES, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static DENIED: LpmTrie<MappedAddr, u32> =
    LpmTrie::with_max_entries(MAX_DENIED, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SOURCES: LpmTrie<SourceKey, u32> =
    LpmTrie::with_max_entries(MAX_SOURCES, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static RESERVED_PORTS: Array<u64> = Array::with_max_entries(RESERVED_ENTRIES, 0);
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey<V4>, FragmentInfo> =
    LruHashMap::with_max_entries(MAX_FRAGMENTED, 0);
#[map]
pub(crate) static HELD_FRAGMENTS: LruHashMap<FragmentKey<V4>, HeldFragment> =
    LruHashMap::with_max_entries(MAX_HELD_FRAGMENTS, 0);
#[map]
pub(crate) static EPOCH: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static STATS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(STATS_ENTRIES, 0);
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// A hash map, with or without LRU eviction.
pub(crate) trait Table<K, V> {
    /// The address of the value of `key`; `None` if the map does not have the key. The memory stays
    /// mapped until the program ends, but the kernel may reuse it for another key at any time.
    fn find(&self, key: &K) -> Option<*const V>;
}

impl<K, V> Table<K, V> for HashMap<K, V> {
    #[inline(always)]
    fn find(&self, key: &K) -> Option<*const V> {
        self.get_ptr(key)
    }
}

impl<K, V> Table<K, V> for LruHashMap<K, V> {
    #[inline(always)]
    fn find(&self, key: &K) -> Option<*const V> {
        self.get_ptr(key)
    }
}

/// Copies a value word by word. The compiler would split one volatile read of the whole value into
/// single bytes on the stack. The copy is consistent only if its seal matches ([`Sealed::is_of`]).
#[inline(always)]
pub(crate) fn copy<V: Pod>(from: *const V, to: *mut V) {
    // The size of a type is a multiple of its alignment, so the words cover the whole value.
    const { assert!(align_of::<V>() >= 4) };
    // Words of 8 bytes only where `to` is aligned to 8 bytes: the verifier demands aligned access
    // to the stack.
    if const { align_of::<V>() >= 8 } {
        words::<V, u64>(from, to);
    } else {
        words::<V, u32>(from, to);
    }
}

/// [`copy`] in words of the type `W`.
#[inline(always)]
fn words<V: Pod, W: Pod>(from: *const V, to: *mut V) {
    let to = to.cast::<W>();
    for word in 0..size_of::<V>() / size_of::<W>() {
        // SAFETY: the memory of a map's value stays mapped until the program ends (RCU), and is
        // aligned to 8 bytes; `copy` has checked the alignment of `to`. The loop stays within the
        // size of `V`, and any bytes are a valid `V` (`Pod`).
        unsafe { to.add(word).write(from.cast::<W>().add(word).read_volatile()) };
    }
}

/// Copies the value of `key` to `to` and checks its seal. Returns `false` if the map does not have
/// the key, or if the seal does not match.
///
/// A program never holds a reference to a value: the kernel may reuse the memory of a removed
/// element for another key while the program reads it (`culvert_common::abi::Sealed`).
#[inline(always)]
pub(crate) fn read_to<K, V: Sealed<K>>(map: &impl Table<K, V>, key: &K, to: &mut V) -> bool {
    let Some(value) = map.find(key) else { return false };
    copy(value, to);
    // `black_box` makes the compiler read the words again from `to`. Otherwise it keeps them in
    // registers, and spills them to the stack.
    core::hint::black_box(&mut *to).is_of(key)
}

/// [`read_to`] for the maps whose entries the agent updates while packets flow. An update inserts a
/// new element before it removes the old one, so a value whose seal does not match is read once
/// more.
#[inline(always)]
pub(crate) fn read_updated<K, V: Sealed<K>>(map: &impl Table<K, V>, key: &K, to: &mut V) -> bool {
    read_to(map, key, to) || read_to(map, key, to)
}

/// Returns a copy of the value of `key`. `None` if the map does not have the key, or if the seal
/// does not match. See [`read_to`].
#[inline(always)]
pub(crate) fn read<K, V: Sealed<K>>(map: &impl Table<K, V>, key: &K) -> Option<V> {
    let from = map.find(key)?;
    // Not zeroed: the compiler would make a call of `memset` for that.
    let mut value = MaybeUninit::<V>::uninit();
    copy(from, value.as_mut_ptr());
    // SAFETY: `copy` writes all words of the value, and any bytes are a valid `V` (`Pod`).
    let value = core::hint::black_box(unsafe { value.assume_init_ref() });
    value.is_of(key).then_some(*value)
}

/// Whether the map has the key. The value is not read.
#[inline(always)]
pub(crate) fn has<K, V: Pod>(map: &impl Table<K, V>, key: &K) -> bool {
    map.find(key).is_some()
}

/// This CPU's copies of map values. They are not on the BPF stack, which has only 512 bytes.
struct ValueCopies {
    ep: EndpointInfo,
    net: NetworkInfo,
    path: UnderlayPath,
}

#[map]
static VALUES: PerCpuArray<ValueCopies> = PerCpuArray::with_max_entries(1, 0);

/// The endpoint behind the host-side interface `ifindex`: a copy that is valid until the next call
/// of this function on this CPU.
#[inline(always)]
pub(crate) fn endpoint(ifindex: u32) -> Option<&'static EndpointInfo> {
    let ValueCopies { ep, .. } = own(&VALUES, 0)?;
    if read_endpoint(ifindex, ep) == 0 { None } else { Some(ep) }
}

/// Copies an endpoint. Returns 1, or 0 if there is none. A BPF function of its own: it is
/// called from many places.
#[inline(never)]
pub(crate) fn read_endpoint(ifindex: u32, to: &mut EndpointInfo) -> u32 {
    read_updated(&ENDPOINTS, &ifindex, to).into()
}

/// The network `vni`: a copy that is valid until the next call of this function on this CPU.
#[inline(always)]
pub(crate) fn network(vni: u32) -> Option<&'static NetworkInfo> {
    let ValueCopies { net, .. } = own(&VALUES, 0)?;
    if read_network(vni, net) == 0 { None } else { Some(net) }
}

/// Copies a network. Returns 1, or 0 if there is none. A BPF function of its own: it is
/// called from many places.
#[inline(never)]
pub(crate) fn read_network(vni: u32, to: &mut NetworkInfo) -> u32 {
    read_updated(&NETWORKS, &vni, to).into()
}

/// The path to a VTEP: a copy that is valid until the next call of this function on this CPU.
#[inline(always)]
pub(crate) fn underlay(vtep: VtepId) -> Option<&'static UnderlayPath> {
    let ValueCopies { path, .. } = own(&VALUES, 0)?;
    if read_underlay(vtep, path) == 0 { None } else { Some(path) }
}

/// Copies the path to a VTEP. Returns 1, or 0 if there is none. A BPF function of its own: it
/// is called from many places.
#[inline(never)]
fn read_underlay(vtep: VtepId, to: &mut UnderlayPath) -> u32 {
    read_updated(&UNDERLAY, &vtep, to).into()
}

/// The VXLAN port of a VTEP to which there is a path.
#[inline(always)]
pub(crate) fn vxlan_port(vtep: VtepId) -> Option<u16> {
    let path = UNDERLAY.get_ptr(vtep)?;
    // SAFETY: the memory of a map's value stays mapped until the program ends (RCU). If the entry
    // is removed now, the memory may have the port of another VTEP: one packet is then compared
    // with that port.
    Some(unsafe { (&raw const (*path).port).read_volatile() })
}

/// Whether `ip` is an address of the host.
#[inline(always)]
pub(crate) fn is_host_addr(ip: [u8; 4]) -> bool {
    has(&HOST_ADDRS, &MappedAddr::v4(ip))
}

/// Whether the interface is an uplink.
#[inline(always)]
pub(crate) fn is_uplink(ifindex: u32) -> bool {
    has(&UPLINKS, &ifindex)
}

/// Whether the interface is a client link.
#[inline(always)]
pub(crate) fn is_client_link(ifindex: u32) -> bool {
    has(&CLIENT_LINKS, &ifindex)
}

/// Whether `ip` is the address of a service, which the host's netfilter translates.
#[inline(always)]
pub(crate) fn is_service(ip: [u8; 4]) -> bool {
    SERVICES.get(Key::new(32, ip)).is_some()
}

/// Whether clients with the address `ip` are denied all published ports.
#[inline(always)]
pub(crate) fn is_denied(ip: [u8; 4]) -> bool {
    DENIED.get(Key::new(MappedAddr::BITS, MappedAddr::v4(ip))).is_some()
}

/// Whether clients with the address `ip` may use the restricted ports of the container behind
/// `ifindex`.
#[inline(always)]
pub(crate) fn is_source(ifindex: u32, ip: [u8; 4]) -> bool {
    let key = SourceKey { ifindex, addr: MappedAddr::v4(ip) };
    SOURCES.get(Key::new(SourceKey::BITS, key)).is_some()
}

/// The flags of an uplink; 0 if the interface is none.
#[inline(always)]
pub(crate) fn uplink_flags(ifindex: u32) -> u16 {
    let Some(info) = UPLINKS.find(&ifindex) else { return 0 };
    // SAFETY: `find` returned the address of a value of this map, which stays memory of the map
    // while the program runs. The kernel may reuse it for another uplink, but the flags are the same
    // for all uplinks.
    unsafe { (&raw const (*info).flags).read_volatile() }
}

/// Whether another socket of the host has the VXLAN port on this uplink.
#[inline(always)]
pub(crate) fn shares_port(ifindex: u32) -> bool {
    uplink_flags(ifindex) & UplinkInfo::SHARED_PORT != 0
}

/// The number of the VTEP with the address `ip`; [`VtepId::NONE`] if there is none.
#[inline(always)]
pub(crate) fn vtep_id(ip: [u8; 4]) -> VtepId {
    match read(&VTEP_IDS, &MappedAddr::v4(ip)) {
        Some(SealedU32 { value, .. }) => VtepId(value),
        None => VtepId::NONE,
    }
}
