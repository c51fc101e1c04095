//! What the programs cost: the kernel counts their time while packets go through.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::{
    programs::{ProgramInfo, SchedClassifier, TcAttachType},
    sys::{Stats, enable_stats},
};
use culvert_tests::netns::Netns;

use crate::{
    arms::{Arm, Culvert},
    load::{tcp, udp},
    results::ProgramCost,
};

/// Runs of which no average is made: frames that happened to come by.
const FEW: u64 = 100;

/// Measures the programs on the way of the overlay and of SNAT.
pub(crate) fn costs(culvert: &Culvert, arms: &[Arm], time: Duration) -> Result<Vec<ProgramCost>> {
    let _stats = enable_stats(Stats::RunTime).context("statistics of BPF programs")?;
    let mut costs = Vec::new();
    let [one, two] = &culvert.hosts;
    for (id, network, what) in [
        ("culvert-overlay", &culvert.overlay, "overlay"),
        ("culvert-snat", &culvert.bridge, "SNAT"),
    ] {
        let Some(arm) = arms.iter().find(|arm| arm.info.id == id) else { continue };
        let port = network[0].host_side(one)?;
        let programs = || -> Result<Vec<ProgramInfo>> {
            let mut found = at(&one.netns, &port)?;
            // SNAT's other end is a plain host for which nothing is translated.
            let end = if what == "overlay" { &two.netns } else { &one.netns };
            found.extend(at(end, culvert_tests::netns::Underlay::UPLINK)?);
            Ok(found)
        };
        for (traffic, is_udp) in [("UDP 64 B", true), ("TCP 64 KB", false)] {
            let before = programs()?;
            if is_udp {
                udp::datagrams(&arm.way, 64, time)?;
            } else {
                tcp::throughput(&arm.way, 1, time)?;
            }
            for (before, after) in before.iter().zip(&programs()?) {
                let runs = after.run_count() - before.run_count();
                if runs < FEW {
                    continue;
                }
                let ns = (after.run_time() - before.run_time()).as_nanos() as f64;
                costs.push(ProgramCost {
                    program: after.name_as_str().unwrap_or_default().to_owned(),
                    traffic: format!("{what}, {traffic}"),
                    ns_per_run: ns / runs as f64,
                    runs,
                    verified_instructions: after.verified_instruction_count().map_or(0, u64::from),
                    jited_bytes: u64::from(after.size_jitted()),
                });
            }
        }
    }
    Ok(costs)
}

/// The programs at a device's tcx ingress.
fn at(host: &Netns, device: &str) -> Result<Vec<ProgramInfo>> {
    use std::os::fd::AsFd as _;
    let query = || SchedClassifier::query_tcx(device, TcAttachType::Ingress);
    let (_, programs) = culvert::sandbox::run_in(host.fd().as_fd(), query)?
        .with_context(|| format!("{device}: programs"))?;
    Ok(programs)
}
