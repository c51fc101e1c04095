//! Accepts connections of clients, also when the agent is at its limit of open files.

use std::{fs::File, io, time::Duration};

use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};

/// Number of file descriptors that are reserved for connections.
const SPARE: usize = 8;
/// Pause before the next attempt to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener that reserves file descriptors. An agent at its limit of open files still accepts a
/// connection, and its answer names the limit. Without a descriptor the listener waits and does not
/// spin.
pub(super) struct Spared {
    listener: UnixListener,
    spare: Vec<File>,
}

impl Spared {
    pub(super) fn new(listener: UnixListener) -> Self {
        let mut spared = Self { listener, spare: Vec::new() };
        spared.refill();
        spared
    }

    /// Opens the reserved files again, after a connection that took a descriptor has ended.
    fn refill(&mut self) {
        while self.spare.len() < SPARE {
            let Ok(file) = File::open("/dev/null") else { return };
            self.spare.push(file);
        }
    }
}

impl axum::serve::Listener for Spared {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            self.refill();
            let error = match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            let exhausted = error
                .raw_os_error()
                .is_some_and(|errno| errno == nix::libc::EMFILE || errno == nix::libc::ENFILE);
            if exhausted && let Some(file) = self.spare.pop() {
                // The next accept(2) takes this descriptor before `refill` can take it.
                drop(file);
                if let Ok(accepted) = self.listener.accept().await {
                    return accepted;
                }
            }
            if error.kind() != io::ErrorKind::ConnectionAborted {
                tracing::debug!("a connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
