//! Ports of the host that masquerading never takes: ports of the host's sockets, published
//! ports, and the VXLAN port.

use std::ops::RangeInclusive;

use culvert_common::{
    abi::{PublishedKey, RESERVED_ENTRIES, RESERVED_WORDS, names, reserved_bit},
    wire::ipv4::{PROTO_ICMP, PROTO_TCP, PROTO_UDP},
};

use crate::{
    datapath::{DatapathError, FlowTable, Found},
    netlink::sockets::LocalSocket,
};

/// What masquerading keeps to on a host whose netfilter may masquerade, too. Netfilter keeps the
/// source port of a connection, or the identifier of an echo request, if it is free in its own
/// table.
struct Apart {
    /// What these are.
    what: &'static str,
    /// Protocols that have them.
    protocols: &'static [u8],
    /// Those that masquerading takes.
    range: RangeInclusive<u16>,
}

/// Ports and identifiers that the clients of netfilter seldom have.
///
/// Systems choose source ports above these: Linux from 32768, Windows and macOS from 49152. Few
/// programs choose one of these. The identifier of a ping is the process number, which is small in a
/// container, or 1 (Windows), or the next number that the kernel gives out, from 1 on. A program
/// that chooses it at random may have one of these.
static APART: [Apart; 2] = [
    Apart { what: "ports", protocols: &[PROTO_TCP, PROTO_UDP], range: 16_384..=32_767 },
    Apart { what: "ICMP echo identifiers", protocols: &[PROTO_ICMP], range: 49_152..=65_535 },
];

/// The least number of each of [`APART`] that `--nat-ports` has to have, for masquerading to keep
/// to them.
const ENOUGH: u16 = 1024;

impl Apart {
    /// Whether masquerading keeps to them. If `--nat-ports` has too few of them, the option was
    /// given to choose others.
    fn is_kept(&self, (min, max): (u16, u16)) -> bool {
        let (first, last) = (min.max(*self.range.start()), max.min(*self.range.end()));
        last.checked_sub(first).is_some_and(|more| more >= ENOUGH - 1)
    }

    fn spell(&self) -> String {
        format!("{} {} to {}", self.what, self.range.start(), self.range.end())
    }
}

/// What masquerading keeps to, or with `kept` not set does not keep to. `None`: nothing.
fn spelled(nat_ports: (u16, u16), kept: bool) -> Option<String> {
    let of_kind = APART.iter().filter(|apart| apart.is_kept(nat_ports) == kept);
    let spelled: Vec<String> = of_kind.map(Apart::spell).collect();
    (!spelled.is_empty()).then(|| spelled.join(" and "))
}

/// What new flows take on a host whose netfilter may masquerade, too, for the log. `None`: all of
/// `--nat-ports`.
pub(super) fn kept_apart(nat_ports: (u16, u16)) -> Option<String> {
    let kept = spelled(nat_ports, true)?;
    Some(format!(
        "conntrack: the host's netfilter tracks connections, and may masquerade, too: new masqueraded flows take {kept}"
    ))
}

/// The problem of a host whose netfilter may masquerade, too, if `--nat-ports` leaves too little to
/// tell the flows of both apart.
pub(super) fn not_kept_apart(nat_ports: (u16, u16)) -> Option<String> {
    let (missing, (min, max)) = (spelled(nat_ports, false)?, nat_ports);
    Some(format!(
        "conntrack: the host's netfilter tracks connections, and may masquerade, too, but --nat-ports {min}-{max} has fewer than {ENOUGH} of {missing}: where both systems have flows to one server, an answer may go to the wrong container; widen --nat-ports, or leave it out"
    ))
}

/// A set of ports in the layout of [`RESERVED_PORTS`](culvert_common::abi::names::RESERVED_PORTS):
/// 64-bit words, with one bit for each protocol and port, see [`reserved_bit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortSet(Vec<u64>);

impl Default for PortSet {
    fn default() -> Self {
        Self(vec![0; RESERVED_ENTRIES as usize])
    }
}

impl PortSet {
    /// The ports and identifiers that masquerading leaves to the host's netfilter: all but those of
    /// [`APART`].
    pub(super) fn left_to_netfilter(nat_ports: (u16, u16)) -> Self {
        let mut ports = Self::default();
        for Apart { protocols, range, .. } in APART.iter().filter(|apart| apart.is_kept(nat_ports))
        {
            // A privileged port is kept although it is below the range.
            for port in (1..=u16::MAX).filter(|port| !range.contains(port)) {
                protocols.iter().for_each(|protocol| ports.add(*protocol, port));
            }
        }
        ports
    }

