//! Plans for networks.

use std::{collections::BTreeMap, net::IpAddr, net::Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};

use super::{Plan, Refusal, network, new_id, put};
use crate::{
    model::{
        Driver, HostRoute, Key, NETWORKS, Name, Network, SCHEMA, Versioned, View, Vni, VniOwner,
        not_needed, not_routed, validate,
    },
    store::{Compare, Write},
};

/// The default network of a container.
pub const PREDEFINED_BRIDGE: &str = "bridge";

/// Parameters of [`create_network`].
#[derive(Clone, Debug)]
pub struct NetworkSpec {
    /// Name. The name of a bridge network includes its node (see [`Name::on`]).
    pub name: Name,
    /// Driver.
    pub driver: Driver,
    /// Subnets. If empty, [`choose_subnet`] chooses one.
    pub subnets: Vec<IpNetwork>,
    /// Gateway in one of the subnets. Default: the first host address of each subnet.
    pub gateway: Option<IpAddr>,
    /// VNI. Default: [`lowest_free_vni`].
    pub vni: Option<u32>,
    /// MTU in bytes. Default: `max_mtu`.
    pub mtu: Option<u32>,
    /// Greatest MTU in bytes: the underlay's, less the VXLAN overhead for an overlay network.
    pub max_mtu: u16,
    /// The network has no route to external addresses (`--internal`).
    pub internal: bool,
    /// The data plane learns source MAC addresses.
    pub learning: bool,
    /// `--opt`.
    pub options: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// Routes of the host, such as that of the underlay's subnet. The network's subnets must not
    /// overlap their destinations.
    pub routes: Vec<HostRoute>,
    /// Ranges to choose a subnet from. If empty, those of [`choose_subnet`].
    pub pools: Vec<Ipv4Network>,
    /// Addresses of the store. No subnet of the network has one of them.
    pub store: Vec<IpAddr>,
}

/// Plans the creation of a network.
///
/// The transaction requires that no network was written after the view's revision, so of two
/// overlapping networks only one can be created.
///
/// # Errors
///
/// The request is invalid by itself, or conflicts with another network.
pub fn create_network(view: &View, spec: &NetworkSpec) -> Result<(Network, Plan), Refusal> {
    let name = &spec.name;
    let key = Key::network(name);
    if let Some(why) = view.problem_at(&key) {
        return Err(Refusal::Conflict(format!(
            "network '{name}' is there, but its record is {why}"
        )));
    }
    // A node-local network would hide a global network of the same name.
    let everybodys = name.node().and_then(|_| Name::from_store(name.local()).ok());
    if view.networks.contains_key(name)
        || everybodys.is_some_and(|name| view.networks.contains_key(&name))
    {
        return Err(Refusal::Conflict(format!(
            "network '{name}' exists already: choose another name, or remove it first"
        )));
    }
    if matches!(name.local(), "host" | "none") {
        return Err(Refusal::Invalid(format!(
            "network name '{name}' is reserved for the mode of that name: choose another"
        )));
    }
    validate::options(&spec.options)?;
    if spec.learning && spec.driver == Driver::Bridge {
        return Err(Refusal::Invalid(format!(
            "network '{name}': --learning does not go with driver bridge, whose MACs are all on this host: leave it out, or create an overlay network with '-d overlay'"
        )));
    }
    let given = match spec.subnets.as_slice() {
        [] => vec![choose_subnet(view, spec)?],
        given => given.to_vec(),
    };
    let subnets = validate::with_gateways(&given, spec.gateway)?;
    let mtu = spec.mtu.unwrap_or(u32::from(spec.max_mtu));
    let mtu = validate::mtu(mtu, validate::has_ipv6(&given), spec.max_mtu)?;
    let vni = match spec.vni {
        None => lowest_free_vni(view)?,
        Some(number) => free_vni(view, number.try_into()?)?,
    };
    let network = Network {
        schema: SCHEMA,
        name: name.clone(),
        id: new_id(),
        driver: spec.driver,
        subnets,
        vni,
        mtu,
        internal: spec.internal,
        learning: spec.learning,
        options: spec.options.clone(),
        labels: spec.labels.clone(),
    };
    validate::no_overlap(&network, view.networks.values().map(|other| &other.record))
        .map_err(|error| Refusal::Conflict(error.0))?;
    let near = view.networks.values().filter(|other| !other.name.is_apart_from(name));
    not_routed(&given, &spec.routes, near.map(|other| &other.record))
        .map_err(|error| Refusal::Conflict(error.0))?;
    not_needed(view, &given, &spec.store).map_err(|error| Refusal::Conflict(error.0))?;
    let vni_key = Key::vni(vni);
    let plan = Plan {
        writes: vec![
            put(key.clone(), &network)?,
            put(vni_key.clone(), &VniOwner { schema: SCHEMA, network: name.clone() })?,
        ],
        compares: vec![
            Compare::Absent(key),
            Compare::Absent(vni_key),
            Compare::PrefixUnchanged(NETWORKS.to_owned(), view.revision),
        ],
    };
    Ok((network, plan))
}

