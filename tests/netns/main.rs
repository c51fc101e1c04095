//! Hosts in network namespaces with a real etcd.

mod article;
mod bad_input;
mod containers;
mod lifecycle;
mod nat;
mod overlay;
