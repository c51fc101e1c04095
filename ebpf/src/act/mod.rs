//! Actions: the programs change packets and send them.

pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod decap;
pub(crate) mod encap;
pub(crate) mod flood;
pub(crate) mod translate;
pub(crate) mod tunnel;
