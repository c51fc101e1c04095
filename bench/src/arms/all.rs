//! The hosts of all arms.

use anyhow::Result;

use super::{
    arm::{Arm, FlowsTo, Scope},
    culvert::Culvert,
    hosts::{self, Pair, Receive},
    iptables::Bridge,
    optional::{Optional, Running},
    vxlan::Vxlan,
};
use crate::{
    load::Way,
    results::{HOST, HOST_AGAIN, Regime},
};

/// The hosts of all arms.
pub(crate) struct Arms {
    /// Arms in the order of the report.
    pub(crate) all: Vec<Arm>,
    // Field order: processes end before their hosts are removed.
    _optional: Vec<Running>,
    pairs: Vec<Pair>,
    /// Culvert's hosts.
    pub(crate) culvert: Culvert,
    // Keeps the networks of the arms alive during the measurements.
    _vxlan: Vec<Vxlan>,
    _bridge: Option<Bridge>,
}

impl Arms {
    /// Makes the hosts.
    pub(crate) fn make(optional: &[Optional]) -> Result<Self> {
        let mut pairs = Vec::new();
        let plain = Pair::new()?;
        let mut all: Vec<_> = [(HOST, "host to host"), (HOST_AGAIN, "host to host, again")]
            .into_iter()
            .map(|(id, title)| {
                let way = Way::direct(plain.one.path(), plain.two.path(), Pair::TWO);
                let row = (id == HOST).then_some('C');
                let flows = FlowsTo { server: plain.two.path().to_owned() };
                Arm::new(id, title, row, way, Scope::Whole).with_flows(flows)
            })
            .collect();
        pairs.push(plain);

        let culvert = Culvert::new()?;
        all.extend(culvert.arms());

        let mut kernel = Vec::new();
        for make in [Vxlan::docker, Vxlan::flannel] {
            let pair = Pair::new()?;
            let (vxlan, arm) = make(&pair)?;
            kernel.push(vxlan);
            all.push(arm);
            pairs.push(pair);
        }

        let pair = Pair::new()?;
        let bridge = Bridge::new(&pair)?;
        if let Some(bridge) = &bridge {
            all.extend(bridge.arms(&pair));
        }
        pairs.push(pair);

        let mut running = Vec::new();
        for it in optional {
            let pair = Pair::new()?;
            let (it, arm) = it.make(&pair)?;
            running.push(it);
            all.push(arm);
            pairs.push(pair);
        }

        all.sort_by_key(|arm| (arm.info.row.unwrap_or('C'), !arm.info.id.starts_with("culvert")));
        Ok(Self { all, _optional: running, pairs, culvert, _vxlan: kernel, _bridge: bridge })
    }

    /// Sets all underlays to a regime.
    pub(crate) fn set(&self, regime: Regime, receive: Receive) -> Result<()> {
        let [one, two] = &self.culvert.hosts;
        hosts::set([&one.netns, &two.netns], regime, receive)?;
        self.pairs.iter().try_for_each(|pair| hosts::set([&pair.one, &pair.two], regime, receive))
    }
}