/// Plans the removal of a network and of its dependent keys.
///
/// # Errors
///
/// The network is unknown, or has endpoints.
pub fn remove_network(view: &View, name: &Name) -> Result<Plan, Refusal> {
    let found = network(view, name)?;
    let endpoints = Key::endpoints_of(name);
    let used: Vec<String> =
        view.endpoints_in(name).map(|ep| format!("'{}' on '{}'", ep.container, ep.node)).collect();
    if !used.is_empty() {
        let more = if used.len() > 3 { ", …" } else { "" };
        return Err(Refusal::Conflict(format!(
            "network '{name}' is in use by {} endpoint(s), {}{more}: remove or disconnect them first",
            used.len(),
            used.iter().take(3).cloned().collect::<Vec<_>>().join(", "),
        )));
    }
    if let Some((key, why)) = view.problem_below(&endpoints) {
        return Err(Refusal::Conflict(format!(
            "network '{name}' has an endpoint at {key}, {why}: delete that key first"
        )));
    }
    Ok(emptied_network(view, found))
}

/// Plans the removal of a network that has no endpoints, or has none once the plan is committed.
pub(super) fn emptied_network(view: &View, found: &Versioned<Network>) -> Plan {
    let name = &found.name;
    let endpoints = Key::endpoints_of(name);
    let mut plan = Plan {
        compares: vec![
            Compare::Unchanged(Key::network(name), found.revision),
            Compare::PrefixEmpty(endpoints),
        ],
        writes: vec![
            Write::Delete(Key::network(name)),
            Write::DeletePrefix(Key::ipam_of(name)),
            Write::DeletePrefix(Key::macs_of(name)),
            Write::DeletePrefix(Key::vteps_of(name)),
        ],
    };
    // A VNI that is registered to another network must not be freed.
    if let Some(claim) = view.vnis.get(&found.vni)
        && claim.owner.as_ref().is_some_and(|owner| owner.network == *name)
    {
        plan.compares.push(Compare::Unchanged(Key::vni(found.vni), claim.revision));
        plan.writes.push(Write::Delete(Key::vni(found.vni)));
    }
    plan
}

/// Returns the lowest free VNI from [`Vni::FIRST_ALLOCATED`] on.
///
/// # Errors
///
/// No VNI is free.
pub fn lowest_free_vni(view: &View) -> Result<Vni, Refusal> {
    let mut free = Vni::FIRST_ALLOCATED;
    // The loop needs ascending order. A network without a registered VNI still occupies its VNI.
    let mut taken: Vec<u32> = view.vnis.keys().map(|vni| vni.get()).collect();
    taken.extend(view.networks.values().map(|network| network.vni.get()));
    taken.sort_unstable();
    for vni in taken.into_iter().filter(|vni| *vni >= Vni::FIRST_ALLOCATED) {
        if vni > free {
            break;
        }
        free = vni + 1;
    }
    Vni::try_from(free).map_err(|_| {
        Refusal::Conflict(format!(
            "VNIs {} to {} are all taken: remove a network first",
            Vni::FIRST_ALLOCATED,
            Vni::MAX
        ))
    })
}

fn free_vni(view: &View, vni: Vni) -> Result<Vni, Refusal> {
    let owner = match view.vnis.get(&vni) {
        Some(claim) => Some(match &claim.owner {
            Some(owner) => format!("network {}", owner.network.quoted()),
            None => format!("an unreadable record at {}", Key::vni(vni)),
        }),
        None => view
            .networks
            .values()
            .find(|network| network.vni == vni)
            .map(|network| format!("network {}", network.name.quoted())),
    };
    match owner {
        None => Ok(vni),
        Some(owner) => Err(Refusal::Conflict(format!(
            "VNI {vni} is taken by {owner}: choose another, or leave out --vni for the lowest free one"
        ))),
    }
}

/// A range of IPv4 addresses to choose subnets from.
#[derive(Clone, Copy, Debug)]
struct Pool {
    /// First address.
    first: u32,
    /// Prefix length of a subnet.
    prefix: u8,
    /// Number of subnets.
    count: u32,
}

impl Pool {
    /// The subnets with `prefix` from `first` on.
    const fn new(first: [u8; 4], prefix: u8, count: u32) -> Self {
        Self { first: u32::from_be_bytes(first), prefix, count }
    }

    /// The subnets of a range; the range itself if it is no larger than a subnet.
    fn within(range: Ipv4Network, prefix: u8) -> Self {
        let prefix = prefix.max(range.prefix());
        let count = 1_u32.checked_shl(u32::from(prefix - range.prefix())).unwrap_or(u32::MAX);
        Self { first: range.network().to_bits(), prefix, count }
    }

