//! Rules of nftables, as `nft -j list ruleset` writes them (libnftables-json(5)).

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;
use serde_json::Value;

use super::rules::{Chain, Goes, Match, Rule, Ruleset};
use crate::model::Protocol;

/// Most alternatives of one rule.
const MOST: usize = 100_000;

/// Elements of the named sets and maps, by table and name.
type Sets<'a> = BTreeMap<(String, &'a str), &'a [Value]>;

/// The rules that see IPv4 packets. What is not understood is left out.
pub(super) fn parse(text: &str) -> Ruleset {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    let objects = document.get("nftables").and_then(Value::as_array);
    let objects: Vec<(&str, &Value)> = objects.into_iter().flatten().filter_map(only).collect();
    let sets = objects.iter().filter(|(kind, _)| matches!(*kind, "set" | "map"));
    let sets: Sets<'_> = sets.filter_map(|(_, set)| elements(set)).collect();
    let mut ruleset = Ruleset::default();
    for (kind, object) in objects {
        let Some(table) = table(object) else { continue };
        let word = |key: &str| object.get(key).and_then(Value::as_str);
        match kind {
            "chain" => {
                let Some(name) = word("name") else { continue };
                let chain = chain(&table, name);
                if (word("type"), word("hook")) == (Some("nat"), Some("prerouting")) {
                    ruleset.first.push(chain.clone());
                }
                ruleset.chains.entry(chain).or_default();
            }
            "rule" => {
                let Some(name) = word("chain") else { continue };
                let expressions = object.get("expr").and_then(Value::as_array);
                let context = TableContext { table: &table, sets: &sets };
                let rules = context.rules(expressions.map(Vec::as_slice).unwrap_or_default());
                ruleset.chains.entry(chain(&table, name)).or_default().extend(rules);
            }
            _ => {}
        }
    }
    ruleset
}

fn chain(table: &str, name: &str) -> Chain {
    Chain { name: name.to_owned(), table: table.to_owned(), shown_by: "nft list ruleset" }
}

/// The only member of an object: its name and its value.
fn only(value: &Value) -> Option<(&str, &Value)> {
    let (name, value) = value.as_object()?.iter().next()?;
    Some((name.as_str(), value))
}

/// Family and name of the table of an object. `None`: the table sees no IPv4 packets.
fn table(object: &Value) -> Option<String> {
    let family = object.get("family")?.as_str()?;
    let table = object.get("table")?.as_str()?;
    matches!(family, "ip" | "inet").then(|| format!("{family} {table}"))
}

/// Table, name and elements of a set or map.
fn elements(set: &Value) -> Option<((String, &str), &[Value])> {
    let name = set.get("name")?.as_str()?;
    Some(((table(set)?, name), set.get("elem")?.as_array()?.as_slice()))
}

/// The value of an element, which may have a comment or a timeout.
fn value_of(element: &Value) -> &Value {
    element.get("elem").and_then(|element| element.get("val")).unwrap_or(element)
}

/// What a condition compares.
#[derive(Clone, Copy)]
enum Part {
    Protocol,
    /// The destination port, of one protocol or of each.
    Port(Option<Protocol>),
    Destination,
    /// The family of addresses.
    Family,
    /// What holds for all packets to the host, or for a share of them.
    Always,
    /// What only packets of IPv6 have.
    Ipv6,
    /// The interface that a packet comes in on, or its source address.
    Origin,
    /// What cannot be compared here.
    Other,
}

impl Part {
    fn of(left: &Value) -> Self {
        let word = |key: &str, member: &str| {
            left.get(key).and_then(|value| value.get(member)).and_then(Value::as_str)
        };
        match (word("payload", "protocol"), word("payload", "field"), word("meta", "key")) {
            (Some("tcp"), Some("dport"), _) => Self::Port(Some(Protocol::Tcp)),
            (Some("udp"), Some("dport"), _) => Self::Port(Some(Protocol::Udp)),
            (Some("th"), Some("dport"), _) => Self::Port(None),
            (Some("ip"), Some("daddr"), _) => Self::Destination,
            (Some("ip"), Some("protocol"), _) | (_, _, Some("l4proto")) => Self::Protocol,
            (Some("ip"), Some("saddr"), _) => Self::Origin,
            (_, _, Some("iif" | "iifname" | "iifgroup")) => Self::Origin,
            (Some("ip6"), ..) => Self::Ipv6,
            (_, _, Some("nfproto")) => Self::Family,
            _ if left.get("fib").is_some() || left.get("numgen").is_some() => Self::Always,
            _ => Self::Other,
        }
    }

