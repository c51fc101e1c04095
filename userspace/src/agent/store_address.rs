//! The addresses of the store. No network's route may cover them. Those of a store without
//! authentication are closed to containers.
//!
//! Packets from containers to other hosts leave with the address of their host. So a rule that lets
//! hosts reach etcd by their addresses lets containers reach it, too. An etcd that asks neither for
//! a certificate nor for a user then accepts the containers' requests. The programs drop such
//! packets, unless the agent has `--store-for-containers`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;

use super::{host::Host, shared::Shared, state::StoreHandle};
use crate::{
    config::{AgentOptions, StoreAccess},
    store::{StoreUrl, is_loopback},
};

/// Interval at which names of members of the store are looked up again.
const EVERY: Duration = Duration::from_secs(60);
/// Interval while a name is not found.
const AGAIN: Duration = Duration::from_secs(5);
/// Prefix of the keys of the problems.
const PROBLEMS: &str = "store-address/";

/// The members of the store, each `HOST:PORT`, if it is an etcd without authentication as far as the
/// agent knows: the agent has neither a certificate nor a user. Whoever reaches such a store controls
/// all hosts. Empty: it is no such etcd.
fn members(options: &AgentOptions) -> Vec<String> {
    let StoreAccess { cert, user, .. } = &options.store_access;
    match options.store.parse::<StoreUrl>() {
        Ok(StoreUrl::Etcd(members)) if cert.is_none() && user.is_none() => members,
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// The members of the store that are closed to containers, each `HOST:PORT`.
fn closed(options: &AgentOptions) -> Vec<String> {
    if options.store_access.for_containers { Vec::new() } else { members(options) }
}

/// Whether ports of the store are closed to containers.
pub(super) fn closes_ports(options: &AgentOptions) -> bool {
    !closed(options).is_empty()
}

/// Whether the agent uses an etcd without authentication beyond the loopback device.
pub(super) fn is_exposed(options: &AgentOptions) -> bool {
    members(options).iter().any(|member| !is_loopback(member))
}

/// The members of the store that are given by name, each `HOST:PORT`.
fn named(store: &str) -> Vec<String> {
    match store.parse::<StoreUrl>() {
        Ok(StoreUrl::Etcd(mut members)) => {
            members.retain(|member| member.parse::<SocketAddr>().is_err());
            members
        }
        Ok(StoreUrl::File(_)) | Err(_) => Vec::new(),
    }
}

/// Looks up the addresses of `members`, all at the same time: a name server that does not answer
/// delays no other name. Returns the number of members whose names are found.
async fn look_up(members: &[String], store: &StoreHandle) -> usize {
    let each = members.iter().map(|member| async move {
        let Ok(found) = tokio::net::lookup_host(member.as_str()).await else { return false };
        store.note_addresses(member, found.map(|address| address.ip()).collect());
        true
    });
    join_all(each).await.into_iter().filter(|is_found| *is_found).count()
}

/// Keeps the addresses known of the members of the store that are given by name, until the agent
/// stops. A name that cannot be resolved is not reported here: the store is reported as
/// unreachable.
pub(super) async fn learn(shared: Arc<Shared>) {
    let names = named(&shared.options.store);
    while !names.is_empty() {
        let found = tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            found = look_up(&names, &shared.store) => found,
        };
        let pause = if found == names.len() { EVERY } else { AGAIN };
        tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Keeps the members of the store closed to containers, until the agent stops. A member whose name is
/// not found is a problem.
pub(super) async fn keep(shared: Arc<Shared>, host: Arc<Host>) {
    let closed = closed(&shared.options);
    // An address is looked up without a name server.
    let (addresses, names): (Vec<String>, Vec<String>) =
        closed.into_iter().partition(|member| member.parse::<SocketAddr>().is_ok());
    let has_names = !names.is_empty();
    let mut known = BTreeMap::new();
    resolve(&addresses, &mut known).await;
    if has_names {
        close(&host, &known, false).await;
    }
    loop {
        let problems = tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            problems = resolve(&names, &mut known) => problems,
        };
        close(&host, &known, problems.is_empty()).await;
        let pause = if problems.is_empty() { EVERY } else { AGAIN };
        shared.shown.problems.set_below(PROBLEMS, problems);
        if !has_names {
            return;
        }
        tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Closes the `known` addresses, see [`Host::close_store`].
async fn close(host: &Host, known: &BTreeMap<String, Vec<SocketAddrV4>>, are_all: bool) {
    let addresses = known.values().flatten().copied().collect();
    if let Err(error) = host.close_store(addresses, are_all).await {
        // The engine writes the map again, and reports why it failed.
        tracing::debug!("store: {}", error.message);
    }
}

/// Looks up the addresses of `members`, and puts them into `known`, which keeps the former addresses
/// of a member that is not found. Returns the problems by key.
async fn resolve(
    members: &[String],
    known: &mut BTreeMap<String, Vec<SocketAddrV4>>,
) -> BTreeMap<String, String> {
    let mut problems = BTreeMap::new();
    for member in members {
        match tokio::net::lookup_host(member.as_str()).await {
            Ok(found) => {
                let v4 = found.filter_map(|address| match address.ip() {
                    IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, address.port())),
                    // Containers reach no IPv6 addresses beyond their network.
                    IpAddr::V6(ip) if ip.is_loopback() => {
                        Some(SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port()))
                    }
                    IpAddr::V6(_) => None,
                });
                known.insert(member.clone(), v4.collect());
            }
            Err(error) if !known.contains_key(member) => {
                let line = format!(
                    "store: the address of {member} is not found ({error}), so containers are not kept from it"
                );
                problems.insert(format!("{PROBLEMS}{member}"), line);
            }
            Err(_) => {}
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn members_with_a_name_are_told_from_addresses() {
        let names = named("etcd://192.0.2.1:2379,etcd.example:2379,[::1]:2380,etcd2:2379");
        assert_eq!(names, ["etcd.example:2379", "etcd2:2379"]);
        assert!(named("file:/var/lib/culvert/store").is_empty());
    }

    #[tokio::test]
    async fn addresses_of_names_that_are_not_found_stay() {
        let store = StoreHandle::default();
        let (one, absent) = ("192.0.2.1:2379".to_owned(), "store.invalid".to_owned());
        store.note_addresses(&absent, [IpAddr::from([192, 0, 2, 9])].into());
        store.addresses_changed().await;
        // Addresses are found without a name server. One without a port is refused without it.
        let members = [one, absent];
        assert_eq!(look_up(&members, &store).await, 1);
        store.addresses_changed().await;
        assert_eq!(look_up(&members, &store).await, 1);
        assert_eq!(store.addresses_changed().now_or_never(), None, "nothing has changed");
        let known: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 9].into()];
        assert_eq!(store.named_addresses(), known);
    }

    #[tokio::test]
    async fn members_are_looked_up_and_kept() {
        let members = ["192.0.2.1:2379", "[::1]:2380", "[2001:db8::1]:2379"].map(str::to_owned);
        let mut known = BTreeMap::new();
        assert_eq!(resolve(&members, &mut known).await, BTreeMap::new());
        let mut found: Vec<SocketAddrV4> = known.values().flatten().copied().collect();
        found.sort();
        let expected: Vec<SocketAddrV4> =
            ["127.0.0.1:2380", "192.0.2.1:2379"].map(|at| at.parse().unwrap()).to_vec();
        assert_eq!(found, expected);
        // An address without a port is refused without a name server.
        let absent = "store.invalid".to_owned();
        let problems = resolve(std::slice::from_ref(&absent), &mut known).await;
        let lines: Vec<&String> = problems.values().collect();
        assert!(lines.iter().any(|line| line.contains("address of store.invalid")), "{lines:?}");
        // Addresses that were found once stay.
        known.insert(absent.clone(), vec!["192.0.2.9:2379".parse().unwrap()]);
        assert_eq!(resolve(std::slice::from_ref(&absent), &mut known).await, BTreeMap::new());
        assert_eq!(known[&absent].len(), 1);
    }
}
