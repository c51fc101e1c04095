//! Throughput with few and with many entries in the tables: it must not depend on their number.

use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_common::abi::{FdbEntry, FdbKey, Sealed as _, VtepId};

use crate::{
    arms::{Arm, Arms},
    load::{flows, tcp, udp},
    results::Filled,
    scale::Fdb,
};

/// Numbers of entries that are added to the entries of the arms.
const SIZES: [u32; 3] = [10, 1_000, 100_000];
/// The highest VNI (RFC 7348 §5), which no network has.
const NO_VNI: u32 = 0x00ff_ffff;

/// Measures with [`SIZES`] FDB entries and with as many NAT flows.
pub(crate) fn measure(arms: &Arms, rounds: u32, time: Duration) -> Result<Vec<Filled>> {
    let arm = |id: &str| {
        arms.all.iter().find(|arm| arm.info.id == id).with_context(|| format!("{id}: no such arm"))
    };
    let (overlay, snat) = (arm("culvert-overlay")?, arm("culvert-snat")?);
    let mut all = Vec::new();
    let mut fdbs = Vec::new();
    for host in &arms.culvert.hosts {
        fdbs.push(Fdb::open(&host.bpffs())?);
    }
    for entries in SIZES {
        // The entries have the id of a VTEP to which no packet is sent.
        let entry = FdbEntry { ifindex: 0, vtep: VtepId(u32::MAX), seal: 0 };
        for fdb in &mut fdbs {
            (0..entries).try_for_each(|n| fdb.insert(&key(n), &entry.sealed(&key(n))))?;
        }
        all.push(throughput("FDB entries", entries, overlay, rounds, time)?);
        for fdb in &mut fdbs {
            (0..entries).try_for_each(|n| fdb.remove(&key(n)))?;
        }
    }
    for entries in SIZES {
        snat.begin_flows(entries)?;
        all.push(throughput("NAT flows", entries, snat, rounds, time)?);
    }
    Ok(all)
}

fn key(n: u32) -> FdbKey {
    let [a, b, c, d] = n.to_be_bytes();
    FdbKey::new(NO_VNI, [0x06, 0, a, b, c, d])
}

fn throughput(what: &str, entries: u32, arm: &Arm, rounds: u32, time: Duration) -> Result<Filled> {
    let mut filled = Filled { what: what.to_owned(), entries, tcp: Vec::new(), udp64: Vec::new() };
    for _ in 0..rounds {
        filled.tcp.push(tcp::throughput(&arm.peers, 1, time)?);
        filled.udp64.push(udp::datagrams(&arm.peers, 64, time)?.per_second);
    }
    Ok(filled)
}

impl Arm {
    /// Makes the arm's client begin this many flows, each with one datagram.
    fn begin_flows(&self, count: u32) -> Result<()> {
        let (to, next) = self.flows()?;
        next.set(flows::make(&to.target(&self.peers), next.get(), count)?);
        Ok(())
    }
}
