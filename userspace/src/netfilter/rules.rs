//! Rules, and the ports that they translate.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;

use crate::model::{Protocol, PublishedPort};

/// Longest path of jumps that is followed: that of nftables (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;
/// Most rules that are looked at. Chains may lead to each other in very many ways.
const MOST: usize = 1_000_000;

/// Chain of kube-proxy in the mode `iptables`, and table of kube-proxy in the mode `nftables`.
const KUBE_CHAIN: &str = "KUBE-SERVICES";
const KUBE_TABLE: &str = "ip kube-proxy";
/// First letters of the names of the chains of single services, in both modes. The chains for the
/// external addresses of services have other names.
const KUBE_SERVICE: [&str; 2] = ["KUBE-SVC-", "service-"];

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Its table. For nftables with the family in front, as in `ip nat`.
    pub table: String,
    /// The command that lists the chain.
    pub shown_by: &'static str,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, table, shown_by } = self;
        write!(f, "chain {name} of table {table} ('{shown_by}')")
    }
}

/// What translates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Translator {
    /// A rule of netfilter: the chain that names the port.
    Chain(Chain),
    /// A virtual service of IPVS.
    Ipvs,
}

impl fmt::Display for Translator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(chain) => write!(f, "{chain}"),
            Self::Ipvs => f.write_str("IPVS ('ipvsadm -Ln')"),
        }
    }
}

/// Ports whose packets are sent elsewhere, without a socket of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Translation {
    /// Protocol.
    pub protocol: Protocol,
    /// First and last port.
    pub ports: (u16, u16),
    /// Destination addresses of the packets. `None`: every address.
    pub destination: Option<Ipv4Network>,
    /// Whether the rules have further conditions, such as an interface or a source address, so that
    /// they may not apply to a packet that an external client sends.
    pub conditional: bool,
    /// What translates.
    pub by: Translator,
}

/// What of a host's rules concerns Culvert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Ports that are translated.
    pub translations: Vec<Translation>,
    /// A chain of kube-proxy. `None`: kube-proxy has no rules here.
    pub kube_proxy: Option<Chain>,
    /// Addresses of kube-proxy's services, as far as its rules name them.
    pub services: BTreeSet<Ipv4Addr>,
}

impl Rules {
    /// Adds what is in a list of rules.
    pub(super) fn add(&mut self, ruleset: &Ruleset) {
        self.translations.extend(ruleset.translations());
        self.services.extend(ruleset.services());
        if self.kube_proxy.is_none() {
            self.kube_proxy = ruleset.chains.keys().find(|chain| is_of_kube(chain)).cloned();
        }
    }

    /// Adds other rules of the host.
    pub(super) fn merge(&mut self, other: Self) {
        let Self { translations, kube_proxy, services } = other;
        self.translations.extend(translations);
        self.services.extend(services);
        self.kube_proxy = self.kube_proxy.take().or(kube_proxy);
    }

    /// The first translation that takes packets to one of the ports of `port`, and this port. One
    /// without further conditions is preferred. `addresses` are those of the host.
    pub fn taker(
        &self,
        port: &PublishedPort,
        addresses: &BTreeSet<Ipv4Addr>,
    ) -> Option<(&Translation, u16)> {
        let (first, last) = port.host_ports()?;
        let takers = self.translations.iter().filter_map(|translation| {
            let single = first.max(translation.ports.0);
            let meets = translation.protocol == port.protocol
                && single <= last.min(translation.ports.1)
                && translation.destination.is_none_or(|destination| {
                    match port.host_ip.is_unspecified() {
                        true => addresses.iter().any(|address| destination.contains(*address)),
                        false => destination.contains(port.host_ip),
                    }
                });
            meets.then_some((translation, single))
        });
        takers.min_by_key(|(translation, _)| translation.conditional)
    }
}

fn is_of_kube(chain: &Chain) -> bool {
    chain.name == KUBE_CHAIN || chain.table == KUBE_TABLE
}

/// The packets that a rule applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// `None`: each.
    pub(super) protocols: Option<Vec<Protocol>>,
    /// First and last destination ports. `None`: each.
    pub(super) ports: Option<Vec<(u16, u16)>>,
    /// Destination addresses. `None`: each.
    pub(super) destinations: Option<Vec<Ipv4Network>>,
    /// Whether there are further conditions: the rule may apply to fewer packets.
    pub(super) conditional: bool,
}

impl Match {
    /// Packets of which a condition is known, but not which packets meet it.
    pub(super) fn some() -> Self {
        Self { conditional: true, ..Self::default() }
    }

