//! The MTUs of the paths to the VTEPs.
//!
//! The programs note what ICMP errors of the underlay say (`PATH_HINTS`). Anybody can forge such an
//! error, so the agent only takes it as a reason to probe the path ([`crate::probe`]). If a router
//! refuses the probe, the agent writes the MTU that this answer tells to `PATH_MTU`, which the
//! programs use. Every [`AGAIN`] it probes a smaller path MTU again, at the size that the route
//! takes: the path may have changed.
//!
//! Some probes are answered after seconds only. Meanwhile hints about other VTEPs are probed, too.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_common::{abi::VXLAN_OVERHEAD, datapath::pmtu};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{platform::Platform, shared::Shared, state::Shown};
use crate::{
    api::types::ApiError,
    datapath::{
        DatapathError,
        entry::{PathMtu, UnderlayPath},
    },
    probe::{Answer, PathProbe},
};

/// Interval at which hints are read. The programs keep one hint of a VTEP in this time.
const EVERY: Duration = Duration::from_secs(1);
/// Interval at which a smaller path MTU is probed again (RFC 1191 §6.3: ten minutes).
const AGAIN: Duration = Duration::from_secs(600);
/// Time after which the path is probed again if the probe has shown nothing.
const RETRY: Duration = Duration::from_secs(60);
/// Time in ns for which the programs use a path MTU that no agent has probed again.
const KEPT_NS: u64 = 86_400_000_000_000;
/// Most VTEPs that are probed in a call. The others follow; the VTEP that has waited longest comes
/// first.
pub(super) const MOST: usize = 128;
/// Most calls at once. Each has a thread and the sockets of [`crate::probe`].
const CALLS: usize = 4;
/// Time for which a hint that was not confirmed is a problem in `status`.
const DOUBTED: Duration = Duration::from_secs(600);
/// First part of the keys of the problems.
const PROBLEM: &str = "path-mtu/";
/// Key of the problem that hints cannot be read.
const TASK: &str = "path-mtu/task";
/// Key of the problem that probes cannot be sent.
const SENDING: &str = "path-mtu/probes";
/// Key of the problem that path MTUs cannot be written.
const WRITING: &str = "path-mtu/map";

/// Number of a call, and how it has ended.
type Ended = (u64, Result<(), ApiError>);

/// Verifies hints and probes again, until the agent stops.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut keeper = PathMtuKeeper::default();
    let (platform, shown) = (shared.platform.as_ref(), &shared.shown);
    let problem = |key: &str, fault: Option<String>| {
        shown.problems.set(key, fault.map(|fault| format!("path MTU: {fault}")));
    };
    let (answers, mut answered) = mpsc::unbounded_channel();
    let mut calls: FuturesUnordered<BoxFuture<'_, Ended>> = FuturesUnordered::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut batch: Vec<(PathProbe, Answer)> = Vec::new();
        let mut ended: Option<Ended> = None;
        tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            _ = answered.recv_many(&mut batch, MOST) => {}
            Some(call) = calls.next(), if !calls.is_empty() => {
                while let Ok(answer) = answered.try_recv() {
                    batch.push(answer);
                }
                ended = Some(call);
            }
            _ = ticks.tick() => {
                let most = if calls.len() < CALLS { MOST } else { 0 };
                let asked = keeper.ask(platform, shown, Instant::now(), most);
                problem(TASK, asked.as_ref().err().cloned());
                let Call { number, probes } = asked.unwrap_or_default();
                if !probes.is_empty() {
                    let answers = answers.clone();
                    let call = async move { (number, platform.probe(probes, answers).await) };
                    calls.push(call.boxed());
                } else if calls.is_empty() {
                    problem(SENDING, None);
                }
            }
        }
        if !batch.is_empty() {
            let taken = keeper.take(platform, shown, Instant::now(), &batch);
            problem(WRITING, taken.err());
        }
        if let Some((number, done)) = ended {
            keeper.ended(number);
            problem(SENDING, done.err().map(|error| error.message));
        }
    }
}

/// What the keeper remembers from round to round.
#[derive(Debug, Default)]
pub(super) struct PathMtuKeeper {
    /// The entries of `PATH_MTU`. Empty until they are read.
    smaller: BTreeMap<[u8; 4], Smaller>,
    /// `smaller` has the entries of the map.
    is_read: bool,
    /// Hints that are not verified yet: largest inner L3 packets in bytes.
    hints: BTreeMap<[u8; 4], u32>,
    /// The probes that have no answer yet.
    asked: BTreeMap<[u8; 4], Question>,
    /// Number of the last call.
    call: u64,
    /// When a VTEP was last probed because of a hint.
    probed: BTreeMap<[u8; 4], Instant>,
    /// When a hint was last not confirmed.
    doubted: BTreeMap<[u8; 4], Instant>,
}

/// A path MTU that is smaller than the route's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Smaller {
    inner_mtu: u32,
    /// When the path is to be probed again. `None`: now.
    due: Option<Instant>,
}

