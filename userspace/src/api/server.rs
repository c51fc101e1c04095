//! The API server: routes every request to the [`Backend`].

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, FromRequestParts, Path, Query, Request, State},
    http::{Method, StatusCode, Uri, request::Parts},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{sync::watch, time::timeout};

use super::{
    Backend, Listener,
    accept::Spared,
    connections::{self, ConnectionCounts, ConnectionLimits},
    deadline,
    peer::Peer,
    types::{
        AddressChange, Allowed, ApiError, Connect, ContainerCreate, ContainerRow, ContainerState,
        Created, ErrorKind, FdbRow, NatPage, NatRow, NeighRow, NetworkCreate, NetworkInspect,
        NetworkRow, NodeRow, PublishedPorts, Sources, StatsRow, Status, VtepChange, VtepRow,
    },
};
use crate::model::Name;

/// Largest request body, in bytes. The largest valid field, a command line for `ps`, is bounded by
/// the kernel's limit of 2 MiB for arguments.
pub const MAX_BODY: usize = 4 << 20;

/// Time for the body of a request, from its header on.
const BODY: Duration = Duration::from_secs(30);

/// Time that open requests have to finish after the shutdown has begun.
const GRACE: Duration = Duration::from_secs(5);

type Shared = State<Arc<dyn Backend>>;

/// Serves the API on `listener` until `shutdown` completes. Open requests then have 5 s to finish.
/// The socket file is removed before this returns.
///
/// At most 1024 connections are open, at most 64 of them of other users than that of this process.
/// A connection ends that sends no request for 10 s.
pub async fn serve(
    listener: Listener,
    backend: Arc<dyn Backend>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (socket, _guard) = listener.into_tokio()?;
    let (stop, stopping) = watch::channel(false);
    let counts = Arc::new(ConnectionCounts::default());
    let router = router(backend, Arc::clone(&counts));
    let listener = Spared::new(socket);
    let mut serving =
        pin!(connections::serve(listener, router, ConnectionLimits::default(), counts, stopping));
    tokio::select! {
        () = serving.as_mut() => return Ok(()),
        () = shutdown => {}
    }
    // Fails only if `serving` has ended.
    let _ = stop.send(true);
    let _ = timeout(GRACE, serving).await;
    Ok(())
}

fn router(backend: Arc<dyn Backend>, counts: Arc<ConnectionCounts>) -> Router {
    Router::new()
        .route("/v1/networks", get(networks).post(network_create))
        .route("/v1/networks/{name}", get(network_inspect).delete(network_remove))
        .route("/v1/networks/{name}/containers", post(connect))
        .route("/v1/networks/{name}/containers/{container}", delete(disconnect))
        .route("/v1/networks/{name}/addresses", post(address_add).delete(address_remove))
        .route("/v1/containers", get(containers).post(container_create))
        .route("/v1/containers/{name}", delete(container_remove))
        .route("/v1/containers/{name}/state", post(container_state))
        .route("/v1/fdb", get(fdb))
        .route("/v1/neighbours", get(neighbours))
        .route("/v1/nat", get(nat))
        .route("/v1/nat/page", get(nat_page))
        .route("/v1/ports", get(ports))
        .route("/v1/ports/denied", post(ports_deny).delete(ports_allow))
        .route("/v1/vteps", get(vteps).post(vtep_add).delete(vtep_remove))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}", delete(node_remove))
        .route("/v1/stats", get(stats))
        .route("/v1/status", get(status))
        .route("/v1/store/accept", post(store_accept))
        .route("/v1/purge", post(purge))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(from_fn(in_time))
        .layer(Extension(counts))
        .with_state(backend)
}

/// Answers by the instant that the client has named, with or without the backend.
async fn in_time(request: Request, next: Next) -> Response {
    let at = match request.headers().get(deadline::HEADER).map(|at| deadline::parse(at.as_bytes()))
    {
        Some(Err(refusal)) => return refusal.into_response(),
        Some(Ok(at)) => Some(at),
        None => None,
    };
    let changes = request.method() != Method::GET;
    let answer = deadline::answer(at, changes, next.run(request)).await;
    answer.unwrap_or_else(IntoResponse::into_response)
}

impl ErrorKind {
    /// HTTP status of the class.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(Self::new(self.kind, self.message))).into_response()
    }
}

/// The error for a request that the server refuses before it reaches the backend.
fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorKind::Invalid, message)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        ErrorKind::NotFound,
        format!(
            "API request '{method} {}' is unknown to the agent, version {}: \
             use the culvert binary that the agent was started from",
            uri.path(),
            env!("CARGO_PKG_VERSION")
        ),
    )
}

/// Parses the JSON body. The content type is not checked.
async fn body<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let read = timeout(BODY, to_bytes(body, MAX_BODY)).await.map_err(|_| {
        invalid(format!(
            "API request body is incomplete: the whole body within {} s of the header is valid",
            BODY.as_secs()
        ))
    })?;
    let bytes = read.map_err(|error| {
        invalid(format!(
            "API request body cannot be read ({error}): at most {MAX_BODY} bytes are valid"
        ))
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| invalid(format!("API request body is malformed: {error}")))
}

/// Parses the query.
fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    match Query::try_from_uri(uri) {
        Ok(Query(query)) => Ok(query),
        Err(rejection) => {
            Err(invalid(format!("API query is malformed: {}", rejection.body_text())))
        }
    }
}

