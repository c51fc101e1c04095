//! Hosts in network namespaces with a real etcd.

mod bad_input;
mod containers;
mod lifecycle;
mod nat;
mod nat_packets;
mod overlay;
