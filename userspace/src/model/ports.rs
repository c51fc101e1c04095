//! Values of `-p`: ports of the host that lead to ports of a container.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    str::FromStr,
};

use super::{Invalid, Protocol, PublishedPort};

/// Greatest number of ports of one `-p` without HOST. Free ports are not consecutive, so each takes
/// an entry in the endpoint's record.
const MOST_FREE: usize = 1024;

/// A value of `-p`: `[[IP:][HOST]:]CONT[/tcp|udp]`. HOST and CONT are ports, or ranges of equal
/// length such as `8000-8010`.
///
/// As in Docker, if HOST is missing or 0, a free port is chosen for each port of the container. If
/// IP is missing, the port is published on every address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Address of the host; 0.0.0.0 means every address.
    pub host_ip: Ipv4Addr,
    /// Ports of the host. `None`: free ones are chosen.
    pub host: Option<RangeInclusive<u16>>,
    /// Ports of the container.
    pub container: RangeInclusive<u16>,
    /// Protocol.
    pub protocol: Protocol,
}

/// A value of `--expose`: `PORT[/tcp|udp]`, a port or a range of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Ports of the container.
    pub ports: RangeInclusive<u16>,
    /// Protocol.
    pub protocol: Protocol,
}

impl FromStr for Exposed {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(Publish { host: None, container, protocol, .. }) if !text.contains(':') => {
                Ok(Self { ports: container, protocol })
            }
            _ => Err(Invalid(format!(
                "exposed port '{text}' is malformed: PORT[/tcp|udp] as in 80 or 53/udp is valid"
            ))),
        }
    }
}

/// A single port of a [`Publish`] without HOST, or all ports of a [`Publish`] with HOST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// Address of the host; 0.0.0.0 means every address.
    pub host_ip: Ipv4Addr,
    /// First port of the host. `None`: a free one is chosen.
    pub host_port: Option<u16>,
    /// First port of the container.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Number of ports; 1 if a free one is chosen.
    pub count: u16,
}

impl Publish {
    /// The ports of the value: one range if HOST is given, else single ports.
    pub fn ports(&self) -> impl Iterator<Item = PortRequest> {
        let Self { host_ip, host, container, protocol } = self.clone();
        // Port 0 is not valid, so that a range has at most 65535 ports.
        let all = u16::try_from(container.len()).unwrap_or(u16::MAX);
        let (requests, count) = if host.is_some() { (1, all) } else { (all, 1) };
        let host_port = host.map(|host| *host.start());
        container.take(requests.into()).map(move |container_port| PortRequest {
            host_ip,
            host_port,
            container_port,
            protocol,
            count,
        })
    }
}

impl PortRequest {
    /// The published port, with the chosen port of the host.
    pub fn at(self, host_port: u16) -> PublishedPort {
        let Self { host_ip, container_port, protocol, count, .. } = self;
        PublishedPort { host_ip, host_port, container_port, protocol, count }
    }
}

/// Whether two published ports or ranges claim the same port of the host. 0.0.0.0 overlaps every
/// address.
pub fn overlapping(one: &PublishedPort, two: &PublishedPort) -> bool {
    let meet = match (one.host_ports(), two.host_ports()) {
        (Some((one, one_last)), Some((two, two_last))) => one <= two_last && two <= one_last,
        _ => false,
    };
    one.protocol == two.protocol
        && meet
        && (one.host_ip == two.host_ip
            || one.host_ip.is_unspecified()
            || two.host_ip.is_unspecified())
}

