//! Options of conntrack and NAT: `--conntrack-max`, `--conntrack-timeout`, `--nat-ports`.

use std::{collections::BTreeMap, fmt, time::Duration};

use culvert_common::{abi::DEFAULT_FLOWS, datapath::conntrack::FlowState};

use super::value;
use crate::model::Invalid;

/// What `culvert agent` is told of conntrack and NAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackOptions {
    /// `--conntrack-max`: flows that there is room for, [`MIN_CONNTRACK`] to [`MAX_CONNTRACK`].
    pub max_flows: u32,
    /// `--nat-ports`: least and greatest port that masquerading chooses; from 1 up.
    pub nat_ports: (u16, u16),
    /// `--conntrack-timeout`, as often as given.
    pub timeouts: Timeouts,
}

impl Default for ConntrackOptions {
    fn default() -> Self {
        Self {
            max_flows: DEFAULT_FLOWS,
            nat_ports: DEFAULT_NAT_PORTS,
            timeouts: Timeouts::default(),
        }
    }
}

/// How long flows live unused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Those that are not the default, in seconds.
    given: BTreeMap<FlowState, u32>,
}

impl Timeouts {
    /// How long a flow in `state` lives unused.
    pub fn get(&self, state: FlowState) -> Duration {
        let seconds = self.given.get(&state).copied().unwrap_or(state.default_timeout_s());
        Duration::from_secs(seconds.into())
    }

    /// The same in ns.
    pub fn ns(&self, state: FlowState) -> u64 {
        u64::try_from(self.get(state).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Sets how many seconds a flow in `state` lives unused; the former value if there
    /// was one.
    pub fn set(&mut self, state: FlowState, seconds: u32) -> Option<u32> {
        self.given.insert(state, seconds)
    }
}

/// Default of `--nat-ports`: all but those that only root may bind.
pub const DEFAULT_NAT_PORTS: (u16, u16) = (1024, 65_535);
/// Least value of `--conntrack-max`, in flows.
pub const MIN_CONNTRACK: u32 = 64;
/// Greatest value of `--conntrack-max`, in flows: the empty table then takes 256 MiB.
pub const MAX_CONNTRACK: u32 = 8_388_608;

/// One `--conntrack-timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StateTimeout {
    state: FlowState,
    seconds: u32,
}

/// A `--nat-ports` that displays as it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NatPorts(pub(super) (u16, u16));

impl Default for NatPorts {
    fn default() -> Self {
        Self(DEFAULT_NAT_PORTS)
    }
}

impl fmt::Display for NatPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, greatest) = self.0;
        write!(f, "{least}-{greatest}")
    }
}

/// The name of a state as options spell it.
fn option_name(state: FlowState) -> String {
    state.name().replace('_', "-")
}

/// `STATE=SECONDS`.
pub(super) fn timeout(text: &str) -> Result<StateTimeout, Invalid> {
    let Some((name, seconds)) = text.split_once('=') else {
        return Err(Invalid(format!(
            "'{text}' is malformed: STATE=SECONDS as in tcp-established=3600 is valid"
        )));
    };
    let state = FlowState::ALL.iter().copied().find(|state| option_name(*state) == name);
    let Some(state) = state else {
        let names: Vec<_> = FlowState::ALL.iter().copied().map(option_name).collect();
        return Err(Invalid(format!(
            "state '{name}' is unknown: one of {} is valid",
            names.join(", ")
        )));
    };
    let seconds = value::seconds(seconds)?.as_secs();
    Ok(StateTimeout { state, seconds: u32::try_from(seconds).unwrap_or(u32::MAX) })
}

/// A number of flows.
pub(super) fn max_flows(text: &str) -> Result<u32, Invalid> {
    match text.parse() {
        Ok(flows) if (MIN_CONNTRACK..=MAX_CONNTRACK).contains(&flows) => Ok(flows),
        _ => Err(Invalid(format!(
            "'{text}' is not a number of flows: {MIN_CONNTRACK} to {MAX_CONNTRACK} is valid"
        ))),
    }
}

/// `LO-HI`.
pub(super) fn nat_ports(text: &str) -> Result<NatPorts, Invalid> {
    let parsed = text.split_once('-').and_then(|(least, greatest)| {
        let (least, greatest) = (value::port(least).ok()?, value::port(greatest).ok()?);
        (least <= greatest).then_some(NatPorts((least, greatest)))
    });
    parsed.ok_or_else(|| {
        Invalid(format!("ports '{text}' are malformed: LO-HI as in 1024-65535 is valid"))
    })
}

/// The timeouts given.
pub(super) fn collect(given: &[StateTimeout]) -> Result<Timeouts, Invalid> {
    let mut timeouts = Timeouts::default();
    for StateTimeout { state, seconds } in given {
        if timeouts.set(*state, *seconds).is_some() {
            return Err(Invalid(format!(
                "--conntrack-timeout: '{}' is given twice: once is valid",
                option_name(*state)
            )));
        }
    }
    Ok(timeouts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<T: fmt::Debug>(result: Result<T, Invalid>) -> String {
        let line = result.unwrap_err().to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    #[test]
    fn timeouts() {
        let given = [timeout("tcp-established=3600").unwrap(), timeout("icmp=1").unwrap()];
        let timeouts = collect(&given).unwrap();
        assert_eq!(timeouts.get(FlowState::TcpEstablished).as_secs(), 3600);
        assert_eq!(timeouts.ns(FlowState::Icmp), 1_000_000_000);
        assert_eq!(timeouts.get(FlowState::UdpStream).as_secs(), 120);
        for state in FlowState::ALL {
            assert!(timeout(&format!("{}=7", option_name(*state))).is_ok());
        }
        for bad in ["", "=", "icmp", "icmp=", "icmp=0", "icmp=-1", "tcp_close=1", "x=1"] {
            line(timeout(bad));
        }
        assert!(line(collect(&[given[0], given[0]])).contains("'tcp-established' is given twice"));
    }

    #[test]
    fn numbers_of_flows() {
        assert_eq!(max_flows("64").unwrap(), 64);
        assert_eq!(max_flows("8388608").unwrap(), MAX_CONNTRACK);
        for bad in ["", "0", "63", "8388609", "-1", "1k"] {
            line(max_flows(bad));
        }
    }

    #[test]
    fn port_ranges() {
        assert_eq!(nat_ports("1024-65535").unwrap(), NatPorts::default());
        assert_eq!(nat_ports("7-7").unwrap().to_string(), "7-7");
        for bad in ["", "-", "1024", "0-5", "5-0", "9-8", "1-65536", "1-2-3", "a-b"] {
            line(nat_ports(bad));
        }
    }
}
