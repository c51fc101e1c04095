//! Clients that may not use the published ports of this host.
//!
//! Each host has its own list, in a file of the state directory. The list is in force after a
//! restart and after a reboot, and without the store: the programs are loaded with the list.

use std::{
    collections::BTreeSet,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use culvert_common::{
    abi::{Flow, FlowKey, MAX_DENIED, kind},
    datapath::publish::is_client,
};
use ipnetwork::Ipv4Network;

use super::{
    conntrack::are_one_flow,
    files::{DENIED, write_atomically},
    platform::Maps,
    state::Disk,
};
use crate::{
    api::types::{ApiError, ErrorKind, one_line},
    datapath::{
        DatapathError,
        flows::{Cursor, FlowTable},
    },
    model::{ipv4_source, parse_source, spell_source},
};

/// Name of the list in messages.
const WHAT: &str = "denied sources";
/// Entries of the table of flows that are read at once.
const SLICE: u32 = 16_384;

/// The list of denied sources.
#[derive(Debug)]
pub(crate) struct Denied {
    path: PathBuf,
    list: Mutex<List>,
    /// Held during a change: only one change runs at a time.
    turn: Mutex<FlowFacts>,
}

/// Facts about the table of flows. A change reads the table only if these facts demand a read: the
/// table can have millions of entries, and fail2ban can make a change each second.
#[derive(Clone, Copy, Debug)]
struct FlowFacts {
    /// A denied client may have a flow that was not ended.
    may_go_on: bool,
    /// The table may have flows that were ended.
    may_have_ended: bool,
}

impl Default for FlowFacts {
    /// Both are possible at the start: the last agent may have been stopped during a change.
    fn default() -> Self {
        Self { may_go_on: true, may_have_ended: true }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List {
    sources: BTreeSet<Ipv4Network>,
    /// Sources of the file for which the map of the programs has no room. They stay in the file,
    /// and are not denied.
    beyond: BTreeSet<Ipv4Network>,
    /// Lines of the file that this version cannot read. These lines stay in the file.
    strange: Vec<String>,
}

impl List {
    fn parse(text: &str) -> Self {
        let mut list = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match parse_source(line).and_then(ipv4_source) {
                Ok(source) => list.add(source),
                Err(_) => list.strange.push(line.to_owned()),
            }
        }
        list
    }

    fn add(&mut self, source: Ipv4Network) {
        if self.sources.len() < MAX_DENIED as usize || self.sources.contains(&source) {
            self.sources.insert(source);
        } else {
            self.beyond.insert(source);
        }
    }

    fn take(&mut self, source: &Ipv4Network) {
        self.sources.remove(source);
        self.beyond.remove(source);
    }

    fn lists(&self, source: &Ipv4Network) -> bool {
        self.sources.contains(source) || self.beyond.contains(source)
    }

    fn text(&self) -> String {
        // Sources in force come first, so that the next agent puts the same sources in force.
        let sources = self.sources.iter().chain(&self.beyond).map(|source| spell_source(*source));
        sources.chain(self.strange.iter().cloned()).map(|line| line + "\n").collect()
    }

    /// The longest prefix of the list that contains the address and has at most `most` bits.
    fn covering(&self, ip: Ipv4Addr, most: u8) -> Option<Ipv4Network> {
        (0..=most).rev().find_map(|bits| {
            let prefix = Ipv4Network::new(ip, bits).ok()?;
            let prefix = Ipv4Network::new(prefix.network(), bits).ok()?;
            self.sources.contains(&prefix).then_some(prefix)
        })
    }

    fn has(&self, ip: Ipv4Addr) -> bool {
        self.covering(ip, 32).is_some()
    }
}

impl Denied {
    /// Reads the list from the state directory. A missing file is an empty list.
    ///
    /// # Errors
    ///
    /// The file cannot be read. Malformed lines, and more sources than the map of the programs has
    /// room for, are not errors: [`Self::problems`] reports them.
    pub(crate) fn load(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(DENIED);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, list: Mutex::new(List::parse(&text)), turn: Mutex::default() })
    }

    /// The problems of the file, one line each: each line that this version cannot read, and the
    /// number of sources for which the map of the programs has no room.
    pub(crate) fn problems(&self) -> Vec<String> {
        let told = |line: &String| {
            one_line(format!(
                "{}: '{line}' is skipped, nobody is denied by it: an IPv4 address or prefix is valid",
                self.path.display()
            ))
        };
        let list = self.list();
        let mut problems: Vec<String> = list.strange.iter().map(told).collect();
        if !list.beyond.is_empty() {
            problems.push(one_line(format!(
                "{}: {} sources of it are skipped, nobody is denied by them: {MAX_DENIED} in all are valid; put prefixes in place of addresses, and restart the agent",
                self.path.display(),
                list.beyond.len()
            )));
        }
        problems
    }

    /// The denied addresses and prefixes.
    pub(crate) fn sources(&self) -> Vec<Ipv4Network> {
        self.list().sources.iter().copied().collect()
    }

    /// Denies clients, and ends their flows. It is no error if they are denied already.
    ///
    /// # Errors
    ///
    /// The list would be too long, or cannot be written to the disk or to the programs: nothing is
    /// changed then. If only the flows cannot be ended, the clients are denied nevertheless.
    pub(crate) fn deny(
        &self,
        maps: &dyn Maps,
        disk: &Disk,
        sources: &[Ipv4Network],
    ) -> Result<(), ApiError> {
        let mut turn = self.turn();
        let before = self.list().clone();
        let mut after = before.clone();
        for source in sources {
            after.beyond.remove(source);
            after.sources.insert(*source);
        }
        if after.sources.len() > MAX_DENIED as usize {
            return Err(ApiError::new(
                ErrorKind::Conflict,
                format!(
                    "{WHAT}: {} are too many: deny prefixes instead of addresses, {MAX_DENIED} in all are valid",
                    after.sources.len()
                ),
            ));
        }
        let list = after.clone();
        self.change(maps, disk, &before, after)?;
        let is_new = sources
            .iter()
            .any(|source| before.covering(source.network(), source.prefix()).is_none());
        // Flows of clients that were denied earlier are ended only if necessary, because that needs
        // a search of the whole list for each flow.
        let of_all = turn.may_go_on;
        turn.may_go_on |= is_new;
        if !turn.may_go_on {
            return Ok(());
        }
        let denied = |client| {
            sources.iter().any(|source| source.contains(client)) || of_all && list.has(client)
        };
        let ended = end_flows(maps.flows(), denied, &mut turn.may_have_ended);
        ended.map_err(|error| {
            ApiError::new(
                ErrorKind::Internal,
                format!("{WHAT}: new connections are refused, but existing ones go on ({error}): try again"),
            )
        })?;
        turn.may_go_on = false;
        Ok(())
    }

    /// Removes sources from the list. It is no error if a source is not denied. Returns a line for
    /// each source that is still denied in whole or in part, and a line if ended flows cannot be
    /// removed.
    ///
    /// # Errors
    ///
    /// A source is not in the list, but is part of a prefix in the list. Or the list cannot be
    /// written to the disk or to the programs. Nothing is changed then.
    pub(crate) fn allow(
        &self,
        maps: &dyn Maps,
        disk: &Disk,
        sources: &[Ipv4Network],
    ) -> Result<Vec<String>, ApiError> {
        let mut turn = self.turn();
        let before = self.list().clone();
        let mut after = before.clone();
        for source in sources {
            after.take(source);
        }
        let mut still = Vec::new();
        for source in sources {
            let name = spell_source(*source);
            if let Some(by) = after.covering(source.network(), source.prefix()) {
                let by = spell_source(by);
                let line = format!(
                    "source {name} is denied as part of {by}: 'culvert ports allow {by}' takes that back"
                );
                if !before.lists(source) {
                    return Err(ApiError::new(ErrorKind::Conflict, line));
                }
                still.push(line);
            } else if let Some(part) = after.sources.iter().find(|part| source.contains(part.ip()))
            {
                let part = spell_source(*part);
                still.push(format!(
                    "source {name}: {part} in it is still denied: 'culvert ports ls' lists all denied sources"
                ));
            }
        }
        let list = after.clone();
        self.change(maps, disk, &before, after)?;
        if turn.may_have_ended {
            match forget_ended(maps.flows(), |client| list.has(client)) {
                Ok(left) => turn.may_have_ended = left,
                Err(error) => still.push(format!(
                    "{WHAT}: flows that were ended stay ended for 5 minutes: {error}"
                )),
            }
        }
        Ok(still)
    }

    /// Replaces the list `before` by `after` in the file and in the programs.
    fn change(
        &self,
        maps: &dyn Maps,
        disk: &Disk,
        before: &List,
        after: List,
    ) -> Result<(), ApiError> {
        if *before == after {
            return Ok(());
        }
        write_atomically(&self.path, after.text().as_bytes())
            .map_err(|error| disk.refuse(WHAT, error))?;
        let written = differences(before, &after).try_for_each(|step| apply(maps, step));
        if let Err(error) = written {
            // Best effort: puts the list `before` in force again.
            for step in differences(&after, before) {
                let _ = apply(maps, step);
            }
            let _ = write_atomically(&self.path, before.text().as_bytes());
            return Err(ApiError::new(ErrorKind::Internal, format!("{WHAT}: {error}")));
        }
        *self.list() = after;
        Ok(())
    }

    // A thread that panicked with one of the locks held left a valid list.
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, FlowFacts> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The changes from one list to another: each source, and whether the new list denies it.
fn differences(from: &List, to: &List) -> impl Iterator<Item = (Ipv4Network, bool)> {
    let (from, to) = (&from.sources, &to.sources);
    let denied = to.difference(from).map(|source| (*source, true));
    let allowed = from.difference(to).map(|source| (*source, false));
    denied.chain(allowed).collect::<Vec<_>>().into_iter()
}

fn apply(maps: &dyn Maps, (source, denied): (Ipv4Network, bool)) -> Result<(), DatapathError> {
    if denied { maps.deny(source) } else { maps.allow(source) }
}

/// Whether the entry is the `ORIG` direction of a client's flow to a published port.
fn is_clients(key: &FlowKey, flow: &Flow) -> bool {
    let wanted = kind::ORIG | kind::PUBLISHED;
    flow.kind & wanted == wanted && is_client(key.zone)
}

/// Ends the flows of denied clients to published ports: their packets are dropped in both
/// directions. The entries stay: without them, the container's retransmissions would begin a
/// masqueraded flow, which would let the client's packets in. Sets `any` if a flow is ended.
fn end_flows(
    table: &dyn FlowTable,
    denied: impl Fn(Ipv4Addr) -> bool,
    any: &mut bool,
) -> Result<(), DatapathError> {
    // A program that read `DENIED` before the change may insert a flow into a part of the table
    // that the first pass has already read. Programs run for microseconds: the second pass finds
    // the flow.
    for _ in 0..2 {
        for_each(table, |key, flow| {
            if !is_clients(key, flow)
                || flow.kind & kind::DENIED != 0
                || !denied(key.tuple.src.into())
            {
                return Ok(());
            }
            let mark = |flow: &Flow| Flow { kind: flow.kind | kind::DENIED, ..*flow };
            let reply = key.other(flow);
            *any = true;
            table.replace(key, &mark(flow))?;
            match table.lookup(&reply)? {
                Some(other) if are_one_flow(key, flow, &other) => {
                    table.replace(&reply, &mark(&other))
                }
                _ => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// Removes the flows that [`end_flows`] has ended and whose client is no longer denied. Returns
/// whether ended flows of denied clients remain.
fn forget_ended(
    table: &dyn FlowTable,
    denied: impl Fn(Ipv4Addr) -> bool,
) -> Result<bool, DatapathError> {
    let mut are_left = false;
    for_each(table, |key, flow| {
        if !is_clients(key, flow) || flow.kind & kind::DENIED == 0 {
            return Ok(());
        }
        if denied(key.tuple.src.into()) {
            are_left = true;
            return Ok(());
        }
        table.remove(&key.other(flow))?;
        table.remove(key)
    })?;
    Ok(are_left)
}

/// Calls `each` with every entry of the table.
fn for_each(
    table: &dyn FlowTable,
    mut each: impl FnMut(&FlowKey, &Flow) -> Result<(), DatapathError>,
) -> Result<(), DatapathError> {
    let mut from = Some(Cursor::default());
    while let Some(cursor) = from {
        let slice = table.slice(cursor, SLICE)?;
        for (key, flow) in &slice.entries {
            each(key, flow)?;
        }
        from = slice.next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use culvert_common::abi::{Tuple, zone};

    use super::*;
    use crate::agent::conntrack::testing::{MemoryFlows, masqueraded};

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let text = "192.0.2.0/24\n\n 192.0.2.7 \n2001:db8::/32\nnonsense\n192.0.2.9/24\n";
        let list = List::parse(text);
        assert_eq!(list.sources, [net("192.0.2.0/24"), net("192.0.2.7/32")].into());
        assert_eq!(list.strange, ["2001:db8::/32", "nonsense", "192.0.2.9/24"]);
        assert_eq!(List::parse(&list.text()), list);
        assert_eq!(List::parse(""), List::default());
    }

    #[test]
    fn a_file_with_too_many_sources_is_read_as_far_as_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DENIED);
        let addresses = (0..MAX_DENIED + 2).map(|n| Ipv4Addr::from(n << 8).to_string());
        let text: String =
            addresses.chain(["0.0.0.0".to_owned()]).map(|line| line + "\n").collect();
        fs::write(&path, &text).unwrap();
        let denied = Denied::load(dir.path()).unwrap();
        assert_eq!(denied.sources().len(), MAX_DENIED as usize);
        let problems = denied.problems();
        assert!(
            matches!(problems.as_slice(), [line] if line.contains(": 2 sources of it are skipped"))
        );
        // The skipped sources stay in the file, after the sources in force.
        let list = denied.list().clone();
        assert_eq!(list.beyond, [net("1.0.0.0/32"), net("1.0.1.0/32")].into());
        assert_eq!(List::parse(&list.text()), list);
        let mut fewer = list.clone();
        for source in ["1.0.1.0/32", "0.0.1.0/32"].map(net) {
            assert!(fewer.lists(&source));
            fewer.take(&source);
            assert!(!fewer.lists(&source));
        }
        let next = List::parse(&fewer.text());
        assert!(next.has(Ipv4Addr::new(1, 0, 0, 0)) && next.beyond.is_empty());
    }

    #[test]
    fn the_longest_prefix_covers() {
        let list = List::parse("192.0.2.0/24\n192.0.2.128/25\n198.51.100.7\n");
        let covering = |ip: &str, most| list.covering(ip.parse().unwrap(), most);
        assert_eq!(covering("192.0.2.7", 32), Some(net("192.0.2.0/24")));
        assert_eq!(covering("192.0.2.130", 32), Some(net("192.0.2.128/25")));
        assert_eq!(covering("192.0.2.130", 24), Some(net("192.0.2.0/24")));
        assert_eq!(covering("192.0.2.130", 23), None);
        assert_eq!(covering("198.51.100.7", 32), Some(net("198.51.100.7/32")));
        assert_eq!(covering("198.51.100.8", 32), None);
        assert!(List::parse("0.0.0.0/0").has(Ipv4Addr::BROADCAST));
    }

    /// Both directions of a TCP connection of `client` to a port of the container 10.0.0.2. The
    /// client's packets come from the zone `from`.
    fn published(from: u32, client: [u8; 4]) -> [(FlowKey, Flow); 2] {
        // Connections from different zones have different ports: the programs ensure that.
        let src_port = [9, from.to_be_bytes()[3]];
        let tuple = |dst, dst_port| Tuple { src: client, dst, src_port, dst_port };
        let key = FlowKey::new(from, 6, tuple([198, 51, 100, 1], [0, 80]));
        let orig = Flow {
            to: tuple([10, 0, 0, 2], [0, 81]),
            zone: 256,
            dest: 7,
            kind: kind::ORIG | kind::PUBLISHED,
            ..Flow::default()
        };
        let reply =
            Flow { to: key.tuple.reversed(), zone: from, kind: kind::PUBLISHED, ..Flow::default() };
        [(key, orig), (key.other(&orig), reply)]
    }

    #[test]
    fn only_flows_of_denied_clients_to_published_ports_end() {
        const BAD: [u8; 4] = [192, 0, 2, 7];
        let table = MemoryFlows::new(64);
        let ended = [zone::EXTERNAL, zone::client(3), 257].map(|from| published(from, BAD));
        let kept = [
            published(zone::EXTERNAL, [192, 0, 2, 8]),
            published(zone::LOOPBACK, BAD),
            published(zone::TUNNEL, BAD),
            masqueraded(1, 0),
        ];
        for flow in ended.iter().chain(&kept) {
            table.put(*flow);
        }
        let is_bad = |client: Ipv4Addr| client.octets() == BAD;
        let mut any = false;
        end_flows(&table, |_| false, &mut any).unwrap();
        assert!(!any);
        end_flows(&table, is_bad, &mut any).unwrap();
        assert!(any);
        let kind_of = |key: &FlowKey| table.lookup(key).unwrap().map(|flow| flow.kind);
        for (key, flow) in ended.iter().flatten() {
            assert_eq!(kind_of(key), Some(flow.kind | kind::DENIED), "{key:?}");
        }
        for (key, flow) in kept.iter().flatten() {
            assert_eq!(kind_of(key), Some(flow.kind), "{key:?}");
        }
        // The client is still denied: no flow is removed.
        assert!(forget_ended(&table, is_bad).unwrap());
        assert!(ended.iter().flatten().all(|(key, _)| kind_of(key).is_some()));
        assert!(!forget_ended(&table, |_| false).unwrap());
        assert!(ended.iter().flatten().all(|(key, _)| kind_of(key).is_none()));
        assert!(kept.iter().flatten().all(|(key, _)| kind_of(key).is_some()));
    }
}
