//! How people and scripts talk to the agent: HTTP with JSON on a unix socket.

pub mod types;
