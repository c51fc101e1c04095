//! Covering arrays: few rows of switches such that every two (or three) switches are in every
//! combination of positions in some row.

use std::collections::BTreeSet;

/// The positions of all switches.
pub(crate) type Row = Vec<bool>;

/// Positions of some switches, packed: seven bits for each, with its number and position.
type Combination = u64;

fn pack(switches: &[(usize, bool)]) -> Combination {
    let mut sorted = switches.to_vec();
    sorted.sort_unstable();
    sorted
        .iter()
        .fold(1, |packed, &(number, on)| packed << 7 | (number as u64) << 1 | u64::from(on))
}

/// Pseudo-random numbers by xorshift64. The rows are the same in every run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

/// Calls `found` with every combination of `count` of the given positions.
fn each(
    positions: &[(usize, bool)],
    count: usize,
    chosen: &mut Vec<(usize, bool)>,
    found: &mut impl FnMut(&[(usize, bool)]),
) {
    if count == 0 {
        return found(chosen);
    }
    for (at, &position) in positions.iter().enumerate() {
        chosen.push(position);
        each(&positions[at + 1..], count - 1, chosen, found);
        chosen.pop();
    }
}

/// Makes rows, beginning with `first`, such that every `strength` switches of `width` are in every
/// combination. The algorithm is greedy (Cohen et al., "The AETG System", 1997): each row has a
/// missing combination, and every further switch gets the position that adds the most combinations.
pub(crate) fn cover(width: usize, strength: usize, first: Vec<Row>) -> Vec<Row> {
    let mut missing = BTreeSet::new();
    // Two positions of one switch are not a combination.
    let all: Vec<_> = (0..width).flat_map(|number| [(number, false), (number, true)]).collect();
    each(&all, strength, &mut Vec::new(), &mut |chosen| {
        if chosen.windows(2).all(|pair| pair[0].0 != pair[1].0) {
            missing.insert(pack(chosen));
        }
    });
    let mut rows = first;
    let mut done = 0;
    let mut random = 0x9e37_79b9_7f4a_7c15;
    loop {
        for row in &rows[done..] {
            let positions: Vec<_> = row.iter().copied().enumerate().collect();
            each(&positions, strength, &mut Vec::new(), &mut |chosen| {
                missing.remove(&pack(chosen));
            });
        }
        done = rows.len();
        let Some(&seed) = missing.first() else { return rows };
        rows.push(greedy(width, strength, seed, &missing, &mut random));
    }
}

fn greedy(
    width: usize,
    strength: usize,
    seed: Combination,
    missing: &BTreeSet<Combination>,
    random: &mut u64,
) -> Row {
    let mut positions: Vec<_> = (0..strength)
        .map(|at| (seed >> (7 * at)) & 0x7f)
        .map(|packed| ((packed >> 1) as usize, packed & 1 != 0))
        .collect();
    let mut others: Vec<_> =
        (0..width).filter(|number| positions.iter().all(|(taken, _)| taken != number)).collect();
    while !others.is_empty() {
        let number = others.swap_remove(next(random) % others.len());
        let gain = |on| {
            let mut gain = 0;
            each(&positions, strength - 1, &mut vec![(number, on)], &mut |chosen| {
                gain += usize::from(missing.contains(&pack(chosen)));
            });
            gain
        };
        let (off, on) = (gain(false), gain(true));
        let on = if off == on { next(random) & 1 != 0 } else { on > off };
        positions.push((number, on));
    }
    positions.sort_unstable();
    positions.into_iter().map(|(_, on)| on).collect()
}

/// The rows have every pair. They are not many more than the best known result (10 rows for 46).
#[test]
fn every_pair_is_covered() {
    let rows = cover(46, 2, vec![vec![true; 46]]);
    for a in 0..46 {
        for b in 0..a {
            let seen: BTreeSet<_> = rows.iter().map(|row| (row[a], row[b])).collect();
            assert_eq!(seen.len(), 4, "{a} and {b}");
        }
    }
    assert!(rows.len() <= 14, "{} rows", rows.len());
}
