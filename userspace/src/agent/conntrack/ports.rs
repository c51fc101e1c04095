//! Ports of the host that masquerading never takes: those of its own sockets, those
//! published here, and VXLAN's.

use std::{fs, io, path::Path};

use culvert_common::{
    abi::{PublishedKey, RESERVED_ENTRIES, reserved_bit},
    wire::ipv4::{PROTO_ICMP as ICMP, PROTO_TCP as TCP, PROTO_UDP as UDP},
};

use crate::datapath::{DatapathError, FlowTable};

/// Files below `/proc/self/net` with a line for each socket (proc(5)), and the protocol.
/// Those of `icmp` are ping sockets, whose port is the identifier of the echo requests.
const FILES: &[(&str, u8)] =
    &[("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP), ("icmp", ICMP), ("icmp6", ICMP)];

/// A set of ports, as [`RESERVED_PORTS`](culvert_common::abi::names::RESERVED_PORTS) has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports(Vec<u64>);

impl Default for Ports {
    fn default() -> Self {
        Self(vec![0; RESERVED_ENTRIES as usize])
    }
}

impl Ports {
    /// Adds a port, or an ICMP identifier.
    pub(super) fn add(&mut self, protocol: u8, port: u16) {
        if let Some((word, bit)) = reserved_bit(protocol, port)
            && let Some(word) = self.0.get_mut(word as usize)
        {
            *word |= bit;
        }
    }

    /// Adds the ports of the sockets that the files in `dir` list.
    pub(super) fn add_sockets(&mut self, dir: &Path) -> io::Result<()> {
        for (file, protocol) in FILES {
            match fs::read_to_string(dir.join(file)) {
                Ok(text) => local_ports(&text).for_each(|port| self.add(*protocol, port)),
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds ports published here.
    pub(super) fn add_published<'a>(&mut self, keys: impl IntoIterator<Item = &'a PublishedKey>) {
        for key in keys {
            self.add(key.protocol, u16::from_be_bytes(key.port));
        }
    }
}

/// Local ports in a file such as `/proc/self/net/tcp`: in each line but the first,
/// behind the colon of the second field, in hexadecimal.
fn local_ports(text: &str) -> impl Iterator<Item = u16> {
    text.lines().skip(1).filter_map(|line| {
        let local = line.split_whitespace().nth(1)?;
        let (_, port) = local.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)
    })
}

/// Writes what differs from what was written before.
#[derive(Default)]
pub(super) struct Writer {
    /// What the map holds; `None`: not read yet.
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
    use super::*;
    use crate::agent::conntrack::testing::MemoryFlows;

    const TCP4: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21340 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18211 1 0000000000000000 100 0 0 10 0
   2: 0200A8C0:D431 07710002:01BB 01 00000000:00000000 02:000A7F5C 00000000  1000        0 99120 2 0000000000000000 20 4 30 10 -1
   3: 0200A8C0:D432 07710002:01BB 06 00000000:00000000 03:00000B2A 00000000     0        0 0 3 0000000000000000
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20011 1 0000000000000000 100 0 0 10 0
";
    const UDP4: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops             
  512: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 17002 2 0000000000000000 0         
 1289: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 31007 2 0000000000000000 0         
";
    const ICMP4: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops             
    7: 00000000:0007 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 40001 2 0000000000000000 0         
";

    fn ports(text: &str) -> Vec<u16> {
        local_ports(text).collect()
    }

    #[test]
    fn the_kernels_lists() {
        assert_eq!(ports(TCP4), [8080, 22, 54_321, 54_322]);
        assert_eq!(ports(TCP6), [80]);
        assert_eq!(ports(UDP4), [53, 4789]);
        assert_eq!(ports(ICMP4), [7]);
    }

    #[test]
    fn anything_else_is_no_port() {
        for text in ["", "header", "header\n", "h\n\n x\n 0: nonsense\n 1: a:b:\n 2: 0:10000\n"] {
            assert!(ports(text).is_empty(), "{text}");
        }
        assert!(ports("h\n 0: 00000000:0000 x\n").is_empty());
    }

    #[test]
    fn only_differences_are_written() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [("tcp", TCP4), ("udp", UDP4), ("icmp", ICMP4)] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let mut wanted = Ports::default();
        wanted.add_sockets(dir.path()).unwrap();
        let key = |port: u16, protocol| PublishedKey {
            port: port.to_be_bytes(),
            protocol,
            ..PublishedKey::default()
        };
        wanted.add_published(&[key(8081, TCP), key(53, UDP), key(9, 132)]);

        let table = MemoryFlows::new(64);
        // Of an agent before.
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
