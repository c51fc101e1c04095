//! The kernel's helpers and context fields behind safe functions. Nearly all `unsafe` code of
//! the programs is here.

pub(crate) mod fib;
pub(crate) mod memory;
pub(crate) mod redirect;
pub(crate) mod skb;
pub(crate) mod socket;
pub(crate) mod time;
