//! Convergence from any state to any state, step by step.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use crate::datapath::{
    Found, Prefix,
    entry::{FdbEntry, NeighEntry, UnderlayPath, VtepInfo, VtepKey},
};
use culvert_common::abi::{EndpointInfo, FdbKey, FloodKey, NeighKey, NetworkInfo};
use proptest::{collection::vec, prelude::*};

use super::*;

/// The maps, in memory. Asserts consistency after every step, and fails one step on request.
#[derive(Default)]
struct Maps {
    tables: RefCell<Tables>,
    steps: RefCell<usize>,
    fail_at: Option<usize>,
    /// The first state of the test was consistent, so that every state after it must be, too.
    check: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

impl Kernel for Maps {
    type Error = Refused;

    fn dump(&self) -> Result<Tables, Refused> {
        Ok(self.tables.borrow().clone())
    }

    fn apply(&self, op: &Op) -> Result<(), Refused> {
        let step = self.steps.replace_with(|steps| *steps + 1);
        if self.fail_at == Some(step) {
            return Err(Refused);
        }
        op.apply_to(&mut self.tables.borrow_mut());
        if self.check {
            assert_consistent(&self.tables.borrow(), op);
        }
        Ok(())
    }
}

/// Asserts the consistency that a frame relies on at any time.
fn assert_consistent(tables: &Tables, after: &Op) {
    for (vni, info) in &tables.networks {
        for index in 0..info.local_endpoints {
            assert!(
                tables.flood_local.contains_key(&FloodKey { vni: *vni, index }),
                "after {after}: local flood list of {vni} has a hole at {index}"
            );
        }
        for index in 0..info.remote_vteps {
            let vtep = tables.flood_remote.get(&FloodKey { vni: *vni, index });
            let vtep = vtep.unwrap_or_else(|| {
                panic!("after {after}: remote flood list of {vni} has a hole at {index}")
            });
            assert!(
                tables.vteps.contains_key(&VtepKey { vni: *vni, ip: *vtep }),
                "after {after}: {vni} floods to a VTEP that may not answer"
            );
        }
    }
    for info in tables.endpoints.values() {
        assert!(
            tables.networks.contains_key(&info.vni),
            "after {after}: an endpoint without network"
        );
    }
    for (key, entry) in &tables.fdb {
        assert!(
            entry.ifindex != 0
                || tables.vteps.contains_key(&VtepKey { vni: key.vni, ip: entry.vtep }),
            "after {after}: the FDB names a VTEP that is not a member"
        );
    }
}

const VNIS: [u32; 3] = [256, 257, 258];

fn path(ip: u8) -> UnderlayPath {
    UnderlayPath {
        ifindex: 2,
        next_hop: [192, 0, 2, ip],
        port: 4789,
        inner_mtu: 1450,
        next_hop_mac: [2; 6],
        uplink_mac: [4; 6],
    }
}

fn all_paths() -> BTreeMap<[u8; 4], UnderlayPath> {
    // VTEP 5 has no route.
    (0..5).map(|ip| ([192, 0, 2, ip], path(ip))).collect()
}

prop_compose! {
    /// A network with up to 6 endpoints here, each on an interface that another network
    /// may have had, and up to 6 on each of up to 6 VTEPs.
    fn network(vni: u32)(
        mtu in 1400..1500u16,
        local in vec((1..12u32, 0..40u8), 0..6),
        remote in vec((0..6u8, 40..80u8), 0..6),
        foreign in vec(0..6u8, 0..2),
    ) -> NetworkState {
        let info = |mac: u8| EndpointInfo {
            vni, flags: 0, mac: [2, 0, 0, 0, 0, mac], mtu, ipv4: [10, 0, 0, mac],
            incarnation: 1, ..EndpointInfo::NONE
        };
        let mut state = NetworkState {
            vni, flags: 0,
            endpoints: local.iter().map(|(ifindex, mac)| (*ifindex, info(*mac))).collect(),
            fdb: BTreeMap::new(), neighbours: BTreeMap::new(), vteps: BTreeMap::new(),
            gateway: None, published: BTreeMap::new(), sources: BTreeSet::new(),
        };
        for (ifindex, mac) in &local {
            let key = FdbKey::new(vni, [2, 0, 0, 0, 0, *mac]);
            state.fdb.insert(key, FdbEntry { ifindex: *ifindex, vtep: [0; 4] });
        }
        for (ifindex, mac) in &local {
            let clients = ipnetwork::Ipv4Network::new([192, 0, 2, *mac].into(), 24 + mac % 9);
            state.sources.insert(Prefix::of_clients(*ifindex, clients.unwrap()));
        }
        for (vtep, mac) in &remote {
            let vtep = [192, 0, 2, *vtep];
            let key = FdbKey::new(vni, [2, 0, 0, 0, 0, *mac]);
            state.fdb.insert(key, FdbEntry { ifindex: 0, vtep });
            state.vteps.insert(vtep, VtepInfo { foreign: 0 });
        }
        for vtep in &foreign {
            state.vteps.entry([192, 0, 2, *vtep]).or_insert(VtepInfo { foreign: 1 });
        }
        for key in state.fdb.keys() {
            let neighbour = NeighEntry { mac: key.mac };
            state.neighbours.insert(NeighKey::v4(vni, [10, 0, 0, key.mac[5]]), neighbour);
        }
        state
    }
}

/// The networks of a host. An interface belongs to one network only.
fn host() -> impl Strategy<Value = BTreeMap<u32, NetworkState>> {
    let optional = |vni| proptest::option::of(network(vni));
    (optional(VNIS[0]), optional(VNIS[1]), optional(VNIS[2])).prop_map(|(a, b, c)| {
        let mut taken = BTreeSet::new();
        let mut networks = BTreeMap::new();
        for mut network in [a, b, c].into_iter().flatten() {
            network.endpoints.retain(|ifindex, _| taken.insert(*ifindex));
            let interfaces: BTreeSet<u32> = network.endpoints.keys().copied().collect();
            network
                .fdb
                .retain(|_, entry| entry.ifindex == 0 || interfaces.contains(&entry.ifindex));
            network.sources.retain(|source| interfaces.contains(&source.key.ifindex));
            networks.insert(network.vni, network);
        }
        networks
    })
}

/// Arbitrary contents, as a crash, another program or an older agent may leave.
fn strays() -> impl Strategy<Value = Tables> {
    let vni = || proptest::sample::select(vec![256u32, 257, 999]);
    let slot = move || (vni(), 0..9u32);
    (
        vec((1..12u32, vni()), 0..8),
        vec((vni(), 0..9u32, 0..9u32), 0..4),
        vec((vni(), 0..80u8, 0..3u32), 0..8),
        vec((vni(), 0..9u8), 0..8),
        vec((slot(), 1..12u32), 0..8),
        vec((slot(), 0..9u8), 0..8),
        vec(0..9u8, 0..4),
    )
        .prop_map(|(endpoints, networks, fdb, vteps, local, remote, underlay)| {
            let mut tables = Tables::default();
            for (ifindex, vni) in endpoints {
                let info = EndpointInfo { vni, mtu: 9, ..bytemuck::Zeroable::zeroed() };
                tables.endpoints.insert(ifindex, info);
                let clients = "192.0.2.0/30".parse().unwrap();
                tables.sources.insert(Prefix::of_clients(ifindex, clients), vni);
            }
            for (vni, local_endpoints, remote_vteps) in networks {
                let info = NetworkInfo {
                    flags: 1,
                    local_endpoints,
                    remote_vteps,
                    ..bytemuck::Zeroable::zeroed()
                };
                tables.networks.insert(vni, info);
            }
            for (vni, mac, ifindex) in fdb {
                let key = FdbKey::new(vni, [2, 0, 0, 0, 0, mac]);
                tables.fdb.insert(key, FdbEntry { ifindex, vtep: [9; 4] });
                let neighbour = NeighEntry { mac: [9; 6] };
                tables.neighbours.insert(NeighKey::v4(vni, [10, 0, 0, mac]), neighbour);
            }
            for (vni, ip) in vteps {
                let key = VtepKey { vni, ip: [192, 0, 2, ip] };
                tables.vteps.insert(key, VtepInfo { foreign: 7 });
            }
            for ((vni, index), port) in local {
                tables.flood_local.insert(FloodKey { vni, index }, port);
            }
            for ((vni, index), vtep) in remote {
                tables.flood_remote.insert(FloodKey { vni, index }, [192, 0, 2, vtep]);
            }
            for ip in underlay {
                tables.underlay.insert([192, 0, 2, ip], path(99));
            }
            tables
        })
}

/// One pass over everything, as at the start and for anti-entropy.
fn pass(
    reconciler: &mut Reconciler,
    maps: &Maps,
    desired: &BTreeMap<u32, NetworkState>,
) -> Result<usize, ApplyError<Refused>> {
    let mut steps = reconciler.paths_to(maps, all_paths())?;
    let vnis: BTreeSet<u32> =
        reconciler.vnis().into_iter().chain(desired.keys().copied()).collect();
    for vni in vnis {
        steps += reconciler.network_to(maps, vni, desired.get(&vni))?;
    }
    Ok(steps)
}

/// Asserts that the maps hold the entries of `desired`, and nothing else.
fn assert_holds(maps: &Maps, desired: &BTreeMap<u32, NetworkState>) {
    let held = maps.tables.borrow();
    let mut members = BTreeSet::new();
    let (parts, underlay) = held.clone().split();
    assert_eq!(
        parts.keys().collect::<Vec<_>>(),
        desired.keys().collect::<Vec<_>>(),
        "networks that the maps hold"
    );
    for (vni, state) in desired {
        let part = &parts[vni];
        // A state that is laid out over its own slots does not change.
        assert_eq!(part, &state.lay_out(part));
        let interfaces: BTreeSet<u32> = part.flood_local.values().copied().collect();
        assert_eq!(interfaces, state.endpoints.keys().copied().collect());
        let vteps: BTreeSet<_> = part.flood_remote.values().copied().collect();
        assert_eq!(vteps, state.vteps.keys().copied().collect());
        assert_eq!(part.networks[vni].remote_vteps as usize, vteps.len());
        members.extend(vteps);
    }
    let paths = all_paths();
    let reachable = members.iter().filter_map(|ip| paths.get(ip).map(|path| (*ip, *path)));
    assert_eq!(underlay, reachable.collect());
}

/// Makes the reconciler read the maps while nothing is written. Returns what others have changed.
fn adopt(reconciler: &mut Reconciler, maps: &Maps) -> Found {
    reconciler.begin_read();
    reconciler.adopt(Observed::read(maps).unwrap())
}

/// The result of a read during which `before` becomes `after`. `coins` say for each entry
/// whether it is read before or after the change.
fn torn(before: &Tables, after: &Tables, coins: &[bool]) -> Tables {
    fn mixed<K: Copy + Ord, V: Copy>(
        before: &BTreeMap<K, V>,
        after: &BTreeMap<K, V>,
        early: &mut impl Iterator<Item = bool>,
    ) -> BTreeMap<K, V> {
        let keys: BTreeSet<K> = before.keys().chain(after.keys()).copied().collect();
        let mut pick =
            |key: &K| if early.next().unwrap() { before.get(key) } else { after.get(key) };
        keys.into_iter().filter_map(|key| Some((key, *pick(&key)?))).collect()
    }
    let mut early = coins.iter().copied().cycle();
    Tables {
        endpoints: mixed(&before.endpoints, &after.endpoints, &mut early),
        networks: mixed(&before.networks, &after.networks, &mut early),
        fdb: mixed(&before.fdb, &after.fdb, &mut early),
        neighbours: mixed(&before.neighbours, &after.neighbours, &mut early),
        vteps: mixed(&before.vteps, &after.vteps, &mut early),
        underlay: mixed(&before.underlay, &after.underlay, &mut early),
        flood_local: mixed(&before.flood_local, &after.flood_local, &mut early),
        flood_remote: mixed(&before.flood_remote, &after.flood_remote, &mut early),
        gateways: mixed(&before.gateways, &after.gateways, &mut early),
        published: mixed(&before.published, &after.published, &mut early),
        sources: mixed(&before.sources, &after.sources, &mut early),
    }
}

/// Asserts that the counts are the numbers of entries in the maps.
fn assert_counted(reconciler: &Reconciler, maps: &Maps) {
    let held = maps.tables.borrow();
    let counts = EntryCounts { fdb: held.fdb.len(), neighbours: held.neighbours.len() };
    assert_eq!(reconciler.counts(), counts);
}

proptest! {
    #[test]
    fn any_sequence_of_states_converges_and_no_step_breaks_the_path(
        states in vec(host(), 1..6),
    ) {
        let maps = Maps { check: true, ..Maps::default() };
        let mut reconciler = Reconciler::default();
        adopt(&mut reconciler, &maps);
        for state in &states {
            pass(&mut reconciler, &maps, state).unwrap();
            assert_holds(&maps, state);
            assert_counted(&reconciler, &maps);
            prop_assert_eq!(pass(&mut reconciler, &maps, state).unwrap(), 0, "second pass");
        }
    }

    #[test]
    fn strays_are_pruned(tables in strays(), state in host()) {
        let maps = Maps { tables: RefCell::new(tables), ..Maps::default() };
        let mut reconciler = Reconciler::default();
        adopt(&mut reconciler, &maps);
        assert_counted(&reconciler, &maps);
        pass(&mut reconciler, &maps, &state).unwrap();
        assert_holds(&maps, &state);
        assert_counted(&reconciler, &maps);
        // The reconciler's copy is what the maps hold.
        adopt(&mut reconciler, &maps);
        prop_assert_eq!(pass(&mut reconciler, &maps, &state).unwrap(), 0, "second pass");
    }

    #[test]
    fn what_is_written_while_the_maps_are_read_is_not_undone(
        first in host(), second in host(), third in host(), coins in vec(any::<bool>(), 64),
    ) {
        let maps = Maps { check: true, ..Maps::default() };
        let mut reconciler = Reconciler::default();
        pass(&mut reconciler, &maps, &first).unwrap();
        let before = maps.tables.borrow().clone();
        reconciler.begin_read();
        pass(&mut reconciler, &maps, &second).unwrap();
        let read = torn(&before, &maps.tables.borrow(), &coins);
        let read = Maps { tables: RefCell::new(read), ..Maps::default() };
        reconciler.adopt(Observed::read(&read).unwrap());
        prop_assert_eq!(pass(&mut reconciler, &maps, &second).unwrap(), 0, "second pass");
        assert_holds(&maps, &second);
        pass(&mut reconciler, &maps, &third).unwrap();
        assert_holds(&maps, &third);
    }

    /// Otherwise the agent would report a repair of its own write.
    #[test]
    fn what_the_agent_writes_while_the_maps_are_read_is_no_change_by_others(
        first in host(), second in host(), coins in vec(any::<bool>(), 64),
    ) {
        let maps = Maps { check: true, ..Maps::default() };
        let mut reconciler = Reconciler::default();
        adopt(&mut reconciler, &maps);
        pass(&mut reconciler, &maps, &first).unwrap();
        let before = maps.tables.borrow().clone();
        reconciler.begin_read();
        pass(&mut reconciler, &maps, &second).unwrap();
        let read = torn(&before, &maps.tables.borrow(), &coins);
        let read = Maps { tables: RefCell::new(read), ..Maps::default() };
        let found = reconciler.adopt(Observed::read(&read).unwrap());
        prop_assert_eq!(found, Found::default());
    }

    #[test]
    fn what_others_change_is_found_entry_by_entry(
        state in host(), others in strays(), coins in vec(any::<bool>(), 64),
    ) {
        let maps = Maps::default();
        let mut reconciler = Reconciler::default();
        let found = adopt(&mut reconciler, &maps);
        prop_assert_eq!(found, Found::default(), "nothing is known of what was there before");
        pass(&mut reconciler, &maps, &state).unwrap();
        let written = maps.tables.borrow().clone();
        // Entries are removed, changed and added, also of VNIs that the host does not have.
        let changed = torn(&written, &others, &coins);
        *maps.tables.borrow_mut() = changed.clone();
        let found = adopt(&mut reconciler, &maps);
        prop_assert_eq!(found.number(), diff(&written, &changed).len() as u64);
        pass(&mut reconciler, &maps, &state).unwrap();
        assert_holds(&maps, &state);
        prop_assert_eq!(adopt(&mut reconciler, &maps), Found::default(), "found once");
    }

    #[test]
    fn a_pass_that_fails_half_way_is_made_good_by_the_next(
        first in host(), second in host(), fail_at in 0..60usize,
    ) {
        let mut maps = Maps { check: true, ..Maps::default() };
        let mut reconciler = Reconciler::default();
        adopt(&mut reconciler, &maps);
        pass(&mut reconciler, &maps, &first).unwrap();
        *maps.steps.borrow_mut() = 0;
        maps.fail_at = Some(fail_at);
        let failed = pass(&mut reconciler, &maps, &second).is_err();
        prop_assert_eq!(failed, *maps.steps.borrow() == fail_at + 1);
        assert_counted(&reconciler, &maps);
        prop_assert_eq!(adopt(&mut reconciler, &maps), Found::default(), "the copy is exact");
        maps.fail_at = None;
        pass(&mut reconciler, &maps, &second).unwrap();
        assert_holds(&maps, &second);
    }

    #[test]
    fn a_restart_finds_the_slots_as_they_were(state in host(), grown in host()) {
        let maps = Maps { check: true, ..Maps::default() };
        let mut reconciler = Reconciler::default();
        pass(&mut reconciler, &maps, &state).unwrap();
        pass(&mut reconciler, &maps, &grown).unwrap();
        let mut restarted = Reconciler::default();
        adopt(&mut restarted, &maps);
        prop_assert_eq!(pass(&mut restarted, &maps, &grown).unwrap(), 0);
    }
}

#[test]
fn a_change_in_one_network_touches_no_other() {
    let maps = Maps { check: true, ..Maps::default() };
    let mut reconciler = Reconciler::default();
    let state = |vni: u32, ifindex: u32| NetworkState {
        vni,
        flags: 0,
        endpoints: BTreeMap::from([(
            ifindex,
            EndpointInfo { vni, mtu: 1450, ..bytemuck::Zeroable::zeroed() },
        )]),
        fdb: BTreeMap::new(),
        neighbours: BTreeMap::new(),
        vteps: BTreeMap::new(),
        gateway: None,
        published: BTreeMap::new(),
        sources: BTreeSet::new(),
    };
    reconciler.network_to(&maps, 256, Some(&state(256, 10))).unwrap();
    let other = maps.tables.borrow().clone();
    reconciler.network_to(&maps, 257, Some(&state(257, 11))).unwrap();
    reconciler.network_to(&maps, 257, None).unwrap();
    assert_eq!(*maps.tables.borrow(), other);
}