    /// Adds a port (or an ICMP identifier), in host byte order.
    pub(super) fn add(&mut self, protocol: u8, port: u16) {
        if let Some((word, bit)) = reserved_bit(protocol, port)
            && let Some(word) = self.0.get_mut(word as usize)
        {
            *word |= bit;
        }
    }

    /// Adds the ports of sockets. A socket that is not bound has port 0, which is not added.
    pub(super) fn add_sockets(&mut self, protocol: u8, sockets: &[LocalSocket]) {
        for socket in sockets.iter().filter(|socket| socket.port != 0) {
            self.add(protocol, socket.port);
        }
    }

    /// Adds ports that this host publishes.
    pub(super) fn add_published<'a>(&mut self, keys: impl IntoIterator<Item = &'a PublishedKey>) {
        for key in keys {
            self.add(key.protocol, u16::from_be_bytes(key.port));
        }
    }
}

/// Writes a set of ports to `RESERVED_PORTS`. Only words that differ from the map are written.
#[derive(Default)]
pub(super) struct Writer {
    /// The words that the map holds. `None`: the map has not been read yet.
    written: Option<PortSet>,
}

impl Writer {
    pub(super) fn write(
        &mut self,
        table: &dyn FlowTable,
        wanted: &PortSet,
    ) -> Result<(), DatapathError> {
        let written = match &mut self.written {
            Some(written) => written,
            none => none.insert(PortSet(table.reserved()?)),
        };
        for ((written, wanted), word) in written.0.iter_mut().zip(&wanted.0).zip(0..) {
            if written != wanted {
                table.reserve(word, *wanted)?;
                *written = *wanted;
            }
        }
        Ok(())
    }

    /// Puts the map back to what was written to it. Notes what another program has changed. Does
    /// nothing before the first write.
    pub(super) fn restore(
        &self,
        table: &dyn FlowTable,
        found: &mut Found,
    ) -> Result<(), DatapathError> {
        let Some(written) = &self.written else { return Ok(()) };
        for ((written, read), word) in written.0.iter().zip(table.reserved()?).zip(0..) {
            if *written != read {
                table.reserve(word, *written)?;
                found.note(names::RESERVED_PORTS, || format!("{} changed", ports_of(word)));
            }
        }
        Ok(())
    }
}

/// The ports of a word, in words.
fn ports_of(word: u32) -> String {
    let protocol = match word / RESERVED_WORDS {
        0 => "tcp",
        1 => "udp",
        _ => "icmp",
    };
    let first = word % RESERVED_WORDS * u64::BITS;
    format!("{protocol} {first} to {}", first + u64::BITS - 1)
}

#[cfg(test)]
mod tests {
    use culvert_common::wire::ipv4::{PROTO_ICMP as ICMP, PROTO_TCP as TCP, PROTO_UDP as UDP};

    use super::*;
    use crate::agent::conntrack::testing::MemoryFlows;

    fn sockets(ports: &[u16]) -> Vec<LocalSocket> {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        ports
            .iter()
            .map(|port| LocalSocket { address, port: *port, inode: 1, connected: false })
            .collect()
    }

    #[test]
    fn ports_are_left_to_netfilter() {
        let has = |ports: &PortSet, protocol, port| {
            let (word, bit) = reserved_bit(protocol, port).unwrap();
            ports.0[word as usize] & bit != 0
        };
        let left = PortSet::left_to_netfilter((1024, 65_535));
        for protocol in [TCP, UDP] {
            for port in [1, 123, 1024, 16_383, 32_768, 60_999, 65_535] {
                assert!(has(&left, protocol, port), "{protocol} {port}");
            }
            for port in [16_384, 20_000, 32_767] {
                assert!(!has(&left, protocol, port), "{protocol} {port}");
            }
        }
        for id in [1, 7, 1024, 20_000, 49_151] {
            assert!(has(&left, ICMP, id), "{id}");
        }
        for id in [49_152, 60_000, 65_535] {
            assert!(!has(&left, ICMP, id), "{id}");
        }
        let kept = kept_apart((1024, 65_535)).unwrap();
        assert!(
            kept.ends_with("take ports 16384 to 32767 and ICMP echo identifiers 49152 to 65535"),
            "{kept}"
        );
        assert_eq!(not_kept_apart((1024, 65_535)), None);
    }

