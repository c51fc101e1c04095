//! Hosts in network namespaces with a real etcd.

mod bad_input;
mod containers;
mod differential;
mod lifecycle;
mod nat;
mod overlay;
