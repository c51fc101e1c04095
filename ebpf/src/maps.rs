//! The maps and the load-time globals. What they hold is described in
//! `culvert_common::abi`.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue},
};
use culvert_common::abi::{
    Counter, DEFAULT_FLOWS, EndpointInfo, Evictable, FdbEntry, FdbKey, FloodKey, Flow, FlowKey,
    FragmentInfo, FragmentKey, HeldFragment, LearnedEntry, MAX_ENDPOINTS, MAX_EVICTABLE,
    MAX_FRAGMENTED, MAX_HELD_FRAGMENTS, MAX_HOST_ADDRS, MAX_LEARNED, MAX_LOCAL_ENDPOINTS,
    MAX_NETWORKS, MAX_PUBLISHED, MAX_RATES, MAX_UPLINKS, MAX_VTEP_MEMBERSHIPS, MAX_VTEPS,
    NeighEntry, NeighKey, NetworkInfo, PathMtu, PublishedEntry, PublishedKey, RESERVED_ENTRIES,
    RateKey, STATS_ENTRIES, Scratch, UnderlayPath, VtepInfo, VtepKey,
};

/// Our VTEP address, four bytes in network order.
#[unsafe(no_mangle)]
pub(crate) static VTEP_IP: Global<u32> = Global::new(0);
/// UDP port on which we receive VXLAN, host order.
#[unsafe(no_mangle)]
pub(crate) static VXLAN_PORT: Global<u16> = Global::new(4789);
/// Age in ns after which a learned entry is no longer used.
#[unsafe(no_mangle)]
pub(crate) static AGEING_NS: Global<u64> = Global::new(300_000_000_000);

/// Least and greatest port that masquerading chooses.
#[unsafe(no_mangle)]
pub(crate) static NAT_PORT_MIN: Global<u16> = Global::new(1024);
/// See [`NAT_PORT_MIN`].
#[unsafe(no_mangle)]
pub(crate) static NAT_PORT_MAX: Global<u16> = Global::new(65535);
/// Not 0: trace lines are written.
#[unsafe(no_mangle)]
pub(crate) static TRACING: Global<u8> = Global::new(0);
/// Interface index of the loopback device.
#[unsafe(no_mangle)]
pub(crate) static LOOPBACK: Global<u32> = Global::new(1);

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
pub(crate) static VTEPS: HashMap<VtepKey, VtepInfo> =
    HashMap::with_max_entries(MAX_VTEP_MEMBERSHIPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static UNDERLAY: HashMap<[u8; 4], UnderlayPath> =
    HashMap::with_max_entries(MAX_VTEPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static PATH_MTU: LruHashMap<[u8; 4], PathMtu> =
    LruHashMap::with_max_entries(MAX_VTEPS, 0);
#[map]
pub(crate) static FLOOD_LOCAL: HashMap<FloodKey, u32> =
    HashMap::with_max_entries(MAX_LOCAL_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOOD_REMOTE: HashMap<FloodKey, [u8; 4]> =
    HashMap::with_max_entries(MAX_VTEP_MEMBERSHIPS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static RATES: LruHashMap<RateKey, u64> = LruHashMap::with_max_entries(MAX_RATES, 0);
#[map]
pub(crate) static GATEWAYS: HashMap<u32, u32> =
    HashMap::with_max_entries(MAX_NETWORKS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow> =
    HashMap::with_max_entries(2 * DEFAULT_FLOWS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static EVICTABLE: Queue<Evictable> = Queue::with_max_entries(MAX_EVICTABLE, 0);
#[map]
pub(crate) static PUBLISHED: HashMap<PublishedKey, PublishedEntry> =
    HashMap::with_max_entries(MAX_PUBLISHED, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static HOST_ADDRS: HashMap<[u8; 4], u32> =
    HashMap::with_max_entries(MAX_HOST_ADDRS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static UPLINKS: HashMap<u32, u32> =
    HashMap::with_max_entries(MAX_UPLINKS, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static RESERVED_PORTS: Array<u64> = Array::with_max_entries(RESERVED_ENTRIES, 0);
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentInfo> =
    LruHashMap::with_max_entries(MAX_FRAGMENTED, 0);
#[map]
pub(crate) static HELD_FRAGMENTS: LruHashMap<FragmentKey, HeldFragment> =
    LruHashMap::with_max_entries(MAX_HELD_FRAGMENTS, 0);
#[map]
pub(crate) static GENERATION: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static STATS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(STATS_ENTRIES, 0);
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's entry of a per-CPU array that is the programs' own: not pinned, never
/// written from outside. `T` must be valid as zeroes, which is what it holds at first, and
/// nobody asks for an entry whose last reference is still in use.
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the map is a name for the kernel, not the memory")]
pub(crate) fn own<T>(map: &'static PerCpuArray<T>, index: u32) -> Option<&'static mut T> {
    let entry = map.get_ptr_mut(index)?;
    // SAFETY: the entry is this CPU's own, and no other program of this CPU runs until
    // this one returns. It holds zeroes or what the programs have put there.
    Some(unsafe { &mut *entry })
}

/// Looks a key up in one of the hash maps.
///
/// The maps that the agent writes are made with `BPF_F_NO_PREALLOC`: an entry
/// that it removes stays readable until the end of the RCU grace period, so
/// the reference is good for the rest of the program run. Of the LRU maps the
/// programs read scalars whose mixing up costs at worst one misjudged packet.
macro_rules! lookup {
    ($map:ident, $key:expr) => {{
        // SAFETY: the entry outlives the program run (RCU), see above.
        unsafe { $map.get($key) }
    }};
}
pub(crate) use lookup;
