//! Mutated input of others into the parsers: headers of packets, records of the store and bodies of
//! API requests. Nothing makes them panic, and the records and bodies that they accept they read
//! again as they write them.
//!
//! `corpus` has valid inputs. Each run changes them at random; `CULVERT_TEST_SEED` repeats the
//! order. With `CULVERT_TEST_FULL` there are 100 times as many or more. `cargo xtask test --full
//! guided` keeps those that reach more code. The programs as a whole get mutated frames in
//! `tests/prog_run/fuzz`.

#[cfg(test)]
mod bodies;
#[cfg(all(test, culvert_coverage))]
mod guided;
#[cfg(test)]
mod input;
#[cfg(test)]
mod packets;
#[cfg(test)]
mod records;
