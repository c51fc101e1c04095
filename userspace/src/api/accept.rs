//! Accepts connections of clients, also when the agent is at its limit of open files.

use std::{fs::File, io, time::Duration};

use tokio::net::{UnixListener, UnixStream};

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

    /// The next connection.
    pub(super) async fn accept(&mut self) -> UnixStream {
        loop {
            self.refill();
            let mut accepted = self.listener.accept().await;
            while accepted.as_ref().is_err_and(is_exhausted)
                && let Some(file) = self.spare.pop()
            {
                // If another thread takes the descriptor before accept(2) does, the next is tried.
                drop(file);
                accepted = self.listener.accept().await;
            }
            let error = match accepted {
                Ok((stream, _)) => return stream,
                Err(error) => error,
            };
            if error.kind() != io::ErrorKind::ConnectionAborted {
                tracing::debug!("a connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Opens the reserved files again, after a connection that took a descriptor has ended.
    fn refill(&mut self) {
        while self.spare.len() < SPARE {
            let Ok(file) = File::open("/dev/null") else { return };
            self.spare.push(file);
        }
    }
}

/// Whether the process or the host has no file descriptor left.
fn is_exhausted(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|errno| errno == nix::libc::EMFILE || errno == nix::libc::ENFILE)
}