    /// The first subnet that overlaps none of `taken`, which has first and last addresses, sorted.
    fn first_free(self, taken: &[(u32, u32)]) -> Option<Ipv4Network> {
        let Self { first, prefix, count } = self;
        let size = 1_u32 << (32 - prefix);
        let mut index = 0;
        while index < count {
            let start = first + index * size;
            let end = start + (size - 1);
            let Some((_, last)) = taken.iter().find(|(a, b)| *a <= end && *b >= start) else {
                return Ipv4Network::new(Ipv4Addr::from_bits(start), prefix).ok();
            };
            // The search continues after the whole obstacle, which may be as large as a /8.
            index = match last.checked_sub(first) {
                Some(distance) => (distance / size + 1).max(index + 1),
                None => index + 1,
            };
        }
        None
    }
}

/// Ranges of bridge networks. 172.16.0.0/16 and 172.17.0.0/16 are left out: 172.17.0.0/16 is the
/// subnet of the network `bridge`.
const BRIDGES: [Pool; 4] = [
    Pool::new([172, 18, 0, 0], 16, 14),
    Pool::new([192, 168, 0, 0], 20, 16),
    Pool::new([10, 0, 0, 0], 20, 1 << 12),
    SHARED,
];
const OVERLAYS: [Pool; 4] = [
    Pool::new([10, 0, 0, 0], 24, 1 << 16),
    Pool::new([172, 16, 0, 0], 24, 1 << 12),
    Pool::new([192, 168, 0, 0], 24, 1 << 8),
    SHARED,
];
/// 100.64.0.0/10 (RFC 6598), which carriers and some VPNs use: the last resort.
const SHARED: Pool = Pool::new([100, 64, 0, 0], 24, 1 << 14);

/// Returns the first subnet that is free: no network of the view, no VTEP, no server of the store
/// and no next hop of the host has an address of it, no route of the host leads to it, and, for an
/// overlay network, no node is connected to it.
///
/// The ranges are [`NetworkSpec::pools`]. Without pools, the ranges of Docker come first and then
/// the other private ranges. An overlay network gets a /24, first of 10.0.0.0/8. A bridge network
/// gets a /16 of 172.18.0.0 to 172.31.255.255, or else a /20, first of 192.168.0.0/16. For the
/// network named `bridge`, 172.17.0.0/16 comes before these.
///
/// # Errors
///
/// No subnet is free.
pub fn choose_subnet(view: &View, spec: &NetworkSpec) -> Result<IpNetwork, Refusal> {
    let NetworkSpec { name, driver, routes, pools, store, .. } = spec;
    let predefined = name.local() == PREDEFINED_BRIDGE;
    let ranges: Vec<Pool> = match (pools.as_slice(), driver) {
        ([], Driver::Overlay) => OVERLAYS.to_vec(),
        ([], Driver::Bridge) => {
            let first = predefined.then_some(Pool::new([172, 17, 0, 0], 16, 1));
            first.into_iter().chain(BRIDGES).collect()
        }
        (given, driver) => {
            let prefix = match driver {
                Driver::Overlay => 24,
                Driver::Bridge => 20,
            };
            given.iter().map(|range| Pool::within(*range, prefix)).collect()
        }
    };
    let near = view.networks.values().filter(|network| !network.name.is_apart_from(name));
    let networks = near.flat_map(|network| &network.subnets).map(|subnet| subnet.subnet);
    let hops = routes.iter().flat_map(|route| &route.next_hops).copied().map(IpNetwork::from);
    let routes = routes.iter().filter(|route| route.is_taken()).map(|route| route.destination);
    // A bridge network exists only on its own host, so that other nodes do not matter.
    let nodes = view.nodes.values().filter(|_| *driver == Driver::Overlay);
    let connected = nodes.flat_map(|node| &node.prefixes).copied();
    let vteps = view.nodes.values().map(|node| node.vtep);
    let vteps = vteps.chain(view.vteps.values().flat_map(|vteps| vteps.keys().copied()));
    let single = vteps.map(IpAddr::V4).chain(store.iter().copied()).map(IpNetwork::from);
    // Both lists are sorted intervals, so that the search is one pass.
    let mut taken: Vec<(u32, u32)> = networks
        .chain(routes)
        .chain(hops)
        .chain(connected)
        .chain(single)
        .filter_map(|subnet| match subnet {
            IpNetwork::V4(v4) => Some((v4.network().to_bits(), v4.broadcast().to_bits())),
            IpNetwork::V6(_) => None,
        })
        .collect();
    taken.sort_unstable();
    let free = ranges.into_iter().find_map(|range| range.first_free(&taken));
    free.map(IpNetwork::V4).ok_or_else(|| {
        let from = match pools.as_slice() {
            [] => "the private ranges".to_owned(),
            given => {
                let all: Vec<_> = given.iter().map(ToString::to_string).collect();
                format!("--pool {}", all.join(" --pool "))
            }
        };
        Refusal::Conflict(format!(
            "no subnet of {from} is free of networks and routes: remove one of these, or name a subnet with --subnet"
        ))
    })
}
