//! The bridges whose ports are the host sides of containers: [`ROOM`](super::ROOM), and further ones
//! when it has all its ports.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::{
    assist::{LAST, ROOM_KIND},
    endpoint_of, room_ifname,
};
use crate::netlink::{Link, Netlink};

/// The most ports of a Linux bridge (`BR_MAX_PORTS` less the number 0).
const MOST_PORTS: usize = 1023;
/// The most host sides that are made ports of a bridge: one port is for its lender.
const MOST_GUESTS: usize = MOST_PORTS - 1;

/// A bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    index: u32,
    /// Index of the lender, once it is a port.
    lender: Option<u32>,
}

/// The bridges of a host and their ports, as far as they are known.
#[derive(Debug, Default)]
pub struct Rooms {
    /// By number.
    rooms: BTreeMap<u32, Room>,
    /// Index of the bridge of each interface that is a port of a bridge unless another program has
    /// taken it out. Lenders are left out.
    ports: BTreeMap<u32, u32>,
}

impl Rooms {
    /// Index of the first bridge. Without it no bridge is used.
    pub fn first(&self) -> Option<u32> {
        self.index(0)
    }

    /// Index of the bridge with this number.
    pub fn index(&self, number: u32) -> Option<u32> {
        self.rooms.get(&number).map(|room| room.index)
    }

    /// Indices of all bridges.
    pub fn indices(&self) -> Vec<u32> {
        self.rooms.values().map(|room| room.index).collect()
    }

    /// Whether the interface with this index is one of the bridges.
    pub fn has(&self, index: u32) -> bool {
        self.rooms.values().any(|room| room.index == index)
    }

    /// Name of the bridge with this index.
    pub fn name(&self, index: u32) -> Option<String> {
        let found = self.rooms.iter().find(|(_, room)| room.index == index);
        found.map(|(number, _)| room_ifname(*number))
    }

    /// Numbers of the bridges after the first one: of those that are known, and of those among
    /// `links`, which an earlier agent may have made.
    pub fn further(&self, links: &[Link]) -> BTreeSet<u32> {
        let found = links.iter().filter_map(|link| ROOM_KIND.number_of(link));
        found.chain(self.rooms.keys().copied()).filter(|number| *number > 0).collect()
    }

    /// Notes the index of a bridge. `None`: there is no such bridge. The ports of a bridge that is
    /// gone are no ports any more.
    pub fn set(&mut self, number: u32, index: Option<u32>) {
        let before = self.index(number);
        if before == index {
            return;
        }
        self.ports.retain(|_, room| Some(*room) != before);
        self.rooms.remove(&number);
        if let Some(index) = index {
            self.rooms.insert(number, Room { index, lender: None });
        }
    }

    /// Index of the lender of a bridge, if it is a port unless another program has taken it out.
    pub fn lender(&self, number: u32) -> Option<u32> {
        self.rooms.get(&number)?.lender
    }

    /// Notes whether the lender of a bridge is a port.
    pub fn set_lender(&mut self, number: u32, lender: Option<u32>) {
        if let Some(room) = self.rooms.get_mut(&number) {
            room.lender = lender;
        }
    }

    /// Whether an interface is the lender of a further bridge, and is up or no port of that bridge.
    pub fn lender_differs(&self, index: u32, up: bool, master: Option<u32>) -> bool {
        let differs =
            |room: &Room| room.lender == Some(index) && (up || master != Some(room.index));
        self.rooms.iter().any(|(number, room)| *number > 0 && differs(room))
    }

    /// Index of the bridge of which an interface is a port, unless another program has taken it
    /// out.
    pub fn room_of(&self, port: u32) -> Option<u32> {
        self.ports.get(&port).copied()
    }

    /// Notes that an interface is a port of the bridge with the index `room`.
    pub fn enter(&mut self, port: u32, room: u32) {
        self.ports.insert(port, room);
    }

    /// Notes that an interface is meant to be no port.
    pub fn leave(&mut self, port: u32) {
        self.ports.remove(&port);
    }

