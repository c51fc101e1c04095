//! Packet decisions.