impl FromStr for Publish {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |what: &str, right: &str| {
            Invalid(format!("published port '{text}' {what}: {right} is valid"))
        };
        let malformed =
            || refuse("is malformed", "[[IP:][HOST]:]CONTAINER[/tcp|udp] as in 8080:80");
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => {
                let what = format!("has the unknown protocol '{other}'");
                return Err(refuse(&what, "tcp or udp as in 8080:80/udp"));
            }
        };
        let mut parts = ports.rsplitn(3, ':');
        let (container, host, ip) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let host_ip = match ip {
            None => Ipv4Addr::UNSPECIFIED,
            Some(ip) => ip.parse().map_err(|_| {
                let bare = ip.trim_start_matches('[').trim_end_matches(']');
                if bare.parse::<Ipv6Addr>().is_ok() {
                    refuse("has an IPv6 address of the host", "an IPv4 one as in 127.0.0.1:8080:80")
                } else if ports.parse::<Ipv6Addr>().is_ok() || ip.is_empty() || ip.contains(':') {
                    malformed()
                } else {
                    let what = format!("has the malformed address '{ip}'");
                    refuse(&what, "an IPv4 one as in 127.0.0.1:8080:80")
                }
            })?,
        };
        if host_ip.is_multicast() || host_ip.is_broadcast() {
            let what = format!("has the address {host_ip}, which no host has");
            return Err(refuse(&what, "one of this host's as in 127.0.0.1:8080:80"));
        }
        let range = |part: &str, whose: &str| match range(part) {
            Ok(range) => Ok(range),
            Err(Wrong::Malformed) => Err(malformed()),
            Err(Wrong::OutOfRange) => {
                Err(refuse(&format!("has a port of the {whose} out of range"), "1 to 65535"))
            }
            Err(Wrong::Reversed) => Err(refuse(
                &format!("has a range of ports of the {whose} that ends before it begins"),
                "the lower port first as in 8000-8010",
            )),
        };
        let container = range(container, "container")?;
        let host = match host {
            None | Some("" | "0") => None,
            Some(host) => Some(range(host, "host")?),
        };
        let length = container.len();
        if let Some(host) = &host
            && host.len() != length
        {
            let what =
                format!("has {} ports of the host for {length} of the container", host.len());
            return Err(refuse(&what, "as many of each as in 8000-8010:8000-8010"));
        }
        if host.is_none() && length > MOST_FREE {
            return Err(refuse(
                &format!("has {length} ports without one of the host, too many"),
                &format!("{MOST_FREE} at most"),
            ));
        }
        Ok(Self { host_ip, host, container, protocol })
    }
}

/// The error of one part of the value.
enum Wrong {
    Malformed,
    OutOfRange,
    Reversed,
}

/// Parses a port or a range of ports.
fn range(text: &str) -> Result<RangeInclusive<u16>, Wrong> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(Wrong::Reversed) } else { Ok(first..=last) }
}