    /// Notes which interfaces of the host are ports, and forgets those that are gone.
    pub fn observe(&mut self, links: &[Link]) {
        let there: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        self.ports.retain(|port, _| there.contains(port));
        let lenders: BTreeSet<u32> = self.rooms.values().filter_map(|room| room.lender).collect();
        for link in links.iter().filter(|link| !lenders.contains(&link.index)) {
            if let Some(master) = link.master.filter(|master| self.has(*master)) {
                self.enter(link.index, master);
            }
        }
    }

    /// Index and name of the host sides that are ports of no device and have been ports of no
    /// bridge. Another program has changed the others: the caller finds and reports them.
    pub fn homeless(&self, links: &[Link]) -> Vec<(u32, String)> {
        let is_homeless = |link: &&Link| {
            endpoint_of(link).is_some()
                && link.master.is_none()
                && !self.ports.contains_key(&link.index)
        };
        let homeless = links.iter().filter(is_homeless);
        homeless.map(|link| (link.index, link.name.clone())).collect()
    }

    /// Index of the bridge for a further host side: that with the least number which has a port left.
    /// `full` are indices of bridges in which the kernel has found no port. `None`: all are full.
    pub fn choose(&self, full: &BTreeSet<u32>) -> Option<u32> {
        let mut guests: BTreeMap<u32, usize> = BTreeMap::new();
        for room in self.ports.values() {
            *guests.entry(*room).or_default() += 1;
        }
        let has_port = |room: &&Room| {
            let taken = guests.get(&room.index).copied().unwrap_or_default();
            taken < MOST_GUESTS && !full.contains(&room.index)
        };
        self.rooms.values().find(has_port).map(|room| room.index)
    }

    /// Number of the bridge that is made next. `None`: there are as many bridges as there can be.
    pub fn next_number(&self) -> Option<u32> {
        (1..=LAST).find(|number| !self.rooms.contains_key(number))
    }
}

/// Result of an attempt to make an interface a port of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// It is a port now.
    Port,
    /// The bridge has all the ports that a bridge can have.
    Full,
    /// The kernel refuses. The interface works without the bridge, only slower.
    Refused,
}

/// Makes a port of a bridge drop frames to the groups of IEEE 802.1D, too. With the program attached
/// no frame reaches the bridge.
pub async fn fence(netlink: &Netlink, name: &str) {
    if let Err(error) = netlink.treat_groups_alike(name).await {
        tracing::debug!("{error}");
    }
}

