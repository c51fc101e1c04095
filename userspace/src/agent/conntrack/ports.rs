//! Ports of the host that masquerading never takes: ports of the host's sockets, published
//! ports, and the VXLAN port.

use culvert_common::abi::{PublishedKey, RESERVED_ENTRIES, reserved_bit};

use crate::{
    datapath::{DatapathError, FlowTable},
    netlink::sockets::LocalSocket,
};

/// A set of ports, as [`RESERVED_PORTS`](culvert_common::abi::names::RESERVED_PORTS) has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports(Vec<u64>);

impl Default for Ports {
    fn default() -> Self {
        Self(vec![0; RESERVED_ENTRIES as usize])
    }
}

impl Ports {
    /// Adds a port (or an ICMP identifier), in host order.
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

    /// Adds ports published here.
    pub(super) fn add_published<'a>(&mut self, keys: impl IntoIterator<Item = &'a PublishedKey>) {
        for key in keys {
            self.add(key.protocol, u16::from_be_bytes(key.port));
        }
    }
}

/// Brings `RESERVED_PORTS` to a set of ports, by the words that differ from those written before.
#[derive(Default)]
pub(super) struct Writer {
    /// The words that the map holds; `None` until it was read.
    written: Option<Ports>,
}

impl Writer {
    pub(super) fn write(
        &mut self,
        table: &dyn FlowTable,
        wanted: &Ports,
    ) -> Result<(), DatapathError> {
        let written = match &mut self.written {
            Some(written) => written,
            none => none.insert(Ports(table.reserved()?)),
        };
        for ((written, wanted), word) in written.0.iter_mut().zip(&wanted.0).zip(0..) {
            if written != wanted {
                table.reserve(word, *wanted)?;
                *written = *wanted;
            }
        }
        Ok(())
    }
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
    fn only_differences_are_written() {
        let mut wanted = Ports::default();
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
        writer.write(&table, &wanted).unwrap();
        assert_eq!(writes(), before);
        wanted.add(TCP, 9999);
        writer.write(&table, &wanted).unwrap();
        assert_eq!(writes(), before + 1);
        writer.write(&table, &Ports::default()).unwrap();
        assert!(table.reserved().unwrap().iter().all(|word| *word == 0));
    }
}
