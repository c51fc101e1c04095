//! Medians, percentiles and bootstrap intervals.

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 4_000;
/// Seed of the resamples. It is fixed, so that the same data give the same interval.
const SEED: u64 = 0x5eed;

/// A median, and the interval in which it lies with a confidence of 95 %.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Interval {
    /// Median.
    pub(crate) median: f64,
    /// Lower end.
    pub(crate) low: f64,
    /// Upper end.
    pub(crate) high: f64,
}

/// The median of `figures`: the middle one, or the mean of the middle two; 0 if there are none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    median_of(&mut sorted)
}

fn median_of(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = |index: usize| figures.get(index).copied().unwrap_or_default();
    f64::midpoint(at(figures.len().saturating_sub(1) / 2), at(figures.len() / 2))
}

/// The mean of the middle half of `figures`; 0 if there are none. Unlike the median it does not jump
/// where two values are about as frequent, and unlike the mean it leaves out what is rare.
pub(crate) fn middle_mean(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quarter = sorted.len() / 4;
    let middle = sorted.get(quarter..sorted.len() - quarter).unwrap_or_default();
    if middle.is_empty() { 0.0 } else { middle.iter().sum::<f64>() / middle.len() as f64 }
}

/// The value that `share` of the sorted figures do not exceed (nearest rank).
pub(crate) fn percentile<T: Copy + Default>(sorted: &[T], share: f64) -> T {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// Median of the ratios of figures with the same index, with its 95 % interval by the
/// percentile bootstrap (Efron and Tibshirani, 1993, §13.3). None if there is no pair.
pub(crate) fn paired_ratio(ours: &[f64], base: &[f64]) -> Option<Interval> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(base)
        .filter(|(_, base)| **base > 0.0)
        .map(|(ours, base)| ours / base)
        .collect();
    bootstrap(&ratios)
}

/// Median of the ratios of all rounds, with its 95 % interval. Figures of one round are more alike
/// than those of two, so the bootstrap draws rounds and then figures within each drawn round
/// (Davison and Hinkley, 1997, §3.8). `None` if there are no figures.
pub(crate) fn bootstrap_rounds(rounds: &[Vec<f64>]) -> Option<Interval> {
    let all: Vec<f64> = rounds.iter().flatten().copied().collect();
    if rounds.iter().all(|round| round.len() <= 1) {
        return bootstrap(&all);
    }
    let rounds: Vec<&Vec<f64>> = rounds.iter().filter(|round| !round.is_empty()).collect();
    resampled(&all, |random, sample| {
        for _ in &rounds {
            let round = *rounds.get(random.random_range(0..rounds.len()))?;
            for _ in round {
                sample.push(*round.get(random.random_range(0..round.len()))?);
            }
        }
        Some(())
    })
}

/// The median of figures, with the interval of the medians of their resamples. `draw` adds the
/// figures of one resample to an empty list.
fn resampled(
    figures: &[f64],
    draw: impl Fn(&mut SmallRng, &mut Vec<f64>) -> Option<()>,
) -> Option<Interval> {
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut sample = Vec::with_capacity(2 * figures.len());
    let mut medians = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        sample.clear();
        draw(&mut random, &mut sample)?;
        medians.push(median_of(&mut sample));
    }
    medians.sort_by(f64::total_cmp);
    Some(Interval {
        median: median(figures),
        low: percentile(&medians, 0.025),
        high: percentile(&medians, 0.975),
    })
}

/// Median of figures, with its 95 % interval. `None` if there are no figures.
pub(crate) fn bootstrap(figures: &[f64]) -> Option<Interval> {
    if figures.is_empty() {
        return None;
    }
    resampled(figures, |random, sample| {
        for _ in figures {
            sample.push(*figures.get(random.random_range(0..figures.len()))?);
        }
        Some(())
    })
}

#[cfg(test)]
mod tests {
    use super::{bootstrap, bootstrap_rounds, median, middle_mean, paired_ratio, percentile};

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[2.0, 9.0, 1.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]).to_bits(), 3.0_f64.to_bits());
        assert_eq!(median(&[7.0]).to_bits(), 7.0_f64.to_bits());
    }

    #[test]
    fn the_middle_half_has_neither_outliers_nor_jumps() {
        let mean = |figures: &[f64]| middle_mean(figures).to_bits();
        assert_eq!(mean(&[1000.0, 2.0, 4.0, 1.0]), 3.0_f64.to_bits());
        assert_eq!(mean(&[7.0]), 7.0_f64.to_bits());
        assert_eq!(mean(&[]), 0.0_f64.to_bits());
    }

    #[test]
    fn percentiles_are_figures_of_the_sample() {
        let sorted: Vec<u32> = (1..=1000).collect();
        assert_eq!(percentile(&sorted, 0.5), 500);
        assert_eq!(percentile(&sorted, 0.99), 990);
        assert_eq!(percentile(&sorted, 0.999), 999);
        assert_eq!(percentile(&sorted[..1], 0.999), 1);
        assert_eq!(percentile::<u32>(&[], 0.5), 0);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // Each figure is half of the base in its round, whatever the rounds are like.
        let same = paired_ratio(&[4.0, 1.0, 2.0], &[8.0, 2.0, 4.0]).map(|it| (it.low, it.high));
        assert_eq!(same, Some((0.5, 0.5)));
        assert_eq!(paired_ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn rounds_that_differ_widen_the_interval() {
        let alike = Vec::from_iter(std::iter::repeat_n(vec![0.99, 1.0, 1.01], 8));
        let Some(alike) = bootstrap_rounds(&alike) else { panic!("none") };
        let differing: Vec<Vec<f64>> =
            (0..8).map(|round| vec![1.0 + f64::from(round % 4) / 20.0; 3]).collect();
        let Some(differing) = bootstrap_rounds(&differing) else { panic!("none") };
        assert!(alike.low >= 0.99 && alike.high <= 1.01, "{alike:?}");
        assert!(differing.high - differing.low >= 0.05, "{differing:?}");
        // One figure a round: the same as without rounds. Rounds without figures do not count.
        let single = [vec![1.0], vec![], vec![3.0], vec![2.0]];
        assert_eq!(bootstrap_rounds(&single), bootstrap(&[1.0, 3.0, 2.0]));
        assert_eq!(bootstrap_rounds(&[vec![], vec![]]), None);
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows() {
        let noisy: Vec<f64> = (0..40).map(|i| 1.0 + f64::from(i % 7) / 10.0).collect();
        let few = bootstrap(&noisy[..7]).map_or(0.0, |it| it.high - it.low);
        let Some(many) = bootstrap(&noisy) else { panic!("no interval") };
        assert!(many.low <= many.median && many.median <= many.high, "{many:?}");
        assert!(many.high - many.low < few, "{many:?}, {few}");
    }
}
