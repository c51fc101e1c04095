//! Linux bridge and iptables, as Docker wires its bridge network.

use std::net::SocketAddrV4;

use anyhow::Result;
use culvert_testbed::{
    docker::{self, Published},
    netns::Netns,
};

use super::{
    arm::{Arm, FlowsTo, Scope},
    hosts::{self, Pair, run},
};
use crate::load::{PORT, Peers};

/// Port of the host that is published for a container's port.
const PUBLISHED: u16 = 7100;

/// Containers on both hosts.
pub(crate) struct Bridge {
    one: Netns,
    two: Netns,
}

impl Bridge {
    /// Connects the containers; none if the kernel lacks the features that iptables needs.
    pub(crate) fn new(pair: &Pair) -> Result<Option<Self>> {
        let Some(iptables) = docker::iptables() else { return Ok(None) };
        let port = Published { protocol: "tcp", port: PUBLISHED, container: 0, to: PORT };
        let mut made = [
            docker::wire(&pair.one, iptables, 1, &[]),
            docker::wire(&pair.two, iptables, 1, &[port]),
        ]
        .into_iter()
        .flatten();
        let (Some(one), Some(two)) = (made.next(), made.next()) else { return Ok(None) };
        for container in [&one, &two] {
            run(container, hosts::TUNING)?;
        }
        Ok(Some(Self { one, two }))
    }

    /// The arms with these containers.
    pub(crate) fn arms(&self, pair: &Pair) -> Vec<Arm> {
        let published = SocketAddrV4::new(Pair::TWO, PUBLISHED);
        let (one, two) = (self.one.path(), self.two.path());
        let ip = docker::address(0);
        vec![
            Arm::new(
                "linux-snat-published",
                "container to published port of a container, Linux bridge and iptables",
                Some('B'),
                Peers::published(one, two, published),
                Scope::Tcp,
            ),
            Arm::new(
                "linux-snat",
                "container to the other host, Linux bridge and MASQUERADE",
                None,
                Peers::direct(one, pair.two.path(), Pair::TWO),
                Scope::Whole,
            )
            .with_flows(FlowsTo { server: pair.two.path().to_owned() }),
            Arm::new(
                "linux-published",
                "host to published port of a container, Linux bridge and iptables",
                Some('D'),
                Peers::published(pair.one.path(), two, published),
                Scope::Tcp,
            ),
            Arm::new(
                "linux-local",
                "host to a container of its own, Linux bridge",
                Some('E'),
                Peers::direct(pair.one.path(), one, ip),
                Scope::Tcp,
            ),
        ]
    }
}
