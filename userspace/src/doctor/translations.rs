//! Other systems that translate packets on this host: published ports that a rule takes as well,
//! and services of kube-proxy.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use ipnetwork::Ipv4Network;

use super::finding::{Finding, ok, warning};
use crate::{
    model::PublishedPort,
    netfilter::{self, Rules},
    netlink::{Link, Netlink},
};

/// Device of kube-proxy in the mode `ipvs`. It has the addresses of the services.
const IPVS_DEVICE: &str = "kube-ipvs0";
/// Name of kube-proxy's process.
const KUBE_PROXY: &str = "kube-proxy";

/// What translates packets on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translations {
    /// The rules of the host's netfilter, and the services of IPVS.
    pub rules: Rules,
    /// IPv4 addresses of the host.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Whether kube-proxy uses IPVS: its device exists.
    pub ipvs: bool,
    /// Whether a process of kube-proxy runs. It may be in the process of another program.
    pub kube_proxy_runs: bool,
}

impl Translations {
    /// Reads the facts in the namespace of `netlink`, which has these interfaces.
    pub(super) async fn collect(netlink: &Netlink, links: &[Link]) -> Self {
        let addresses = links.iter().flat_map(|link| &link.addresses);
        Self {
            rules: netfilter::read(netlink.netns()).await,
            addresses: addresses
                .filter_map(|address| match address.ip() {
                    IpAddr::V4(ip) => Some(ip),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            ipvs: links.iter().any(|link| link.name == IPVS_DEVICE),
            kube_proxy_runs: runs(Path::new("/"), KUBE_PROXY),
        }
    }
}

/// Whether a process of that name runs on the host with the root directory `root`.
pub(super) fn runs(root: &Path, name: &str) -> bool {
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    processes
        .filter_map(|process| fs::read_to_string(process.path().join("comm")).ok())
        .any(|found| found.trim_end() == name)
}

/// Checks that no other system translates a published port. `published` has the name of each
/// container.
pub(super) fn translated(
    facts: &Translations,
    published: &[(String, PublishedPort)],
) -> Vec<Finding> {
    let taken = published.iter().filter_map(|(container, port)| {
        let (translation, single) = facts.rules.taker(port, &facts.addresses)?;
        let PublishedPort { host_ip, protocol, .. } = port;
        let conditions = if translation.conditional { ", under further conditions," } else { "" };
        Some(warning(
            "translation",
            format!(
                "port {single}/{protocol} on {host_ip} is published by container '{container}' and translated by {}{conditions} as well: the other system does not get the packets of clients, which Culvert takes before netfilter",
                translation.by
            ),
            "give one of the two another port",
        ))
    });
    let taken: Vec<Finding> = taken.collect();
    if !taken.is_empty() || published.is_empty() {
        return taken;
    }
    vec![ok(
        "translation",
        "no rule of the host that is known translates a published port".to_owned(),
    )]
}

/// Checks that the agent knows the range of service addresses (`ranges`), if kube-proxy needs that.
pub(super) fn services(facts: &Translations, ranges: &[Ipv4Network]) -> Option<Finding> {
    if facts.ipvs {
        let detail = format!(
            "kube-proxy uses IPVS: its service addresses are addresses of the host, on {IPVS_DEVICE}, and need no --service-cidr"
        );
        return Some(ok("services", detail));
    }
    let sign = match &facts.rules.kube_proxy {
        Some(chain) => chain.to_string(),
        None if facts.kube_proxy_runs => format!("process {KUBE_PROXY}"),
        None => return None,
    };
    let is_known = |address: &&Ipv4Addr| ranges.iter().any(|range| range.contains(**address));
    let unknown = facts.rules.services.iter().find(|address| !is_known(address));
    let advice = "start the agent with --service-cidr and the cluster's service range, which is --service-cluster-ip-range of kube-apiserver";
    let why = "a container's packets to it leave the host past kube-proxy and get no answer";
    Some(match (unknown, ranges) {
        (Some(address), _) => warning(
            "services",
            format!(
                "kube-proxy is here ({sign}), and its service address {address} is in no --service-cidr of the agent: {why}"
            ),
            advice,
        ),
        (None, []) => warning(
            "services",
            format!(
                "kube-proxy is here ({sign}), and the agent has no --service-cidr: containers do not reach its services"
            ),
            advice,
        ),
        (None, ranges) => {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            let ranges = ranges.join(", ");
            ok("services", format!("kube-proxy is here ({sign}), and gets the packets to {ranges}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::Level,
        model::Protocol,
        netfilter::{Chain, Translation, Translator},
    };

    fn chain(name: &str) -> Chain {
        Chain { name: name.to_owned(), table: "nat".to_owned(), shown_by: "iptables-save -t nat" }
    }

    fn published(host_ip: [u8; 4], host_port: u16) -> (String, PublishedPort) {
        let port = PublishedPort {
            host_ip: host_ip.into(),
            host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
            count: 10,
        };
        ("web".to_owned(), port)
    }

    #[test]
    fn published_ports_that_a_rule_translates_are_named() {
        let facts = Translations {
            rules: Rules {
                translations: vec![Translation {
                    protocol: Protocol::Tcp,
                    ports: (8085, 8085),
                    destination: None,
                    conditional: false,
                    by: Translator::Chain(chain("DOCKER")),
                }],
                ..Rules::default()
            },
            ..Translations::default()
        };
        assert_eq!(translated(&facts, &[]), []);
        let fine = translated(&facts, &[published([0; 4], 9000)]);
        assert_eq!((fine.len(), fine[0].level), (1, Level::Ok), "{fine:?}");
        let both = [published([0; 4], 9000), published([192, 0, 2, 1], 8080)];
        let found = translated(&facts, &both);
        let [found] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(found.level, Level::Warning);
        for words in ["port 8085/tcp on 192.0.2.1", "'web'", "chain DOCKER of table nat"] {
            assert!(found.detail.contains(words), "{words}: {found:?}");
        }
        assert!(!found.advice.is_empty() && found.detail.lines().count() == 1);
    }

    #[test]
    fn services_need_their_range() {
        let range = |text: &str| text.parse::<Ipv4Network>().unwrap();
        let services = |facts: &Translations, ranges: &[&str]| {
            let ranges: Vec<_> = ranges.iter().map(|text| range(text)).collect();
            let found = services(facts, &ranges)?;
            assert_eq!(found.advice.is_empty(), found.level == Level::Ok, "{found:?}");
            Some((found.level, format!("{} {}", found.detail, found.advice)))
        };
        assert_eq!(services(&Translations::default(), &[]), None);
        let rules = Rules {
            kube_proxy: Some(chain("KUBE-SERVICES")),
            services: ["10.96.0.1", "10.97.0.1"].map(|ip| ip.parse().unwrap()).into(),
            ..Rules::default()
        };
        let mut facts = Translations { rules, ..Translations::default() };
        for (ranges, level, words) in [
            (&["10.96.0.0/16"][..], Level::Warning, "10.97.0.1 is in no --service-cidr"),
            (&[], Level::Warning, "chain KUBE-SERVICES of table nat"),
            (&[], Level::Warning, "service address 10.96.0.1 is in no --service-cidr"),
            (&["10.96.0.0/16", "10.97.0.0/16"], Level::Ok, "gets the packets to 10.96.0.0/16, "),
            (&["10.96.0.0/12"], Level::Ok, "to 10.96.0.0/12"),
        ] {
            let (found, line) = services(&facts, ranges).unwrap();
            assert_eq!(found, level, "{line}");
            assert!(line.contains(words), "{words}: {line}");
        }
        // The rules are hidden: kube-proxy has its own iptables, and the host has none.
        facts.rules = Rules::default();
        facts.kube_proxy_runs = true;
        let (level, line) = services(&facts, &[]).unwrap();
        assert_eq!(level, Level::Warning, "{line}");
        assert!(line.contains("process kube-proxy") && line.contains("--service-cidr"), "{line}");
        assert_eq!(services(&facts, &["10.96.0.0/12"]).unwrap().0, Level::Ok);
        facts.ipvs = true;
        assert_eq!(services(&facts, &[]).unwrap().0, Level::Ok);
    }

    #[test]
    fn processes_are_found_by_name() {
        let root = tempfile::tempdir().unwrap();
        assert!(!runs(root.path(), KUBE_PROXY));
        let process = root.path().join("proc/77");
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("comm"), "kube-proxy\n").unwrap();
        assert!(runs(root.path(), KUBE_PROXY));
        assert!(!runs(root.path(), "kube"));
    }
}
