//! Many datagrams or frames by one system call.

use std::{io::IoSlice, os::fd::AsRawFd};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};

/// Datagrams or frames that one system call sends or receives.
pub(super) const BATCH: usize = 64;

/// Sends batches on connected sockets.
pub(super) struct Batches {
    headers: MultiHeaders<SockaddrIn>,
    nobody: Vec<Option<SockaddrIn>>,
}

impl Batches {
    pub(super) fn new() -> Self {
        Self { headers: MultiHeaders::preallocate(BATCH, None), nobody: vec![None; BATCH] }
    }

    /// Sends the first [`BATCH`] of `all`. Returns how many were sent.
    ///
    /// # Errors
    ///
    /// The error of `sendmmsg`. Nothing was sent.
    pub(super) fn send<T: AsRef<[u8]>>(
        &mut self,
        socket: &impl AsRawFd,
        all: &[T],
    ) -> nix::Result<usize> {
        let slices: Vec<_> =
            all.iter().take(BATCH).map(|piece| [IoSlice::new(piece.as_ref())]).collect();
        let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
        Ok(sendmmsg(fd, &mut self.headers, &slices, &self.nobody, [], flags)?.count())
    }
}
