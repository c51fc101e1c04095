//! The programs under `BPF_PROG_TEST_RUN`: named packet cases that assert the
//! verdict, every byte of the frame, every counter, and every copy that left
//! through another interface.
//!
//! | module | contents |
//! |---|---|
//! | `lab` | namespaces, interfaces, a loaded object and its maps, pooled |
//! | `world` | the hosts and networks that the cases are set in |
//! | `routed` | routed packets and their flows |
//! | `run` | one frame into one program, and the expected result |
//! | `compare` | comparison of frames and counters |
//! | `interfaces` | packet sockets on the far ends |
//! | `live` | programs attached to the interfaces: where redirects go, GSO frames |
//! | `live_nat` | attached programs with routed packets, and the host's own sockets |
//! | `kernel_vxlan` | frames between attached programs and a vxlan device of the kernel |
//! | `races` | two CPUs at once against the tables that the programs write |
//! | `random` | random bytes into every program |
//! | `fuzz` | mutated frames into every program, 10 million in a long test |
//! | `nat_fuzz` | random sequences of packets, compared with a model of the flows |
//! | `coverage` | every drop reason and note has a case |
//! | the others | the cases |

/// Names the cases of a module: a `#[test]` each, and a list for `coverage`.
/// A case that is not named is dead code, which the compiler reports.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        /// The cases of this module.
        pub(crate) const CASES: &[crate::lab::Case] = &[$((stringify!($name), $name),)+];

        mod case {
            $(#[test] #[ignore = "needs root"] fn $name() { crate::lab::with(super::$name); })+
        }
    };
}

#[cfg(test)]
mod additional;
#[cfg(test)]
mod arp;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod blocked;
#[cfg(test)]
mod client;
#[cfg(test)]
mod compare;
#[cfg(test)]
mod coverage;
#[cfg(test)]
mod decap;
#[cfg(test)]
mod denied;
#[cfg(test)]
mod ecn;
#[cfg(test)]
mod encap;
#[cfg(test)]
mod fast;
#[cfg(test)]
mod fdb;
#[cfg(test)]
mod floating;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod flows;
#[cfg(test)]
mod fragments;
#[cfg(test)]
mod from_host;
#[cfg(test)]
mod from_loopback;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod icmp_errors;
#[cfg(test)]
mod inner;
#[cfg(test)]
mod interfaces;
#[cfg(test)]
mod kernel_vxlan;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod live;
#[cfg(test)]
mod live_nat;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod mtu;
#[cfg(test)]
mod nat_fuzz;
#[cfg(test)]
mod nat_in;
#[cfg(test)]
mod nat_out;
#[cfg(test)]
mod nd;
#[cfg(test)]
mod races;
#[cfg(test)]
mod random;
#[cfg(test)]
mod routed;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod run;
#[cfg(test)]
mod source;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod to_host;
#[cfg(test)]
mod tunnel_source;
#[cfg(test)]
mod underlay_out;
#[cfg(test)]
mod world;
#[cfg(test)]
mod xdp;
