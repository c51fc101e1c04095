//! Mutated input of others into the parsers: records of the store and bodies of API requests.
//! Nothing makes them panic, and what they accept they read again as they write it.
//!
//! `corpus` has valid inputs. Each run changes them at random; `CULVERT_TEST_SEED` repeats the
//! order. With `CULVERT_TEST_FULL` there are 100 times as many. Packets are in
//! `common/src/datapath/tests` and in `tests/prog_run/fuzz`.

#[cfg(test)]
mod bodies;
#[cfg(test)]
mod input;
#[cfg(test)]
mod records;
