//! The agent's part of `FLOW_SHARES`, the number of flows of each container: it subtracts the flows
//! that it removes itself, and puts right what the programs have counted wrongly.

use std::collections::{BTreeMap, BTreeSet};

use culvert_common::abi::FlowShare;

use crate::datapath::{DatapathError, flows::FlowTable};

/// Flows by the incarnation of the container in whose share they count.
pub(super) type ByOwner = BTreeMap<u32, u32>;

/// Counts a flow of `owner`; 0 is no container.
pub(super) fn count(flows: &mut ByOwner, owner: u32) {
    if owner != 0 {
        let number = flows.entry(owner).or_default();
        *number = number.saturating_add(1);
    }
}

/// Subtracts flows that the agent has removed.
pub(super) fn subtract(table: &dyn FlowTable, removed: &ByOwner) -> Result<(), DatapathError> {
    for (owner, number) in removed {
        if let Some(share) = table.share(*owner)? {
            let flows = share.flows.saturating_sub(*number);
            table.set_share(*owner, Some(FlowShare { flows, ..share }))?;
        }
    }
    Ok(())
}

/// The flows of each container as a walk through the table counts them.
pub(super) struct Walked {
    /// The shares at the beginning of the walk.
    before: BTreeMap<u32, FlowShare>,
    /// The flows that the walk has found.
    pub(super) flows: ByOwner,
}

impl Walked {
    /// Begins a walk.
    pub(super) fn begin(table: &dyn FlowTable) -> Result<Self, DatapathError> {
        Ok(Self { before: table.shares()?, flows: ByOwner::new() })
    }

    /// Ends a walk that has read the whole table: corrects the shares, and removes those of
    /// containers that are gone. `live` are the incarnations of the containers of this host; `None`
    /// if they are not known.
    pub(super) fn end(
        &self,
        table: &dyn FlowTable,
        live: Option<&BTreeSet<u32>>,
    ) -> Result<(), DatapathError> {
        let now = table.shares()?;
        let owners: BTreeSet<u32> = now.keys().chain(self.flows.keys()).copied().collect();
        for owner in owners {
            let counted = self.flows.get(&owner).copied().unwrap_or_default();
            let (before, share) = (self.before.get(&owner), now.get(&owner));
            let is_gone = live.is_some_and(|live| !live.contains(&owner));
            if is_gone && counted == 0 && before == share {
                table.set_share(owner, None)?;
            } else if let Some(flows) = corrected(before, share, counted) {
                let share = share.copied().unwrap_or_default();
                table.set_share(owner, Some(FlowShare { flows, ..share }))?;
            }
        }
        Ok(())
    }
}

/// The right number of flows, if the number in `now` is wrong. `before` is the share at the
/// beginning of a walk that has found `counted` flows. Nothing is known if a flow has begun during
/// the walk. If flows have ended during the walk, it may have counted some of them.
fn corrected(before: Option<&FlowShare>, now: Option<&FlowShare>, counted: u32) -> Option<u32> {
    let [before, now] = [before, now].map(|share| share.copied().unwrap_or_default());
    let is_wrong = now.flows > counted || (now.flows == before.flows && now.flows < counted);
    (before.begun == now.begun && is_wrong).then_some(counted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::conntrack::testing::MemoryFlows;

    fn share(flows: u32, begun: u64) -> FlowShare {
        FlowShare { flows, begun, ..FlowShare::default() }
    }

    #[test]
    fn a_number_is_corrected_if_no_flow_has_begun() {
        let corrected = |before, now, counted| corrected(Some(&before), Some(&now), counted);
        assert_eq!(corrected(share(5, 9), share(5, 9), 5), None);
        assert_eq!(corrected(share(5, 9), share(5, 9), 7), Some(7));
        assert_eq!(corrected(share(5, 9), share(5, 9), 0), Some(0));
        // Some flows have ended: the walk has counted them, or not.
        assert_eq!(corrected(share(5, 9), share(3, 9), 5), None);
        assert_eq!(corrected(share(5, 9), share(3, 9), 2), Some(2));
        assert_eq!(corrected(share(5, 9), share(9, 13), 2), None);
        // The flows of an earlier version were carried over.
        assert_eq!(super::corrected(None, None, 4), Some(4));
    }

    #[test]
    fn flows_that_the_agent_removes_and_containers_that_are_gone() {
        let table = MemoryFlows::new(64);
        for owner in [1, 2] {
            table.set_share(owner, Some(share(5, 9))).unwrap();
        }
        let mut removed = ByOwner::new();
        for owner in [0, 1, 1, 1, 3] {
            count(&mut removed, owner);
        }
        subtract(&table, &removed).unwrap();
        assert_eq!(table.share(1).unwrap(), Some(share(2, 9)));
        assert_eq!(table.share(3).unwrap(), None);

        let mut walked = Walked::begin(&table).unwrap();
        count(&mut walked.flows, 1);
        walked.end(&table, None).unwrap();
        assert_eq!(table.share(1).unwrap(), Some(share(1, 9)));
        assert_eq!(table.share(2).unwrap(), Some(share(0, 9)));
        let walked = Walked::begin(&table).unwrap();
        walked.end(&table, Some(&[1].into())).unwrap();
        assert_eq!(table.shares().unwrap(), [(1, share(0, 9))].into());
    }
}
