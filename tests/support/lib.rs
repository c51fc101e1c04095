//! What the tests share: hosts in network namespaces, etcd.

pub mod etcd;
pub mod netns;
