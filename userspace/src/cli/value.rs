//! Values of options, checked when the command line is read. Every refusal is one line: the
//! value, its fault, and a valid value.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use ipnetwork::{IpNetwork, Ipv4Network};
use tracing_subscriber::EnvFilter;

use crate::{
    api::DEFAULT_TIMEOUT,
    model::{
        CapabilityOption, Exposed, Invalid, MacAddr, Name, NamespaceMode, Publish, RestartPolicy,
        TmpfsMount, UserOption, Vni, parse_source, validate,
    },
    store::StoreUrl,
};

type Parsed<T> = Result<T, Invalid>;

fn refuse<T>(line: String) -> Parsed<T> {
    Err(Invalid(line))
}

/// A subnet: its network address and prefix length.
pub(super) fn cidr(text: &str) -> Parsed<IpNetwork> {
    let parsed = text.contains('/').then(|| text.parse::<IpNetwork>().ok()).flatten();
    let Some(subnet) = parsed else {
        return refuse(format!(
            "subnet '{text}' is malformed: a network address and prefix length as in 10.0.0.0/24 or fd00:1::/64 is valid"
        ));
    };
    if subnet.ip() != subnet.network() {
        let right = format!("{}/{}", subnet.network(), subnet.prefix());
        return refuse(format!("subnet '{text}' has bits set beyond its prefix: {right} is valid"));
    }
    Ok(subnet)
}

/// A range of IPv4 addresses to choose subnets from.
pub(super) fn pool(text: &str) -> Parsed<Ipv4Network> {
    let range = cidr(text)?;
    validate::subnet(range)?;
    match range {
        IpNetwork::V4(range) => Ok(range),
        IpNetwork::V6(_) => {
            refuse(format!("pool {text} is IPv6: a range of IPv4 as in 10.200.0.0/16 is valid"))
        }
    }
}

/// A range of IPv4 addresses of services.
pub(super) fn service_cidr(text: &str) -> Parsed<Ipv4Network> {
    match cidr(text)? {
        IpNetwork::V4(range) if range.prefix() == 0 => refuse(format!(
            "services {text} are all addresses: a range as in 10.96.0.0/12 is valid"
        )),
        IpNetwork::V4(range) => Ok(range),
        IpNetwork::V6(_) => {
            refuse(format!("services {text} are IPv6: a range of IPv4 as in 10.96.0.0/12 is valid"))
        }
    }
}

/// An address or prefix of clients.
pub(super) fn source(text: &str) -> Parsed<IpNetwork> {
    parse_source(text)
}

/// An IPv4 or IPv6 address.
pub(super) fn ip(text: &str) -> Parsed<IpAddr> {
    text.parse().or_else(|_| {
        refuse(format!(
            "address '{text}' is malformed: an IP address as in 10.0.0.2 or fd00:1::2 is valid"
        ))
    })
}

/// An IPv4 address.
pub(super) fn ipv4(text: &str) -> Parsed<Ipv4Addr> {
    text.parse().or_else(|_| {
        refuse(format!("address '{text}' is malformed: an IPv4 address as in 10.0.0.2 is valid"))
    })
}

/// An IPv4 address of a host.
pub(super) fn vtep_ip(text: &str) -> Parsed<Ipv4Addr> {
    let ip = text.parse().or_else(|_| {
        refuse(format!(
            "VTEP address '{text}' is malformed: the IPv4 address of a host as in 192.168.0.2 is valid"
        ))
    })?;
    validate::vtep_address(ip).map(|()| ip)
}

/// The MAC address of an interface.
pub(super) fn mac(text: &str) -> Parsed<MacAddr> {
    let mac: MacAddr = text.parse()?;
    if mac.is_unicast() {
        Ok(mac)
    } else {
        refuse(format!(
            "MAC address '{text}' cannot be an interface's: one that is not zero and whose first octet is even is valid"
        ))
    }
}

/// A VNI as a number. The agent checks its range.
pub(super) fn vni(text: &str) -> Parsed<u32> {
    text.parse()
        .or_else(|_| refuse(format!("VNI '{text}' is out of range: 1 to {} is valid", Vni::MAX)))
}

/// An MTU as a number. The agent checks its range.
pub(super) fn mtu(text: &str) -> Parsed<u32> {
    text.parse().or_else(|_| {
        refuse(format!("MTU '{text}' is malformed: a number of bytes, 68 or more, is valid"))
    })
}

/// A UDP port.
pub(super) fn port(text: &str) -> Parsed<u16> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => refuse(format!("port '{text}' is out of range: 1 to 65535 is valid")),
    }
}

/// The id of a process.
pub(super) fn pid(text: &str) -> Parsed<i32> {
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => refuse(format!("pid '{text}' is malformed: a number from 1 up is valid")),
    }
}

