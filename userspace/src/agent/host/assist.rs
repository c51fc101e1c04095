//! The two helper devices, which carry no packets: the vxlan device of [`sandbox::keep_gro`] and
//! the bridge of [`sandbox::keep_room`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use nix::errno::Errno;
use tokio::sync::Mutex;

use crate::{
    netlink::{Event, Link, Netlink, NetlinkError},
    sandbox::{self, Assistant, SandboxError},
};

/// State of the two devices. An ifindex of 0 means that there is no device.
#[derive(Debug, Default)]
pub(super) struct Assistants {
    gro: AtomicU32,
    room: AtomicU32,
    /// Interfaces that are ports of the bridge unless another program has taken them out. Its ports
    /// are limited, so that other interfaces may have found no room.
    ports: std::sync::Mutex<BTreeSet<u32>>,
    /// Interfaces that other devices do not let go.
    stuck: std::sync::Mutex<BTreeMap<u32, Stuck>>,
    /// Ifindex of a device that was made and removed again because its UDP port was taken.
    discarded: AtomicU32,
    /// A socket of another program has the VXLAN port.
    shared_port: AtomicBool,
    /// The host is being purged: the devices are not made again.
    gone: AtomicBool,
    /// Last logged reason for each missing device. The lock serialises the work on the devices.
    told: Mutex<[Option<String>; 2]>,
}

/// An interface that another device has as a port, and does not let go, such as Open vSwitch.
#[derive(Debug)]
struct Stuck {
    master: u32,
    /// The problem on one line.
    line: String,
}

