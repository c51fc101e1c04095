//! Hosts in network namespaces with a real etcd.

mod overlay;
