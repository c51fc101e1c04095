//! One module per verb.

pub(crate) mod article;
pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod check;
pub(crate) mod clean;
pub(crate) mod demo;
pub(crate) mod inside;
pub(crate) mod lab;
pub(crate) mod run;
pub(crate) mod setup;
pub(crate) mod stack;
pub(crate) mod test;
