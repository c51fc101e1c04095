//! The API and the command line, with an agent in memory behind them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod api;
mod binary;
mod fake;
mod flows;
mod run;
mod verbs;
