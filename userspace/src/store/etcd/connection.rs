//! Connections to the endpoints of a cluster, and failover between them.
//!
//! Each endpoint has a client of its own. Calls go to one endpoint until it fails. A balanced
//! channel would send a share of the calls to an endpoint that is down.

use std::{
    fmt,
    future::Future,
    io,
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::sync::Mutex;

use super::{error, options::EtcdOptions};
use crate::store::{StoreError, host_of};

/// Interval of HTTP/2 pings: etcd closes connections that ping more often than every 5 s
/// (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// Timeout of a ping's answer.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two attempts while the cluster elects a leader.
const ELECTION_PAUSE: Duration = Duration::from_millis(100);

/// The largest answer that is accepted, in bytes. A key range of a list is one answer. The events
/// of up to 1000 revisions are one answer to a watch that lags.
pub(super) const MAX_ANSWER: usize = 1 << 30;

/// Whether a call that failed may be sent to the next endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The call may be sent twice.
    Always,
    /// Only if the call was not sent: a transaction that was sent may have been applied, and a
    /// second one would then conflict with the first.
    IfUnsent,
}

/// Clients for all endpoints.
#[derive(Clone)]
pub(super) struct Connections {
    endpoints: Arc<Vec<Endpoint>>,
    current: Arc<AtomicUsize>,
    /// Timeout of one endpoint if there are others to try.
    share: Duration,
    /// Timeout of one call, all endpoints together.
    timeout: Duration,
}

struct Endpoint {
    /// `HOST:PORT`.
    name: String,
    url: String,
    source: Arc<EtcdOptions>,
    client: Mutex<Option<Client>>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.names()).finish()
    }
}

impl Connections {
    pub(super) async fn new(options: &EtcdOptions) -> Result<Self, StoreError> {
        if options.endpoints.is_empty() {
            return Err(refused("no endpoint: etcd://HOST:PORT is valid"));
        }
        if options.ca.is_none() && !options.insecure {
            // Without TLS every host on the network path can read and write the state.
            if let Some(far) = options.endpoints.iter().find(|endpoint| !is_loopback(endpoint)) {
                return Err(refused(format!(
                    "endpoint {far} would be spoken to in plaintext beyond this host: give --store-ca for TLS, or --insecure-store to permit it"
                )));
            }
        }
        // The options are read once at the start, so that wrong options are refused at once.
        connect_options(options).await?;
        let source = Arc::new(options.clone());
        let scheme = if options.ca.is_some() { "https" } else { "http" };
        let endpoints: Vec<_> = options
            .endpoints
            .iter()
            .map(|name| Endpoint {
                name: name.clone(),
                url: format!("{scheme}://{name}"),
                source: Arc::clone(&source),
                client: Mutex::new(None),
            })
            .collect();
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        let share = options.timeout / count.max(1);
        Ok(Self {
            endpoints: Arc::new(endpoints),
            current: Arc::new(AtomicUsize::new(0)),
            share,
            timeout: options.timeout,
        })
    }