/// Probes that are sent together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) number: u64,
    pub(super) probes: Vec<PathProbe>,
}

/// A probe, and its reason.
#[derive(Clone, Copy, Debug)]
struct Question {
    probe: PathProbe,
    /// Largest inner L3 packet in bytes that the probe stands for.
    inner_mtu: u32,
    /// There is a hint. Otherwise the path MTU is due.
    is_hinted: bool,
    /// Number of the call.
    call: u64,
}

impl PathMtuKeeper {
    /// Reads hints, and returns the probes that are to be sent now, at most `most`. Each is asked
    /// until [`Self::take`] gets its answer, or until [`Self::ended`].
    pub(super) fn ask(
        &mut self,
        platform: &dyn Platform,
        shown: &Shown,
        now: Instant,
        most: usize,
    ) -> Result<Call, String> {
        self.forget_doubts(shown, now);
        self.read(platform)?;
        self.hints.extend(platform.take_path_hints().map_err(line)?);
        if self.hints.is_empty() && !self.smaller.values().any(|smaller| smaller.is_due(now)) {
            return Ok(Call::default());
        }
        let paths = platform.underlay().map_err(line)?;
        for vtep in self.lost(&paths) {
            platform.forget_path_mtu(vtep).map_err(line)?;
            self.smaller.remove(&vtep);
        }
        shown.path_mtus.set_smaller(self.smaller.len());
        // An answer about a path that is lost does not count.
        self.asked.retain(|vtep, _| paths.contains_key(vtep));
        self.call += 1;
        let questions = self.questions(&paths, now, most);
        let probes = questions.iter().map(|question| question.probe).collect();
        let by_vtep = |question: Question| (question.probe.to.ip().octets(), question);
        self.asked.extend(questions.into_iter().map(by_vtep));
        Ok(Call { number: self.call, probes })
    }

    /// Writes what answers tell. Returns the first error. The other answers count nevertheless.
    pub(super) fn take(
        &mut self,
        platform: &dyn Platform,
        shown: &Shown,
        now: Instant,
        answers: &[(PathProbe, Answer)],
    ) -> Result<(), String> {
        self.read(platform)?;
        let (mut written, mut done) = (Vec::new(), Ok(()));
        for (probe, answer) in answers {
            let vtep = probe.to.ip().octets();
            let Some(question) = self.asked.get(&vtep).copied() else { continue };
            if question.probe != *probe {
                continue;
            }
            self.asked.remove(&vtep);
            let known = self.smaller.get(&vtep).copied();
            let inner_mtu = match answer {
                Answer::TooBig(mtu) => {
                    let overhead = VXLAN_OVERHEAD.into();
                    pmtu::path_mtu_from_icmp(*mtu, question.inner_mtu, overhead)
                }
                _ => None,
            };
            if question.is_hinted {
                self.hints.remove(&vtep);
                self.judge(shown, vtep, inner_mtu.is_some(), answer, now);
            }
            if let Some(inner_mtu) = inner_mtu {
                if known.is_none_or(|known| known.inner_mtu != inner_mtu) {
                    tracing::info!(
                        "VTEP {}: a router on the path takes packets of at most {} bytes: those of containers over {inner_mtu} bytes do not pass",
                        Ipv4Addr::from(vtep),
                        inner_mtu + u32::from(VXLAN_OVERHEAD)
                    );
                }
                self.smaller.insert(vtep, Smaller { inner_mtu, due: Some(now + AGAIN) });
                let expires_ns = platform.now_ns().saturating_add(KEPT_NS);
                written.push((vtep, PathMtu { expires_ns, inner_mtu }));
            } else if !question.is_hinted && *answer == Answer::Silent {
                tracing::info!(
                    "VTEP {}: no router on the path refuses packets of {} bytes any more",
                    Ipv4Addr::from(vtep),
                    probe.len
                );
                match platform.forget_path_mtu(vtep) {
                    Ok(()) => {
                        self.smaller.remove(&vtep);
                    }
                    Err(error) => done = done.and(Err(line(error))),
                }
            } else if let Some(known) = known.filter(|_| !question.is_hinted) {
                let due = Some(now + RETRY);
                self.smaller.insert(vtep, Smaller { due, ..known });
            }
        }
        let stored = if written.is_empty() {
            Ok(())
        } else {
            platform.set_path_mtus(&written).map_err(line)
        };
        if stored.is_err() {
            // What is in the map is not known: it is read again, and the paths are probed again.
            self.smaller.clear();
            self.is_read = false;
            self.hints.extend(written.iter().map(|(vtep, mtu)| (*vtep, mtu.inner_mtu)));
        }
        shown.path_mtus.set_smaller(self.smaller.len());
        done.and(stored)
    }

    /// The call with this number has ended. Its probes without an answer may be sent again.
    pub(super) fn ended(&mut self, number: u64) {
        self.asked.retain(|_, question| question.call != number);
    }

