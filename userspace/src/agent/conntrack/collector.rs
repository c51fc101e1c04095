//! Walks through the table of flows, a bounded part of it at a time, and removes the flows
//! that have ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use culvert_common::{
    abi::{Flow, FlowKey, kind},
    datapath::conntrack::FlowState,
};

use super::{
    expiry::{Criteria, Findings, FlowStatus, are_one_flow},
    shares::{self, ByOwner, Walked},
};
use crate::datapath::{
    DatapathError,
    flows::{Cursor, FlowTable},
};

/// Bounds of one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Entries that a round reads; a flow has two.
    pub(super) round: u32,
    /// Entries that a round reads while the table is nearly full.
    pub(super) nearly_full_round: u32,
    /// Entries that are read in one system call.
    pub(super) slice: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { round: 8_192, nearly_full_round: 4 * 8_192, slice: 4_096 }
    }
}

/// Fill level in percent above which the table is nearly full: a round then reads more entries.
const NEARLY_FULL: u64 = 75;

/// Flows of one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Flows.
    pub(crate) flows: u64,
    /// Packets in both directions.
    pub(crate) packets: u64,
    /// Bytes of their frames.
    pub(crate) bytes: u64,
}

/// Contents of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Flows of each state, as of the last complete pass. States without flows are left out.
    pub(crate) states: BTreeMap<FlowState, Tally>,
    /// All flows.
    pub(crate) flows: u64,
    /// A pass is under way: `flows` follows from the part of the table that it has read.
    pub(crate) estimated: bool,
    /// Flows that the table has room for.
    pub(crate) capacity: u32,
}

/// One walk through the table.
#[derive(Default)]
struct Pass {
    at: Cursor,
    /// Entries that this pass has read and kept.
    present: u64,
    states: BTreeMap<FlowState, Tally>,
    /// Entries whose other direction is missing, with the time in ns at which this was first seen.
    halves: HashMap<FlowKey, u64>,
    /// Incarnations that a flow has and that no container of this host has.
    suspects: BTreeSet<u32>,
    /// Flows by container. `None`: the walk has not begun.
    walked: Option<Walked>,
}

/// Walks through the table of flows, round by round.
pub(super) struct Collector {
    limits: Limits,
    pass: Pass,
    /// The last complete pass.
    before: Pass,
    /// Entries in the table, counted or estimated.
    entries: u64,
}

