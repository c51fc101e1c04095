//! Hosts in network namespaces with a real etcd.

#![expect(
    clippy::indexing_slicing,
    reason = "an index out of bounds panics, which is a correct failure of a test"
)]

mod article;
mod assistants;
mod attacks;
mod bad_input;
mod bad_modes;
mod bystander;
mod choice;
mod conntrack;
mod containers;
mod denied;
mod device;
mod differential;
mod firewalls;
mod floating;
mod host_changes;
mod host_routes;
mod hosts;
mod hung;
mod leftovers;
mod lifecycle;
mod many;
mod map_entries;
mod modes;
mod mounts;
mod names;
mod nat;
mod nat_packets;
mod neighbours;
mod nodes;
mod offloads;
mod other_vxlan;
mod overlay;
mod packaging;
mod path_mtu;
mod port_holders;
mod ports;
mod privileges;
mod records;
mod two_gateways;
mod upgrade;
mod vpn;
