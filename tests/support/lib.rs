//! What the tests share: hosts in network namespaces.

pub mod netns;
