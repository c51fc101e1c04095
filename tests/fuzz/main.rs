//! Mutated input for the parsers: headers of packets, records of the store and bodies of API
//! requests. No input makes a parser panic. An accepted record or body survives a round trip:
//! written and read again, it is the same.
//!
//! `corpus` has valid inputs. Each run changes them at random; `CULVERT_TEST_SEED` repeats the
//! order. With `CULVERT_TEST_FULL` there are at least 100 times as many mutated inputs. `cargo
//! xtask test --full guided` keeps those that reach more code. `tests/prog_run/fuzz` sends mutated
//! frames through the whole programs.

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
