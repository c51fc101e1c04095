//! Uplinks, routes and paths of a simulated host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::atomic::Ordering,
};

use async_trait::async_trait;
use ipnetwork::IpNetwork;

use super::Paper;
use crate::{
    agent::platform::{
        ClientLinks, HostEvent, NodeFacts, OtherLinks, Paths, PlugError, Remote, Underlay,
        UplinkCheck, UplinkChoice, UplinkFault,
    },
    api::types::ApiError,
    choice::{Uplink, device::Device},
    datapath::{Price, entry::UnderlayPath},
    model::{Driver, HostRoute, validate},
    netlink::PairKind,
    probe::{Answer, Answers, PathProbe},
};

#[async_trait]
impl Underlay for Paper {
    async fn event(&self) -> Option<HostEvent> {
        let event = self.events.lock().await.recv().await;
        self.taken.fetch_add(1, Ordering::Relaxed);
        event
    }

    async fn paths(
        &self,
        vteps: &BTreeMap<Ipv4Addr, Remote>,
        _used: &BTreeSet<Ipv4Addr>,
    ) -> Result<Paths, PlugError> {
        let path = |(vtep, remote): (&Ipv4Addr, &Remote)| {
            let path = UnderlayPath {
                ifindex: 2,
                next_hop: vtep.octets(),
                port: remote.port,
                inner_mtu: 1450,
                next_hop_mac: [2; 6],
                uplink_mac: [4; 6],
            };
            (vtep.octets(), path)
        };
        Ok(Paths { paths: vteps.iter().map(path).collect(), problems: BTreeMap::new() })
    }

    async fn probe(&self, probes: Vec<PathProbe>, answers: Answers) -> Result<(), ApiError> {
        let mut state = self.state();
        for probe in &probes {
            let answer = state.answers.get(&probe.to.ip().octets()).cloned();
            let _ = answers.send((*probe, answer.unwrap_or(Answer::Silent)));
        }
        state.probes.extend(probes);
        Ok(())
    }

    async fn check_uplinks(&self) -> UplinkCheck {
        self.state().looks += 1;
        UplinkCheck::default()
    }

    async fn keep_client_links(&self, _publishes: bool) -> Vec<String> {
        Vec::new()
    }

    fn client_links(&self) -> ClientLinks {
        let mut state = self.state();
        state.client_links_read += 1;
        state.client_links.clone()
    }

    async fn other_links(&self) -> Result<OtherLinks, ApiError> {
        Ok(self.state().other_links.clone())
    }

    fn uplinks(&self) -> (Vec<Uplink>, Option<Price>) {
        (Vec::new(), None)
    }

    fn shares_port(&self) -> bool {
        false
    }

    fn device(&self) -> Device {
        Device { kind: PairKind::Veth, reason: "there is no kernel".to_owned() }
    }

    async fn max_mtu(&self, driver: Driver) -> Result<u16, ApiError> {
        Ok(match driver {
            Driver::Overlay => 1450,
            Driver::Bridge => 1500,
        })
    }

    async fn routes(&self) -> Result<Vec<HostRoute>, ApiError> {
        Ok(self.state().host_routes())
    }

    async fn routes_into(&self, subnets: &[IpNetwork]) -> Result<Vec<HostRoute>, ApiError> {
        let mut routes = self.routes().await?;
        let leads_into = |to| subnets.iter().any(|subnet| validate::overlap(*subnet, to));
        let has_hop =
            |route: &HostRoute| subnets.iter().any(|subnet| route.hop_in(*subnet).is_some());
        routes
            .retain(|route| (route.is_taken() && leads_into(route.destination)) || has_hop(route));
        Ok(routes)
    }

    async fn choose_uplinks(
        &self,
        given: &[String],
        vtep_ip: Option<Ipv4Addr>,
    ) -> Result<UplinkChoice, ApiError> {
        let default = self.state().default_link.clone();
        let uplinks: Vec<String> =
            if given.is_empty() { default.iter().cloned().collect() } else { given.to_vec() };
        let vtep = vtep_ip.unwrap_or(Ipv4Addr::new(192, 0, 2, 1));
        let chosen = if uplinks.is_empty() {
            Err(UplinkFault::Absent("no default route tells the uplink".to_owned()))
        } else {
            Ok((uplinks, vtep))
        };
        let lost = self.state().vtep_lost;
        let addresses = if lost { Vec::new() } else { vec![Ipv4Addr::new(192, 0, 2, 1)] };
        Ok(UplinkChoice { addresses, default, chosen })
    }

    async fn facts(&self) -> Result<NodeFacts, ApiError> {
        Ok(self.state().facts.clone())
    }

    fn ifname(&self, ifindex: u32) -> String {
        format!("if{ifindex}")
    }
}
