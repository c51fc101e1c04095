//! The maps that the programs write.

pub(crate) mod epoch;
pub(crate) mod flow_table;
pub(crate) mod flows;
pub(crate) mod fragments;
pub(crate) mod heard;
pub(crate) mod learned;
pub(crate) mod path_mtu;
pub(crate) mod queriers;
pub(crate) mod rates;
mod refusals;
pub(crate) mod routes;
mod segments;
mod shares;
mod slots;
