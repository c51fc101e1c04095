//! The API client: [`Backend`] over the agent's socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, header, http::response::Parts};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    Backend,
    types::{
        ApiError, Connect, ContainerCreate, ContainerRow, ContainerState, Created, ErrorKind,
        FdbRow, NatQuery, NatRow, NeighRow, NetworkCreate, NetworkInspect, NetworkRow, StatsRow,
        Status, VtepChange, VtepRow,
    },
};
use crate::model::Name;

/// Timeout of the agent's answer, longer than any timeout in the agent.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The error when the agent cannot be reached. Each displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The socket does not exist, or is a stale one of an agent that ended.
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
    /// Any other error.
    #[error("agent: {} cannot be connected to: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error of the system call.
        error: io::Error,
    },
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
    timeout: Duration,
}

impl Client {
    /// Makes a client of the agent at `path`. It connects only on a request.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: TIMEOUT }
    }

    /// As above, with another timeout of an answer.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The agent's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that an agent listens on the socket and that its mode permits access.
    pub async fn reach(&self) -> Result<(), Unreachable> {
        self.connection().await.map(drop)
    }

    async fn connection(&self) -> Result<UnixStream, Unreachable> {
        let path = || self.path.clone();
        UnixStream::connect(&self.path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotADirectory => Unreachable::NobodyListens(path()),
            io::ErrorKind::PermissionDenied => Unreachable::Denied(path()),
            _ => Unreachable::Io { path: path(), error },
        })
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
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(Parts, Bytes), ApiError> {
        let stream = TokioIo::new(self.connection().await?);
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
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "culvert")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        let exchange = tokio::time::timeout(self.timeout, self.exchange(request));
        let (parts, body) = exchange.await.map_err(|_| {
            ApiError::new(
                ErrorKind::Unavailable,
                format!(
                    "agent: {} has not answered within {} s: look into its log",
                    self.path.display(),
                    self.timeout.as_secs()
                ),
            )
        })??;
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
        let NatQuery { container, protocol, address } = query;
        // Addresses need no escaping either.
        let given: Vec<_> = [
            container.map(|name| format!("container={name}")),
            protocol.map(|protocol| format!("protocol={}", protocol.name())),
            address.map(|address| format!("address={address}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        self.get(&format!("/v1/nat?{}", given.join("&"))).await
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

    async fn stats(&self) -> Result<Vec<StatsRow>, ApiError> {
        self.get("/v1/stats").await
    }

    async fn status(&self) -> Result<Status, ApiError> {
        self.get("/v1/status").await
    }

    async fn purge(&self) -> Result<(), ApiError> {
        self.send(Method::POST, "/v1/purge", None).await
    }
}