    /// The packets in which it has one of `values`. `None`: no packet, or the values are not
    /// understood.
    fn is_one_of(self, values: &[&Value]) -> Option<Match> {
        let mut matches = Match::default();
        match self {
            Self::Protocol => matches.protocols = Some(understood(values, protocol)?),
            Self::Port(protocol) => {
                matches.protocols = protocol.map(|protocol| vec![protocol]);
                matches.ports = Some(understood(values, ports)?);
            }
            Self::Destination => matches.destinations = Some(understood(values, destination)?),
            Self::Family => drop(understood(values, is_ipv4)?),
            Self::Always => {}
            Self::Ipv6 => return None,
            Self::Origin | Self::Other => matches.conditional = true,
        }
        Some(matches)
    }
}

/// The values that are understood. `None`: there is none.
fn understood<T>(values: &[&Value], read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    let read: Vec<T> = values.iter().filter_map(|value| read(value)).collect();
    (!read.is_empty()).then_some(read)
}

fn is_ipv4(value: &Value) -> Option<()> {
    (value.as_str() == Some("ipv4") || value.as_u64() == Some(2)).then_some(())
}

fn protocol(value: &Value) -> Option<Protocol> {
    match (value.as_str(), value.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Some(Protocol::Tcp),
        (Some("udp"), _) | (_, Some(17)) => Some(Protocol::Udp),
        _ => None,
    }
}

fn port(value: &Value) -> Option<u16> {
    match value.as_str() {
        Some(text) => text.parse().ok(),
        None => value.as_u64()?.try_into().ok(),
    }
}

fn ports(value: &Value) -> Option<(u16, u16)> {
    match value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some((port(first)?, port(last)?)),
        Some(_) => None,
        None => port(value).map(|port| (port, port)),
    }
}

fn destination(value: &Value) -> Option<Ipv4Network> {
    match value.get("prefix") {
        Some(prefix) => {
            let address = prefix.get("addr")?.as_str()?.parse().ok()?;
            Ipv4Network::new(address, prefix.get("len")?.as_u64()?.try_into().ok()?).ok()
        }
        None => value.as_str()?.parse().ok(),
    }
}

/// What the rules of a table refer to.
struct TableContext<'a> {
    table: &'a str,
    sets: &'a Sets<'a>,
}

impl<'a> TableContext<'a> {
    /// The rules that a list of expressions stands for. A map has an alternative for each element.
    fn rules(&self, expressions: &[Value]) -> Vec<Rule> {
        let mut ways = vec![Match::default()];
        for (kind, body) in expressions.iter().filter_map(only) {
            match kind {
                "match" => ways = narrow(&ways, &self.condition(body)),
                "vmap" => return self.verdicts(&ways, body),
                "dnat" if body.get("family").and_then(Value::as_str) == Some("ip6") => {
                    return Vec::new();
                }
                "dnat" | "redirect" => {
                    let maps =
                        ["addr", "port"].into_iter().filter_map(|key| body.get(key)?.get("map"));
                    for map in maps.take(1) {
                        let pairs = self.pairs(map).into_iter().flat_map(|(one, _)| one);
                        ways = narrow(&ways, &pairs.collect::<Vec<_>>());
                    }
                    return with(ways, &Goes::Elsewhere);
                }
                // Rules of iptables. What their extensions compare is not shown; `iptables-save`
                // shows it.
                "xt" => {
                    let name = body.get("name").and_then(Value::as_str).unwrap_or_default();
                    ways = narrow(&ways, &[Match::some()]);
                    if matches!(name, "DNAT" | "REDIRECT") {
                        return with(ways, &Goes::Elsewhere);
                    }
                }
                "jump" | "goto" => {
                    let next = self.next(kind, body);
                    return next.map(|next| with(ways, &next)).unwrap_or_default();
                }
                "accept" | "drop" | "reject" | "return" => return Vec::new(),
                _ => {}
            }
        }
        Vec::new()
    }