    /// The user has chosen a range: too little of it is apart.
    #[test]
    fn a_range_that_leaves_nothing_apart_is_told() {
        for (nat_ports, ports, identifiers) in [
            ((32_000, 65_535), false, true),
            ((31_744, 65_535), true, true),
            ((31_745, 65_535), false, true),
            ((1024, 50_174), true, false),
            ((1024, 50_175), true, true),
            ((1024, 17_406), false, false),
            ((1024, 17_407), true, false),
            ((40_000, 49_000), false, false),
            ((5000, 5000), false, false),
        ] {
            let left = PortSet::left_to_netfilter(nat_ports);
            let has = |protocol| {
                let (word, bit) = reserved_bit(protocol, 1).unwrap();
                left.0[word as usize] & bit != 0
            };
            assert_eq!((has(TCP), has(UDP), has(ICMP)), (ports, ports, identifiers));
            let told = not_kept_apart(nat_ports);
            assert_eq!(told.is_none(), ports && identifiers, "{nat_ports:?} {told:?}");
            let told = told.unwrap_or_default();
            assert_eq!(told.contains("ports 16384 to 32767"), !ports, "{told}");
            assert_eq!(
                told.contains("ICMP echo identifiers 49152 to 65535"),
                !identifiers,
                "{told}"
            );
            let kept = kept_apart(nat_ports);
            assert_eq!(kept.is_some(), ports || identifiers, "{nat_ports:?} {kept:?}");
        }
    }

    #[test]
    fn only_differences_are_written() {
        let mut wanted = PortSet::default();
        wanted.add_sockets(TCP, &sockets(&[8080, 22, 0]));
        wanted.add_sockets(UDP, &sockets(&[53, 4789]));
        wanted.add_sockets(ICMP, &sockets(&[7]));
        let key = |port: u16, protocol| PublishedKey {
            port: port.to_be_bytes(),
            protocol,
            ..PublishedKey::default()
        };
        wanted.add_published(&[key(8081, TCP), key(53, UDP), key(9, 132)]);

        let table = MemoryFlows::new(64);
        // Words that an earlier agent left in the map.
        let (stale_word, stale_bit) = reserved_bit(TCP, 1).unwrap();
        table.reserve(stale_word, stale_bit | 1 << 63).unwrap();
        let mut writer = Writer::default();
        writer.write(&table, &wanted).unwrap();
        assert_eq!(table.reserved().unwrap(), wanted.0);
        for (protocol, port, is) in [
            (TCP, 8080, true),
            (TCP, 22, true),
            (TCP, 8081, true),
            (TCP, 1, false),
            (TCP, 0, false),
            (TCP, 53, false),
            (UDP, 53, true),
            (UDP, 4789, true),
            (UDP, 8080, false),
            (ICMP, 7, true),
        ] {
            let (word, bit) = reserved_bit(protocol, port).unwrap();
            let reserved = table.state.lock().unwrap().reserved.get(&word).copied();
            assert_eq!(reserved.unwrap_or_default() & bit != 0, is, "{protocol} {port}");
        }

        let writes = || table.state.lock().unwrap().writes;
        let before = writes();
        let mut found = Found::default();
        writer.restore(&table, &mut found).unwrap();
        assert_eq!((found.number(), writes()), (0, before));
        writer.write(&table, &wanted).unwrap();
        assert_eq!(writes(), before);
        wanted.add(TCP, 9999);
        writer.write(&table, &wanted).unwrap();
        assert_eq!(writes(), before + 1);
        writer.write(&table, &PortSet::default()).unwrap();
        assert!(table.reserved().unwrap().iter().all(|word| *word == 0));
    }

    /// Without the comparison a port that another program has taken out of the map would be given to
    /// a flow until the host's use of it changes.
    #[test]
    fn words_that_another_program_has_changed_are_put_back() {
        let table = MemoryFlows::new(64);
        let (mut writer, mut found) = (Writer::default(), Found::default());
        writer.restore(&table, &mut found).unwrap();
        let mut wanted = PortSet::default();
        wanted.add(UDP, 4789);
        writer.write(&table, &wanted).unwrap();
        let (word, bit) = reserved_bit(UDP, 4789).unwrap();
        let (other, other_bit) = reserved_bit(TCP, 80).unwrap();
        table.reserve(word, 0).unwrap();
        table.reserve(other, other_bit).unwrap();
        writer.restore(&table, &mut found).unwrap();
        assert_eq!(table.reserved().unwrap(), wanted.0);
        assert_eq!(table.reserved().unwrap()[word as usize], bit);
        let line = "map RESERVED_PORTS: 2 entries: tcp 64 to 127 changed, udp 4736 to 4799 changed";
        assert_eq!(found.lines(), [(2, line.to_owned())]);
    }
}
