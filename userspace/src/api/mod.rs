//! How people and scripts talk to the agent: HTTP with JSON on a unix socket.

mod backend;
pub mod types;

pub use backend::Backend;
