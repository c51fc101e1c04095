//! Options of an etcd cluster.

use std::{path::PathBuf, time::Duration};

use crate::store::Layout;

/// Connection options of an etcd cluster.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Endpoints, each `HOST:PORT`, by name or address.
    pub endpoints: Vec<String>,
    /// PEM file of the authority that signed the server's certificate. `None`: no TLS.
    pub ca: Option<PathBuf>,
    /// The client's certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
    /// User name.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// Plaintext beyond the loopback device is permitted.
    pub insecure: bool,
    /// Timeout of one call, all endpoints together.
    pub timeout: Duration,
    /// Layout of the keys. `None`: each prefix is read in one request.
    pub layout: Option<Layout>,
}

impl EtcdOptions {
    /// Default of [`Self::timeout`].
    pub const TIMEOUT: Duration = Duration::from_secs(5);
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password must not appear in logs.
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("ca", &self.ca)
            .field("user", &self.user)
            .field("insecure", &self.insecure)
            .finish_non_exhaustive()
    }
}