    /// Timeout of one call, all endpoints together.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Awaits a call for at most the timeout.
    ///
    /// # Errors
    ///
    /// The error of the call, or [`StoreError::Unavailable`].
    pub(super) async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Unavailable(format!(
                "{} did not answer within {:?}",
                self.names(),
                self.timeout
            ))),
        }
    }

    /// The endpoints, for error messages.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        format!("etcd {}", names.join(","))
    }

    /// The endpoint that receives the calls.
    pub(super) fn current_name(&self) -> String {
        self.endpoints
            .get(self.current.load(Ordering::Relaxed) % self.endpoints.len())
            .map_or_else(String::new, |endpoint| endpoint.name.clone())
    }

    /// Sends a call to the current endpoint, and to the next ones as long as `repeat` permits. Asks
    /// all again while the cluster elects a leader, for at most half of the timeout.
    pub(super) async fn call<T, F, Fut>(&self, repeat: Repeat, call: F) -> Result<T, StoreError>
    where
        F: Fn(Client) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
        T: Send,
    {
        let end = Instant::now() + self.timeout / 2;
        loop {
            let failure = match self.ask_each(repeat, &call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if !failure.election || Instant::now() >= end {
                return Err(failure.error);
            }
            tokio::time::sleep(ELECTION_PAUSE).await;
        }
    }

    /// Sends a call to each endpoint in turn until one answers, as long as `repeat` permits.
    async fn ask_each<T, F, Fut>(&self, repeat: Repeat, call: &F) -> Result<T, Failure>
    where
        F: Fn(Client) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
        T: Send,
    {
        let count = self.endpoints.len();
        let mut failures: Vec<String> = Vec::new();
        let mut election = false;
        let first = self.current.load(Ordering::Relaxed);
        for (index, endpoint) in
            self.endpoints.iter().enumerate().cycle().skip(first % count).take(count)
        {
            let last = failures.len() + 1 == count;
            let mut sent = false;
            let attempt = async {
                let client = endpoint.client().await?;
                sent = true;
                match call(client).await {
                    // The password was changed, and with it perhaps the file. A new client has read
                    // the file, so its refusal is final.
                    Err(error) if error::is_refused_login(&error) => {
                        endpoint.forget().await;
                        sent = false;
                        let client = endpoint.client().await?;
                        sent = true;
                        call(client).await
                    }
                    result => result,
                }
            };
            // The last endpoint may use the rest of the call's timeout.
            let result = if last {
                attempt.await
            } else {
                match tokio::time::timeout(self.share, attempt).await {
                    Ok(result) => result,
                    Err(_) => {
                        self.leave(index);
                        let why =
                            format!("etcd {}: no answer within {:?}", endpoint.name, self.share);
                        if sent && repeat == Repeat::IfUnsent {
                            return Err(StoreError::Unavailable(why).into());
                        }
                        failures.push(why);
                        continue;
                    }
                }
            };
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let failed = error::translate(&endpoint.name, &error);
            let unreachable = matches!(failed, StoreError::Unavailable(_));
            // A client connects again by itself, but with the certificate that it read first. A server
            // without a leader has a connection.
            let is_lost = unreachable && !error::is_election(&error);
            if error::is_stale_login(&error) || (is_lost && endpoint.source.ca.is_some()) {
                endpoint.forget().await;
            }
            match failed {
                StoreError::Refused(why) if error::is_refused_login(&error) => {
                    return Err(StoreError::Refused(endpoint.name_password(why)).into());
                }
                StoreError::Unavailable(why) => {
                    self.leave(index);
                    if repeat == Repeat::IfUnsent && sent && !error::had_no_effect(&error) {
                        return Err(StoreError::Unavailable(why).into());
                    }
                    election |= error::is_election(&error);
                    failures.push(why);
                }
                other => return Err(other.into()),
            }
        }
        let failures = failures.join("; ");
        let error = match repeat {
            Repeat::Always => StoreError::Unavailable(failures),
            // A call that may have had an effect has returned its error above.
            Repeat::IfUnsent => StoreError::Unsent(failures),
        };
        Err(Failure { error, election })
    }

    /// Makes the next endpoint the current one, unless another call has already done so.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.endpoints.len();
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Why no endpoint answered a call.
struct Failure {
    error: StoreError,
    /// Whether an endpoint has no leader, and the call may be sent again.
    election: bool,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, election: false }
    }
}

impl Endpoint {
    /// The client, made at first use: a login needs the server. The files of the certificates and
    /// of the password are read again for each client: they are renewed while the agent runs.
    async fn client(&self) -> Result<Client, etcd_client::Error> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let options = connect_options(&self.source).await;
        let options =
            options.map_err(|error| etcd_client::Error::IoError(io::Error::other(error)))?;
        let client = Client::connect([&self.url], Some(options)).await?;
        Ok(slot.insert(client).clone())
    }

    /// Makes the next call connect and log in again.
    async fn forget(&self) {
        *self.client.lock().await = None;
    }

    /// The line `why` about a refused login, with the file that has the password.
    fn name_password(&self, why: String) -> String {
        match &self.source.password_file {
            Some(path) => format!(
                "{why}: --store-password-file {} needs the password of --store-user on its first line, and is read again for each login",
                path.display()
            ),
            None => why,
        }
    }
}

/// The options of a client. Reads the files of the certificates and of the password.
async fn connect_options(options: &EtcdOptions) -> Result<ConnectOptions, StoreError> {
    let mut connect = ConnectOptions::new()
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(options.timeout / 2)
        // A member without a majority then refuses calls; otherwise it would not answer.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    match (&options.user, &options.password_file) {
        (Some(user), Some(path)) => connect = connect.with_user(user, password(path).await?),
        (Some(user), None) => {
            return Err(refused(format!(
                "user '{user}' has no password: give --store-password-file, too"
            )));
        }
        (None, Some(_)) => {
            return Err(refused("there is a password without a user: give --store-user, too"));
        }
        (None, None) => {}
    }
    Ok(match tls(options).await? {
        Some(tls) => connect.with_tls(tls),
        None => connect,
    })
}