impl Assistants {
    /// Whether the devices must be checked after an event.
    pub(super) fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Link { index, up, master, .. } => {
                let room = self.room();
                let strayed = room.is_some() && *master != room;
                let is_gro = *index == self.gro.load(Ordering::Relaxed);
                (*up && Some(*index) == room) || (is_gro && (!*up || strayed))
            }
            // A device of another program may have had the name.
            Event::LinkGone { index, name } if name == sandbox::GRO => {
                *index != self.discarded.load(Ordering::Relaxed)
            }
            Event::LinkGone { name, .. } => name == sandbox::ROOM,
            _ => false,
        }
    }

    /// Makes the devices that are missing. Logs once why a device cannot be made. Returns what
    /// other programs had changed, a line each.
    pub(super) async fn keep(&self, netlink: &Netlink, port: u16) -> Vec<String> {
        let mut told = self.told.lock().await;
        if self.gone.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut found = Vec::new();
        let discard = |index| self.discarded.store(index, Ordering::Relaxed);
        let gro = sandbox::keep_gro(netlink, port, discard).await;
        let before = self.gro.load(Ordering::Relaxed);
        self.gro.store(index_after(netlink, &gro, before).await, Ordering::Relaxed);
        found.extend(fault(sandbox::GRO, before != 0, &gro));
        let taken = gro.as_ref().err().and_then(errno) == Some(Errno::EADDRINUSE);
        self.shared_port.store(taken, Ordering::Relaxed);
        // The bridge is filled after the vxlan device is made, because that device determines the
        // headroom.
        let room = sandbox::keep_room(netlink).await;
        let before = self.room.load(Ordering::Relaxed);
        let index = index_after(netlink, &room, before).await;
        self.room.store(index, Ordering::Relaxed);
        found.extend(fault(sandbox::ROOM, before != 0, &room));
        if before != index {
            // The ports of a bridge that is gone are no ports any more.
            self.ports().clear();
        }
        found.extend(self.strayed(index, &gro));
        let filled = if room.is_ok() { self.fill(netlink, index).await } else { Ok(()) };
        let lines = [
            gro.err().map(|error| explain(&error, port)),
            room.and(filled)
                .err()
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
        found
    }

    /// Whether another program has taken the vxlan device out of the bridge, in words.
    fn strayed(&self, room: u32, gro: &Result<Assistant, SandboxError>) -> Option<String> {
        let gro = gro.as_ref().ok()?;
        let strayed = gro.master != Some(room) && self.ports().contains(&gro.index);
        strayed.then(|| format!("{} was no port of {}", sandbox::GRO, sandbox::ROOM))
    }

    /// Adds the interfaces that have not been ports of the bridge.
    async fn fill(&self, netlink: &Netlink, room: u32) -> Result<(), SandboxError> {
        let known = self.ports().clone();
        let filled = sandbox::fill_room(netlink, room, &known).await?;
        self.ports().extend(filled);
        Ok(())
    }

    /// Whether a socket of another program has the VXLAN port, as of the last [`Self::keep`].
    pub(super) fn shares_port(&self) -> bool {
        self.shared_port.load(Ordering::Relaxed)
    }

    /// Makes the host side of a pair a port of the bridge, and of no other device. `master` is the
    /// device that has it as a port now. If that does not let it go, the interface works without the
    /// bridge, and [`Self::problem`] has the reason. Nothing is done if no bridge is known: `master`
    /// may be that bridge.
    pub(super) async fn settle(
        &self,
        netlink: &Netlink,
        (name, index): (&str, u32),
        master: Option<u32>,
    ) {
        let Some(room) = self.room() else { return };
        if let Some(master) = master.filter(|master| *master != room)
            && let Err(error) = netlink.set_controller(name, 0).await
        {
            let owner = netlink.link_at(master).await.ok().flatten();
            let owner = name_of(owner.as_ref(), master);
            let line = format!("{name} stays a port of {owner}: remove it there: {error}");
            self.stuck().insert(index, Stuck { master, line });
            return;
        }
        self.stuck().remove(&index);
        if master == Some(room) || sandbox::enrol(netlink, room, name).await {
            self.ports().insert(index);
        } else {
            // The bridge is full.
            self.ports().remove(&index);
        }
    }

    /// Why a host side stays a port of another device, on one line. `None`: it is of none.
    pub(super) fn problem(&self, index: u32) -> Option<String> {
        self.stuck().get(&index).map(|stuck| stuck.line.clone())
    }

    /// What is wrong with the device that has the host side of a pair as a port, in words. `links`
    /// are the interfaces of the host. `None`: nothing that could be put right, or no bridge is
    /// known.
    pub(super) fn misplaced(&self, link: &Link, links: &BTreeMap<u32, Link>) -> Option<String> {
        let room = self.room()?;
        let Some(master) = link.master else {
            // A bridge that is gone is made again with all its ports.
            let strayed = links.contains_key(&room) && self.ports().contains(&link.index);
            return strayed.then(|| format!("was no port of {}", sandbox::ROOM));
        };
        if master == room {
            self.ports().insert(link.index);
            return None;
        }
        let is_stuck = |stuck: &Stuck| stuck.master == master;
        if self.stuck().get(&link.index).is_some_and(is_stuck) {
            return None;
        }
        Some(format!("was a port of {}", name_of(links.get(&master), master)))
    }

    /// Forgets an interface that is removed.
    pub(super) fn forget(&self, index: u32) {
        self.ports().remove(&index);
        self.stuck().remove(&index);
    }

    /// Index of the bridge, if there is one.
    pub(super) fn room(&self) -> Option<u32> {
        let room = self.room.load(Ordering::Relaxed);
        (room != 0).then_some(room)
    }

    fn ports(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // A thread that panicked with the lock held left a valid set.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stuck(&self) -> MutexGuard<'_, BTreeMap<u32, Stuck>> {
        // As above.
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the devices. They are not made again.
    pub(super) async fn remove(&self, netlink: &Netlink) -> Result<(), SandboxError> {
        let _turn = self.told.lock().await;
        self.gone.store(true, Ordering::Relaxed);
        sandbox::remove_assistants(netlink).await
    }
}

/// Index of a device after an attempt to keep it; 0 if there is none. After an error it is the one
/// that it had `before`, as long as that device exists: the error may be that of a setting.
async fn index_after(
    netlink: &Netlink,
    device: &Result<Assistant, SandboxError>,
    before: u32,
) -> u32 {
    match device {
        Ok(device) => device.index,
        Err(_) if before == 0 => 0,
        Err(_) => match netlink.link_at(before).await {
            Ok(link) if !link.as_ref().is_some_and(sandbox::is_assistant) => 0,
            // If the kernel does not answer, nothing is known to have changed.
            Ok(_) | Err(_) => before,
        },
    }
}

/// Name of the interface with the index `index`, if it is there.
fn name_of(link: Option<&Link>, index: u32) -> String {
    link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
}

/// What was wrong with a device, in words. Nothing was wrong with a device that is made for the
/// first time.
fn fault(name: &str, was_there: bool, device: &Result<Assistant, SandboxError>) -> Option<String> {
    let found = device.as_ref().ok()?.found.filter(|_| was_there)?;
    Some(format!("{name} {found}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the event of its master the vxlan device would stay out of the bridge for a minute.
    #[test]
    fn events_of_the_two_devices_are_acted_on() {
        const GRO: u32 = 5;
        const ROOM: u32 = 6;
        let assistants = Assistants::default();
        let link = |index, up, master| Event::Link { index, name: "device".to_owned(), up, master };
        assert!(!assistants.concerns(&link(GRO, false, None)), "there are none");
        assistants.gro.store(GRO, Ordering::Relaxed);
        assert!(!assistants.concerns(&link(GRO, true, None)), "there is no bridge");
        assistants.room.store(ROOM, Ordering::Relaxed);
        for (event, is_acted_on) in [
            (link(ROOM, true, None), true),
            (link(ROOM, false, None), false),
            (link(GRO, true, Some(ROOM)), false),
            (link(GRO, false, Some(ROOM)), true),
            (link(GRO, true, None), true),
            (link(GRO, true, Some(9)), true),
            (link(7, true, None), false),
        ] {
            assert_eq!(assistants.concerns(&event), is_acted_on, "{event:?}");
        }
    }

    #[test]
    fn a_host_side_is_a_port_of_the_bridge_and_of_no_other() {
        const ROOM: u32 = 6;
        let assistants = Assistants::default();
        let link =
            |index, master| Link { index, name: format!("if{index}"), master, ..Link::default() };
        let links: BTreeMap<u32, Link> =
            [(9, link(9, None)), (ROOM, link(ROOM, None))].into_iter().collect();
        let found = |port: &Link| assistants.misplaced(port, &links);
        assert_eq!(found(&link(7, Some(9))), None, "no bridge is known");
        assistants.room.store(ROOM, Ordering::Relaxed);
        assert_eq!(found(&link(7, Some(9))).as_deref(), Some("was a port of if9"));
        assert_eq!(found(&link(7, Some(8))).as_deref(), Some("was a port of #8"));
        assert_eq!(found(&link(7, None)), None, "it has never been one: the bridge may be full");
        assert_eq!(found(&link(7, Some(ROOM))), None);
        assert_eq!(found(&link(7, None)).as_deref(), Some("was no port of cvroom0"));
        let without = BTreeMap::new();
        assert_eq!(assistants.misplaced(&link(7, None), &without), None, "the bridge is gone");
        let line = "if7 stays a port of if9".to_owned();
        assistants.stuck().insert(7, Stuck { master: 9, line });
        assert_eq!(found(&link(7, Some(9))), None, "it is told by the problem");
        assert_eq!(found(&link(7, Some(8))).as_deref(), Some("was a port of #8"));
    }
}
