//! Support.

pub mod etcd;
