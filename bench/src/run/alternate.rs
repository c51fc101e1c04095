//! The order of slices in which the arms alternate, the slices that are thrown away, and the ratios
//! of neighbouring slices.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    arms::Arm,
    load::slices::{Kind, Slice},
    results::{HOST, Metric, Regime, Results, Slices},
    stats::percentile,
};

/// One round's figures of an arm.
struct Figures {
    /// From the slices that were kept.
    metrics: BTreeMap<Metric, f64>,
    /// The ratio to the base in each turn; none where slices were thrown away. Empty for the base.
    ratios: Vec<Option<f64>>,
    count: Slices,
}

/// Measures all arms in one round: `time` for each arm but the base, which all others alternate
/// with and which has more. `check` is called between slices.
///
/// # Errors
///
/// A path fails, or `check` does. Nothing is added to the results.
pub(super) fn measure(
    arms: &[&Arm],
    kind: Kind,
    (round, time): (usize, Duration),
    regime: Regime,
    results: &mut Results,
    check: impl Fn() -> Result<()>,
) -> Result<()> {
    let id = |arm: usize| arms.get(arm).map_or("", |arm| arm.info.id.as_str());
    let base = arms.iter().position(|arm| arm.info.id == HOST).unwrap_or_default();
    let mut paths = Vec::new();
    for arm in arms {
        check()?;
        paths.push(arm.open(kind).with_context(|| arm.info.id.clone())?);
    }
    let order = order(arms.len(), base, kind.pairs(time), round);
    let mut slices = Vec::with_capacity(order.len());
    for &arm in &order {
        check()?;
        let path = paths.get_mut(arm).context("no such arm")?;
        slices.push(path.slice().with_context(|| id(arm).to_owned())?);
    }
    for (arm, path) in paths.into_iter().enumerate() {
        path.close().with_context(|| id(arm).to_owned())?;
    }
    let risen = risen(&order, &slices);
    for arm in 0..arms.len() {
        let figures = figures(kind, &order, &slices, &risen, arm);
        results.add(id(arm), regime, &figures.metrics);
        if arm != base {
            results.add_ratios(id(arm), regime, compared(kind), figures.ratios);
        }
        results.count(id(arm), regime, &kind.name(), figures.count);
    }
    Ok(())
}

/// The metric whose figures of neighbouring slices are compared.
fn compared(kind: Kind) -> Metric {
    match kind {
        Kind::Streams(1) => Metric::TcpOne,
        Kind::Streams(_) => Metric::TcpFour,
        Kind::RoundTrips => Metric::RttP50,
    }
}

/// The arm of each slice: the base, and then for each turn the other arm twice and the base. So a
/// turn with the slice before it is ABBA, and a steady drift has no effect on the mean of its two
/// ratios. Each cycle has a turn of each other arm, and begins with another one. If there is only
/// the base, it has all the slices.
fn order(arms: usize, base: usize, cycles: usize, round: usize) -> Vec<usize> {
    let others: Vec<usize> = (0..arms).filter(|arm| *arm != base).collect();
    if others.is_empty() {
        return vec![base; 2 * cycles];
    }
    let mut order = vec![base];
    for cycle in 0..cycles {
        let mut turns = others.clone();
        turns.rotate_left((cycle + round) % others.len());
        for arm in turns {
            order.extend([arm, arm, base]);
        }
    }
    order
}

/// What is allowed to a slice without being thrown away: what is usual in the slices of its arm.
/// That is nothing on a quiet machine. It is more where switches belong to the path, as with a
/// kernel thread that receives on the core of the server; their number then varies by a quarter.
fn allowed(slices: &[&Slice], of: impl Fn(&Slice) -> u64) -> u64 {
    let mut all: Vec<u64> = slices.iter().map(|slice| of(slice)).collect();
    all.sort_unstable();
    let usual = percentile(&all, 0.5);
    usual + usual / 4
}

