//! The values of `--conntrack-max`, `--conntrack-share`, `--conntrack-timeout`, `--nat-ports` and
//! `--nat-port-share`.

use std::fmt;

use culvert_common::datapath::conntrack::FlowState;

use crate::{
    cli::value,
    config::{DEFAULT_NAT_PORTS, FlowTimeouts, MAX_CONNTRACK, MIN_CONNTRACK},
    model::Invalid,
};

/// A value of `--conntrack-timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StateTimeout {
    state: FlowState,
    seconds: u32,
}

/// A value of `--nat-ports`, which displays as it is written on the command line.
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

/// The name of a state as `--conntrack-timeout` spells it.
fn option_name(state: FlowState) -> String {
    state.name().replace('_', "-")
}

/// Parses `STATE=SECONDS`.
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

/// Parses a number of flows.
pub(super) fn max_flows(text: &str) -> Result<u32, Invalid> {
    match text.parse() {
        Ok(flows) if (MIN_CONNTRACK..=MAX_CONNTRACK).contains(&flows) => Ok(flows),
        _ => Err(Invalid(format!(
            "'{text}' is not a number of flows: {MIN_CONNTRACK} to {MAX_CONNTRACK} is valid"
        ))),
    }
}

/// Parses a share of the table or of the ports, in percent. The programs examine 32 random slots,
/// and for each port that they try, some ports beside it. With less than 20 %, too few of these
/// slots would have flows of a container that has its share, and too few of these ports would be in
/// its share.
pub(super) fn share(text: &str) -> Result<u32, Invalid> {
    match text.parse() {
        Ok(percent @ 20..=100) => Ok(percent),
        _ => Err(Invalid(format!("share '{text}' is no percentage from 20 to 100"))),
    }
}

/// Parses `LO-HI`.
pub(super) fn nat_ports(text: &str) -> Result<NatPorts, Invalid> {
    let parsed = text.split_once('-').and_then(|(least, greatest)| {
        let (least, greatest) = (value::port(least).ok()?, value::port(greatest).ok()?);
        (least <= greatest).then_some(NatPorts((least, greatest)))
    });
    parsed.ok_or_else(|| {
        Invalid(format!("ports '{text}' are malformed: LO-HI as in 1024-65535 is valid"))
    })
}

/// The timeouts of all `--conntrack-timeout` options together.
///
/// # Errors
///
/// A state is given twice.
pub(super) fn collect(given: &[StateTimeout]) -> Result<FlowTimeouts, Invalid> {
    let mut timeouts = FlowTimeouts::default();
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
    fn shares() {
        assert_eq!((share("20").unwrap(), share("100").unwrap()), (20, 100));
        for bad in ["", "0", "19", "101", "-1", "50%", "0.5"] {
            line(share(bad));
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