    /// Reads the entries of `PATH_MTU` if they are not known.
    fn read(&mut self, platform: &dyn Platform) -> Result<(), String> {
        if !self.is_read {
            // An earlier version wrote entries without a probe, so all paths are due.
            let entry =
                |(vtep, PathMtu { inner_mtu, .. })| (vtep, Smaller { inner_mtu, due: None });
            self.smaller = platform.path_mtus().map_err(line)?.into_iter().map(entry).collect();
            self.is_read = true;
        }
        Ok(())
    }

    /// VTEPs with a smaller path MTU to which there is no path any more.
    fn lost(&self, paths: &BTreeMap<[u8; 4], UnderlayPath>) -> Vec<[u8; 4]> {
        self.smaller.keys().filter(|vtep| !paths.contains_key(*vtep)).copied().collect()
    }

    /// The probes of this round: first the probes for hints, and of these first the one that has
    /// waited longest. A VTEP whose answer is awaited is not among them. Forgets hints of an MTU
    /// that is no smaller than the one that is used.
    fn questions(
        &mut self,
        paths: &BTreeMap<[u8; 4], UnderlayPath>,
        now: Instant,
        most: usize,
    ) -> Vec<Question> {
        let smaller = &self.smaller;
        let known = |vtep: &[u8; 4]| smaller.get(vtep).map(|smaller| smaller.inner_mtu);
        let now_used = |vtep: &[u8; 4]| {
            let route = u32::from(paths.get(vtep)?.inner_mtu);
            Some(known(vtep).map_or(route, |known| known.min(route)))
        };
        self.hints.retain(|vtep, hint| now_used(vtep).is_some_and(|used| *hint < used));
        self.probed.retain(|vtep, at| {
            self.hints.contains_key(vtep) || now.saturating_duration_since(*at) < RETRY
        });
        let mut hinted: Vec<[u8; 4]> = self.hints.keys().copied().collect();
        hinted.sort_by_key(|vtep| self.probed.get(vtep).copied());
        let due = smaller
            .iter()
            .filter(|(vtep, smaller)| smaller.is_due(now) && !self.hints.contains_key(*vtep));
        let due = due.map(|(vtep, _)| (*vtep, false));
        let all = hinted.into_iter().map(|vtep| (vtep, true)).chain(due);
        let all = all.filter(|(vtep, _)| !self.asked.contains_key(vtep));
        let mut questions = Vec::new();
        for (vtep, is_hinted) in all.take(most) {
            let Some(path) = paths.get(&vtep) else { continue };
            let route = u32::from(path.inner_mtu);
            let inner_mtu = if is_hinted { now_used(&vtep).unwrap_or(route) } else { route };
            let len = inner_mtu + u32::from(VXLAN_OVERHEAD);
            let probe = PathProbe {
                to: SocketAddrV4::new(vtep.into(), path.port),
                len: u16::try_from(len).unwrap_or(u16::MAX),
            };
            questions.push(Question { probe, inner_mtu, is_hinted, call: self.call });
            if is_hinted {
                self.probed.insert(vtep, now);
            }
        }
        questions
    }

    /// Counts a hint, and reports one that was not confirmed.
    fn judge(
        &mut self,
        shown: &Shown,
        vtep: [u8; 4],
        is_confirmed: bool,
        answer: &Answer,
        now: Instant,
    ) {
        // The count comes last, so whoever sees it sees the problem, too.
        let (key, ip) = (problem_of(vtep), Ipv4Addr::from(vtep));
        if is_confirmed {
            self.doubted.remove(&vtep);
            shown.problems.set(&key, None);
            shown.path_mtus.count(true);
            return;
        }
        self.doubted.insert(vtep, now);
        let line = match answer {
            Answer::Unsent(why) => format!(
                "VTEP {ip}: an ICMP error says that packets on the path must be smaller, and this host cannot verify it: the probe was not sent ({why}): let UDP from ports 49152 to 65535 to the VXLAN port pass"
            ),
            _ => format!(
                "VTEP {ip}: ICMP errors that are not confirmed by a probe say that packets on the path must be smaller, and are ignored: somebody forges them, or the router limits its errors, or the host's firewall drops ICMP 'fragmentation needed', which must pass"
            ),
        };
        shown.problems.set(&key, Some(line));
        shown.path_mtus.count(false);
    }

    /// Removes the problems of hints that are older than [`DOUBTED`].
    fn forget_doubts(&mut self, shown: &Shown, now: Instant) {
        self.doubted.retain(|vtep, at| {
            let is_recent = now.saturating_duration_since(*at) < DOUBTED;
            if !is_recent {
                shown.problems.set(&problem_of(*vtep), None);
            }
            is_recent
        });
    }
}

impl Smaller {
    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }
}

fn line(error: DatapathError) -> String {
    error.to_string()
}

fn problem_of(vtep: [u8; 4]) -> String {
    format!("{PROBLEM}{}", Ipv4Addr::from(vtep))
}
