//! Filters of traffic control, as `tc filter` (tc-actions(8), tc-bpf(8) and others) adds them.

use std::collections::BTreeSet;

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};

use super::{Netlink, Result};

/// Kinds of queueing disciplines that queue nothing and only have filters: for both directions, and
/// for received frames.
const HOOKS: [&str; 2] = ["clsact", "ingress"];

impl Netlink {
    /// Indices of the interfaces that have a queueing discipline for filters, `clsact` or `ingress`.
    /// Programs at tcx need none.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn filter_hooks(&self) -> Result<BTreeSet<u32>> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let rows = self.dump("listing queueing disciplines", request).await?;
        Ok(rows.iter().filter_map(hook).collect())
    }

    /// Whether an interface has filters, for received or for sent frames.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn has_filters(&self, index: u32) -> Result<bool> {
        let what = format!("listing filters of interface number {index}");
        for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
            let mut message = TcMessage::with_index(index.cast_signed());
            message.header.parent = TcHandle { major: u16::MAX, minor };
            let rows = self.dump(&what, RouteNetlinkMessage::GetTrafficFilter(message)).await?;
            if rows.iter().any(|row| matches!(row, RouteNetlinkMessage::NewTrafficFilter(_))) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Index of the interface of a queueing discipline, if that is for filters.
fn hook(row: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = row else { return None };
    let is_hook = message.attributes.iter().any(
        |attribute| matches!(attribute, TcAttribute::Kind(kind) if HOOKS.contains(&kind.as_str())),
    );
    is_hook.then(|| message.header.index.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queueing_disciplines_for_filters_are_known_by_their_kind() {
        let found = |kind: &str| {
            let mut message = TcMessage::with_index(7);
            message.attributes.push(TcAttribute::Kind(kind.to_owned()));
            hook(&RouteNetlinkMessage::NewQueueDiscipline(message))
        };
        for (kind, is_hook) in
            [("clsact", true), ("ingress", true), ("noqueue", false), ("tbf", false)]
        {
            assert_eq!(found(kind), is_hook.then_some(7), "{kind}");
        }
    }
}