/// The names in a request's path.
struct Named<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(rejection) => {
                Err(invalid(format!("API request path is malformed: {}", rejection.body_text())))
            }
        }
    }
}

type Answer<T> = Result<Json<T>, ApiError>;
type Done = Result<StatusCode, ApiError>;

/// The status of a success without a body.
fn done(_: ()) -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn network_create(State(backend): Shared, request: Body) -> Answer<Created> {
    let request: NetworkCreate = body(request).await?;
    backend.network_create(request).await.map(Json)
}

async fn networks(State(backend): Shared) -> Answer<Vec<NetworkRow>> {
    backend.networks().await.map(Json)
}

async fn network_inspect(
    State(backend): Shared,
    Named(network): Named<Name>,
) -> Answer<NetworkInspect> {
    backend.network_inspect(&network).await.map(Json)
}

async fn network_remove(State(backend): Shared, Named(network): Named<Name>) -> Done {
    backend.network_remove(&network).await.map(done)
}

async fn connect(
    State(backend): Shared,
    Named(network): Named<Name>,
    request: Body,
) -> Answer<ContainerRow> {
    let request: Connect = body(request).await?;
    backend.connect(&network, request).await.map(Json)
}

async fn disconnect(
    State(backend): Shared,
    Named((network, container)): Named<(Name, Name)>,
) -> Done {
    backend.disconnect(&network, &container).await.map(done)
}

async fn address_add(State(backend): Shared, Named(network): Named<Name>, request: Body) -> Done {
    let request: AddressChange = body(request).await?;
    backend.address_add(&network, request).await.map(done)
}

async fn address_remove(
    State(backend): Shared,
    Named(network): Named<Name>,
    request: Body,
) -> Done {
    let request: AddressChange = body(request).await?;
    backend.address_remove(&network, request).await.map(done)
}

async fn container_create(
    State(backend): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Body,
) -> Answer<ContainerRow> {
    let request: ContainerCreate = body(request).await?;
    peer.may_rerun(&request)?;
    backend.container_create(request).await.map(Json)
}

async fn containers(State(backend): Shared) -> Answer<Vec<ContainerRow>> {
    backend.containers().await.map(Json)
}

async fn container_state(
    State(backend): Shared,
    Named(container): Named<Name>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Body,
) -> Done {
    let mut state: ContainerState = body(request).await?;
    peer.reports(&mut state)?;
    backend.container_state(&container, state).await.map(done)
}

/// Query of `DELETE /v1/containers/NAME` and of `DELETE /v1/nodes/NAME`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    #[serde(default)]
    force: bool,
}

async fn container_remove(State(backend): Shared, Named(container): Named<Name>, uri: Uri) -> Done {
    let removal: Removal = query(&uri)?;
    backend.container_remove(&container, removal.force).await.map(done)
}

async fn fdb(State(backend): Shared) -> Answer<Vec<FdbRow>> {
    backend.fdb().await.map(Json)
}

async fn neighbours(State(backend): Shared) -> Answer<Vec<NeighRow>> {
    backend.neighbours().await.map(Json)
}

async fn nat(State(backend): Shared, uri: Uri) -> Answer<Vec<NatRow>> {
    backend.nat(query(&uri)?).await.map(Json)
}

async fn nat_page(State(backend): Shared, uri: Uri) -> Answer<NatPage> {
    backend.nat_page(query(&uri)?).await.map(Json)
}

async fn ports(State(backend): Shared) -> Answer<PublishedPorts> {
    backend.ports().await.map(Json)
}

async fn ports_deny(State(backend): Shared, request: Body) -> Done {
    let sources: Sources = body(request).await?;
    backend.ports_deny(sources).await.map(done)
}

async fn ports_allow(State(backend): Shared, request: Body) -> Answer<Allowed> {
    let sources: Sources = body(request).await?;
    backend.ports_allow(sources).await.map(Json)
}

async fn vteps(State(backend): Shared) -> Answer<Vec<VtepRow>> {
    backend.vteps().await.map(Json)
}

async fn vtep_add(State(backend): Shared, request: Body) -> Done {
    let request: VtepChange = body(request).await?;
    backend.vtep_add(request).await.map(done)
}

async fn vtep_remove(State(backend): Shared, request: Body) -> Done {
    let request: VtepChange = body(request).await?;
    backend.vtep_remove(request).await.map(done)
}

async fn nodes(State(backend): Shared) -> Answer<Vec<NodeRow>> {
    backend.nodes().await.map(Json)
}

async fn node_remove(State(backend): Shared, Named(name): Named<Name>, uri: Uri) -> Done {
    let removal: Removal = query(&uri)?;
    backend.node_remove(&name, removal.force).await.map(done)
}

async fn stats(State(backend): Shared) -> Answer<Vec<StatsRow>> {
    backend.stats().await.map(Json)
}

async fn status(
    State(backend): Shared,
    Extension(counts): Extension<Arc<ConnectionCounts>>,
) -> Answer<Status> {
    // The backend does not see connections.
    let status = backend.status().await?;
    Ok(Json(Status { connections: counts.now(), ..status }))
}

async fn store_accept(State(backend): Shared) -> Done {
    backend.store_accept().await.map(done)
}

async fn purge(State(backend): Shared) -> Done {
    backend.purge().await.map(done)
}
