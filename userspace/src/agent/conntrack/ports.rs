//! Ports of the host that masquerading never takes: ports of the host's sockets, published
//! ports, and the VXLAN port.

use std::ops::RangeInclusive;

use culvert_common::{
    abi::{PublishedKey, RESERVED_ENTRIES, RESERVED_WORDS, names, reserved_bit},
    wire::ipv4::{PROTO_TCP, PROTO_UDP},
};

use crate::{
    datapath::{DatapathError, FlowTable, Found},
    netlink::sockets::LocalSocket,
};

/// Source ports of masquerading on a host whose netfilter may masquerade, too. Netfilter keeps the
/// source port of a connection if the port is free in its own table. Systems choose source ports above
/// these: Linux from 32768, Windows and macOS from 49152. Few programs choose one of these.
pub(super) const APART: RangeInclusive<u16> = 16_384..=32_767;

/// The least number of ports of [`APART`] that `--nat-ports` has to have, for masquerading to keep to
/// them.
const ENOUGH: usize = 1024;

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
    /// The TCP and UDP ports of `nat_ports` that masquerading leaves to the host's netfilter: all but
    /// [`APART`]. No ports if `nat_ports` has too few of [`APART`]: the option was given to choose others.
    pub(super) fn left_to_netfilter((min, max): (u16, u16)) -> Self {
        let mut ports = Self::default();
        if (min..=max).filter(|port| APART.contains(port)).count() < ENOUGH {
            return ports;
        }
        // A privileged port is kept although it is below the range.
        for port in (1..=u16::MAX).filter(|port| !APART.contains(port)) {
            ports.add(PROTO_TCP, port);
            ports.add(PROTO_UDP, port);
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
        ports.iter().map(|port| LocalSocket { address, port: *port, inode: 1 }).collect()
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
        // Netfilter keeps ICMP identifiers, of which no range is apart.
        assert!(!has(&left, ICMP, 40_000));
        // The user has chosen a range: too little of it is apart.
        assert_eq!(PortSet::left_to_netfilter((32_000, 65_535)), PortSet::default());
        assert_ne!(PortSet::left_to_netfilter((31_744, 65_535)), PortSet::default());
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
