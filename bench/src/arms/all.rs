//! The hosts of all arms.

use anyhow::{Result, ensure};

use super::{
    arm::{Arm, FlowsTo, Scope},
    culvert::{Culvert, Device, Paused},
    hosts::{self, Pair, Receive},
    iptables::Bridge,
    optional::{Optional, Running},
    vxlan::Vxlan,
};
use crate::{
    load::Peers,
    results::{HOST, HOST_AGAIN, Regime},
};

/// The hosts of all arms.
pub(crate) struct Arms {
    /// Arms in the order of the report.
    pub(crate) all: Vec<Arm>,
    // Field order: processes end before their hosts are removed.
    _optional: Vec<Running>,
    pairs: Vec<Pair>,
    /// Culvert's hosts with the first kind of device.
    pub(crate) culvert: Culvert,
    /// Culvert's hosts with the other kinds of device.
    others: Vec<Culvert>,
    // Keeps the networks of the arms alive during the measurements.
    _vxlan: Vec<Vxlan>,
    _bridge: Option<Bridge>,
}

impl Arms {
    /// Makes the hosts of all arms. Culvert's hosts are made once for each kind of device.
    pub(crate) fn make(devices: &[Device], optional: &[Optional]) -> Result<Self> {
        let mut pairs = Vec::new();
        let plain = Pair::new()?;
        let mut all: Vec<_> = [(HOST, "host to host"), (HOST_AGAIN, "host to host, again")]
            .into_iter()
            .map(|(id, title)| {
                let peers = Peers::direct(plain.one.path(), plain.two.path(), Pair::TWO);
                let row = (id == HOST).then_some('C');
                let flows = FlowsTo { server: plain.two.path().to_owned() };
                Arm::new(id, title, row, peers, Scope::Whole).with_flows(flows)
            })
            .collect();
        pairs.push(plain);

        let mut others = Vec::new();
        for &device in devices {
            let culvert = Culvert::new(device)?;
            all.extend(culvert.arms());
            others.push(culvert);
        }
        ensure!(!others.is_empty(), "no device is named");
        let culvert = others.remove(0);

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
        Ok(Self {
            all,
            _optional: running,
            pairs,
            culvert,
            others,
            _vxlan: kernel,
            _bridge: bridge,
        })
    }

    fn all_culverts(&self) -> impl Iterator<Item = &Culvert> {
        [&self.culvert].into_iter().chain(&self.others)
    }

    /// Stops all agents and their stores until the result is dropped.
    pub(crate) fn paused(&self) -> Result<Vec<Paused>> {
        self.all_culverts().map(Culvert::paused).collect()
    }

    /// Sets all underlays to a regime.
    pub(crate) fn set(&self, regime: Regime, receive: Receive) -> Result<()> {
        for culvert in self.all_culverts() {
            let [one, two] = &culvert.hosts;
            hosts::set([&one.netns, &two.netns], regime, receive)?;
        }
        self.pairs.iter().try_for_each(|pair| hosts::set([&pair.one, &pair.two], regime, receive))
    }
}
