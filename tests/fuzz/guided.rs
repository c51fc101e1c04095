//! Inputs that are guided by coverage: an input is kept and changed further if it reaches code that
//! no input before it has reached.
//!
//! The compiler counts how often each region of the code runs (`-C instrument-coverage`), and the
//! counters are in the memory of the program. `cargo xtask test --full guided` compiles the tests
//! in this way.
//!
//! No fuzzing engine is used: cargo-fuzz and bolero need libFuzzer, which is written in C++ and
//! needs a nightly compiler. As for an engine, a target is a function of bytes, and its inputs are
//! files.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use culvert::{
    model::{ROOT, View},
    store::{Change, Entry},
};
use culvert_tests::chaos::{self, Random};

use crate::{
    bodies,
    input::{Input, corpus, mutate},
    packets, records,
};

/// How long each target is tried.
const TIME: Duration = Duration::from_secs(300);
/// Interval of the lines of progress.
const REPORT: Duration = Duration::from_secs(60);
/// Inputs between two reads of the counters: a read takes longer than many inputs.
const BATCH: u64 = 64;

unsafe extern "C" {
    /// The first counter (compiler-rt, `InstrProfiling.h`).
    safe fn __llvm_profile_begin_counters() -> *const u64;
    /// The end of the counters.
    safe fn __llvm_profile_end_counters() -> *const u64;
}

/// The counters of the program, and which of them have counted.
struct Coverage {
    counters: &'static [AtomicU64],
    reached: Vec<bool>,
}

impl Coverage {
    fn new() -> Self {
        let begin = __llvm_profile_begin_counters();
        let end = __llvm_profile_end_counters();
        // SAFETY: both are the bounds of one section of the program, of 64-bit counters.
        let len = unsafe { end.offset_from(begin) }.unsigned_abs();
        // SAFETY: as above. The section is mapped and can be written while the program runs, and
        // is used through atomics alone, except by the increments that the compiler inserts.
        let counters = unsafe { std::slice::from_raw_parts(begin.cast::<AtomicU64>(), len) };
        Self { counters, reached: vec![false; len] }
    }

    /// The counters that have begun to count since the last read.
    fn look(&mut self) -> Vec<usize> {
        let mut new = Vec::new();
        for (index, counter) in self.counters.iter().enumerate() {
            if !self.reached[index] && counter.load(Ordering::Relaxed) != 0 {
                self.reached[index] = true;
                new.push(index);
            }
        }
        new
    }

    fn clear(&self, counters: &[usize]) {
        for index in counters {
            self.counters[*index].store(0, Ordering::Relaxed);
        }
    }

    fn has_counted(&self, index: usize) -> bool {
        self.counters[index].load(Ordering::Relaxed) != 0
    }

    fn sum(&self) -> usize {
        self.reached.iter().filter(|reached| **reached).count()
    }
}

/// Prints the input if the target panics.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            chaos::say(&format!("the input is \"{}\"", self.0.escape_ascii()));
        }
    }
}

fn call(target: fn(&[u8]), bytes: &[u8]) {
    let _shown = Shown(bytes);
    target(bytes);
}

/// Changes an input; the inputs are those from which parts are copied.
type Mutate = fn(&mut Random, &mut Vec<u8>, &[Input]);

/// Tries `target` with changed inputs of the corpus `inputs`, and with changes of the inputs that
/// have reached more code.
fn guide(name: &str, mut inputs: Vec<Input>, change: Mutate, target: fn(&[u8])) {
    let mut random = Random::seeded();
    let mut coverage = Coverage::new();
    for input in &inputs {
        call(target, &input.bytes);
    }
    coverage.look();
    let (given, at_first) = (inputs.len(), coverage.sum());
    let (begun, mut reported, mut tried) = (Instant::now(), Instant::now(), 0);
    while begun.elapsed() < TIME {
        let batch: Vec<Vec<u8>> = (0..BATCH)
            .map(|_| {
                let mut bytes = random.pick(&inputs).bytes.clone();
                change(&mut random, &mut bytes, &inputs);
                bytes
            })
            .collect();
        for bytes in &batch {
            call(target, bytes);
        }
        tried += BATCH;
        let mut new = coverage.look();
        // Runs each input again, to find those that reached the new code.
        for bytes in batch {
            if new.is_empty() {
                break;
            }
            coverage.clear(&new);
            call(target, &bytes);
            let before = new.len();
            new.retain(|index| !coverage.has_counted(*index));
            if new.len() < before {
                inputs.push(Input { name: format!("{name} {tried}"), bytes });
            }
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            chaos::say(&format!("{name}: {tried} inputs, {} kept", inputs.len() - given));
        }
    }
    let (kept, reached) = (inputs.len() - given, coverage.sum() - at_first);
    chaos::say(&format!(
        "{name}: {tried} inputs, {kept} kept; they reach {reached} regions beside {at_first}"
    ));
    // Otherwise the counters had no effect on the inputs.
    assert!(at_first > 0 && kept > 0, "{name}: no input has reached more than the corpus");
}

#[test]
fn guided_packets() {
    fn target(bytes: &[u8]) {
        packets::read(bytes);
    }
    guide("packets", packets::frames(), packets::change, target);
}

#[test]
fn guided_bodies() {
    fn target(bytes: &[u8]) {
        bodies::read(bytes);
    }
    guide("bodies", corpus("bodies"), mutate, target);
}

/// The first line of an input is the key of a record, and the rest its value.
#[test]
fn guided_records() {
    fn target(bytes: &[u8]) {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (key, rest) = bytes.split_at(end);
        let (key, value) = (String::from_utf8_lossy(key).into_owned(), rest.get(1..));
        let value = value.unwrap_or_default().to_vec();
        records::again(&key, &value);
        View::default().apply(&Change::Put(Entry { key, value, mod_revision: 1 }));
    }
    let with_key = |Input { name, bytes }| {
        let bytes = [format!("{ROOT}{name}\n").as_bytes(), &bytes].concat();
        Input { name, bytes }
    };
    guide("records", corpus("records").into_iter().map(with_key).collect(), mutate, target);
}
