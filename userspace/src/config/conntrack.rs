//! Options of connection tracking and NAT.

use std::{collections::BTreeMap, time::Duration};

use culvert_common::{
    abi::{DEFAULT_FLOWS, DEFAULT_PORT_SHARE, DEFAULT_SHARE},
    datapath::conntrack::{self, FlowState},
};

/// Options of `culvert agent` about connection tracking and NAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackOptions {
    /// `--conntrack-max`: capacity of the flow table, [`MIN_CONNTRACK`] to [`MAX_CONNTRACK`] flows.
    pub max_flows: u32,
    /// `--conntrack-share`: the part of the table that one container may take, in percent, 20
    /// to 100.
    pub share: u32,
    /// `--nat-ports`: the least and the greatest source port of masquerading. The least is not 0
    /// and not above the greatest.
    pub nat_ports: (u16, u16),
    /// `--nat-port-share`: the part of these ports that one container may always take towards a
    /// destination, in percent, 20 to 100.
    pub port_share: u32,
    /// `--conntrack-timeout`, once for each state whose timeout was given.
    pub timeouts: FlowTimeouts,
}

impl Default for ConntrackOptions {
    fn default() -> Self {
        Self {
            max_flows: DEFAULT_FLOWS,
            share: DEFAULT_SHARE,
            nat_ports: DEFAULT_NAT_PORTS,
            port_share: DEFAULT_PORT_SHARE,
            timeouts: FlowTimeouts::default(),
        }
    }
}

/// Timeouts of idle flows, by state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// The timeouts that differ from the default, in seconds.
    given: BTreeMap<FlowState, u32>,
}

impl FlowTimeouts {
    /// Timeout of an idle flow in `state`.
    pub fn get(&self, state: FlowState) -> Duration {
        let seconds = self.given.get(&state).copied().unwrap_or(state.default_timeout_s());
        Duration::from_secs(seconds.into())
    }

    /// Timeout of an idle flow in `state`, in ns.
    pub fn ns(&self, state: FlowState) -> u64 {
        u64::try_from(self.get(state).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The timeouts as the programs read them.
    pub fn table(&self) -> conntrack::Timeouts {
        conntrack::timeouts(|state| self.ns(state))
    }

    /// Sets the timeout of `state`, in seconds. Returns the timeout that an earlier call set.
    pub fn set(&mut self, state: FlowState, seconds: u32) -> Option<u32> {
        self.given.insert(state, seconds)
    }
}

/// Default of `--nat-ports`: all ports that a process may bind without privilege.
pub const DEFAULT_NAT_PORTS: (u16, u16) = (1024, 65_535);
/// Least value of `--conntrack-max`, in flows.
pub const MIN_CONNTRACK: u32 = 64;
/// Greatest value of `--conntrack-max`, in flows: the empty table then takes 640 MiB.
pub const MAX_CONNTRACK: u32 = 8_388_608;
