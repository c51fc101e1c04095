//! Virtual services of IPVS, as the kernel lists them in `/proc/net/ip_vs`.

use std::net::Ipv4Addr;

use super::rules::{Translation, Translator};
use crate::model::Protocol;

/// The virtual services with an IPv4 address. Lines that are not understood are left out, as those
/// of services by mark and with an IPv6 address.
pub(super) fn parse(text: &str) -> Vec<Translation> {
    text.lines().filter_map(service).collect()
}

/// `TCP  0A600001:01BB rr`: address and port in hexadecimal.
fn service(line: &str) -> Option<Translation> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => return None,
    };
    let (address, port) = words.next()?.split_once(':')?;
    let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?);
    // Port 0 stands for every port of an address.
    let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
    let (ports, destination) = ((port, port), Some(address.into()));
    Some(Translation { protocol, ports, destination, conditional: false, by: Translator::Ipvs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_services_are_found() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0A80002:192B      Masq    1      0          0
UDP  C0000201:7530 rr
FWM  00000001 rr
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 rr
TCP  C0000202:0000 rr persistent 300 FFFFFFFF
TCP  C00002 zz
";
        let found = parse(text);
        let shown: Vec<String> = found
            .iter()
            .map(|one| {
                let to = one.destination.map(|net| net.to_string()).unwrap_or_default();
                format!("{} {:?} {to} {}", one.protocol, one.ports, one.by)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "tcp (443, 443) 10.96.0.1/32 IPVS ('ipvsadm -Ln')",
                "udp (30000, 30000) 192.0.2.1/32 IPVS ('ipvsadm -Ln')",
            ]
        );
    }
}
