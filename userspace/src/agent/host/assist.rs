//! The assistant devices, which carry no packets: the vxlan device of [`sandbox::keep_gro`], the
//! bridges of [`sandbox::keep_room`], and the lenders of [`sandbox::keep_lender`].

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
    sandbox::{self, Assistant, Enrolled, Rooms, SandboxError},
};

/// State of the devices.
#[derive(Debug, Default)]
pub(super) struct Assistants {
    /// Ifindex of the vxlan device; 0 means that there is none.
    gro: AtomicU32,
    /// The bridges and their ports.
    rooms: std::sync::Mutex<Rooms>,
    /// Interfaces that other devices do not let go.
    stuck: std::sync::Mutex<BTreeMap<u32, Stuck>>,
    /// Ifindex of a device that was made and removed again because its UDP port was taken.
    discarded: AtomicU32,
    /// A socket of another program has the VXLAN port, so that the vxlan device cannot be up.
    port_taken: AtomicBool,
    /// Another program has made a vxlan device on the VXLAN port, which shares the socket.
    other_device: AtomicBool,
    /// Whether the ports that an earlier agent has made were fenced.
    fenced: AtomicBool,
    /// Whether it was found out if a socket of another program had the port at the start.
    port_probed: AtomicBool,
    /// The host is being purged: the devices are not made again.
    gone: AtomicBool,
    /// What was logged last. The lock serialises the work on the devices.
    told: Mutex<Told>,
}

/// Last logged reason why a device is missing, or cannot be kept, and that another program has a
/// device on the same port.
#[derive(Debug, Default)]
struct Told {
    gro: Option<String>,
    other: Option<String>,
    room: Option<String>,
    further: Option<String>,
}

/// An interface that another device has as a port, and does not let go, such as Open vSwitch.
#[derive(Debug)]
struct Stuck {
    master: u32,
    /// The problem on one line.
    line: String,
}