/// Reads the certificates.
async fn tls(options: &EtcdOptions) -> Result<Option<TlsOptions>, StoreError> {
    let Some(ca) = &options.ca else {
        return match (&options.cert, &options.key) {
            (None, None) => Ok(None),
            _ => Err(refused(
                "a client certificate needs TLS: give --store-ca for the server's, too",
            )),
        };
    };
    let mut tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(pem("--store-ca", ca, "CERTIFICATE").await?));
    match (&options.cert, &options.key) {
        (None, None) => {}
        (Some(cert), Some(key)) => {
            let cert = pem("--store-cert", cert, "CERTIFICATE").await?;
            let key = pem("--store-key", key, "PRIVATE KEY").await?;
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        (Some(_), None) => return Err(refused("--store-cert needs --store-key, too")),
        (None, Some(_)) => return Err(refused("--store-key needs --store-cert, too")),
    }
    Ok(Some(tls))
}

/// Reads the password.
async fn password(path: &Path) -> Result<String, StoreError> {
    let name = path.display();
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|error| {
        refused(format!("--store-password-file {name} cannot be read: {error}"))
    })?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(refused(format!(
            "--store-password-file {name} has no password: one on its first line is valid"
        ))),
    }
}

async fn pem(option: &str, path: &Path, what: &str) -> Result<Vec<u8>, StoreError> {
    let name = path.display();
    let bytes = tokio::fs::read(path)
        .await
        .map_err(|error| refused(format!("{option} {name} cannot be read: {error}")))?;
    let text = String::from_utf8_lossy(&bytes);
    let marker = format!("{what}-----");
    if text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(&marker)) {
        Ok(bytes)
    } else {
        Err(refused(format!("{option} {name} holds no PEM {what}: a file with one is valid")))
    }
}

fn refused(why: impl Into<String>) -> StoreError {
    StoreError::Refused(why.into())
}

/// Whether `HOST:PORT` is this host, independent of name servers.
pub fn is_loopback(endpoint: &str) -> bool {
    let host = host_of(endpoint);
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        // RFC 6761 §6.3: these names are always loopback.
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoints: &[&str]) -> EtcdOptions {
        EtcdOptions {
            endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            password_file: None,
            insecure: false,
            timeout: Duration::from_secs(1),
            layout: None,
        }
    }

    async fn refusal(options: &EtcdOptions) -> String {
        let error = Connections::new(options).await.expect_err("is refused");
        assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        error.to_string()
    }

    #[test]
    fn loopback_is_told_from_the_rest() {
        for near in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "localhost:1",
            "LOCALHOST.:1",
            "a.localhost:1",
        ] {
            assert!(is_loopback(near), "{near}");
        }
        for far in [
            "10.0.0.1:1",
            "[::2]:1",
            "localhost.example.org:1",
            "etcd1:1",
            "0.0.0.0:1",
            "127.example.org:1",
        ] {
            assert!(!is_loopback(far), "{far}");
        }
    }

    #[tokio::test]
    async fn plaintext_beyond_loopback_is_refused_by_name() {
        let mut options = options(&["127.0.0.1:2379", "192.0.2.1:2379"]);
        let line = refusal(&options).await;
        assert!(line.contains("192.0.2.1:2379") && line.contains("--insecure-store"), "{line}");
        options.insecure = true;
        assert!(Connections::new(&options).await.is_ok());
    }

    #[tokio::test]
    async fn options_that_do_not_go_together_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("x.pem");
        std::fs::write(&file, "no PEM").expect("write");
        let base = options(&["127.0.0.1:2379"]);

        let cert = EtcdOptions { cert: Some(file.clone()), ..base.clone() };
        assert!(refusal(&cert).await.contains("--store-ca"));
        let missing = EtcdOptions { ca: Some(dir.path().join("none")), ..base.clone() };
        assert!(refusal(&missing).await.contains("cannot be read"));
        let garbage = EtcdOptions { ca: Some(file.clone()), ..base.clone() };
        assert!(refusal(&garbage).await.contains("no PEM CERTIFICATE"));
        let user = EtcdOptions { user: Some("u".to_owned()), ..base.clone() };
        assert!(refusal(&user).await.contains("--store-password-file"));
        let password = EtcdOptions { password_file: Some(file.clone()), ..base.clone() };
        assert!(refusal(&password).await.contains("--store-user"));
        let with =
            |path: &Path| EtcdOptions { password_file: Some(path.to_owned()), ..user.clone() };
        assert!(Connections::new(&with(&file)).await.is_ok());
        let missing = with(&dir.path().join("none"));
        assert!(refusal(&missing).await.contains("none cannot be read"));
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "\nsecond line").expect("write");
        assert!(refusal(&with(&empty)).await.contains("has no password"));
        assert!(refusal(&options(&[])).await.contains("no endpoint"));
    }
}
