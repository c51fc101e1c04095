//! Options of an etcd cluster.

use std::{path::PathBuf, time::Duration};

use crate::store::Layout;

/// Connection options of an etcd cluster. Files are read again for each connection.
#[derive(Clone, Debug)]
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
    /// File with the user's password on its first line.
    pub password_file: Option<PathBuf>,
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
