//! Choice of the kind of device pair that connects containers with the host, with the reason.

use nix::errno::Errno;

use crate::{
    config::DeviceMode,
    netlink::{NetlinkError, PairKind, try_pair},
};

/// The kind of device pair that new containers get, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Kind of the pair.
    pub kind: PairKind,
    /// The reason, on one line.
    pub reason: String,
}

impl Device {
    /// Chooses the kind. Tests first whether the kernel has netkit.
    ///
    /// # Errors
    /// One line: the kernel does not have the kind that `asked` demands.
    pub async fn choose(asked: DeviceMode) -> Result<Self, String> {
        // With `--device veth` there is no test.
        let tried = match asked {
            DeviceMode::Veth => Ok(()),
            DeviceMode::Auto | DeviceMode::Netkit => try_pair(PairKind::Netkit).await,
        };
        Self::decide(asked, tried)
    }

    /// Chooses, given the result of making a netkit pair.
    fn decide(asked: DeviceMode, tried: Result<(), NetlinkError>) -> Result<Self, String> {
        let (kind, reason) = match (asked, tried) {
            (DeviceMode::Veth, _) => (PairKind::Veth, "asked for with --device veth".to_owned()),
            (DeviceMode::Netkit, Ok(())) => {
                (PairKind::Netkit, "asked for with --device netkit".to_owned())
            }
            (DeviceMode::Auto, Ok(())) => {
                let reason = "chosen: the kernel has netkit, which runs from_container as the container sends";
                (PairKind::Netkit, reason.to_owned())
            }
            (DeviceMode::Auto, Err(error)) => (PairKind::Veth, format!("chosen: {}", why(&error))),
            (DeviceMode::Netkit, Err(error)) => {
                return Err(format!(
                    "--device netkit: {}: leave the option out or give --device veth, or boot Linux 6.7 or newer with CONFIG_NETKIT=y",
                    why(&error)
                ));
            }
        };
        Ok(Self { kind, reason })
    }
}

/// The reason why the kernel has no netkit, as text.
fn why(error: &NetlinkError) -> String {
    match error.errno() {
        // The kernel does not know this kind of device.
        Some(Errno::EOPNOTSUPP) => "the kernel has no netkit devices".to_owned(),
        _ => format!("no netkit device can be made ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> Result<(), NetlinkError> {
        let source = std::io::Error::from_raw_os_error(errno as i32);
        Err(NetlinkError::kernel("creating interface cvtry0", source))
    }

    #[test]
    fn every_choice_has_its_reason() {
        for (asked, tried, kind, words) in [
            (DeviceMode::Auto, Ok(()), PairKind::Netkit, "chosen: the kernel has netkit"),
            (DeviceMode::Netkit, Ok(()), PairKind::Netkit, "--device netkit"),
            (DeviceMode::Veth, Ok(()), PairKind::Veth, "--device veth"),
            (
                DeviceMode::Auto,
                refused(Errno::EOPNOTSUPP),
                PairKind::Veth,
                "chosen: the kernel has no netkit devices",
            ),
            (
                DeviceMode::Auto,
                refused(Errno::ENOMEM),
                PairKind::Veth,
                "no netkit device can be made",
            ),
        ] {
            let device = Device::decide(asked, tried).unwrap();
            assert_eq!(device.kind, kind);
            assert!(device.reason.contains(words), "{}", device.reason);
            assert_eq!(device.reason.lines().count(), 1);
        }
    }

    #[test]
    fn what_is_not_to_be_had_is_refused_on_a_line() {
        let line = Device::decide(DeviceMode::Netkit, refused(Errno::EOPNOTSUPP)).unwrap_err();
        assert_eq!(line.lines().count(), 1);
        for words in ["--device netkit", "the kernel has no netkit devices", "--device veth"] {
            assert!(line.contains(words), "{words}: {line}");
        }
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn the_trial_leaves_nothing() {
        let here = crate::netlink::Netlink::new().unwrap();
        try_pair(PairKind::Veth).await.unwrap();
        assert_eq!(here.link("cvtry0").await.unwrap(), None);
    }
}
