//! Hosts in network namespaces, on one underlay, with etcd and an agent each, and an external host
//! behind a router: the [testbed](culvert_testbed) as the demo shows it and the lab leaves it
//! running.
//!
//! All of it runs inside an [`enclosure`]: a process namespace, a mount namespace and a network
//! namespace of its own. When the enclosure's first process ends, the kernel ends every other
//! process and drops every namespace, device, program and mount in it. So nothing is left behind,
//! also after a crash, and the machine itself is not changed.

pub(crate) mod enclosure;
mod etcd;
pub(crate) mod external;
mod host;
mod places;
mod underlay;

pub(crate) use etcd::Etcd;
pub(crate) use host::{Host, HostPlan};
pub(crate) use places::{path, store};
pub(crate) use underlay::Underlay;