/// Makes an interface a port of the bridge with the index `room`, and of no other device.
pub async fn enrol(netlink: &Netlink, room: u32, name: &str) -> Enrolled {
    match netlink.set_controller(name, room).await {
        Ok(()) => {
            fence(netlink, name).await;
            Enrolled::Port
        }
        // `find_portno` (net/bridge/br_if.c).
        Err(error) if error.errno() == Some(Errno::EXFULL) => Enrolled::Full,
        Err(error) => {
            tracing::debug!("{error}; the interface works without the bridge");
            Enrolled::Refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Index of the first bridge, and of the second one.
    const FIRST: u32 = 6;
    const SECOND: u32 = 7;

    fn rooms(guests: [u32; 2]) -> Rooms {
        let mut rooms = Rooms::default();
        rooms.set(0, Some(FIRST));
        rooms.set(1, Some(SECOND));
        for port in 0..guests[0] {
            rooms.enter(1000 + port, FIRST);
        }
        for port in 0..guests[1] {
            rooms.enter(10_000 + port, SECOND);
        }
        rooms
    }

    fn port(index: u32, master: Option<u32>) -> Link {
        Link {
            index,
            name: format!("cv{index:012x}"),
            kind: Some("veth".to_owned()),
            alias: Some(format!("culvert:{index:x}")),
            master,
            ..Link::default()
        }
    }

    /// Container 1,023 of a host goes into a second bridge.
    #[test]
    fn a_host_side_goes_into_the_first_bridge_that_has_a_port() {
        let none = BTreeSet::new();
        let choose = |guests| rooms(guests).choose(&none);
        assert_eq!(choose([0, 0]), Some(FIRST));
        assert_eq!(choose([1021, 5]), Some(FIRST));
        assert_eq!(choose([1022, 5]), Some(SECOND));
        assert_eq!(choose([1022, 1022]), None);
        assert_eq!(rooms([1022, 1022]).next_number(), Some(2));
        let mut one = rooms([1022, 0]);
        one.set(1, None);
        assert_eq!((one.choose(&none), one.next_number()), (None, Some(1)));
        // A port that comes free is used again.
        one.leave(1000);
        assert_eq!(one.choose(&none), Some(FIRST));
    }

    /// Another program has made devices of its own ports of the bridge: the kernel knows best.
    #[test]
    fn a_bridge_that_the_kernel_finds_full_is_passed_over() {
        let rooms = rooms([3, 3]);
        assert_eq!(rooms.choose(&[FIRST].into()), Some(SECOND));
        assert_eq!(rooms.choose(&[FIRST, SECOND].into()), None);
        assert_eq!(rooms.next_number(), Some(2));
    }

    #[test]
    fn there_is_a_last_bridge() {
        let mut rooms = Rooms::default();
        for number in 0..=LAST {
            rooms.set(number, Some(1 + number));
        }
        let full = rooms.indices().into_iter().collect();
        assert_eq!((rooms.choose(&full), rooms.next_number()), (None, None));
    }

    #[test]
    fn the_ports_of_a_bridge_that_is_made_anew_are_homeless() {
        let mut rooms = rooms([0, 0]);
        let there =
            [port(20, Some(FIRST)), port(21, Some(SECOND)), port(22, None), port(23, Some(9))];
        rooms.observe(&there);
        assert_eq!((rooms.room_of(20), rooms.room_of(21)), (Some(FIRST), Some(SECOND)));
        assert_eq!((rooms.room_of(22), rooms.room_of(23)), (None, None));
        let name = |index: u32| (index, format!("cv{index:012x}"));
        assert_eq!(rooms.homeless(&there), [name(22)]);
        // Another program has removed a port from its bridge. The agent reports that before it
        // repairs it, so the port is not among the homeless.
        let taken_out = [port(20, None), port(21, Some(SECOND)), port(22, None)];
        rooms.observe(&taken_out);
        assert_eq!(rooms.homeless(&taken_out), [name(22)]);
        rooms.set(1, Some(77));
        let without = [port(20, Some(FIRST)), port(21, None), port(22, Some(FIRST))];
        rooms.observe(&without);
        assert_eq!(rooms.homeless(&without), [name(21)]);
        rooms.observe(&[]);
        assert_eq!(rooms.room_of(20), None, "it is gone");
    }

    #[test]
    fn further_bridges_of_an_earlier_agent_are_found() {
        let bridge = |name: &str, alias: &str| Link {
            name: name.to_owned(),
            kind: Some("bridge".to_owned()),
            alias: Some(alias.to_owned()),
            ..Link::default()
        };
        let ours = |name| bridge(name, "culvert-room");
        let links = [ours("cvroom0"), ours("cvroom2"), bridge("cvroom3", "mine"), ours("br0")];
        assert_eq!(Rooms::default().further(&links), BTreeSet::from([2]));
        assert_eq!(rooms([0, 0]).further(&links), BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_lender_is_down_and_a_port_of_its_bridge() {
        let mut rooms = rooms([0, 0]);
        assert!(!rooms.lender_differs(30, true, None), "it is not known");
        rooms.set_lender(0, Some(29));
        rooms.set_lender(1, Some(30));
        assert!(!rooms.lender_differs(29, true, None), "that of the first bridge is up");
        assert!(!rooms.lender_differs(30, false, Some(SECOND)));
        assert!(rooms.lender_differs(30, true, Some(SECOND)));
        assert!(rooms.lender_differs(30, false, Some(FIRST)));
        rooms.observe(&[port(29, Some(FIRST)), port(30, Some(SECOND))]);
        assert_eq!((rooms.room_of(29), rooms.room_of(30)), (None, None), "they are no guests");
    }
}
