//! The API client: [`Backend`] over the agent's socket.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, header, http::response::Parts};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    Backend, deadline,
    types::{
        AddressChange, Allowed, ApiError, Connect, ContainerCreate, ContainerRow, ContainerState,
        Created, ErrorKind, FdbRow, NatPage, NatQuery, NatRow, NeighRow, NetworkCreate,
        NetworkInspect, NetworkRow, NodeRow, PublishedPorts, Sources, StatsRow, Status, VtepChange,
        VtepRow,
    },
};
use crate::model::Name;

/// Timeout of the agent's answer by default: longer than the agent waits for its store.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before the next attempt to connect to an agent whose backlog is full.
const BUSY: Duration = Duration::from_millis(20);

/// The error when the agent cannot be reached. Each displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The socket does not exist, or no process listens on it because its agent has ended.
    #[error(
        "agent: nobody listens on {}: start it with 'culvert agent' or name its socket with --socket",
        .0.display()
    )]
    NobodyListens(PathBuf),
    /// The socket's mode denies access.
    #[error(
        "agent: permission to use {} is denied: run as root or as a member of its group",
        .0.display()
    )]
    Denied(PathBuf),
    /// The agent does not answer.
    #[error(
        "agent: {}{} has not answered within {}: {}",
        path.display(),
        pid.map(|pid| format!(", pid {pid},")).unwrap_or_default(),
        deadline::seconds(*limit),
        advice(*pid)
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Pid of the agent; `None` if it is in another PID namespace, or accepts no connection.
        pid: Option<i32>,
        /// Time for which the client has waited.
        limit: Duration,
    },
    /// Any other error.
    #[error("agent: {} cannot be connected to: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error of the system call.
        error: io::Error,
    },
}

/// What to do about an agent that does not answer.
fn advice(pid: Option<i32>) -> String {
    match pid.filter(|pid| is_stopped(*pid)) {
        Some(pid) => format!("it is stopped, 'kill -CONT {pid}' lets it go on"),
        None => "look into its log, or give a longer --timeout".to_owned(),
    }
}

/// Whether a process is stopped by a signal or a debugger: its state, field 3 of
/// proc_pid_stat(5), follows the name in parentheses. Read by hand: `agent` has a reader of this
/// file, but is above `api`, and a crate such as procfs would be for one character.
fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

impl From<Unreachable> for ApiError {
    fn from(why: Unreachable) -> Self {
        Self::new(ErrorKind::Unavailable, why.to_string())
    }
}

/// A client of the agent that listens on a socket. It opens a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    /// Timeout of an answer. `None`: no limit.
    timeout: Option<Duration>,
}