fn port(text: &str) -> Result<u16, Wrong> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Wrong::Malformed);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(Wrong::OutOfRange),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for Publish {
    /// Writes the value in the form that `-p` takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host_ip, host, container, protocol } = self;
        let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        if !host_ip.is_unspecified() {
            write!(f, "{host_ip}:")?;
        }
        if let Some(host) = host {
            write!(f, "{}:", range(host))?;
        } else if !host_ip.is_unspecified() {
            f.write_str(":")?;
        }
        write!(f, "{}/{protocol}", range(container))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ports(text: &str) -> Vec<String> {
        let publish: Publish = text.parse().expect(text);
        let show = |port: PortRequest| match port.host_port {
            Some(host_port) => port.at(host_port).to_string(),
            None => format!("{}:free->{}/{}", port.host_ip, port.container_port, port.protocol),
        };
        publish.ports().map(show).collect()
    }

    #[test]
    fn what_docker_takes_is_taken() {
        for (text, expected) in [
            ("8080:80", "0.0.0.0:8080->80/tcp"),
            ("8080:80/tcp", "0.0.0.0:8080->80/tcp"),
            ("53:53/udp", "0.0.0.0:53->53/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080->80/tcp"),
            ("80", "0.0.0.0:free->80/tcp"),
            (":80", "0.0.0.0:free->80/tcp"),
            ("0:80/udp", "0.0.0.0:free->80/udp"),
            ("127.0.0.1::80", "127.0.0.1:free->80/tcp"),
            ("127.0.0.1:0:80", "127.0.0.1:free->80/tcp"),
            ("0.0.0.0:1:65535", "0.0.0.0:1->65535/tcp"),
            ("7-7:8-8", "0.0.0.0:7->8/tcp"),
        ] {
            assert_eq!(ports(text), [expected], "{text}");
        }
        assert_eq!(ports("8000-8001:9000-9001/udp"), ["0.0.0.0:8000-8001->9000-9001/udp"]);
        assert_eq!(ports("1-65535:1-65535"), ["0.0.0.0:1-65535->1-65535/tcp"]);
        assert_eq!(ports("90-91"), ["0.0.0.0:free->90/tcp", "0.0.0.0:free->91/tcp"]);
    }

    #[test]
    fn everything_else_is_refused_in_one_line_with_what_would_be_right() {
        for (text, part) in [
            ("", "is malformed"),
            (":", "is malformed"),
            ("::80", "is malformed"),
            ("a:80", "is malformed"),
            ("80:", "is malformed"),
            ("-1:80", "is malformed"),
            ("+1:80", "is malformed"),
            ("1-:80", "is malformed"),
            ("1-2-3:80-82", "is malformed"),
            (" 80:80", "is malformed"),
            ("1:2:3:4", "is malformed"),
            ("80:0", "port of the container out of range: 1 to 65535"),
            ("80:65536", "port of the container out of range"),
            ("65536:80", "port of the host out of range"),
            ("99999999999999999999:80", "port of the host out of range"),
            ("0-1:80-81", "port of the host out of range"),
            ("8000-8010:8000-8009", "has 11 ports of the host for 10 of the container"),
            ("8000-8010:80", "has 11 ports of the host for 1 of the container"),
            ("8010-8000:8000-8010", "ends before it begins"),
            ("8000-8010:8010-8000", "ends before it begins"),
            ("1-1025", "has 1025 ports without one of the host, too many: 1024 at most"),
            ("80:80/sctp", "unknown protocol 'sctp': tcp or udp as in 8080:80/udp"),
            ("80:80/", "unknown protocol ''"),
            ("80:80/tcp/udp", "unknown protocol 'tcp/udp'"),
            ("[::1]:80:80", "IPv6 address of the host: an IPv4 one"),
            ("::1:80:80", "IPv6 address of the host"),
            ("localhost:80:80", "malformed address 'localhost'"),
            ("1.2.3:80:80", "malformed address '1.2.3'"),
            ("224.0.0.1:80:80", "which no host has"),
            ("255.255.255.255:80:80", "which no host has"),
        ] {
            let line = text.parse::<Publish>().expect_err(text).to_string();
            assert!(line.contains(&format!("'{text}'")) && line.contains(part), "{line}");
            assert!(line.ends_with("is valid") && line.lines().count() == 1, "{line}");
        }
    }

    #[test]
    fn every_address_overlaps_each() {
        let port = |text: &str| {
            let publish: Publish = text.parse().expect(text);
            let port = publish.ports().next().expect("port");
            port.at(port.host_port.expect("host port"))
        };
        let overlap = |one, two| overlapping(&port(one), &port(two));
        assert!(overlap("80:1", "80:2"));
        assert!(overlap("80:1", "127.0.0.1:80:2"));
        assert!(overlap("127.0.0.1:80:1", "80:2"));
        assert!(overlap("127.0.0.1:80:1", "127.0.0.1:80:2"));
        assert!(!overlap("127.0.0.1:80:1", "127.0.0.2:80:1"));
        assert!(!overlap("80:1", "80:1/udp"));
        assert!(!overlap("80:1", "81:1"));
        assert!(overlap("80-90:1-11", "90:1") && overlap("80:1", "70-80:1-11"));
        assert!(overlap("1-65535:1-65535", "127.0.0.1:80-90:1-11"));
        assert!(!overlap("80-90:1-11", "91-99:1-9") && !overlap("80-90:1-11", "79:1"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9a-z.:/\\[\\]-]{0,30}|.{0,30}") {
            if let Ok(publish) = text.parse::<Publish>() {
                prop_assert!(publish.ports().count() <= MOST_FREE);
            }
        }

        #[test]
        fn what_is_displayed_is_parsed_back(
            ip in prop_oneof![
                Just(Ipv4Addr::UNSPECIFIED),
                Just(Ipv4Addr::LOCALHOST),
                Just(Ipv4Addr::new(192, 0, 2, 1)),
            ],
            host in proptest::option::of(1_u16..=64_000),
            container in 1_u16..=64_000,
            length in 0_u16..1024,
            udp in any::<bool>(),
        ) {
            let publish = Publish {
                host_ip: ip,
                host: host.map(|first| first..=first + length),
                container: container..=container + length,
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            };
            prop_assert_eq!(publish.to_string().parse::<Publish>(), Ok(publish.clone()));
            let ports: Vec<_> = publish.ports().collect();
            prop_assert_eq!(ports.len(), if host.is_some() { 1 } else { usize::from(length) + 1 });
            let singles: Vec<_> = ports.iter().flat_map(|port| port.at(1).singles()).collect();
            let inner: Vec<u16> = singles.iter().map(|port| port.container_port).collect();
            prop_assert_eq!(inner, (container..=container + length).collect::<Vec<_>>());
            prop_assert!(ports.iter().all(|port| port.host_port == host));
        }
    }
}
