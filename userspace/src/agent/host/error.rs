//! Conversion of errors of other modules to API errors, and blocking work.

use crate::{
    api::types::{ApiError, ErrorKind},
    datapath::DatapathError,
    netlink::NetlinkError,
    netns::NetnsError,
    sandbox::SandboxError,
};

/// The API error for an error of netlink.
pub(super) fn refused(error: NetlinkError) -> ApiError {
    let kind = match &error {
        NetlinkError::NoSuchInterface(_) => ErrorKind::NotFound,
        NetlinkError::NameTaken(_) => ErrorKind::Conflict,
        NetlinkError::MalformedName(_) | NetlinkError::Mtu { .. } => ErrorKind::Invalid,
        NetlinkError::NoRoute(_) => ErrorKind::Unavailable,
        NetlinkError::Permission(_)
        | NetlinkError::Kernel { .. }
        | NetlinkError::Protocol { .. } => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// The API error for an error of a sandbox.
pub(super) fn sandbox_refused(error: SandboxError) -> ApiError {
    let kind = match error {
        SandboxError::Netlink(error) => return refused(error),
        SandboxError::Netns(error) => return netns_refused(&error),
        SandboxError::InterfaceTaken { .. }
        | SandboxError::RouteTaken { .. }
        | SandboxError::HopTaken { .. } => ErrorKind::Conflict,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// The API error for an error of a network namespace.
pub(super) fn netns_refused(error: &NetnsError) -> ApiError {
    let kind = match error {
        NetnsError::Taken(_) | NetnsError::Locked(..) => ErrorKind::Conflict,
        NetnsError::Missing(_) | NetnsError::DeadProcess(_) => ErrorKind::NotFound,
        NetnsError::NotNetns(_) | NetnsError::OfHost(_) => ErrorKind::Invalid,
        NetnsError::Permission(_) | NetnsError::Io { .. } => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// The API error for an error of the data plane.
pub(super) fn broken(error: DatapathError) -> ApiError {
    ApiError::new(ErrorKind::Internal, error.to_string())
}

/// Runs `f`, which makes system calls that may take long, on a thread for blocking work.
///
/// # Errors
/// `f` panicked.
pub(super) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("task: {error}")))
}
