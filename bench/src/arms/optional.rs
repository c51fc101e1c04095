//! Arms of other networks that may not be installed: measured on request.

use std::{
    io::ErrorKind,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    arm::Arm,
    docker::{self, Docker},
    hosts::Pair,
    openvswitch::{self, OpenVSwitch},
    program::program,
};
use crate::load::{Peers, Side, join, spawn};

/// Deadline for the first packet on a path.
const PATIENCE: Duration = Duration::from_secs(20);
/// Timeout of one attempt, and the pause between two.
const TRY: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

/// A network that may not be installed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Optional {
    /// Docker's overlay of a swarm.
    Docker,
    /// Open vSwitch's VXLAN in user space.
    OpenVSwitch,
}

/// Guard of a running network.
pub(super) enum Running {
    /// See [`Optional::Docker`].
    Docker { _daemons: Docker },
    /// See [`Optional::OpenVSwitch`].
    OpenVSwitch { _daemons: OpenVSwitch },
}

impl Optional {
    const ALL: [Self; 2] = [Self::Docker, Self::OpenVSwitch];

    /// Id of the network's arm.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Docker => docker::ID,
            Self::OpenVSwitch => openvswitch::ID,
        }
    }

    /// The programs of the network, and Debian's package of each.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Docker => &[
                ("dockerd", "docker.io"),
                ("docker", "docker.io"),
                ("busybox", "busybox-static"),
                ("iptables", "iptables"),
            ],
            Self::OpenVSwitch => &[
                ("ovs-vswitchd", "openvswitch-switch"),
                ("ovsdb-server", "openvswitch-switch"),
                ("ovsdb-tool", "openvswitch-switch"),
                ("ovs-vsctl", "openvswitch-switch"),
            ],
        }
    }

    fn check(self) -> Result<()> {
        for (name, package) in self.programs() {
            if program(name).is_err() {
                bail!("{}: {name} is not installed: install {package}", self.id());
            }
        }
        Ok(())
    }

    /// The networks that `arms` names. With `all` and without `arms`, all installed networks.
    ///
    /// # Errors
    ///
    /// A named network is not installed.
    pub(crate) fn wanted(arms: &[String], all: bool) -> Result<Vec<Self>> {
        let mut wanted = Vec::new();
        for it in Self::ALL {
            let named = arms.iter().any(|arm| it.id().starts_with(arm.as_str()));
            // Nothing else is measured if `arms` names arms.
            let asked = named || (all && arms.is_empty());
            match it.check() {
                Ok(()) if asked => wanted.push(it),
                Err(error) if named => return Err(error),
                Err(error) if asked => eprintln!("bench: not measured: {error}"),
                _ => {}
            }
        }
        Ok(wanted)
    }

    /// Sets the network up between two hosts.
    pub(super) fn make(self, pair: &Pair) -> Result<(Running, Arm)> {
        let (running, arm) = match self {
            Self::Docker => {
                let (daemons, arm) = Docker::new(pair)?;
                (Running::Docker { _daemons: daemons }, arm)
            }
            Self::OpenVSwitch => {
                let (daemons, arm) = OpenVSwitch::new(pair)?;
                (Running::OpenVSwitch { _daemons: daemons }, arm)
            }
        };
        passes(&arm.peers).with_context(|| self.id())?;
        Ok((running, arm))
    }
}

/// Waits until the server's namespace answers a TCP connection: "connection refused" is an answer,
/// too.
fn passes(peers: &Peers) -> Result<()> {
    let to = peers.to;
    let client = spawn(&peers.client, Side::Client, move || {
        let end = Instant::now() + PATIENCE;
        loop {
            match TcpStream::connect_timeout(&to.into(), TRY) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(error).context("no packet passes");
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    })?;
    join(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arms::Steady;

    #[test]
    #[ignore = "needs root and Docker"]
    fn docker_moves_packets_and_goes() {
        moves_packets_and_goes(Optional::Docker);
    }

    #[test]
    #[ignore = "needs root and Open vSwitch"]
    fn openvswitch_moves_packets_and_goes() {
        moves_packets_and_goes(Optional::OpenVSwitch);
    }

    fn moves_packets_and_goes(it: Optional) {
        it.check().expect("installed");
        let pair = Pair::new().expect("hosts");
        let (running, arm) = it.make(&pair).expect("set up");
        let figures = arm.measure(Steady::Connections, Duration::from_millis(50));
        let rate = figures.expect("measured").into_values().next();
        assert!(rate.is_some_and(|rate| rate > 0.0), "{}: {rate:?}", it.id());
        let namespaces = [arm.peers.client, arm.peers.server];
        assert!(namespaces.iter().all(|netns| netns.exists()), "{namespaces:?}");
        drop(running);
        assert!(!namespaces.iter().any(|netns| netns.exists()), "{namespaces:?}");
    }

    #[test]
    fn none_is_measured_that_was_not_asked_for() {
        for arms in [&[][..], &["host"], &["culvert-overlay", "vxlan"]] {
            let arms: Vec<_> = arms.iter().map(|arm| (*arm).to_owned()).collect();
            assert_eq!(Optional::wanted(&arms, false).expect("none"), []);
        }
        // If arms are named, a network that is not named is not measured, whether installed or not.
        assert_eq!(Optional::wanted(&["host".to_owned()], true).expect("none"), []);
    }

    #[test]
    fn what_is_named_and_missing_is_said_in_a_line() {
        for it in Optional::ALL {
            let wanted = Optional::wanted(&[it.id().to_owned()], false);
            match it.check() {
                Ok(()) => assert_eq!(wanted.expect("installed"), [it]),
                Err(_) => {
                    let error = format!("{:#}", wanted.expect_err("refused"));
                    assert!(error.contains("install ") && !error.contains('\n'), "{error}");
                }
            }
        }
    }
}
