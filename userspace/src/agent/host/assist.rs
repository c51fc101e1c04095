//! The two helper devices, which carry no packets: the vxlan device of [`sandbox::keep_gro`] and
//! the bridge of [`sandbox::keep_room`].

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::errno::Errno;
use tokio::sync::Mutex;

use crate::{
    netlink::{Event, Netlink, NetlinkError},
    sandbox::{self, SandboxError},
};

/// State of the two devices. An ifindex of 0 means that there is no device.
#[derive(Debug, Default)]
pub(super) struct Assistants {
    gro: AtomicU32,
    room: AtomicU32,
    /// Ifindex of a device that was made and removed again because its UDP port was taken.
    discarded: AtomicU32,
    /// A socket of another program has the VXLAN port.
    shared_port: AtomicBool,
    /// The host is being purged: the devices are not made again.
    gone: AtomicBool,
    /// Last logged reason for each missing device. The lock serialises the work on the devices.
    told: Mutex<[Option<String>; 2]>,
}

impl Assistants {
    /// Whether the devices must be checked after an event.
    pub(super) fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Link { index, up: true, .. } => *index == self.room.load(Ordering::Relaxed),
            Event::Link { index, up: false, .. } => *index == self.gro.load(Ordering::Relaxed),
            // A device of another program may have had the name.
            Event::LinkGone { index, name } if name == sandbox::GRO => {
                *index != self.discarded.load(Ordering::Relaxed)
            }
            Event::LinkGone { name, .. } => name == sandbox::ROOM,
            _ => false,
        }
    }

    /// Makes the devices that are missing. Logs once why a device cannot be made.
    pub(super) async fn keep(&self, netlink: &Netlink, port: u16) {
        let mut told = self.told.lock().await;
        if self.gone.load(Ordering::Relaxed) {
            return;
        }
        let discard = |index| self.discarded.store(index, Ordering::Relaxed);
        let gro = sandbox::keep_gro(netlink, port, discard).await;
        self.gro.store(*gro.as_ref().unwrap_or(&0), Ordering::Relaxed);
        let taken = gro.as_ref().err().and_then(errno) == Some(Errno::EADDRINUSE);
        self.shared_port.store(taken, Ordering::Relaxed);
        // The bridge is made after the vxlan device, because that device determines the headroom.
        let room = sandbox::keep_room(netlink).await;
        self.room.store(*room.as_ref().unwrap_or(&0), Ordering::Relaxed);
        let lines = [
            gro.err().map(|error| explain(&error, port)),
            room.err()
                .map(|error| format!("{error}; frames of containers are copied to make room")),
        ];
        for (line, told) in lines.into_iter().zip(told.iter_mut()) {
            if let Some(line) = &line
                && told.as_ref() != Some(line)
            {
                tracing::warn!("{line}");
            }
            *told = line;
        }
    }

    /// Whether a socket of another program has the VXLAN port, as of the last [`Self::keep`].
    pub(super) fn shares_port(&self) -> bool {
        self.shared_port.load(Ordering::Relaxed)
    }

    /// Adds the host side of a veth to the bridge, if there is a bridge.
    pub(super) async fn enrol(&self, netlink: &Netlink, host_ifname: &str) {
        let room = self.room.load(Ordering::Relaxed);
        if room != 0 {
            sandbox::enrol(netlink, room, host_ifname).await;
        }
    }

    /// Removes the devices. They are not made again.
    pub(super) async fn remove(&self, netlink: &Netlink) -> Result<(), SandboxError> {
        let _turn = self.told.lock().await;
        self.gone.store(true, Ordering::Relaxed);
        sandbox::remove_assistants(netlink).await
    }
}

/// The kernel's error number.
fn errno(error: &SandboxError) -> Option<Errno> {
    match error {
        SandboxError::Netlink(error @ NetlinkError::Kernel { .. }) => error.errno(),
        _ => None,
    }
}

/// The reason why there is no vxlan device, and the consequence, on one line.
fn explain(error: &SandboxError, port: u16) -> String {
    match errno(error) {
        Some(Errno::EADDRINUSE) => format!(
            "{}: another program has UDP port {port}; VXLAN that is not Culvert's is passed on to it; VXLAN frames are merged before they are decapsulated only if it is a kernel vxlan device",
            sandbox::GRO
        ),
        Some(Errno::EOPNOTSUPP | Errno::EINVAL) => format!(
            "{}: the kernel has no vxlan devices with a list of VNIs; VXLAN frames are decapsulated one by one",
            sandbox::GRO
        ),
        _ => format!("{error}; VXLAN frames are decapsulated one by one"),
    }
}