impl Client {
    /// Makes a client of the agent at `path`. It connects only on a request, and waits for each
    /// answer for [`DEFAULT_TIMEOUT`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: Some(DEFAULT_TIMEOUT) }
    }

    /// Sets another timeout of an answer. `None`: no limit.
    pub fn with_timeout(self, timeout: Option<Duration>) -> Self {
        Self { timeout, ..self }
    }

    /// The agent's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that an agent listens on the socket and that its mode permits access.
    pub async fn reach(&self) -> Result<(), Unreachable> {
        let agent = AtomicI32::new(0);
        self.within(&agent, self.connection(&agent)).await?.map(drop)
    }

    /// Awaits `work`, at most for the timeout. `agent` is the pid of the agent, or 0.
    async fn within<T>(
        &self,
        agent: &AtomicI32,
        work: impl Future<Output = T>,
    ) -> Result<T, Unreachable> {
        let Some(limit) = self.timeout else { return Ok(work.await) };
        timeout(limit, work).await.map_err(|_| {
            let pid = Some(agent.load(Ordering::Relaxed)).filter(|pid| *pid > 0);
            Unreachable::Silent { path: self.path.clone(), pid, limit }
        })
    }

    /// Connects, and notes the pid of the agent.
    async fn connection(&self, agent: &AtomicI32) -> Result<UnixStream, Unreachable> {
        let path = || self.path.clone();
        loop {
            let error = match UnixStream::connect(&self.path).await {
                Ok(stream) => {
                    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                    agent.store(pid.unwrap_or_default(), Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => error,
            };
            match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::NotADirectory => return Err(Unreachable::NobodyListens(path())),
                io::ErrorKind::PermissionDenied => return Err(Unreachable::Denied(path())),
                // The agent's backlog is full (connect(2)).
                io::ErrorKind::WouldBlock => sleep(BUSY).await,
                _ => return Err(Unreachable::Io { path: path(), error }),
            }
        }
    }

    fn broken(&self, error: impl std::fmt::Display) -> ApiError {
        ApiError::new(
            ErrorKind::Unavailable,
            format!(
                "agent: {} broke off before it answered ({error}): look into its log",
                self.path.display()
            ),
        )
    }

    /// Sends `request` and reads the whole answer.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        agent: &AtomicI32,
    ) -> Result<(Parts, Bytes), ApiError> {
        let stream = TokioIo::new(self.connection(agent).await?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(|e| self.broken(e))?;
        let answer = async {
            let (parts, body) =
                sender.send_request(request).await.map_err(|e| self.broken(e))?.into_parts();
            let body = body.collect().await.map_err(|e| self.broken(e))?;
            Ok((parts, body.to_bytes()))
        };
        tokio::pin!(answer);
        // The connection is polled here and not in a task of its own, so that it ends with the
        // request.
        tokio::select! {
            answer = &mut answer => answer,
            ended = connection => match ended {
                // The connection has ended, so the whole answer has been received.
                Ok(()) => answer.await,
                Err(error) => Err(self.broken(error)),
            },
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ApiError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "culvert")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(limit) = self.timeout {
            request = request.header(deadline::HEADER, deadline::header(limit));
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        let agent = AtomicI32::new(0);
        let (parts, body) = self.within(&agent, self.exchange(request, &agent)).await??;
        let foreign = |error: serde_json::Error| {
            ApiError::new(
                ErrorKind::Internal,
                format!(
                    "agent: {} answered HTTP {} in a form unknown here ({error}): \
                     use the culvert binary that the agent was started from",
                    self.path.display(),
                    parts.status.as_u16()
                ),
            )
        };
        if parts.status == StatusCode::NO_CONTENT {
            return serde_json::from_str("null").map_err(foreign);
        }
        if parts.status.is_success() {
            return serde_json::from_slice(&body).map_err(foreign);
        }
        let refusal: ApiError = serde_json::from_slice(&body).map_err(foreign)?;
        Err(ApiError::new(refusal.kind, refusal.message))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.send(Method::GET, path, None).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        self.send(method, path, Some(body)).await
    }
}

// Names need no escaping in a path: `Name` permits only unreserved characters (RFC 3986 §2.3).
/// A query as in a URL.
fn text_of(query: NatQuery) -> String {
    let NatQuery { container, protocol, address, from } = query;
    // IP addresses need no escaping in a query either.
    let given: Vec<_> = [
        container.map(|name| format!("container={name}")),
        protocol.map(|protocol| format!("protocol={}", protocol.name())),
        address.map(|address| format!("address={address}")),
        from.map(|from| format!("from={from}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    given.join("&")
}

#[async_trait]
impl Backend for Client {
    async fn network_create(&self, request: NetworkCreate) -> Result<Created, ApiError> {
        self.call(Method::POST, "/v1/networks", &request).await
    }

    async fn networks(&self) -> Result<Vec<NetworkRow>, ApiError> {
        self.get("/v1/networks").await
    }

    async fn network_inspect(&self, name: &Name) -> Result<NetworkInspect, ApiError> {
        self.get(&format!("/v1/networks/{name}")).await
    }

    async fn network_remove(&self, name: &Name) -> Result<(), ApiError> {
        self.send(Method::DELETE, &format!("/v1/networks/{name}"), None).await
    }

    async fn connect(&self, network: &Name, request: Connect) -> Result<ContainerRow, ApiError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/containers"), &request).await
    }

    async fn disconnect(&self, network: &Name, container: &Name) -> Result<(), ApiError> {
        let path = format!("/v1/networks/{network}/containers/{container}");
        self.send(Method::DELETE, &path, None).await
    }

    async fn address_add(&self, network: &Name, request: AddressChange) -> Result<(), ApiError> {
        self.call(Method::POST, &format!("/v1/networks/{network}/addresses"), &request).await
    }

    async fn address_remove(&self, network: &Name, request: AddressChange) -> Result<(), ApiError> {
        self.call(Method::DELETE, &format!("/v1/networks/{network}/addresses"), &request).await
    }

    async fn container_create(&self, request: ContainerCreate) -> Result<ContainerRow, ApiError> {
        self.call(Method::POST, "/v1/containers", &request).await
    }

    async fn container_state(&self, name: &Name, state: ContainerState) -> Result<(), ApiError> {
        self.call(Method::POST, &format!("/v1/containers/{name}/state"), &state).await
    }

    async fn containers(&self) -> Result<Vec<ContainerRow>, ApiError> {
        self.get("/v1/containers").await
    }

    async fn container_remove(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        let path = format!("/v1/containers/{name}?force={force}");
        self.send(Method::DELETE, &path, None).await
    }

    async fn fdb(&self) -> Result<Vec<FdbRow>, ApiError> {
        self.get("/v1/fdb").await
    }

    async fn neighbours(&self) -> Result<Vec<NeighRow>, ApiError> {
        self.get("/v1/neighbours").await
    }

    async fn nat(&self, query: NatQuery) -> Result<Vec<NatRow>, ApiError> {
        self.get(&format!("/v1/nat?{}", text_of(query))).await
    }

    async fn nat_page(&self, query: NatQuery) -> Result<NatPage, ApiError> {
        self.get(&format!("/v1/nat/page?{}", text_of(query))).await
    }

    async fn ports(&self) -> Result<PublishedPorts, ApiError> {
        self.get("/v1/ports").await
    }

    async fn ports_deny(&self, sources: Sources) -> Result<(), ApiError> {
        self.call(Method::POST, "/v1/ports/denied", &sources).await
    }

    async fn ports_allow(&self, sources: Sources) -> Result<Allowed, ApiError> {
        self.call(Method::DELETE, "/v1/ports/denied", &sources).await
    }

    async fn vteps(&self) -> Result<Vec<VtepRow>, ApiError> {
        self.get("/v1/vteps").await
    }

    async fn vtep_add(&self, request: VtepChange) -> Result<(), ApiError> {
        self.call(Method::POST, "/v1/vteps", &request).await
    }

    async fn vtep_remove(&self, request: VtepChange) -> Result<(), ApiError> {
        self.call(Method::DELETE, "/v1/vteps", &request).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, ApiError> {
        self.get("/v1/nodes").await
    }

    async fn node_remove(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        self.send(Method::DELETE, &format!("/v1/nodes/{name}?force={force}"), None).await
    }

    async fn stats(&self) -> Result<Vec<StatsRow>, ApiError> {
        self.get("/v1/stats").await
    }

    async fn status(&self) -> Result<Status, ApiError> {
        self.get("/v1/status").await
    }

    async fn store_accept(&self) -> Result<(), ApiError> {
        self.send(Method::POST, "/v1/store/accept", None).await
    }

    async fn purge(&self) -> Result<(), ApiError> {
        self.send(Method::POST, "/v1/purge", None).await
    }
}
