//! Rules of policy routing that Culvert makes (ip-rule(8)).

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    Netlink, Result,
    route::{family, host_prefix},
};

/// Protocol number of Culvert's rules. It distinguishes them from the rules of others: iproute2 has
/// no name for the number.
const PROTOCOL: u8 = 67;

/// A rule of Culvert: packets with one source address look up one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Source address of the packets.
    pub source: IpAddr,
    /// Number of the table.
    pub table: u32,
    /// Rules are tried in the order of their numbers.
    pub priority: u32,
    /// Default routes of the table are ignored.
    pub without_default: bool,
}

impl Netlink {
    /// The rules of Culvert, both families.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn rules(&self) -> Result<Vec<Rule>> {
        let request = RouteNetlinkMessage::GetRule(RuleMessage::default());
        let rows = self.dump("listing routing rules", request).await?;
        Ok(rows.iter().filter_map(parse).collect())
    }

    /// Adds a rule. It is no error if the rule exists.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn add_rule(&self, rule: &Rule) -> Result<()> {
        let what = format!("adding the routing rule of {}", rule.source);
        let request = RouteNetlinkMessage::NewRule(message(rule));
        match self.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.errno() != Some(Errno::EEXIST) => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes a rule. It is no error if there is none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn delete_rule(&self, rule: &Rule) -> Result<()> {
        let what = format!("removing the routing rule of {}", rule.source);
        match self.request(&what, RouteNetlinkMessage::DelRule(message(rule)), 0).await {
            Err(error) if error.errno() != Some(Errno::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.source);
    message.header.src_len = host_prefix(rule.source);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.source),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    if rule.without_default {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    message
}

/// A rule of a dump, if it is one of Culvert's.
fn parse(row: &RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = row else { return None };
    read_rule(message)
}

/// The rule of a message, if it is one of Culvert's.
pub(super) fn read_rule(message: &RuleMessage) -> Option<Rule> {
    let (mut source, mut priority, mut table, mut ours) = (None, 0, 0, false);
    let mut without_default = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => source = Some(*ip),
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            // The kernel writes -1 where nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(len) => without_default = *len == 0,
            _ => {}
        }
    }
    ours.then_some(Rule { source: source?, table, priority, without_default })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_ours_is_read_as_it_was_written() {
        for (source, without_default) in [("10.0.0.2", true), ("fd00::2", false)] {
            let source = source.parse().expect("address");
            let rule = Rule { source, table: 5000, priority: 31_000, without_default };
            let message = message(&rule);
            assert_eq!(parse(&RouteNetlinkMessage::NewRule(message.clone())), Some(rule));
            let mut other = message;
            other.attributes.retain(|one| !matches!(one, RuleAttribute::Protocol(_)));
            assert_eq!(parse(&RouteNetlinkMessage::NewRule(other)), None);
        }
    }
}
