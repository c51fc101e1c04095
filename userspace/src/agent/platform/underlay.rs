//! The underlay, and facts about the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use async_trait::async_trait;
use ipnetwork::IpNetwork;

use super::types::{
    ClientLinks, HostEvent, NodeFacts, OtherLinks, Paths, PlugError, Remote, UplinkChoice,
};
use crate::{
    api::types::ApiError,
    choice::{Uplink, device::Device},
    datapath::Price,
    model::{Driver, HostRoute},
    probe::{Answers, PathProbe},
};

/// Result of [`Underlay::check_uplinks`].
#[derive(Clone, Debug, Default)]
pub(crate) struct UplinkCheck {
    /// The problems of the uplinks, a line each.
    pub(crate) problems: Vec<String>,
    /// What other programs had changed about the assistant devices, a line each.
    pub(crate) repaired: Vec<String>,
}

/// Uplinks, routes and changes of the host.
#[async_trait]
pub(crate) trait Underlay: Send + Sync + 'static {
    /// Waits for the next change on the host. `None`: no more changes will be reported.
    async fn event(&self) -> Option<HostEvent>;

    /// Resolves the paths to VTEPs. The kernel keeps the next hops of
    /// the VTEPs in `used` resolved, and no others.
    async fn paths(
        &self,
        vteps: &BTreeMap<Ipv4Addr, Remote>,
        used: &BTreeSet<Ipv4Addr>,
    ) -> Result<Paths, PlugError>;

    /// Sends probes from the VTEP address, and each answer to `answers` as soon as it is known: at
    /// once, or after some seconds (see [`crate::probe::ask`]). Returns after the last one. After an
    /// error some probes have no answer.
    async fn probe(&self, probes: Vec<PathProbe>, answers: Answers) -> Result<(), ApiError>;

    /// Attaches missing programs to the uplinks, and puts the assistant devices right (see
    /// `sandbox::keep_gro` and `sandbox::keep_room`). Uplinks whose settings cost packets are
    /// problems as well.
    async fn check_uplinks(&self) -> UplinkCheck;

    /// Attaches `from_client` or `from_client_l3` to the client links if `publishes` (this host
    /// publishes a port), and detaches it otherwise. Client links are the interfaces that are neither
    /// uplinks nor Culvert's. Returns the problems, a line each.
    async fn keep_client_links(&self, publishes: bool) -> Vec<String>;

    /// The client links, as [`Self::keep_client_links`] has left them.
    fn client_links(&self) -> ClientLinks;

    /// The other interfaces out of which routes of the host lead.
    async fn other_links(&self) -> Result<OtherLinks, ApiError>;

    /// Facts about the uplinks, and the costs of the programs on them if they were measured.
    fn uplinks(&self) -> (Vec<Uplink>, Option<Price>);

    /// Whether a socket of another program has the VXLAN port.
    fn shares_port(&self) -> bool;

    /// The kind of device pair that new containers get, and the reason.
    fn device(&self) -> Device;

    /// The largest MTU in bytes that a network can have on this host: the smallest MTU of the
    /// uplinks. For an overlay network the VXLAN overhead is subtracted.
    async fn max_mtu(&self, driver: Driver) -> Result<u16, ApiError>;

    /// The host's routes, except the routes through gateway devices.
    async fn routes(&self) -> Result<Vec<HostRoute>, ApiError>;

    /// The host's unicast routes of the main table to addresses of these subnets, or through next
    /// hops with such addresses, except the routes through gateway devices. Routes that are too
    /// wide to count ([`HostRoute::is_taken`]) are left out, unless their next hop has such an
    /// address.
    async fn routes_into(&self, subnets: &[IpNetwork]) -> Result<Vec<HostRoute>, ApiError>;

    /// What the host says about the choice of the uplinks. `given` and `vtep_ip` are the values of
    /// `--uplink` and `--vtep-ip`.
    async fn choose_uplinks(
        &self,
        given: &[String],
        vtep_ip: Option<Ipv4Addr>,
    ) -> Result<UplinkChoice, ApiError>;

    /// Addresses and MTU of the host.
    async fn facts(&self) -> Result<NodeFacts, ApiError>;

    /// The name of an interface.
    fn ifname(&self, ifindex: u32) -> String;
}
