//! What the tests share: hosts in network namespaces, etcd, whole clusters,
//! frames, sockets.

pub mod certs;
pub mod cluster;
pub mod docker;
pub mod etcd;
pub mod netns;
pub mod outside;
pub mod packet;
pub mod probe;
pub mod sock;
pub mod verify;
pub mod wire;
