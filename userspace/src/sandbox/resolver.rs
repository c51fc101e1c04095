//! resolv.conf(5): the host's, and that of a container.
//!
//! A container cannot use a name server on the host's loopback device, such as systemd-resolved or
//! dnsmasq. The container gets the servers to which such a program forwards.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
};

use crate::model::{Domain, NameOptions};

/// The resolver's file, of the host and of a container.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The servers that systemd-resolved asks (systemd-resolved.service(8)).
const SYSTEMD: &[&str] = &["/run/systemd/resolve/resolv.conf"];
/// The servers that dnsmasq or systemd-resolved asks for NetworkManager (NetworkManager.conf(5)).
const NETWORK_MANAGER: &[&str] =
    &["/run/NetworkManager/no-stub-resolv.conf", "/var/run/NetworkManager/no-stub-resolv.conf"];
/// The addresses on which systemd-resolved listens.
const SYSTEMD_STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// What to do on a host without a name server for its containers.
pub const RESOLVER_ADVICE: &str =
    "name a server that containers reach in /etc/resolv.conf, or with 'culvert run --dns IP'";

/// The contents of a resolv.conf(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers. An address with a zone, such as `fe80::1%eth0`, is here without it.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Parses a file as the C library does: unknown lines and malformed addresses are skipped, and
    /// the last line of search domains counts.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|word| word.split('%').next());
                    conf.servers.extend(address.and_then(|word| word.parse::<IpAddr>().ok()));
                }
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("domain") => conf.search = words.take(1).map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// The file, in which the options of `run` replace the corresponding lines.
    #[must_use]
    pub fn with(mut self, names: &NameOptions) -> Self {
        if !names.servers.is_empty() {
            self.servers.clone_from(&names.servers);
        }
        if !names.search.is_empty() {
            let domains = names.search.iter().map(Domain::as_str);
            self.search = domains.filter(|name| *name != Domain::ROOT).map(str::to_owned).collect();
        }
        if !names.options.is_empty() {
            self.options = names.options.iter().map(|option| option.as_str().to_owned()).collect();
        }
        self
    }

    /// The file with only the servers that a container reaches. `None`: no server is left.
    fn reachable(mut self) -> Option<Self> {
        self.servers.retain(|server| is_reachable(*server));
        (!self.servers.is_empty()).then_some(self)
    }
}

/// Whether containers reach a name server of the host: external access is for IPv4, and the
/// unspecified address means this machine, too.
fn is_reachable(server: IpAddr) -> bool {
    server.is_ipv4() && !server.is_loopback() && !server.is_unspecified()
}

impl fmt::Display for ResolvConf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            writeln!(f, "nameserver {server}")?;
        }
        for (keyword, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() {
                writeln!(f, "{keyword} {}", words.join(" "))?;
            }
        }
        Ok(())
    }
}

/// The name servers that the host has for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// The file of a container without options. It has no server if containers reach none of the
    /// host's servers.
    pub conf: ResolvConf,
    /// The file of the host that the servers are from. `None`: no file has a server that containers
    /// reach.
    pub source: Option<&'static str>,
    /// The servers of [`RESOLV_CONF`]. `None`: it cannot be read.
    pub own: Option<Vec<IpAddr>>,
}

impl Resolver {
    /// Reads the files of the host.
    pub fn of_host() -> Self {
        Self::choose(|path| fs::read(path).ok().map(|text| String::from_utf8_lossy(&text).into()))
    }

    /// Chooses among the files that `read` returns.
    pub fn choose(read: impl Fn(&str) -> Option<String>) -> Self {
        let read = |path: &str| read(path).map(|text| ResolvConf::parse(&text));
        let main = read(RESOLV_CONF);
        let own = main.as_ref().map(|conf| conf.servers.clone());
        let mut main = main.unwrap_or_default();
        if let Some(conf) = main.clone().reachable() {
            return Self { conf, source: Some(RESOLV_CONF), own };
        }
        let is_stub = |server: &IpAddr| SYSTEMD_STUBS.iter().any(|stub| server == stub);
        let files = match main.servers.iter().any(is_stub) {
            true => [SYSTEMD, NETWORK_MANAGER],
            false => [NETWORK_MANAGER, SYSTEMD],
        };
        let mut others = files.into_iter().flatten().copied();
        let found = others.find_map(|path| Some((path, read(path)?.reachable()?)));
        if let Some((source, mut conf)) = found {
            // The options of the other file are about the server on the loopback device.
            if conf.search.is_empty() {
                conf.search = main.search;
            }
            return Self { conf, source: Some(source), own };
        }
        main.servers.clear();
        Self { conf: main, source: None, own }
    }