/// Whether steal, and whether involuntary switches have risen in each slice.
fn risen(order: &[usize], slices: &[Slice]) -> Vec<(bool, bool)> {
    let mut limits = BTreeMap::new();
    for &arm in order {
        limits.entry(arm).or_insert_with(|| {
            let own: Vec<&Slice> =
                order.iter().zip(slices).filter(|(of, _)| **of == arm).map(|it| it.1).collect();
            (allowed(&own, |slice| slice.steal), allowed(&own, |slice| slice.switches))
        });
    }
    let judge = |(arm, slice): (&usize, &Slice)| {
        let (steal, switches) = limits.get(arm).copied().unwrap_or_default();
        (slice.steal > steal, slice.switches > switches)
    };
    order.iter().zip(slices).map(judge).collect()
}

/// The figures of `arm`. `risen` is the result of [`risen`] for all slices.
fn figures(
    kind: Kind,
    order: &[usize],
    slices: &[Slice],
    risen: &[(bool, bool)],
    arm: usize,
) -> Figures {
    let own = || order.iter().zip(slices).zip(risen).filter(move |((of, _), _)| **of == arm);
    let number = |rose: fn(&(bool, bool)) -> bool| own().filter(|(_, it)| rose(it)).count() as u64;
    let count = Slices {
        slices: own().count() as u64,
        thrown: number(|(steal, switches)| *steal || *switches),
        steal: number(|(steal, _)| *steal),
        switches: number(|(_, switches)| *switches),
    };
    // If no slice is left, the round has a figure nevertheless: an index is the same round in all
    // series. It then has no ratios.
    let none_left = count.thrown == count.slices;
    let kept: Vec<&Slice> = own()
        .filter(|(_, rose)| none_left || **rose == (false, false))
        .map(|((_, slice), _)| slice)
        .collect();
    Figures { metrics: metrics(kind, &kept), ratios: ratios(order, slices, risen, arm), count }
}

/// The metrics of one round, from the slices that were kept.
fn metrics(kind: Kind, kept: &[&Slice]) -> BTreeMap<Metric, f64> {
    match kind {
        Kind::Streams(_) => {
            let sum: f64 = kept.iter().map(|slice| slice.figure).sum();
            [(compared(kind), sum / kept.len().max(1) as f64)].into()
        }
        Kind::RoundTrips => {
            let mut trips: Vec<u32> = kept.iter().flat_map(|slice| &slice.trips).copied().collect();
            trips.sort_unstable();
            [(Metric::RttP50, 0.5), (Metric::RttP99, 0.99), (Metric::RttP999, 0.999)]
                .map(|(metric, share)| (metric, f64::from(percentile(&trips, share))))
                .into()
        }
    }
}

