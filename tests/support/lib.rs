//! What the tests share: hosts in network namespaces, etcd, whole clusters,
//! frames.

pub mod certs;
pub mod cluster;
pub mod etcd;
pub mod netns;
pub mod packet;