impl Assistants {
    /// Whether the devices must be checked after an event. `port` is the VXLAN port.
    pub(super) fn concerns(&self, event: &Event, port: u16) -> bool {
        match event {
            // The device may go into another namespace, where it is not seen.
            Event::Link { name, vxlan_port, .. }
                if *vxlan_port == Some(port)
                    && name != sandbox::GRO
                    && !sandbox::is_room_ifname(name) =>
            {
                !self.other_device.swap(true, Ordering::Relaxed)
            }
            Event::Link { index, up, master, .. } => {
                let rooms = self.rooms();
                let strayed = rooms.first().is_some() && *master != rooms.first();
                let is_gro = *index == self.gro.load(Ordering::Relaxed);
                (*up && rooms.has(*index))
                    || (is_gro && (!*up || strayed))
                    || rooms.lender_differs(*index, *up, *master)
            }
            // A device of another program may have had the name.
            Event::LinkGone { index, name } if name == sandbox::GRO => {
                *index != self.discarded.load(Ordering::Relaxed)
            }
            Event::LinkGone { name, .. } => sandbox::is_room_ifname(name),
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
        if !self.port_probed.load(Ordering::Relaxed) {
            match sandbox::is_port_taken(netlink, port).await {
                Ok(taken) => {
                    self.other_device.fetch_or(taken, Ordering::Relaxed);
                    self.port_probed.store(true, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!("UDP port {port}: {error}"),
            }
        }
        let gro = self.keep_gro(netlink, port).await;
        let before = self.gro.load(Ordering::Relaxed);
        // The bridges are filled after the vxlan device is made, because that device determines the
        // headroom.
        let room = self.keep_room(netlink, 0, &mut found).await;
        self.lend(netlink, 0, &gro, &mut found).await;
        let gro = self.open_gro(netlink, gro).await;
        let is_open = self.rooms().lender(0).is_some();
        found.extend(fault(sandbox::GRO, before != 0, &gro).filter(|_| is_open));
        self.gro.store(index_after(netlink, &gro, before).await, Ordering::Relaxed);
        let taken = gro.as_ref().err().and_then(errno) == Some(Errno::EADDRINUSE);
        self.port_taken.store(taken, Ordering::Relaxed);
        let shared = !taken && self.other_device.load(Ordering::Relaxed);
        let other = shared.then(|| {
            format!(
                "another program has a vxlan device on UDP port {port}: VXLAN that is not Culvert's is passed on to it"
            )
        });
        tell(&mut told.other, other);
        let filled = match room {
            Ok(()) => self.fill(netlink, &mut found).await,
            Err(error) => Err(error),
        };
        let closed = (gro.is_ok() && !is_open).then(|| {
            format!(
                "{}: it is no port of {}; VXLAN frames are decapsulated one by one",
                sandbox::GRO,
                sandbox::ROOM
            )
        });
        tell(&mut told.gro, gro.err().map(|error| explain(&error, port)).or(closed));
        let (room, further) = match filled {
            Ok(further) => (None, further),
            Err(error) => (Some(copied(&error)), None),
        };
        tell(&mut told.room, room);
        tell(&mut told.further, further);
        found
    }

    /// Keeps the vxlan device. It is not made again as long as another socket has the port.
    async fn keep_gro(&self, netlink: &Netlink, port: u16) -> Result<Assistant, SandboxError> {
        let was_taken = self.port_taken.load(Ordering::Relaxed);
        if was_taken && sandbox::is_port_taken(netlink, port).await? {
            let taken = std::io::Error::from_raw_os_error(Errno::EADDRINUSE as i32);
            return Err(NetlinkError::kernel(format!("binding UDP port {port}"), taken).into());
        }
        sandbox::keep_gro(netlink, port).await
    }

    /// Brings the vxlan device up, if it is a port of the first bridge.
    async fn open_gro(
        &self,
        netlink: &Netlink,
        gro: Result<Assistant, SandboxError>,
    ) -> Result<Assistant, SandboxError> {
        let gro = gro?;
        let was_open = gro.found.is_none();
        let is_port = self.rooms().lender(0) == Some(gro.index);
        if is_port && !was_open {
            let discard = |index| self.discarded.store(index, Ordering::Relaxed);
            sandbox::open_gro(netlink, gro.index, discard).await?;
        } else if was_open && !is_port {
            sandbox::close_gro(netlink).await?;
        }
        Ok(gro)
    }

    /// Keeps the bridge with this number. What other programs had changed is added to `found`.
    async fn keep_room(
        &self,
        netlink: &Netlink,
        number: u32,
        found: &mut Vec<String>,
    ) -> Result<(), SandboxError> {
        let before = self.rooms().index(number).unwrap_or_default();
        let room = sandbox::keep_room(netlink, number).await;
        let index = index_after(netlink, &room, before).await;
        self.rooms().set(number, (index != 0).then_some(index));
        found.extend(fault(&sandbox::room_ifname(number), before != 0, &room));
        room.map(drop)
    }

    /// Makes the lender of a bridge a port of that bridge, if there are both. That another program
    /// has taken it out is added to `found`.
    async fn lend(
        &self,
        netlink: &Netlink,
        number: u32,
        lender: &Result<Assistant, SandboxError>,
        found: &mut Vec<String>,
    ) {
        let (Ok(lender), Some(room)) = (lender, self.rooms().index(number)) else { return };
        let was_port = self.rooms().lender(number) == Some(lender.index);
        let is_port = if lender.master == Some(room) {
            true
        } else {
            let name = sandbox::lender_ifname(number);
            if was_port {
                found.push(format!("{name} was no port of {}", sandbox::room_ifname(number)));
            }
            sandbox::enrol(netlink, room, &name).await == Enrolled::Port
        };
        self.rooms().set_lender(number, is_port.then_some(lender.index));
    }

    /// Keeps the further bridge with this number, and its lender. The bridge is used without a
    /// lender, too.
    async fn keep_further(
        &self,
        netlink: &Netlink,
        number: u32,
        found: &mut Vec<String>,
    ) -> Result<(), SandboxError> {
        self.keep_room(netlink, number, found).await?;
        let was_port = self.rooms().lender(number).is_some();
        let lender = sandbox::keep_lender(netlink, number).await;
        found.extend(fault(&sandbox::lender_ifname(number), was_port, &lender));
        self.lend(netlink, number, &lender, found).await;
        lender.map(drop)
    }

    /// Keeps the further bridges, and adds the interfaces that have not been ports of a bridge.
    /// Returns why a further bridge cannot be kept, on one line.
    async fn fill(
        &self,
        netlink: &Netlink,
        found: &mut Vec<String>,
    ) -> Result<Option<String>, SandboxError> {
        let links = netlink.links().await?;
        let mut problem = None;
        let numbers = self.rooms().further(&links);
        for number in numbers {
            let kept = self.keep_further(netlink, number, found).await;
            problem = problem.or(kept.err());
        }
        self.rooms().observe(&links);
        if !self.fenced.swap(true, Ordering::Relaxed) {
            // Ports that an earlier agent has made.
            for link in &links {
                if link.master.is_some_and(|master| self.rooms().has(master)) {
                    sandbox::fence(netlink, &link.name).await;
                }
            }
        }
        let homeless = self.rooms().homeless(&links);
        for (index, name) in homeless {
            let (enrolled, made) = self.place(netlink, &name, index).await;
            problem = problem.or(made.err());
            if enrolled != Enrolled::Port {
                break;
            }
        }
        Ok(problem.as_ref().map(copied))
    }

    /// Makes a host side a port of a bridge that has a port left.
    async fn enter(&self, netlink: &Netlink, name: &str, index: u32) -> Enrolled {
        let mut full = BTreeSet::new();
        let enrolled = loop {
            let room = self.rooms().choose(&full);
            let Some(room) = room else { break Enrolled::Full };
            match sandbox::enrol(netlink, room, name).await {
                Enrolled::Port => {
                    self.rooms().enter(index, room);
                    return Enrolled::Port;
                }
                Enrolled::Full => drop(full.insert(room)),
                Enrolled::Refused => break Enrolled::Refused,
            }
        };
        self.rooms().leave(index);
        enrolled
    }

    /// As [`Self::enter`], but makes a further bridge if all are full. The caller holds the lock of
    /// `told`. The second value tells why that bridge, or its lender, cannot be made.
    async fn place(
        &self,
        netlink: &Netlink,
        name: &str,
        index: u32,
    ) -> (Enrolled, Result<(), SandboxError>) {
        let enrolled = self.enter(netlink, name, index).await;
        if enrolled != Enrolled::Full {
            return (enrolled, Ok(()));
        }
        let next = self.rooms().next_number();
        let Some(number) = next else { return (enrolled, Ok(())) };
        let made = self.keep_further(netlink, number, &mut Vec::new()).await;
        (self.enter(netlink, name, index).await, made)
    }

    /// Whether a socket of another program has the VXLAN port, as of the last [`Self::keep`]. It
    /// cannot be seen when a vxlan device in another namespace is removed.
    pub(super) fn shares_port(&self) -> bool {
        self.port_taken.load(Ordering::Relaxed) || self.other_device.load(Ordering::Relaxed)
    }

    /// Makes the host side of a pair a port of a bridge, and of no other device. `master` is the
    /// device that has it as a port now. If that does not let it go, the interface works without a
    /// bridge, and [`Self::problem`] has the reason. Nothing is done if the first bridge is not
    /// known: `master` may be that bridge.
    pub(super) async fn settle(
        &self,
        netlink: &Netlink,
        (name, index): (&str, u32),
        master: Option<u32>,
    ) {
        if self.room().is_none() {
            return;
        }
        let room = master.filter(|master| self.rooms().has(*master));
        if let Some(master) = master.filter(|_| room.is_none())
            && let Err(error) = netlink.set_controller(name, 0).await
        {
            let owner = netlink.link_at(master).await.ok().flatten();
            let owner = name_of(owner.as_ref(), master);
            let line = format!("{name} stays a port of {owner}: remove it there: {error}");
            self.stuck().insert(index, Stuck { master, line });
            return;
        }
        self.stuck().remove(&index);
        if let Some(room) = room {
            self.rooms().enter(index, room);
            return;
        }
        if self.enter(netlink, name, index).await != Enrolled::Full {
            return;
        }
        let mut told = self.told.lock().await;
        if self.gone.load(Ordering::Relaxed) {
            return;
        }
        let (_, made) = self.place(netlink, name, index).await;
        tell(&mut told.further, made.err().as_ref().map(copied));
    }

    /// Why a host side stays a port of another device, on one line. `None`: it is of none.
    pub(super) fn problem(&self, index: u32) -> Option<String> {
        self.stuck().get(&index).map(|stuck| stuck.line.clone())
    }

    /// What is wrong with the device that has the host side of a pair as a port, in words. `links`
    /// are the interfaces of the host. `None`: nothing that could be put right, or no bridge is
    /// known.
    pub(super) fn misplaced(&self, link: &Link, links: &BTreeMap<u32, Link>) -> Option<String> {
        let mut rooms = self.rooms();
        rooms.first()?;
        let Some(master) = link.master else {
            // A bridge that is gone is made again with all its ports.
            let room = rooms.room_of(link.index).filter(|room| links.contains_key(room))?;
            return Some(format!("was no port of {}", rooms.name(room)?));
        };
        if rooms.has(master) {
            rooms.enter(link.index, master);
            return None;
        }
        drop(rooms);
        let is_stuck = |stuck: &Stuck| stuck.master == master;
        if self.stuck().get(&link.index).is_some_and(is_stuck) {
            return None;
        }
        Some(format!("was a port of {}", name_of(links.get(&master), master)))
    }

    /// Forgets an interface that is removed.
    pub(super) fn forget(&self, index: u32) {
        self.rooms().leave(index);
        self.stuck().remove(&index);
    }

    /// Indices of the bridges.
    pub(super) fn room_indices(&self) -> Vec<u32> {
        self.rooms().indices()
    }

    /// Index of the first bridge, if there is one.
    fn room(&self) -> Option<u32> {
        self.rooms().first()
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        // A thread that panicked with the lock held left valid maps.
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Logs the reason why a device is missing, unless `told` has it already.
fn tell(told: &mut Option<String>, line: Option<String>) {
    if let Some(line) = &line
        && told.as_ref() != Some(line)
    {
        tracing::warn!("{line}");
    }
    *told = line;
}

/// The reason why a bridge is missing, or does not lend headroom, and the consequence, on one line.
fn copied(error: &SandboxError) -> String {
    format!("{error}; frames of containers are copied to make room")
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
        Some(Errno::EOPNOTSUPP) => format!(
            "{}: the kernel has no vxlan devices; VXLAN frames are decapsulated one by one",
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
        let other = |name: &str, vxlan_port| {
            let name = name.to_owned();
            Event::Link { index: 12, name, up: false, master: None, vxlan_port }
        };
        let link = |index, up, master| {
            let name = "device".to_owned();
            Event::Link { index, name, up, master, vxlan_port: None }
        };
        let concerns = |event: &Event| assistants.concerns(event, 4789);
        assert!(!concerns(&link(GRO, false, None)), "there are none");
        assistants.gro.store(GRO, Ordering::Relaxed);
        assert!(!concerns(&link(GRO, true, None)), "there is no bridge");
        assistants.rooms().set(0, Some(ROOM));
        assistants.rooms().set(1, Some(8));
        assistants.rooms().set_lender(1, Some(10));
        for (event, is_acted_on) in [
            (link(ROOM, true, None), true),
            (link(ROOM, false, None), false),
            (link(GRO, true, Some(ROOM)), false),
            (link(GRO, false, Some(ROOM)), true),
            (link(GRO, true, None), true),
            (link(GRO, true, Some(9)), true),
            (link(7, true, None), false),
            (link(8, true, None), true),
            (link(8, false, None), false),
            (link(10, false, Some(8)), false),
            (link(10, true, Some(8)), true),
            (link(10, false, None), true),
        ] {
            assert_eq!(concerns(&event), is_acted_on, "{event:?}");
        }
        for (name, is_acted_on) in
            [("cvroom0", true), ("cvroom1", true), ("cvhead1", true), ("br0", false)]
        {
            let event = Event::LinkGone { index: 11, name: name.to_owned() };
            assert_eq!(concerns(&event), is_acted_on, "{event:?}");
        }

        for event in [other("vx9", None), other("vx9", Some(4790)), other("cvhead1", Some(4789))] {
            assert!(!concerns(&event), "{event:?}");
        }
        assert!(!assistants.shares_port());
        assert!(concerns(&other("vx9", Some(4789))));
        assert!(assistants.shares_port());
        assert!(!concerns(&other("vx9", Some(4789))), "it is known");
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
        assistants.rooms().set(0, Some(ROOM));
        assert_eq!(found(&link(7, Some(9))).as_deref(), Some("was a port of if9"));
        assert_eq!(found(&link(7, Some(8))).as_deref(), Some("was a port of #8"));
        assert_eq!(found(&link(7, None)), None, "it has never been one: the bridge may be full");
        assert_eq!(found(&link(7, Some(ROOM))), None);
        assert_eq!(found(&link(7, None)).as_deref(), Some("was no port of cvroom0"));
        // A port of any bridge is well placed.
        assistants.rooms().set(1, Some(10));
        assert_eq!(found(&link(7, Some(10))), None);
        assert_eq!(found(&link(7, None)), None, "that bridge is gone");
        assert_eq!(found(&link(7, Some(ROOM))), None);
        let without = BTreeMap::new();
        assert_eq!(assistants.misplaced(&link(7, None), &without), None, "the bridge is gone");
        let line = "if7 stays a port of if9".to_owned();
        assistants.stuck().insert(7, Stuck { master: 9, line });
        assert_eq!(found(&link(7, Some(9))), None, "it is told by the problem");
        assert_eq!(found(&link(7, Some(8))).as_deref(), Some("was a port of #8"));
    }
}