/// The ratio of `arm` to the base in each of its turns: the geometric mean of the ratios of its two
/// slices, each to the neighbouring slice of the base. A ratio with a slice that was thrown away is
/// left out.
fn ratios(
    order: &[usize],
    slices: &[Slice],
    risen: &[(bool, bool)],
    arm: usize,
) -> Vec<Option<f64>> {
    let figure = |slice: usize| {
        let kept = risen.get(slice).is_some_and(|rose| *rose == (false, false));
        let figure = slices.get(slice)?.figure;
        (kept && figure > 0.0).then_some(figure)
    };
    let ratio = |ours: usize, base: usize| Some(figure(ours)? / figure(base)?);
    (0..order.len() / 3)
        .map(|turn| 3 * turn)
        .filter(|first| order.get(first + 1) == Some(&arm))
        .map(|first| match (ratio(first + 1, first), ratio(first + 2, first + 3)) {
            (Some(one), Some(two)) => Some((one * two).sqrt()),
            (one, two) => one.or(two),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(figure: f64) -> Slice {
        Slice { figure, ..Slice::default() }
    }

    fn figures(kind: Kind, order: &[usize], slices: &[Slice], arm: usize) -> Figures {
        super::figures(kind, order, slices, &risen(order, slices), arm)
    }

    #[test]
    fn every_turn_is_abba_and_every_arm_has_its_turns() {
        let order = order(4, 1, 3, 5);
        assert_eq!(order.len(), 1 + 3 * 3 * 3);
        for turn in order[..order.len() - 1].chunks(3) {
            assert!(turn[0] == 1 && turn[1] == turn[2] && turn[1] != 1, "{order:?}");
        }
        assert_eq!(order.last(), Some(&1));
        for arm in [0, 2, 3] {
            assert_eq!(order.iter().filter(|it| **it == arm).count(), 6, "{order:?}");
        }
        assert_ne!(order[1..4], order[10..13], "a cycle begins with another arm");
        assert_eq!(super::order(1, 0, 2, 7), [0; 4]);
    }

    #[test]
    fn a_drift_has_no_effect() {
        // The arm has 0.8 of the base, and the machine becomes slower and slower.
        let order = order(2, 0, 2, 0);
        let slices: Vec<Slice> = order
            .iter()
            .zip(0..)
            .map(|(arm, at)| slice(0.97_f64.powi(at) * [10.0, 8.0][*arm]))
            .collect();
        let found = figures(Kind::Streams(1), &order, &slices, 1);
        for ratio in &found.ratios {
            assert!(ratio.is_some_and(|ratio| (ratio - 0.8).abs() < 1e-9), "{ratio:?}");
        }
        assert_eq!((found.ratios.len(), found.count.slices, found.count.thrown), (2, 4, 0));
    }

    #[test]
    fn disturbed_slices_are_thrown_away_and_counted() {
        let order = order(2, 0, 2, 0);
        assert_eq!(order, [0, 1, 1, 0, 1, 1, 0]);
        let mut slices: Vec<Slice> = order.iter().map(|arm| slice([10.0, 9.0][*arm])).collect();
        // The first slice of the arm is slow since time was stolen. The base is slow at the end.
        (slices[1].figure, slices[1].steal) = (1.0, 3);
        (slices[6].figure, slices[6].switches) = (2.0, 1);
        let arm = figures(Kind::Streams(1), &order, &slices, 1);
        assert_eq!(arm.metrics, BTreeMap::from([(Metric::TcpOne, 9.0)]));
        assert_eq!(arm.ratios, [Some(0.9), Some(0.9)]);
        let count = |it: &Slices| (it.slices, it.thrown, it.steal, it.switches);
        assert_eq!(count(&arm.count), (4, 1, 1, 0));
        let base = figures(Kind::Streams(1), &order, &slices, 0);
        assert_eq!(base.metrics, BTreeMap::from([(Metric::TcpOne, 10.0)]));
        assert_eq!(count(&base.count), (3, 1, 0, 1));
        // A turn without a ratio keeps its place.
        slices[2].switches = 1;
        let arm = figures(Kind::Streams(1), &order, &slices, 1);
        assert_eq!(arm.ratios, [None, Some(0.9)]);
    }

    #[test]
    fn what_is_usual_on_a_path_is_no_disturbance() {
        let order = order(2, 0, 2, 0);
        let mut slices: Vec<Slice> = order.iter().map(|_| slice(1.0)).collect();
        // A kernel thread receives for the arm, but not for the base.
        for (at, switches) in [(1, 400), (2, 420), (4, 390), (5, 700)] {
            slices[at].switches = switches;
        }
        let arm = figures(Kind::Streams(1), &order, &slices, 1);
        assert_eq!((arm.count.switches, arm.count.steal), (1, 0));
        // All of them disturbed, by one or the other: a figure, but no ratio.
        slices[1].steal = 9;
        slices[2].switches = 1_000;
        slices[4].steal = 9;
        for slice in &mut slices {
            slice.figure = 5.0;
        }
        let arm = figures(Kind::Streams(1), &order, &slices, 1);
        assert_eq!(arm.metrics, BTreeMap::from([(Metric::TcpOne, 5.0)]));
        assert_eq!((arm.count.slices, arm.count.thrown), (4, 4));
        assert_eq!(arm.ratios, [None, None]);
    }

    #[test]
    fn percentiles_are_of_all_round_trips() {
        let slices: Vec<Slice> = (0..10)
            .map(|at| Slice { trips: (at * 100..at * 100 + 100).collect(), ..slice(1.0) })
            .collect();
        let kept: Vec<&Slice> = slices.iter().collect();
        let found = metrics(Kind::RoundTrips, &kept);
        assert_eq!(found.get(&Metric::RttP50), Some(&499.0));
        assert_eq!(found.get(&Metric::RttP999), Some(&998.0));
    }
}
