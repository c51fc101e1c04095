//! Hints of smaller path MTUs, and what becomes of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::fake::Paper;
use crate::{
    agent::{
        path_mtu::{Call, MOST, PathMtuKeeper},
        platform::Platform,
        state::Shown,
    },
    datapath::entry::{PathMtu, UnderlayPath},
    probe::{Answer, PathProbe},
};

const PEER: [u8; 4] = [192, 0, 2, 2];
const OTHER: [u8; 4] = [192, 0, 2, 3];

/// A keeper on a host with paths of 1500 bytes to two VTEPs.
struct Bench {
    paper: Arc<Paper>,
    keeper: PathMtuKeeper,
    shown: Shown,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let paper = Paper::new();
        let path = UnderlayPath { port: 4789, inner_mtu: 1450, ..UnderlayPath::default() };
        paper.state().tables.underlay.extend([PEER, OTHER].map(|vtep| (vtep, path)));
        let (keeper, shown) = (PathMtuKeeper::default(), Shown::default());
        Self { paper, keeper, shown, now: Instant::now() }
    }

    /// A round after some time. Returns the lengths of the probes.
    async fn round(&mut self, later: Duration) -> Vec<u16> {
        self.now += later;
        assert_eq!(self.try_round().await, Ok(()));
        std::mem::take(&mut self.paper.state().probes).iter().map(|probe| probe.len).collect()
    }

    async fn try_round(&mut self) -> Result<(), String> {
        let Call { number, probes } = self.ask()?;
        let (answers, mut answered) = mpsc::unbounded_channel();
        let platform: &dyn Platform = self.paper.as_ref();
        platform.probe(probes, answers).await.map_err(|error| error.message)?;
        let mut batch = Vec::new();
        while let Ok(answer) = answered.try_recv() {
            batch.push(answer);
        }
        let done = self.keeper.take(platform, &self.shown, self.now, &batch);
        self.keeper.ended(number);
        done
    }

    fn ask(&mut self) -> Result<Call, String> {
        self.keeper.ask(self.paper.as_ref(), &self.shown, self.now, MOST)
    }

    fn take(&mut self, answer: (PathProbe, Answer)) {
        let done = self.keeper.take(self.paper.as_ref(), &self.shown, self.now, &[answer]);
        assert_eq!(done, Ok(()));
    }

    fn hint(&self, vtep: [u8; 4], inner_mtu: u32) {
        self.paper.state().path_hints.insert(vtep, inner_mtu);
    }

    fn answer(&self, answer: Answer) {
        self.paper.state().answers.insert(PEER, answer);
    }

    fn inner_mtu(&self) -> Option<u32> {
        self.paper.state().path_mtus.get(&PEER).map(|entry| entry.inner_mtu)
    }

    /// Numbers of hints: verified, not verified.
    fn counts(&self) -> (u64, u64) {
        (self.shown.path_mtus.verified(), self.shown.path_mtus.unverified())
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_hint_that_a_router_confirms_is_used() {
    let mut bench = Bench::new();
    assert!(bench.round(SECOND).await.is_empty());
    bench.answer(Answer::TooBig(1400));
    // What the hint says does not matter.
    bench.hint(PEER, 700);
    assert_eq!(bench.round(SECOND).await, [1500]);
    assert_eq!((bench.inner_mtu(), bench.counts()), (Some(1350), (1, 0)));
    assert_eq!(bench.shown.path_mtus.smaller(), 1);
    assert!(bench.shown.problems.lines().is_empty());
    // The next router on the path takes still less.
    bench.hint(PEER, 1250);
    bench.answer(Answer::TooBig(1300));
    assert_eq!(bench.round(SECOND).await, [1400]);
    assert_eq!((bench.inner_mtu(), bench.counts()), (Some(1250), (2, 0)));
    // What is known already is no reason for a probe.
    bench.hint(PEER, 1250);
    assert!(bench.round(SECOND).await.is_empty());
}

#[tokio::test]
async fn forged_hints_have_no_effect_and_are_told_once() {
    let mut bench = Bench::new();
    for (number, inner_mtu) in [502, 1350, 502, 1449].into_iter().enumerate() {
        bench.answer(if number == 1 { Answer::Forged } else { Answer::Silent });
        bench.hint(PEER, inner_mtu);
        assert_eq!(bench.round(SECOND).await, [1500]);
        assert_eq!(bench.counts(), (0, number as u64 + 1));
    }
    assert_eq!(bench.inner_mtu(), None);
    assert_eq!(bench.paper.state().path_mtu_writes, 0);
    let lines = bench.shown.problems.lines();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.starts_with("VTEP 192.0.2.2: ICMP errors that are not confirmed"), "{line}");
    bench.round(Duration::from_secs(599)).await;
    assert_eq!(bench.shown.problems.lines().len(), 1);
    bench.round(SECOND).await;
    assert!(bench.shown.problems.lines().is_empty());
}

#[tokio::test]
async fn an_answer_below_the_least_mtu_is_none() {
    let mut bench = Bench::new();
    for mtu in [0, 551, 1500, 9000] {
        bench.answer(Answer::TooBig(mtu));
        bench.hint(PEER, 1000);
        bench.round(SECOND).await;
        assert_eq!(bench.inner_mtu(), None, "{mtu}");
    }
    assert_eq!(bench.counts(), (0, 4));
}