    /// The alternatives of a condition. None: no packet of TCP or UDP to the host meets it, or it
    /// is not understood.
    fn condition(&self, body: &Value) -> Vec<Match> {
        let (Some(left), Some(right)) = (body.get("left"), body.get("right")) else {
            return Vec::new();
        };
        if body.get("op").and_then(Value::as_str) == Some("!=") {
            return match Part::of(left) {
                Part::Always if right.as_str() == Some("local") => Vec::new(),
                Part::Family if is_ipv4(right).is_some() => Vec::new(),
                Part::Ipv6 => Vec::new(),
                Part::Port(protocol) => {
                    let protocols = protocol.map(|protocol| vec![protocol]);
                    vec![Match { protocols, ..Match::some() }]
                }
                // An external client's packet comes in on an uplink, with a source of its own.
                Part::Origin | Part::Family => vec![Match::default()],
                Part::Protocol | Part::Destination | Part::Always | Part::Other => {
                    vec![Match::some()]
                }
            };
        }
        let values: Vec<&Value> = match right.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.named(name).iter().map(value_of).collect(),
            None => match right.get("set").and_then(Value::as_array) {
                Some(set) => set.iter().map(value_of).collect(),
                None => vec![right],
            },
        };
        match left.get("concat") {
            Some(_) => values.into_iter().flat_map(|value| equal(left, value)).collect(),
            None => Part::of(left).is_one_of(&values).into_iter().collect(),
        }
    }

    /// The rules of a verdict map.
    fn verdicts(&self, ways: &[Match], body: &Value) -> Vec<Rule> {
        let pairs = self.pairs(body).into_iter().take(MOST);
        let rules = pairs.filter_map(|(keys, verdict)| {
            let (kind, body) = only(verdict)?;
            Some(with(narrow(ways, &keys), &self.next(kind, body)?))
        });
        rules.flatten().collect()
    }

    /// The pairs of a map: the packets with the key, and the value.
    fn pairs<'b>(&self, map: &'b Value) -> Vec<(Vec<Match>, &'b Value)>
    where
        'a: 'b,
    {
        let (Some(key), Some(data)) = (map.get("key"), map.get("data")) else { return Vec::new() };
        let pairs: &'b [Value] = match data.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.named(name),
            None => {
                let set = data.get("set").and_then(Value::as_array);
                set.map(Vec::as_slice).unwrap_or_default()
            }
        };
        let pairs = pairs.iter().filter_map(|pair| match pair.as_array()?.as_slice() {
            [one, value] => Some((equal(key, value_of(one)), value)),
            _ => None,
        });
        pairs.collect()
    }

    /// The elements of a named set or map of the table.
    fn named(&self, name: &str) -> &'a [Value] {
        let found = self.sets.iter().find(|((table, set), _)| table == self.table && *set == name);
        found.map(|(_, elements)| *elements).unwrap_or_default()
    }

    /// Where a verdict leads.
    fn next(&self, kind: &str, body: &Value) -> Option<Goes> {
        let target = body.get("target")?.as_str()?;
        matches!(kind, "jump" | "goto").then(|| Goes::To(chain(self.table, target)))
    }
}

/// The values of which a value consists. `None`: it is a single one.
fn parts(value: &Value) -> Option<&[Value]> {
    Some(value.get("concat")?.as_array()?.as_slice())
}

