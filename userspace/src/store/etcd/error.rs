//! Translation of etcd's errors.

use std::{error::Error as _, io};

use etcd_client::Error;

use crate::{limits::name_limit, store::StoreError};

/// Translates an error of `endpoint`.
pub(super) fn translate(endpoint: &str, error: &Error) -> StoreError {
    let unavailable = |why: &str| StoreError::Unavailable(format!("etcd {endpoint}: {why}"));
    match error {
        Error::GRpcStatus(status) => {
            // The type of the code is not exported; its number is gRPC's status code (grpc/grpc
            // doc/statuscodes.md).
            let code = i32::from(status.code());
            let message = status.message();
            match code {
                // Cancelled, Unknown, DeadlineExceeded, Aborted, Internal, Unavailable, DataLoss.
                1 | 2 | 4 | 10 | 13 | 14 | 15 => match status.source() {
                    Some(source) => unavailable(&root(source)),
                    None => translate_reason(endpoint, message),
                },
                _ => translate_reason(endpoint, message),
            }
        }
        Error::LeaseKeepAliveError(why) if why.contains("lease not found") => {
            StoreError::LeaseGone(0)
        }
        Error::TransportError(transport) => unavailable(&root(transport)),
        Error::IoError(error) => unavailable(&error.to_string()),
        Error::InvalidArgs(why) => StoreError::Refused(format!("etcd {endpoint}: {why}")),
        Error::InvalidUri(why) => StoreError::Refused(format!("etcd {endpoint}: {why}")),
        other => unavailable(&one_line(&other.to_string())),
    }
}

/// Translates a server's error message (etcd's `rpctypes/error.go`).
pub(super) fn translate_reason(endpoint: &str, message: &str) -> StoreError {
    let line = format!("etcd {endpoint}: {}", one_line(message.trim_start_matches("etcdserver: ")));
    let says = |part: &str| message.contains(part);
    if says("required revision has been compacted") {
        StoreError::Compacted { oldest: 0 }
    } else if says("requested lease not found") {
        StoreError::LeaseGone(0)
    } else if is_stale(message) {
        StoreError::Unavailable(line)
    } else if says("authentication")
        || says("permission denied")
        || says("user name is empty")
        || says("duplicate key")
        || says("too many operations")
        || says("request is too large")
        || says("database space exceeded")
        || says("too large TTL")
    {
        StoreError::Refused(line)
    } else {
        // No leader, leader changed, timeout, too many requests, a revision that a lagging member
        // does not have yet, and error messages that this build does not know.
        StoreError::Unavailable(line)
    }
}

/// Whether the server no longer accepts the login token, because its users or roles changed. The
/// next login succeeds, so this is not a refusal.
pub(super) fn is_stale_login(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if is_stale(status.message()))
}

/// Whether the server refused user and password. It has then carried out no request: the client
/// logs in before the first one, and again after the server has refused its token.
pub(super) fn is_refused_login(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if is_refused(status.message()))
}

fn is_refused(message: &str) -> bool {
    message.contains("authentication failed")
}

fn is_stale(message: &str) -> bool {
    message.contains("revision of auth store is old") || message.contains("invalid auth token")
}

/// Whether the request behind an error certainly had no effect: it did not reach a server, or the
/// server refused it before it was proposed to the cluster.
pub(super) fn had_no_effect(error: &Error) -> bool {
    is_unreached(error)
        || matches!(error, Error::GRpcStatus(status) if is_unproposed(status.message()))
}

/// Whether the server lacks a leader. A cluster elects one within about a second.
pub(super) fn is_election(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if is_unproposed(status.message()) || status.message().contains("leader changed"))
}

/// etcd compares its leader with none before it handles a request that requires one
/// (`etcdserver/api/v3rpc/interceptor.go`). Raft drops a proposal only on the server that received
/// it (`raft.ErrProposalDropped`).
fn is_unproposed(message: &str) -> bool {
    message.ends_with("no leader") || message.ends_with("raft proposal dropped")
}

/// Whether the request behind an error certainly did not reach a server.
fn is_unreached(error: &Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(transport) => Some(transport),
        _ => None,
    };
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::AddrNotAvailable
            )
        }) {
            return true;
        }
        source = error.source();
    }
    false
}

/// The innermost cause: the outer errors only read "transport error".
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match innermost.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
        Some(errno) => one_line(&name_limit(io::Error::from_raw_os_error(errno)).to_string()),
        None => one_line(&innermost.to_string()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_password_is_told_from_other_refusals() {
        assert!(is_refused("etcdserver: authentication failed, invalid user ID or password"));
        for other in [
            "etcdserver: permission denied",
            "etcdserver: invalid auth token",
            "etcdserver: authentication is not enabled",
            "etcdserver: user name is empty",
        ] {
            assert!(!is_refused(other), "{other}");
        }
    }

    #[test]
    fn a_request_that_was_not_proposed_is_told_from_one_in_doubt() {
        for refused in ["etcdserver: no leader", "raft proposal dropped"] {
            assert!(is_unproposed(refused), "{refused}");
        }
        for in_doubt in [
            "etcdserver: leader changed",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: request timed out",
        ] {
            assert!(!is_unproposed(in_doubt), "{in_doubt}");
        }
    }

    #[test]
    fn what_the_server_says_is_told_apart() {
        let translate = |message: &str| translate_reason("h:1", message);
        assert!(matches!(
            translate("etcdserver: mvcc: required revision has been compacted"),
            StoreError::Compacted { oldest: 0 }
        ));
        assert!(matches!(
            translate("etcdserver: requested lease not found"),
            StoreError::LeaseGone(0)
        ));
        for refusal in [
            "etcdserver: permission denied",
            "etcdserver: authentication failed, invalid user ID or password",
            "etcdserver: user name is empty",
            "etcdserver: too many operations in txn request",
            "etcdserver: mvcc: database space exceeded",
        ] {
            assert!(matches!(translate(refusal), StoreError::Refused(_)), "{refusal}");
        }
        for passing in [
            "etcdserver: no leader",
            "etcdserver: leader changed",
            "etcdserver: request timed out",
            "etcdserver: too many requests",
            "etcdserver: invalid auth token",
            "etcdserver: revision of auth store is old",
            "etcdserver: mvcc: required revision is a future revision",
            "something new\nin two lines",
            "",
        ] {
            let error = translate(passing);
            assert!(matches!(error, StoreError::Unavailable(_)), "{passing}");
            assert!(error.to_string().lines().count() == 1 && error.to_string().contains("h:1"));
        }
    }
}