    /// The packets that match both. `None`: no packet does.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        let same = |one: &Protocol, two: &Protocol| (one == two).then_some(*one);
        let ports = |one: &(u16, u16), two: &(u16, u16)| {
            let (first, last) = (one.0.max(two.0), one.1.min(two.1));
            (first <= last).then_some((first, last))
        };
        let narrower = |one: &Ipv4Network, two: &Ipv4Network| {
            let narrower = if one.prefix() > two.prefix() { one } else { two };
            one.overlaps(*two).then_some(*narrower)
        };
        Some(Self {
            protocols: both(self.protocols.as_deref(), other.protocols.as_deref(), same)?,
            ports: both(self.ports.as_deref(), other.ports.as_deref(), ports)?,
            destinations: both(
                self.destinations.as_deref(),
                other.destinations.as_deref(),
                narrower,
            )?,
            conditional: self.conditional || other.conditional,
        })
    }
}

/// The values that two conditions have in common; the inner `None` stands for every value. `meet`
/// returns what two values have in common. `None`: the conditions have no value in common.
fn both<T: Clone>(
    one: Option<&[T]>,
    two: Option<&[T]>,
    meet: impl Fn(&T, &T) -> Option<T>,
) -> Option<Option<Vec<T>>> {
    let (one, two) = match (one, two) {
        (Some(one), Some(two)) => (one, two),
        (any, None) | (None, any) => return Some(any.map(<[T]>::to_vec)),
    };
    let meet = &meet;
    let met = one.iter().flat_map(|one| two.iter().filter_map(move |two| meet(one, two)));
    let met: Vec<T> = met.collect();
    (!met.is_empty()).then_some(Some(met))
}

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goes {
    /// It changes the destination.
    Elsewhere,
    /// It goes on in another chain.
    To(Chain),
}

/// A rule that changes the destination of packets, or leads to other rules. Others are left out,
/// also those that except packets from the later rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The packets that it applies to.
    pub(super) matches: Match,
    /// What it does with them.
    pub(super) goes: Goes,
}

/// A list of rules.
#[derive(Clone, Debug, Default)]
pub(super) struct Ruleset {
    /// The chains that see packets before they are routed.
    pub(super) first: Vec<Chain>,
    /// All chains.
    pub(super) chains: BTreeMap<Chain, Vec<Rule>>,
}

impl Ruleset {
    /// The ports that the rules translate. A rule without a port translates whole addresses and is
    /// left out.
    fn translations(&self) -> BTreeSet<Translation> {
        let mut walk = Walk { ruleset: self, found: BTreeSet::new(), left: MOST };
        for first in &self.first {
            walk.chain(first, &Match::default(), None, 0);
        }
        walk.found
    }

    /// The addresses of kube-proxy's services.
    fn services(&self) -> impl Iterator<Item = Ipv4Addr> {
        let of_kube = self.chains.iter().filter(|(chain, _)| is_of_kube(chain));
        let rules = of_kube.flat_map(|(_, rules)| rules).filter(|rule| match &rule.goes {
            Goes::To(next) => KUBE_SERVICE.iter().any(|begin| next.name.starts_with(begin)),
            Goes::Elsewhere => false,
        });
        let destinations = rules.flat_map(|rule| rule.matches.destinations.iter().flatten());
        destinations.filter(|net| net.prefix() == 32).map(|net| net.ip())
    }
}

/// A walk through the chains.
struct Walk<'a> {
    ruleset: &'a Ruleset,
    found: BTreeSet<Translation>,
    /// Number of rules that may still be looked at.
    left: usize,
}

impl<'a> Walk<'a> {
    /// Follows the rules of a chain, which packets that match `before` reach through `depth` jumps.
    /// `by` is the last chain that has named a port.
    fn chain(&mut self, chain: &'a Chain, before: &Match, by: Option<&'a Chain>, depth: usize) {
        if depth > DEEPEST {
            return;
        }
        let ruleset = self.ruleset;
        for rule in ruleset.chains.get(chain).into_iter().flatten() {
            let Some(left) = self.left.checked_sub(1) else { return };
            self.left = left;
            let Some(matches) = before.and(&rule.matches) else { continue };
            let by = if rule.matches.ports.is_some() { Some(chain) } else { by };
            match &rule.goes {
                Goes::To(next) => self.chain(next, &matches, by, depth + 1),
                Goes::Elsewhere => {
                    if let (Some(ports), Some(by)) = (&matches.ports, by) {
                        self.note(&matches, ports, by);
                    }
                }
            }
        }
    }

