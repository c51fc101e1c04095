//! Faults and operations in random order.
//!
//! The order is that of the seed, which a failed test prints: `CULVERT_TEST_SEED` repeats it. With
//! `CULVERT_TEST_FULL` (`cargo xtask test --full chaos`) each test has many more rounds.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

/// Interval of a long test's progress lines. `cargo xtask test` treats a long silence as a hang.
const REPORT: Duration = Duration::from_secs(60);

/// Whether the long tests are run: `CULVERT_TEST_FULL` is set.
pub fn is_full() -> bool {
    std::env::var_os("CULVERT_TEST_FULL").is_some()
}

/// Rounds of a test: few, or with `CULVERT_TEST_FULL` many.
pub fn rounds(few: u32, many: u32) -> u32 {
    if is_full() { many } else { few }
}

/// Writes a line to standard error, also if the test passes.
pub fn say(line: &str) {
    // Not `eprintln`: libtest captures the output of `eprintln` until the test fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The numbers below `rounds`. Writes a line of progress to standard error each minute.
pub fn each(what: &str, rounds: u32) -> impl Iterator<Item = u32> {
    let mut reported = Instant::now();
    (0..rounds).inspect(move |round| {
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            say(&format!("{what}: {round} of {rounds} rounds"));
        }
    })
}

/// Random number generator: SplitMix64. Every seed is valid.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Makes a generator from `CULVERT_TEST_SEED`, or from an arbitrary seed if the variable is not
    /// set. Prints the seed, so a failed test shows it.
    pub fn seeded() -> Self {
        let given = std::env::var("CULVERT_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()) << 32
        });
        eprintln!("CULVERT_TEST_SEED={seed}");
        Self(seed)
    }

    /// Makes a generator from a seed that the caller prints.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Makes a generator of other numbers, for another task.
    pub fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// A number below `len`, which is not 0: an index of as many items.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One of the items, of which there is at least one.
    #[expect(clippy::indexing_slicing, reason = "the index is below the number of items")]
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Puts items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }

    /// Sleeps for less than `most` ms.
    pub fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most)));
    }
}