/// A number of seconds, not 0.
pub(super) fn seconds(text: &str) -> Parsed<Duration> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds != 0 => Ok(Duration::from_secs(seconds.into())),
        _ => refuse(format!("'{text}' is not a number of seconds: 1 to {} is valid", u32::MAX)),
    }
}

/// The time for an answer of the agent; `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit(pub(super) Option<Duration>);

impl Default for Limit {
    fn default() -> Self {
        Self(Some(DEFAULT_TIMEOUT))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(|limit| limit.as_millis()) {
            None => f.write_str("0"),
            Some(ms) if ms.is_multiple_of(1000) => write!(f, "{}s", ms / 1000),
            Some(ms) => write!(f, "{ms}ms"),
        }
    }
}

/// A duration: a number with a unit, or of seconds. 0 is no limit.
pub(super) fn limit(text: &str) -> Parsed<Limit> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => Some(1),
        "s" | "" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let ms = number.parse::<u32>().ok().zip(factor).map(|(number, ms)| u64::from(number) * ms);
    match ms {
        Some(0) => Ok(Limit(None)),
        Some(ms) => Ok(Limit(Some(Duration::from_millis(ms)))),
        None => refuse(format!(
            "duration '{text}' is malformed: a number of seconds, or one with a unit as in 500ms, 10s, 2m or 1h, is valid"
        )),
    }
}

/// An option of a log. The names and units are Docker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogOpt {
    /// Size of a file in bytes.
    MaxSize(u64),
    /// Number of files.
    MaxFile(u32),
}

/// An option of a log.
pub(super) fn log_opt(text: &str) -> Parsed<LogOpt> {
    let parsed = match text.split_once('=') {
        Some(("max-size", size)) => bytes(size).filter(|size| *size >= 1000).map(LogOpt::MaxSize),
        Some(("max-file", count)) => {
            let count = count.parse().ok().filter(|count| (1..=1000).contains(count));
            count.map(LogOpt::MaxFile)
        }
        _ => None,
    };
    match parsed {
        Some(option) => Ok(option),
        None => refuse(format!(
            "log option '{text}' is malformed: max-size=SIZE of 1k or more as in 10m, or max-file=1 to 1000, is valid"
        )),
    }
}

/// A size in bytes: a number, or one with a unit, a power of 1000.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let short = lower.strip_suffix('b').unwrap_or(&lower);
    let units = [('k', 1000), ('m', 1_000_000), ('g', 1_000_000_000)];
    let unit = units.iter().find_map(|(unit, size)| Some((short.strip_suffix(*unit)?, *size)));
    let (number, size) = unit.unwrap_or((short, 1));
    number.parse::<u32>().ok().map(|number| u64::from(number) * size)
}

/// `KEY=VALUE`.
pub(super) fn pair(text: &str) -> Parsed<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => refuse(format!("'{text}' is malformed: KEY=VALUE is valid")),
    }
}

/// The value of `--network`: the name of a network, or `container:NAME`.
pub(super) fn network_mode(text: &str) -> Parsed<String> {
    let name = text.strip_prefix("container:").unwrap_or(text);
    name.parse::<Name>().map(|_| text.to_owned())
}

/// The name of a network interface, as the kernel takes it.
pub(super) fn ifname(text: &str) -> Parsed<String> {
    validate::ifname(text).map(|()| text.to_owned())
}

/// The absolute form of a path.
pub(super) fn absolute(path: PathBuf) -> Parsed<PathBuf> {
    std::path::absolute(&path).map_err(|error| {
        Invalid(format!("path {path:?} is malformed ({error}): one from / on is valid"))
    })
}

/// The path of a network namespace, made absolute: the agent has another
/// working directory, and another `/proc/self`.
pub(super) fn netns(text: &str) -> Parsed<PathBuf> {
    let path = absolute(text.into())?;
    if path.starts_with("/proc/self") || path.starts_with("/proc/thread-self") {
        return refuse(format!(
            "namespace path '{text}' means culvert's own process: /proc/PID/ns/net or --pid PID is valid"
        ));
    }
    Ok(path)
}

/// Published ports, passed on as they are.
pub(super) fn publish(text: &str) -> Parsed<String> {
    text.parse::<Publish>().map(|_| text.to_owned())
}

/// Ports that a container will listen on, passed on as they are.
pub(super) fn expose(text: &str) -> Parsed<String> {
    text.parse::<Exposed>().map(|_| text.to_owned())
}

/// The user of a command.
pub(super) fn user(text: &str) -> Parsed<UserOption> {
    text.parse()
}

/// A capability, or all.
pub(super) fn capability(text: &str) -> Parsed<CapabilityOption> {
    text.parse()
}

/// A namespace of the host or a private one.
pub(super) fn namespace(text: &str) -> Parsed<NamespaceMode> {
    text.parse()
}