    fn note(&mut self, matches: &Match, ports: &[(u16, u16)], by: &Chain) {
        let protocols = matches.protocols.as_deref().unwrap_or(&[Protocol::Tcp, Protocol::Udp]);
        let destinations: Vec<Option<Ipv4Network>> = match &matches.destinations {
            None => vec![None],
            Some(some) => some.iter().copied().map(Some).collect(),
        };
        for protocol in protocols {
            for ports in ports {
                self.found.extend(destinations.iter().map(|destination| Translation {
                    protocol: *protocol,
                    ports: *ports,
                    destination: *destination,
                    conditional: matches.conditional,
                    by: Translator::Chain(by.clone()),
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Publish;

    fn chain(name: &str) -> Chain {
        Chain { name: name.to_owned(), table: "nat".to_owned(), shown_by: "iptables-save -t nat" }
    }

    fn to(name: &str, matches: Match) -> Rule {
        Rule { matches, goes: Goes::To(chain(name)) }
    }

    fn port(text: &str) -> PublishedPort {
        let publish: Publish = text.parse().unwrap();
        let port = publish.ports().next().unwrap();
        port.at(port.host_port.unwrap())
    }

    #[test]
    fn a_translation_takes_the_ports_that_it_names_at_the_addresses_that_it_names() {
        let translation = |destination: Option<&str>| Translation {
            protocol: Protocol::Tcp,
            ports: (8080, 8090),
            destination: destination.map(|net| net.parse().unwrap()),
            conditional: false,
            by: Translator::Chain(chain("DOCKER")),
        };
        let addresses: BTreeSet<Ipv4Addr> =
            [[127, 0, 0, 1], [192, 0, 2, 1]].map(Ipv4Addr::from).into();
        let taken = |destination, text| {
            let rules = Rules { translations: vec![translation(destination)], ..Rules::default() };
            rules.taker(&port(text), &addresses).map(|(_, port)| port)
        };
        for (text, expected) in [
            ("8080:1", Some(8080)),
            ("192.0.2.1:8090:1", Some(8090)),
            ("8000-8100:1-101", Some(8080)),
            ("8085-9000:1-916", Some(8085)),
            ("8091:1", None),
            ("8079:1", None),
            ("8080:1/udp", None),
        ] {
            assert_eq!(taken(None, text), expected, "{text}");
        }
        // A service address is none of the host's.
        assert_eq!(taken(Some("10.96.0.10/32"), "8080:1"), None);
        assert_eq!(taken(Some("192.0.2.1/32"), "8080:1"), Some(8080));
        assert_eq!(taken(Some("192.0.2.1/32"), "127.0.0.1:8080:1"), None);
        assert_eq!(taken(Some("127.0.0.0/8"), "127.0.0.1:8080:1"), Some(8080));
    }

    #[test]
    fn chains_that_lead_to_each_other_end_the_walk() {
        let ports = Match { ports: Some(vec![(1, 9)]), ..Match::default() };
        let mut many = vec![to("A", Match::default()), to("B", Match::default())];
        many.push(Rule { matches: ports, goes: Goes::Elsewhere });
        let chains = [("A", many.clone()), ("B", many)];
        let ruleset = Ruleset {
            first: vec![chain("A")],
            chains: chains.map(|(name, rules)| (chain(name), rules)).into(),
        };
        let found = ruleset.translations();
        assert!(found.len() <= 4 && !found.is_empty(), "{found:?}");
    }

    #[test]
    fn conditions_are_narrowed_along_the_way() {
        let net = |text: &str| text.parse::<Ipv4Network>().unwrap();
        let wide = Match {
            ports: Some(vec![(1, 100), (200, 300)]),
            destinations: Some(vec![net("10.0.0.0/8")]),
            ..Match::default()
        };
        let narrow = Match {
            protocols: Some(vec![Protocol::Udp]),
            ports: Some(vec![(90, 210)]),
            destinations: Some(vec![net("10.1.2.3/32"), net("11.0.0.0/8")]),
            conditional: true,
        };
        let expected = Match {
            protocols: Some(vec![Protocol::Udp]),
            ports: Some(vec![(90, 100), (200, 210)]),
            destinations: Some(vec![net("10.1.2.3/32")]),
            conditional: true,
        };
        assert_eq!(wide.and(&narrow), Some(expected.clone()));
        assert_eq!(narrow.and(&wide), Some(expected));
        let tcp = Match { protocols: Some(vec![Protocol::Tcp]), ..Match::default() };
        assert_eq!(narrow.and(&tcp), None);
        assert_eq!(Match::default().and(&tcp), Some(tcp));
    }
}
