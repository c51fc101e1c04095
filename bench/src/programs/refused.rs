//! Packets that belong to no known flow: packets that leave by an uplink, and packets that begin a
//! flow or are refused one.

use std::{net::Ipv4Addr, ops::Range};

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use culvert::datapath::{share_of, test_run::Hook};
use culvert_common::abi::{DEFAULT_FLOWS, DEFAULT_SHARE, ENCAPSULATED_MARK};

use super::{
    path::{Path, Place, Traffic},
    test_run::{DROP, FIRST, Known, PASS, Packet, SkbState, built, ends, frame},
};
use crate::{
    arms::Culvert,
    load::Peers,
    scale::{FlowMaps, FlowOwner},
};

/// Source ports of the datagrams that begin flows. No other flow uses them.
const PORTS: Range<u16> = 41_000..41_401;
/// Source port of the datagrams that are refused a flow.
const REFUSED: u16 = 42_000;

/// Packets that leave by `uplink`: of a process of the host, which is the client of `host`; VXLAN
/// of the programs, from the client of `overlay`; and the same VXLAN as another system would send
/// it, which `to_underlay` drops. Each has a name.
pub(super) fn leaving<'a>(
    uplink: &'a Place<'a>,
    host: &Peers,
    overlay: &Path<'_>,
) -> Result<[(&'static str, Known<'a>); 3]> {
    let [first, _] = &overlay.places;
    let sent = frame(overlay.peers, Packet::Data(Traffic::Udp))?;
    let vxlan = first.sends_on(&sent, FIRST)?.frame;
    let own = frame(host, Packet::Data(Traffic::Udp))?;
    let state = uplink.state();
    let marked = SkbState { mark: ENCAPSULATED_MARK, ..state };
    let forwarded = SkbState { hook: Hook::Ingress, ..state };
    Ok([
        ("uplink, UDP of the host", Known::judged(uplink, own, state, PASS)),
        ("uplink, VXLAN of Culvert", Known::judged(uplink, vxlan.clone(), marked, PASS)),
        ("uplink, VXLAN of others", Known::judged(uplink, vxlan, forwarded, DROP)),
    ])
}

/// The name of a kind of packet, and its times in ns.
pub(crate) type Times = (&'static str, Vec<f64>);

/// Times of the first program of `path`, which masquerades, on datagrams that begin a flow, and on
/// datagrams that are refused one, because their container has its share of the table or because
/// the table is full. Each has a name, and `rounds` times in ns. In both tables of the refusals all
/// flows are established: the search finds no flow to evict, which takes longest.
pub(super) fn beginning(
    culvert: &Culvert,
    path: &Path<'_>,
    rounds: u32,
) -> Result<(ProgramInfo, [Times; 3])> {
    let ([first, _], [host, _]) = (&path.places, &culvert.hosts);
    let [container, _] = &culvert.bridge;
    let ends = ends(path.peers)?;
    let packet = |port| built(&ends, path.peers.to, Packet::From(port));
    let packets: Vec<_> = PORTS.map(packet).collect::<Result<_>>()?;
    let refused = Known::judged(first, packet(REFUSED)?, first.state(), DROP);

    let mut maps = FlowMaps::open(&host.bpffs())?;
    let owner = maps.owner(container.ip)?;
    let mut begun = Vec::new();
    for _ in 0..rounds {
        // A flow that has ended or has no answer would be evicted for another one.
        maps.clear(&owner)?;
        begun.push(first.time_of_each(&packets)?);
    }
    maps.clear(&owner)?;
    let times = || -> Result<Vec<f64>> { (0..rounds).map(|_| refused.time()).collect() };
    let measured = refusals(&mut maps, &owner, host.vtep(), times);
    maps.empty(&owner, host.vtep(), 0..DEFAULT_FLOWS)?;
    maps.clear(&owner)?;
    let [by_share, by_table] = measured?;
    let program = refused.program()?;
    Ok((
        program,
        [
            ("SNAT, new flow", begun),
            ("SNAT, new flow over the share", by_share),
            ("SNAT, new flow in a full table", by_table),
        ],
    ))
}

/// Times of a refusal while the container `owner` has its share of the table, and while the table
/// is full.
fn refusals(
    maps: &mut FlowMaps,
    owner: &FlowOwner,
    vtep: Ipv4Addr,
    times: impl Fn() -> Result<Vec<f64>>,
) -> Result<[Vec<f64>; 2]> {
    let share = share_of(DEFAULT_FLOWS, DEFAULT_SHARE);
    maps.fill(owner, vtep, 0..share)?;
    // More than the share: a flow is then refused even if the search finds none of the container.
    maps.set_share(owner, share + share / 4)?;
    let by_share = times().context("the container has its share")?;
    maps.set_share(owner, 0)?;
    maps.fill(&owner.without_share(), vtep, share..DEFAULT_FLOWS)?;
    Ok([by_share, times().context("the table is full")?])
}
