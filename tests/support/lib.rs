//! What the tests share: hosts in network namespaces, etcd, whole clusters.

pub mod cluster;
pub mod etcd;
pub mod netns;
