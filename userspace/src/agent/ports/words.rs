//! Ports of the host in messages.

use std::net::Ipv4Addr;

use crate::{
    agent::platform::{Holder, PortError, Ports},
    api::types::{ApiError, ErrorKind},
    model::PublishedPort,
};

/// The text of a port of the host in messages.
pub(super) fn spelled(port: &PublishedPort) -> String {
    let PublishedPort { host_ip, protocol, .. } = port;
    let host_port = match port.host_ports() {
        Some((first, last)) if first != last => format!("{first}-{last}"),
        _ => port.host_port.to_string(),
    };
    if *host_ip == Ipv4Addr::UNSPECIFIED {
        format!("{host_port}/{protocol}")
    } else {
        format!("{host_ip}:{host_port}/{protocol}")
    }
}

/// The refusal for a port that cannot be held, on one line. Searches for the holder of the port.
pub(super) fn refusal(platform: &dyn Ports, port: &PublishedPort, error: &PortError) -> ApiError {
    let &PublishedPort { host_ip, host_port, protocol, .. } = port;
    let holder = match error {
        PortError::InUse => platform.port_holder(host_ip, host_port, protocol),
        _ => Holder::Unseen,
    };
    refusal_by(&holder, port, error)
}

/// The refusal for a port that cannot be held, on one line. `holder`: who has it, if somebody has.
pub(super) fn refusal_by(holder: &Holder, port: &PublishedPort, error: &PortError) -> ApiError {
    let host_ip = port.host_ip;
    let name = spelled(port);
    let (kind, line) = match error {
        PortError::InUse => {
            let by = match holder {
                Holder::Process { name, pid } => {
                    format!("'{name}' (pid {pid}): choose another port or stop it")
                }
                Holder::Ending => {
                    "a connection that is ending: choose another port or try again in a minute"
                        .to_owned()
                }
                Holder::Unseen => "another process: choose another port or stop it".to_owned(),
            };
            (ErrorKind::Conflict, format!("port {name} is in use by {by}"))
        }
        PortError::Denied { from } => (
            ErrorKind::Conflict,
            format!(
                "port {name}: permission denied: a port below {from} (net.ipv4.ip_unprivileged_port_start) needs CAP_NET_BIND_SERVICE: give it to the agent, or choose a port from {from} on"
            ),
        ),
        PortError::NoSuchAddress => (
            ErrorKind::Invalid,
            format!(
                "port {name}: {host_ip} is not an address of this host: one that it has, or 0.0.0.0 for every one, is valid"
            ),
        ),
        PortError::NoFiles(why) => {
            (ErrorKind::Unavailable, format!("port {name}: no open file is left to hold it: {why}"))
        }
        PortError::Other(why) => (
            ErrorKind::Internal,
            format!("port {name}: it cannot be taken ({why}): see the agent's log and limits"),
        ),
    };
    ApiError::new(kind, line)
}
