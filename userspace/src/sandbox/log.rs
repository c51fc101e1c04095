//! Logs of detached programs, of limited size.
//!
//! A program writes to a pipe, and its supervisor from there to the log. So the file can be
//! replaced between two lines and no byte is lost, as it would be with a copy and a truncation of a
//! file that the program has open. Neither supervisor nor pipe depends on the agent.

mod files;
mod reader;
mod writer;

pub use files::{LogLimits, remove_log};
pub use reader::{LogReader, ReadError};
pub(super) use writer::{LogWriter, Pump, SharedLog, open_log};