/// A file system in memory.
pub(super) fn tmpfs(text: &str) -> Parsed<TmpfsMount> {
    text.parse()
}

/// When a command is started again.
pub(super) fn restart(text: &str) -> Parsed<RestartPolicy> {
    text.parse()
}

/// The URL of the store.
pub(super) fn store(text: &str) -> Parsed<String> {
    match text.parse::<StoreUrl>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => refuse(error.to_string()),
    }
}

/// A filter for the log.
pub(super) fn log_filter(text: &str) -> Parsed<String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => refuse(format!(
            "log level '{text}' is malformed: error, warn, info, debug or trace, or a filter as in info,culvert::store=debug, is valid"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<T: fmt::Debug>(result: Parsed<T>) -> String {
        let message = result.unwrap_err().to_string();
        assert_eq!(message.lines().count(), 1);
        message
    }

    #[test]
    fn subnets() {
        assert_eq!(cidr("10.0.0.0/24").unwrap().to_string(), "10.0.0.0/24");
        assert_eq!(cidr("fd00::/64").unwrap().to_string(), "fd00::/64");
        assert!(line(cidr("10.0.0.5/24")).ends_with("10.0.0.0/24 is valid"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0/24", "", "/", "x/24", "fd00::/129"] {
            assert!(line(cidr(bad)).contains("is malformed"), "{bad}");
        }
    }

    #[test]
    fn macs() {
        assert!(mac("02:42:0a:00:00:02").is_ok());
        for bad in ["", "02:42", "zz:42:0a:00:00:02", "00:00:00:00:00:00", "01:00:5e:00:00:01"] {
            line(mac(bad));
        }
    }

    #[test]
    fn published_ports() {
        for good in ["8080:80", "127.0.0.1:8080:80/udp", "80", "8000-8001:80-81/tcp"] {
            assert_eq!(publish(good).unwrap(), good);
        }
        for bad in ["80:0", "80:80/sctp", "[::1]:8080:80", "1-2:80", ""] {
            assert!(line(publish(bad)).contains(&format!("published port '{bad}'")));
        }
    }

    #[test]
    fn stores() {
        for good in ["file:/x", "file:x", "etcd://a:1", "etcd://a:1,b.c:2379,[::1]:3"] {
            assert!(store(good).is_ok(), "{good}");
        }
        for bad in [
            "file:",
            "etcd://",
            "etcd://a",
            "etcd://a:0",
            "etcd://a:1,",
            "http://a:1",
            "etcd://a b:1",
        ] {
            line(store(bad));
        }
    }

    #[test]
    fn names_paths_and_numbers() {
        assert!(network_mode("container:a").is_ok());
        line(network_mode("container:"));
        line(network_mode("a/b"));
        assert_eq!(netns("/run/netns/a").unwrap(), PathBuf::from("/run/netns/a"));
        assert!(netns("a").unwrap().is_absolute());
        line(netns(""));
        line(netns("/proc/self/ns/net"));
        assert!(ifname("eth0").is_ok());
        for bad in ["", "a b", "a/b", "a:b", ".", "..", "0123456789abcdef"] {
            line(ifname(bad));
        }
        assert_eq!(vni("0").unwrap(), 0);
        line(vni("-1"));
        line(vni("4294967296"));
        assert_eq!(mtu("9000").unwrap(), 9000);
        line(mtu("1k"));
        line(port("0"));
        line(pid("0"));
        line(seconds("0"));
        for (text, shown) in
            [("10", "10s"), ("10s", "10s"), ("2m", "120s"), ("500ms", "500ms"), ("0", "0")]
        {
            assert_eq!(limit(text).unwrap().to_string(), shown);
        }
        for bad in ["", "s", "-1", "1.5s", "10 s", "1d", "99999999999"] {
            assert!(line(limit(bad)).contains("is malformed"), "{bad}");
        }
        for (text, size) in
            [("1000", 1000), ("10m", 10_000_000), ("2KB", 2000), ("1g", 1_000_000_000)]
        {
            assert_eq!(log_opt(&format!("max-size={text}")), Ok(LogOpt::MaxSize(size)));
        }
        assert_eq!(log_opt("max-file=1"), Ok(LogOpt::MaxFile(1)));
        for bad in [
            "",
            "max-size",
            "max-size=",
            "max-size=999",
            "max-size=1.5m",
            "max-size=-1",
            "max-size=1t",
            "max-file=0",
            "max-file=1001",
            "max-file=x",
            "size=1m",
        ] {
            assert!(line(log_opt(bad)).contains("log option"), "{bad}");
        }
        line(pair("=x"));
        line(log_filter("info,=,="));
        line(vtep_ip("224.0.0.1"));
        line(vtep_ip("::1"));
    }
}