/// The packets in which `left`, which may be several values, is `value`. None or one.
fn equal(left: &Value, value: &Value) -> Vec<Match> {
    match (parts(left), parts(value)) {
        (Some(left), Some(values)) => {
            let mut all = Some(Match::default());
            for (left, value) in left.iter().zip(values) {
                let one = Part::of(left).is_one_of(&[value]);
                all = all.zip(one).and_then(|(all, one)| all.and(&one));
            }
            all.into_iter().collect()
        }
        _ => Part::of(left).is_one_of(&[value]).into_iter().collect(),
    }
}

/// The packets of `ways` that meet one of the alternatives of a condition.
fn narrow(ways: &[Match], condition: &[Match]) -> Vec<Match> {
    let all = ways.iter().flat_map(|way| condition.iter().filter_map(move |one| way.and(one)));
    all.take(MOST).collect()
}

fn with(ways: Vec<Match>, goes: &Goes) -> Vec<Rule> {
    ways.into_iter().map(|matches| Rule { matches, goes: goes.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::rules::Rules, *};

    /// What `nft -j list ruleset` 1.0.6 writes.
    const RULESET: &str = include_str!("testdata/ruleset.json");

    fn rules(text: &str) -> Rules {
        let mut rules = Rules::default();
        rules.add(&parse(text));
        rules
    }

    fn shown(rules: &Rules) -> Vec<String> {
        let line = |one: &super::super::Translation| {
            let (first, last) = one.ports;
            let to = one.destination.map(|net| net.to_string()).unwrap_or_default();
            let by = one.by.to_string().replace(" ('nft list ruleset')", "");
            let conditions = if one.conditional { " (conditional)" } else { "" };
            format!("{} {first}-{last} {to} {by}{conditions}", one.protocol)
        };
        rules.translations.iter().map(line).collect()
    }

    #[test]
    fn ports_that_rules_of_all_kinds_translate_are_found() {
        let rules = rules(RULESET);
        let own = "chain pre of table inet own";
        let kube = "chain services of table ip kube-proxy";
        assert_eq!(
            shown(&rules),
            [
                format!("tcp 81-81  {own}"),
                format!("tcp 90-90  {own}"),
                format!("tcp 100-110  {own}"),
                format!("tcp 443-443 10.96.0.1/32 {kube}"),
                format!("tcp 443-443 192.0.2.7/32 {own}"),
                format!("tcp 777-777  {own}"),
                format!("tcp 1001-1001  {own}"),
                format!("tcp 1002-1002  {own}"),
                format!("tcp 2001-2001  {own}"),
                format!("tcp 2002-2002  {own}"),
                format!("tcp 8080-8080  {own} (conditional)"),
                format!("tcp 30080-30080 192.0.2.1/32 {kube}"),
                format!("udp 777-777  {own}"),
                format!("udp 5000-5010  {own}"),
            ]
        );
        let kube_proxy = rules.kube_proxy.map(|chain| chain.table);
        assert_eq!(kube_proxy.as_deref(), Some("ip kube-proxy"));
    }

    #[test]
    fn rules_of_iptables_are_understood_as_far_as_they_are_shown() {
        let text = r#"{"nftables": [
            {"chain": {"family": "ip", "table": "nat", "name": "DOCKER"}},
            {"chain": {"family": "ip", "table": "nat", "name": "PREROUTING", "type": "nat",
                       "hook": "prerouting"}},
            {"rule": {"family": "ip", "table": "nat", "chain": "DOCKER", "expr": [
                {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "docker0"}},
                {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                           "right": 8081}},
                {"counter": {"packets": 0, "bytes": 0}},
                {"xt": {"type": "target", "name": "DNAT"}}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "PREROUTING", "expr": [
                {"xt": {"type": "match", "name": "addrtype"}}, {"jump": {"target": "DOCKER"}}]}}
        ]}"#;
        let line = "tcp 8081-8081  chain DOCKER of table ip nat (conditional)";
        assert_eq!(shown(&rules(text)), [line]);
    }

    /// Rules for others than external clients, and for packets of IPv6.
    #[test]
    fn further_conditions_are_noted_and_rules_of_ipv6_left_out() {
        let found = |conditions: &str, target: &str| {
            let text = format!(
                r#"{{"nftables": [
                {{"chain": {{"family": "inet", "table": "own", "name": "pre", "type": "nat",
                           "hook": "prerouting"}}}},
                {{"rule": {{"family": "inet", "table": "own", "chain": "pre", "expr": [
                    {conditions},
                    {{"match": {{"op": "==", "left": {{"payload": {{"protocol": "tcp",
                        "field": "dport"}}}}, "right": 80}}}}, {target}]}}}}]}}"#
            );
            rules(&text).translations.iter().map(|one| one.conditional).collect::<Vec<_>>()
        };
        let condition = |left: &str, op: &str, right: &str| {
            format!(r#"{{"match": {{"op": "{op}", "left": {left}, "right": "{right}"}}}}"#)
        };
        let dnat = |family: &str| format!(r#"{{"dnat": {{"addr": "x", "family": "{family}"}}}}"#);
        let meta = |key: &str| format!(r#"{{"meta": {{"key": "{key}"}}}}"#);
        let payload = |protocol: &str, field: &str| {
            format!(r#"{{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}"#)
        };
        for (left, op, right, expected) in [
            (meta("iifname"), "==", "virbr0", vec![true]),
            (meta("iifname"), "!=", "docker0", vec![false]),
            (payload("ip", "saddr"), "==", "10.0.0.1", vec![true]),
            (payload("ip", "daddr"), "!=", "192.0.2.1", vec![true]),
            (meta("nfproto"), "==", "ipv4", vec![false]),
            (meta("nfproto"), "==", "ipv6", vec![]),
            (payload("ip6", "daddr"), "==", "2001:db8::1", vec![]),
        ] {
            let condition = condition(&left, op, right);
            assert_eq!(found(&condition, &dnat("ip")), expected, "{condition}");
        }
        let any = condition(&meta("nfproto"), "==", "ipv4");
        assert!(found(&any, &dnat("ip6")).is_empty());
    }

    #[test]
    fn services_of_kube_proxy_are_found() {
        let element = |ip: &str, target: &str| {
            format!(
                r#"[{{"elem": {{"val": {{"concat": ["{ip}", "tcp", 443]}}, "comment": "x"}}}},
                    {{"goto": {{"target": "{target}"}}}}]"#
            )
        };
        let text = format!(
            r#"{{"nftables": [
            {{"map": {{"family": "ip", "table": "kube-proxy", "name": "service-ips", "elem": [
                {}, {}]}}}},
            {{"rule": {{"family": "ip", "table": "kube-proxy", "chain": "services", "expr": [
                {{"vmap": {{"key": {{"concat": [
                    {{"payload": {{"protocol": "ip", "field": "daddr"}}}},
                    {{"meta": {{"key": "l4proto"}}}},
                    {{"payload": {{"protocol": "th", "field": "dport"}}}}]}},
                    "data": "@service-ips"}}}}]}}}}]}}"#,
            element("10.96.0.1", "service-2QRHZV4L-default/kubernetes/tcp/https"),
            element("192.0.2.80", "external-2QRHZV4L-default/web/tcp/p80"),
        );
        let rules = rules(&text);
        assert_eq!(rules.services, ["10.96.0.1".parse().unwrap()].into());
        assert_eq!(rules.kube_proxy.map(|chain| chain.name).as_deref(), Some("services"));
    }

    #[test]
    fn other_text_has_no_rules() {
        for text in ["", "{}", "[]", "null", r#"{"nftables": 7}"#, r#"{"nftables": [7, {}, []]}"#] {
            assert_eq!(rules(text), Rules::default(), "{text}");
        }
    }

    proptest! {
        /// A document whose parts are exchanged for others is no reason to panic.
        #[test]
        fn no_document_makes_the_parser_panic(
            from in 0..RULESET.len(), len in 0_usize..40, with in "[0-9a-z\"{}@:,\\[\\]]{0,9}",
        ) {
            // The text has letters of ASCII only.
            let (head, tail) = RULESET.split_at(from);
            let text = format!("{head}{with}{}", tail.get(len..).unwrap_or_default());
            let _ = rules(&text);
        }
    }
}