#[tokio::test]
async fn a_smaller_path_mtu_is_probed_again_at_the_size_of_the_route() {
    let mut bench = Bench::new();
    bench.hint(PEER, 1350);
    bench.answer(Answer::TooBig(1400));
    bench.round(SECOND).await;
    let expires_ns = bench.paper.state().path_mtus[&PEER].expires_ns;
    assert!(expires_ns > 600_000_000_000, "it outlives an agent that stops for a while");
    assert!(bench.round(Duration::from_secs(599)).await.is_empty());
    // The path takes a little more now.
    bench.answer(Answer::TooBig(1450));
    assert_eq!(bench.round(SECOND).await, [1500]);
    assert_eq!(bench.inner_mtu(), Some(1400));
    // An attack, or a full firewall, does not make it forgotten.
    for answer in [Answer::Forged, Answer::Unsent("full".to_owned())] {
        bench.answer(answer);
        assert_eq!(bench.round(Duration::from_secs(600)).await, [1500]);
        assert_eq!(bench.inner_mtu(), Some(1400));
    }
    bench.answer(Answer::Silent);
    assert_eq!(bench.round(Duration::from_secs(60)).await, [1500]);
    assert_eq!((bench.inner_mtu(), bench.shown.path_mtus.smaller()), (None, 0));
    assert_eq!(bench.counts(), (1, 0), "these were no hints");
}

/// An earlier version believed every error.
#[tokio::test]
async fn what_an_earlier_agent_has_left_is_probed_at_once() {
    let mut bench = Bench::new();
    let entry = |inner_mtu| PathMtu { expires_ns: u64::MAX, inner_mtu };
    // There is no path to the third any more.
    let left = [(PEER, entry(1350)), (OTHER, entry(502)), ([192, 0, 2, 4], entry(502))];
    bench.paper.state().path_mtus.extend(left);
    bench.answer(Answer::TooBig(1400));
    assert_eq!(bench.round(SECOND).await, [1500, 1500]);
    let left: Vec<[u8; 4]> = bench.paper.state().path_mtus.keys().copied().collect();
    assert_eq!(left, [PEER]);
}

#[tokio::test]
async fn a_write_that_fails_is_repeated() {
    let mut bench = Bench::new();
    bench.hint(PEER, 1350);
    bench.answer(Answer::TooBig(1400));
    bench.paper.state().full = true;
    assert!(bench.try_round().await.is_err());
    bench.paper.state().full = false;
    bench.hint(PEER, 1350);
    bench.round(SECOND).await;
    assert_eq!(bench.inner_mtu(), Some(1350));
}

/// Hints about very many VTEPs do not keep one from its turn.
#[tokio::test]
async fn those_that_have_waited_longest_come_first() {
    let mut bench = Bench::new();
    let vteps: Vec<[u8; 4]> = (0..=255).map(|last| [198, 51, 100, last]).collect();
    let path = UnderlayPath { port: 4789, inner_mtu: 1450, ..UnderlayPath::default() };
    bench.paper.state().tables.underlay.extend(vteps.iter().map(|vtep| (*vtep, path)));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        for vtep in &vteps {
            bench.hint(*vtep, 502);
        }
        bench.now += SECOND;
        assert_eq!(bench.try_round().await, Ok(()));
        let probes = std::mem::take(&mut bench.paper.state().probes);
        assert_eq!(probes.len(), 128);
        seen.extend(probes.iter().map(|probe| *probe.to.ip()));
    }
    assert_eq!(seen.len(), vteps.len());
}

/// A probe whose answer takes long keeps no other VTEP waiting, and is not sent twice.
#[test]
fn other_vteps_are_probed_while_an_answer_is_awaited() {
    let mut bench = Bench::new();
    bench.hint(PEER, 1350);
    let first = bench.ask().unwrap().probes;
    bench.hint(PEER, 1350);
    bench.hint(OTHER, 1350);
    let second = bench.ask().unwrap().probes;
    let ips = |probes: &[PathProbe]| -> Vec<[u8; 4]> {
        probes.iter().map(|probe| probe.to.ip().octets()).collect()
    };
    assert_eq!((ips(&first), ips(&second)), (vec![PEER], vec![OTHER]));
    bench.take((second[0], Answer::TooBig(1400)));
    assert_eq!(bench.counts(), (1, 0));
    bench.take((first[0], Answer::TooBig(1300)));
    assert_eq!((bench.inner_mtu(), bench.counts()), (Some(1250), (2, 0)));
}

/// No socket can be opened, for example.
#[test]
fn a_probe_without_an_answer_is_sent_again() {
    let mut bench = Bench::new();
    bench.hint(PEER, 1350);
    let first = bench.ask().unwrap();
    assert_eq!((first.probes.len(), bench.ask().unwrap().probes.len()), (1, 0));
    bench.keeper.ended(first.number);
    // No call is free.
    let asked = bench.keeper.ask(bench.paper.as_ref(), &bench.shown, bench.now, 0);
    assert!(asked.unwrap().probes.is_empty());
    let second = bench.ask().unwrap();
    assert_eq!(second.probes, first.probes);
    // The end of another call changes nothing.
    bench.keeper.ended(first.number);
    assert!(bench.ask().unwrap().probes.is_empty());
    bench.take((second.probes[0], Answer::TooBig(1400)));
    assert_eq!(bench.inner_mtu(), Some(1350));
}