impl Collector {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, pass: Pass::default(), before: Pass::default(), entries: 0 }
    }

    /// The state of the table: flows by state as of the last complete pass, and all flows as of the
    /// last round.
    pub(super) fn summary(&self, table: &dyn FlowTable) -> Summary {
        let (states, capacity) = (self.before.states.clone(), table.capacity());
        let estimated = self.pass.at != Cursor::default();
        let flows = if estimated {
            self.entries / 2
        } else {
            states.values().map(|tally| tally.flows).sum()
        };
        // While flows begin and end, a walk can count more than there ever are at a time.
        let flows = flows.min(u64::from(capacity));
        Summary { states, flows, estimated, capacity }
    }

    /// Runs one round: continues the pass. If the pass ends, the next round begins another.
    pub(super) fn round(
        &mut self,
        table: &dyn FlowTable,
        criteria: &Criteria<'_>,
    ) -> Result<(), DatapathError> {
        let Limits { round, nearly_full_round, slice, .. } = self.limits;
        let mut left = if self.is_nearly_full(table) { nearly_full_round } else { round };
        if self.pass.walked.is_none() {
            self.pass.walked = Some(Walked::begin(table)?);
        }
        while left > 0 {
            let part = table.slice(self.pass.at, left.min(slice))?;
            // An empty slice ends the round: it is the last slice, or `left` is too small for more.
            left = match u32::try_from(part.entries.len()) {
                Ok(entries) if entries > 0 => left.saturating_sub(entries),
                _ => 0,
            };
            let mut removed = ByOwner::new();
            let visited: Result<(), DatapathError> =
                part.entries.into_iter().try_for_each(|(key, flow)| {
                    let ended = self.visit(table, criteria, key, flow)?;
                    shares::count(&mut removed, ended);
                    Ok(())
                });
            // Also if an entry could not be read: the removed ones are gone.
            shares::subtract(table, &removed)?;
            visited?;
            match part.next {
                Some(next) => self.pass.at = next,
                None => {
                    if let Some(walked) = &self.pass.walked {
                        walked.end(table, criteria.incarnations.map(|known| &known.live))?;
                    }
                    self.complete();
                    break;
                }
            }
        }
        self.estimate(table);
        Ok(())
    }

    /// Ends a pass that has read the whole table.
    fn complete(&mut self) {
        self.before = std::mem::take(&mut self.pass);
        self.entries = self.before.present;
    }

    /// Estimates the number of entries from the share of the table that the pass has read.
    fn estimate(&mut self, table: &dyn FlowTable) {
        let all = self.pass.present.saturating_mul(u64::from(table.range()));
        // At the beginning of a pass the divisor is 0: the exact count of the last pass stays.
        if let Some(entries) = all.checked_div(u64::from(self.pass.at.0)) {
            self.entries = entries;
        }
    }

    fn is_nearly_full(&self, table: &dyn FlowTable) -> bool {
        self.entries * 100 > u64::from(table.capacity()) * 2 * NEARLY_FULL
    }

    /// Examines one entry. Removes its flow if the flow has ended. Returns the container in whose
    /// share a removed flow was, see [`Flow::owner`], else 0.
    fn visit(
        &mut self,
        table: &dyn FlowTable,
        criteria: &Criteria<'_>,
        key: FlowKey,
        flow: Flow,
    ) -> Result<u32, DatapathError> {
        let missing_ns = self.before.halves.get(&key).copied();
        let known = Findings { missing_ns, suspects: Some(&self.before.suspects) };
        let look = |flow: &Flow| -> Result<(Option<Flow>, FlowStatus), DatapathError> {
            let other = table.lookup(&key.other(flow))?;
            let other = other.filter(|other| are_one_flow(&key, flow, other));
            let status = criteria.examine(&key, flow, other.as_ref(), known);
            Ok((other, status))
        };
        let (other, status) = look(&flow)?;
        match status {
            FlowStatus::Keep(state) => {
                self.pass.present += 1;
                self.pass.suspects.extend(criteria.missing(&flow));
                if let (Some(other), true) = (other, flow.kind & kind::ORIG != 0) {
                    self.count(state, &flow, &other);
                }
            }
            FlowStatus::Half => {
                self.pass.present += 1;
                self.pass.halves.insert(key, missing_ns.unwrap_or(criteria.now_ns));
            }
            FlowStatus::Expired | FlowStatus::Stale | FlowStatus::Moved | FlowStatus::Orphan => {
                // The programs may have used or removed the entry since the slice was read.
                let Some(flow) = table.lookup(&key)? else { return Ok(0) };
                let is_orig = flow.kind & kind::ORIG != 0;
                match look(&flow)? {
                    (_, FlowStatus::Keep(_) | FlowStatus::Half) => self.pass.present += 1,
                    (None, _) => {
                        table.remove(&key)?;
                        return Ok(if is_orig { flow.owner() } else { 0 });
                    }
                    (Some(_), _) => {
                        // The `ORIG` entry is removed first: without this entry the next packet
                        // begins a new flow.
                        let other = key.other(&flow);
                        let (orig, reply) = if is_orig { (key, other) } else { (other, key) };
                        table.remove(&orig)?;
                        table.remove(&reply)?;
                        return Ok(flow.owner());
                    }
                }
            }
        }
        Ok(0)
    }

    fn count(&mut self, state: FlowState, orig: &Flow, reply: &Flow) {
        if let Some(walked) = &mut self.pass.walked {
            shares::count(&mut walked.flows, orig.owner());
        }
        let tally = self.pass.states.entry(state).or_default();
        tally.flows += 1;
        tally.packets = tally.packets.wrapping_add(orig.packets).wrapping_add(reply.packets);
        tally.bytes = tally.bytes.wrapping_add(orig.bytes).wrapping_add(reply.bytes);
    }
}