    /// Why containers get no name server, as the end of a sentence. `None`: they get one.
    pub fn fault(&self) -> Option<String> {
        if self.source.is_some() {
            return None;
        }
        Some(match self.own.as_deref() {
            None => format!("{RESOLV_CONF} cannot be read"),
            Some([]) => format!("{RESOLV_CONF} names no server"),
            Some(servers) => {
                let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
                format!(
                    "{RESOLV_CONF} names only {}, which containers do not reach",
                    servers.join(", ")
                )
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "# This is /run/systemd/resolve/stub-resolv.conf\n\
                        nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
    const SYSTEMD_FILE: &str = "/run/systemd/resolve/resolv.conf";
    const MANAGER_FILE: &str = "/run/NetworkManager/no-stub-resolv.conf";

    fn choose(files: &[(&str, &str)]) -> Resolver {
        let find = |path: &str| files.iter().find(|(name, _)| *name == path);
        Resolver::choose(|path| find(path).map(|(_, text)| (*text).to_owned()))
    }

    fn servers(resolver: &Resolver) -> Vec<String> {
        resolver.conf.servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_are_read_as_the_c_library_reads_them() {
        let conf = ResolvConf::parse(
            "; comment\n#nameserver 9.9.9.9\nnameserver\t10.0.0.1 # ours\nnameserver here\n\
             nameserver fe80::1%eth0\nnameserver\ndomain old.example\nsearch a.example b.example\n\
             options ndots:2\nnameservers 8.8.8.8\noptions rotate\n",
        );
        let expected = "nameserver 10.0.0.1\nnameserver fe80::1\nsearch a.example b.example\n\
                        options ndots:2 rotate\n";
        assert_eq!(conf.to_string(), expected);
        assert_eq!(ResolvConf::parse(expected), conf);
        assert_eq!(ResolvConf::parse("search a\ndomain b c").search, ["b"]);
        assert_eq!(ResolvConf::parse("").to_string(), "");
    }

    #[test]
    fn a_plain_file_is_kept_without_the_servers_that_containers_do_not_reach() {
        let text = "search lan\nnameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver ::1\n\
                    nameserver 2001:db8::1\nnameserver 0.0.0.0\noptions ndots:2\n";
        let other = "nameserver 10.9.9.9\n";
        let found = choose(&[(RESOLV_CONF, text), (SYSTEMD_FILE, other)]);
        assert_eq!(found.conf.to_string(), "nameserver 10.0.0.1\nsearch lan\noptions ndots:2\n");
        assert_eq!((found.source, found.fault()), (Some(RESOLV_CONF), None));
    }

    #[test]
    fn the_servers_behind_a_local_resolver_are_found() {
        let uplink = "nameserver 192.168.1.1\nnameserver fe80::1%3\nsearch home.example\n";
        let found = choose(&[(RESOLV_CONF, STUB), (SYSTEMD_FILE, uplink)]);
        assert_eq!(found.conf.to_string(), "nameserver 192.168.1.1\nsearch home.example\n");
        assert_eq!(found.source, Some(SYSTEMD_FILE));
        // The stub's options are about the stub, its search domains are the host's.
        let found = choose(&[(RESOLV_CONF, STUB), (SYSTEMD_FILE, "nameserver 192.168.1.1\n")]);
        assert_eq!(found.conf.to_string(), "nameserver 192.168.1.1\nsearch lan\n");

        let manager = (MANAGER_FILE, "nameserver 10.0.0.7\n");
        let systemd = (SYSTEMD_FILE, "nameserver 10.0.0.8\n");
        for local in ["127.0.0.1", "::1", "127.0.1.1"] {
            let text = format!("nameserver {local}\n");
            let found = choose(&[(RESOLV_CONF, &text), manager, systemd]);
            assert_eq!(
                (servers(&found), found.source),
                (vec!["10.0.0.7".to_owned()], Some(MANAGER_FILE))
            );
        }
        let found = choose(&[(RESOLV_CONF, STUB), manager, systemd]);
        assert_eq!(servers(&found), ["10.0.0.8"]);
        let elsewhere = ("/var/run/NetworkManager/no-stub-resolv.conf", "nameserver 10.0.0.9\n");
        let useless = (SYSTEMD_FILE, "nameserver 127.0.0.1\n");
        let found = choose(&[(RESOLV_CONF, STUB), useless, elsewhere]);
        assert_eq!(servers(&found), ["10.0.0.9"]);
    }

    #[test]
    fn a_host_without_a_server_for_containers_says_why() {
        for (files, why) in [
            (vec![], "cannot be read"),
            (vec![(RESOLV_CONF, "options x\n")], "names no server"),
            (vec![(RESOLV_CONF, STUB)], "names only 127.0.0.53, which"),
            (
                vec![(RESOLV_CONF, STUB), (SYSTEMD_FILE, "# none\n")],
                "names only 127.0.0.53, which containers do not reach",
            ),
            (vec![(RESOLV_CONF, "nameserver 2001:db8::1\n")], "2001:db8::1"),
        ] {
            let found = choose(&files);
            assert_eq!((found.source, servers(&found)), (None, vec![]));
            let fault = found.fault().unwrap();
            assert!(fault.contains(why), "{fault}");
        }
        // The container gets the other lines nevertheless.
        assert_eq!(choose(&[(RESOLV_CONF, STUB)]).conf.search, ["lan"]);
    }

    #[test]
    fn options_replace_their_lines() {
        let conf = ResolvConf::parse("nameserver 10.0.0.1\nsearch lan\noptions ndots:2\n");
        assert_eq!(conf.clone().with(&NameOptions::default()), conf);
        let names = NameOptions {
            servers: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            search: vec!["a.example".parse().unwrap(), "b.example".parse().unwrap()],
            options: vec!["rotate".parse().unwrap()],
            ..NameOptions::default()
        };
        assert_eq!(
            conf.clone().with(&names).to_string(),
            "nameserver 10.0.0.2\nnameserver fd00::2\nsearch a.example b.example\noptions rotate\n"
        );
        let none = NameOptions { search: vec![".".parse().unwrap()], ..NameOptions::default() };
        assert_eq!(conf.with(&none).to_string(), "nameserver 10.0.0.1\noptions ndots:2\n");
    }
}
