//! The connection to the kernel, bound to one network namespace.

use std::{
    fs::File,
    future::Future,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
        NlasIterator,
    },
    packet_route::RouteNetlinkMessage,
    proto::Connection,
    sys::{AsyncSocket, SocketAddr, TokioSocket},
};
use tokio::time::timeout;

use super::{NetlinkError, Result};
use crate::netns::run_in;

/// Timeout of an answer. The kernel answers at once; the timeout covers an answer that cannot be
/// decoded, for which the caller would otherwise wait for ever.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How often a dump is repeated if the kernel's table changed during it.
const DUMP_ATTEMPTS: usize = 8;
/// How long a dump waits for an earlier dump on the same socket.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Receive buffer of a monitor in bytes: it holds bursts of events while the agent is busy.
const MONITOR_BUFFER: usize = 1 << 20;
/// Attribute of an extended acknowledgement that carries its text
/// (`NLMSGERR_ATTR_MSG`, linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Unsolicited messages: events.
pub(super) type Unsolicited = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// rtnetlink in one network namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    namespace: Arc<Namespace>,
}

/// Descriptors of the namespace, opened together with the socket.
#[derive(Debug)]
struct Namespace {
    /// Keeps the namespace alive and lets threads enter it.
    netns: File,
    /// A socket of the namespace, for the ioctls of interfaces.
    control: OwnedFd,
    /// The kernel runs one dump at a time on a socket, and refuses a second one (EBUSY).
    dumping: tokio::sync::Mutex<()>,
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no netlink, or no file descriptor is left.
    pub fn new() -> Result<Self> {
        Self::open(&runtime()?)
    }

    /// Opens a connection in the namespace `netns`. The socket is opened on a new thread that
    /// enters the namespace, so no thread of the runtime changes its namespace.
    ///
    /// # Errors
    /// As [`Netlink::new`]; also if the namespace cannot be entered.
    pub fn in_netns(netns: BorrowedFd<'_>) -> Result<Self> {
        let runtime = runtime()?;
        enter(netns, || Self::open(&runtime))
    }

    fn open(runtime: &tokio::runtime::Handle) -> Result<Self> {
        let failed = |source| NetlinkError::kernel("opening a netlink socket", source);
        let netns = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| failed(errno.into()))?;
        let (handle, _) = connect(runtime, &[]).map_err(failed)?;
        Ok(Self {
            handle,
            namespace: Arc::new(Namespace {
                netns,
                control,
                dumping: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// The namespace of the connection.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.namespace.netns.as_fd()
    }

    /// A socket of the namespace.
    pub(super) fn control(&self) -> BorrowedFd<'_> {
        self.namespace.control.as_fd()
    }

    /// A second connection in the same namespace, subscribed to `groups`.
    pub(super) fn subscribe(&self, groups: &[MulticastGroup]) -> Result<(Handle, Unsolicited)> {
        let runtime = runtime()?;
        enter(self.netns(), || {
            connect(&runtime, groups)
                .map_err(|source| NetlinkError::kernel("subscribing to netlink events", source))
        })
    }

    /// Sends a request. Returns the messages that the kernel sent before its acknowledgement.
    /// `what` names the operation and its object in errors.
    pub(super) async fn request(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        Ok(self.exchange(what, request).await?.0)
    }

    /// Reads a table of the kernel, consistently.
    pub(super) async fn dump(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let _turn = self.namespace.dumping.lock().await;
        for _ in 0..DUMP_ATTEMPTS {
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            match self.exchange(what, request).await {
                Ok((rows, true)) => return Ok(rows),
                Ok((_, false)) => {}
                // An earlier dump whose reader was cancelled has not finished yet.
                Err(error) if error.errno() == Some(Errno::EBUSY) => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Protocol {
            what: what.to_owned(),
            detail: format!("the table changed during each of {DUMP_ATTEMPTS} attempts to read it"),
        })
    }

    /// The messages of an answer, and whether the table was unchanged during the dump.
    async fn exchange(
        &self,
        what: &str,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool)> {
        let protocol = |detail: &str| NetlinkError::Protocol {
            what: what.to_owned(),
            detail: detail.to_owned(),
        };
        let mut handle = self.handle.clone();
        let mut answer =
            handle.request(request).map_err(|_| protocol("the netlink connection is closed"))?;
        let mut messages = Vec::new();
        let mut consistent = true;
        let read = async {
            while let Some(message) = answer.next().await {
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => messages.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        let detail = extended_text(&error.header);
                        return Err(NetlinkError::with_detail(what, error.to_io(), detail));
                    }
                    NetlinkPayload::Overrun(_) => consistent = false,
                    _ => {}
                }
            }
            Ok(())
        };
        timeout(ANSWER_DEADLINE, read)
            .await
            .map_err(|_| protocol("the kernel's answer is missing or cannot be decoded"))??;
        Ok((messages, consistent))
    }
}

/// Runs `open` on a thread inside `netns`.
pub(super) fn enter<T: Send>(
    netns: BorrowedFd<'_>,
    open: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    run_in(netns, open).map_err(|error| NetlinkError::Protocol {
        what: "entering a network namespace".to_owned(),
        detail: error.to_string(),
    })?
}

fn runtime() -> Result<tokio::runtime::Handle> {
    tokio::runtime::Handle::try_current().map_err(|error| NetlinkError::Protocol {
        what: "opening a netlink socket".to_owned(),
        detail: error.to_string(),
    })
}

/// Opens a socket in the calling thread's namespace and hands it to `runtime`.
fn connect(
    runtime: &tokio::runtime::Handle,
    groups: &[MulticastGroup],
) -> io::Result<(Handle, Unsolicited)> {
    // The socket registers with the runtime that is entered at this point.
    let _entered = runtime.enter();
    let (mut connection, handle, events): (Connection<_, TokioSocket>, _, _) =
        rtnetlink::new_multicast_connection(groups)?;
    let socket = connection.socket_mut().socket_mut();
    // Errors come back without a copy of the request but with the extended acknowledgement.
    socket.set_cap_ack(true)?;
    socket.set_ext_ack(true)?;
    if !groups.is_empty() {
        socket.set_rx_buf_sz(i32::try_from(MONITOR_BUFFER).unwrap_or(i32::MAX))?;
    }
    drop(spawn(runtime, connection));
    Ok((handle, events))
}

/// The connection's task ends when its last handle is dropped.
fn spawn(
    runtime: &tokio::runtime::Handle,
    connection: impl Future<Output = ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    runtime.spawn(connection)
}

/// The text in an extended acknowledgement. Attributes follow the request's header (16 bytes);
/// `NETLINK_CAP_ACK` leaves out the rest of the request.
fn extended_text(after_code: &[u8]) -> String {
    let attributes = after_code.get(16..).unwrap_or_default();
    NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::extended_text;

    #[test]
    fn the_text_of_an_extended_acknowledgement_is_found() {
        let mut bytes = vec![0; 16];
        bytes.extend([8, 0, 2, 0, 1, 2, 3, 4]); // another attribute (offset)
        bytes.extend([9, 0, 1, 0, b'o', b'o', b'p', b's', 0, 0, 0, 0]);
        assert_eq!(extended_text(&bytes), "oops");
    }

    #[test]
    fn garbage_in_an_acknowledgement_is_no_text() {
        for length in 0..40 {
            assert_eq!(extended_text(&vec![0xff; length]), "");
        }
    }
}
