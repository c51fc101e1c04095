//! Rules of iptables, as `iptables-save -t nat` writes them (iptables-extensions(8)).

use ipnetwork::Ipv4Network;

use super::rules::{Chain, Goes, Match, Rule, Ruleset};
use crate::model::Protocol;

/// The table whose rules change addresses.
const TABLE: &str = "nat";
/// The chain that sees packets before they are routed.
const FIRST: &str = "PREROUTING";

fn chain(name: &str) -> Chain {
    let shown_by = "iptables-save -t nat";
    Chain { name: name.to_owned(), table: TABLE.to_owned(), shown_by }
}

/// The rules of the table `nat`. Lines that are not understood are left out.
pub(super) fn parse(text: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut is_nat = false;
    for line in text.lines() {
        if let Some(table) = line.strip_prefix('*') {
            is_nat = table.trim_end() == TABLE;
        } else if !is_nat {
            continue;
        } else if let Some(declared) = line.strip_prefix(':') {
            let name = declared.split(' ').next().unwrap_or_default();
            if name == FIRST {
                ruleset.first.push(chain(name));
            }
            ruleset.chains.entry(chain(name)).or_default();
        } else if let Some((name, rule)) = rule(line) {
            ruleset.chains.entry(chain(&name)).or_default().push(rule);
        }
    }
    ruleset
}

/// The name of a rule's chain, and the rule. `None`: it concerns no TCP or UDP packet to the host,
/// or is not understood.
fn rule(line: &str) -> Option<(String, Rule)> {
    let mut words = words(line).into_iter();
    if words.next()? != "-A" {
        return None;
    }
    let name = words.next()?;
    let (mut matches, mut goes, mut negated) = (Match::default(), None, false);
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let is_negated = std::mem::take(&mut negated);
        match word.as_str() {
            // What a target is given is no condition.
            _ if goes.is_some() => {}
            "-p" | "-d" | "--dport" | "--dports" if is_negated => {
                matches.conditional = true;
                drop(words.next()?);
            }
            // An external client's packet comes in on an uplink, with a source of its own.
            "-i" | "-s" if is_negated => drop(words.next()?),
            "-m" => drop(words.next()?),
            "-p" => matches.protocols = Some(vec![protocol(&words.next()?)?]),
            "-d" => matches.destinations = Some(vec![words.next()?.parse::<Ipv4Network>().ok()?]),
            "--dport" | "--dports" => matches.ports = Some(ports(&words.next()?)?),
            "--dst-type" => match (words.next()?.as_str(), is_negated) {
                ("LOCAL", true) => return None,
                ("LOCAL", false) => {}
                _ => matches.conditional = true,
            },
            // Of the packets that another rule leaves, the rule gets a share.
            "--mode" | "--probability" | "--every" | "--packet" => drop(words.next()?),
            // A comment may have words that look like options.
            "--comment" => drop(words.next()?),
            "-j" | "-g" => goes = Some(words.next()?),
            other => matches.conditional |= other.starts_with('-'),
        }
    }
    let goes = match goes?.as_str() {
        "DNAT" | "REDIRECT" => Goes::Elsewhere,
        next => Goes::To(chain(next)),
    };
    Some((name, Rule { matches, goes }))
}

fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" | "6" => Some(Protocol::Tcp),
        "udp" | "17" => Some(Protocol::Udp),
        _ => None,
    }
}

/// Ports and ranges of ports: `80`, `8000:8010`, `80,443,8000:8010`.
fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    let range = |part: &str| {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?))
    };
    text.split(',').map(range).collect()
}

/// The words of a line. A word in quotation marks may have spaces; `\` stands before a quotation
/// mark and before itself.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut letters = line.chars();
    let mut is_quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' if is_quoted => word.get_or_insert_default().extend(letters.next()),
            ' ' if !is_quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::rules::Rules, *};

    /// What `iptables-nft-save` 1.8.9 writes.
    const SAVED: &str = include_str!("testdata/nat.rules");
    /// A line of words that the parser knows, or of any letters.
    const LINE: &str = "(-A|:|[*]nat|!|-p|-d|-j|--dports|\"|\\\\| |[0-9]){0,12}|.{0,40}";

    fn rules(text: &str) -> Rules {
        let mut rules = Rules::default();
        rules.add(&parse(text));
        rules
    }

    #[test]
    fn ports_that_docker_and_kube_proxy_translate_are_found() {
        let rules = rules(SAVED);
        let shown: Vec<String> = rules
            .translations
            .iter()
            .map(|one| {
                let (first, last) = one.ports;
                let to = one.destination.map(|net| net.to_string()).unwrap_or_default();
                let conditions = if one.conditional { " (conditional)" } else { "" };
                format!("{} {first}-{last} {to} {}{conditions}", one.protocol, one.by)
            })
            .collect();
        let by = |chain: &str| format!("chain {chain} of table nat ('iptables-save -t nat')");
        let (docker, services) = (by("DOCKER"), by("KUBE-SERVICES"));
        assert_eq!(
            shown,
            [
                format!("tcp 443-443 10.96.0.10/32 {services}"),
                format!("tcp 8081-8081  {docker}"),
                format!("tcp 30080-30080  {}", by("KUBE-NODEPORTS")),
                format!("udp 1-1 10.0.0.1/32 {docker}"),
                format!("udp 5-7 10.0.0.1/32 {docker}"),
            ]
        );
        assert_eq!(rules.kube_proxy.map(|chain| chain.name).as_deref(), Some("KUBE-SERVICES"));
        assert_eq!(rules.services, ["10.96.0.10".parse().unwrap()].into());
    }

    /// Rules for others than external clients refuse no port.
    #[test]
    fn further_conditions_are_noted() {
        let conditional = |rule: &str| {
            let text = format!("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n");
            let found = rules(&text).translations;
            let [one] = found.as_slice() else { panic!("{rule}: {found:?}") };
            one.conditional
        };
        for rule in [
            "-i virbr0 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080",
            "-s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.9",
            "! -d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.9",
            "-p tcp -m set --match-set some src -m tcp --dport 80 -j REDIRECT",
        ] {
            assert!(conditional(rule), "{rule}");
        }
        for rule in [
            "! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80",
            "! -s 10.0.0.0/8 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080 --random",
            "-d 192.0.2.1/32 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 80 -j REDIRECT",
        ] {
            assert!(!conditional(rule), "{rule}");
        }
    }

    #[test]
    fn a_host_without_rules_has_none() {
        assert_eq!(rules(""), Rules::default());
        let empty = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(rules(empty), Rules::default());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(
            lines in prop::collection::vec(LINE, 0..8),
        ) {
            let text = format!("*nat\n:PREROUTING -\n{}", lines.join("\n"));
            let _ = rules(&text);
        }
    }
}
