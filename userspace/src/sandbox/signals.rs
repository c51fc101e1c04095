//! Forwarding of signals to the supervised command.
//!
//! A terminal sends Ctrl-C to every process of its foreground group, the command included. So a
//! signal from the kernel is not forwarded, and a signal that a process sent to the supervisor is
//! (`si_code`, sigaction(2)). sudo(8) does the same. A command in a session of its own gets the
//! terminal's signals from the supervisor alone.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicI32, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    unistd::pipe2,
};
use tokio::{io::AsyncReadExt, net::unix::pipe};

/// The signals that are forwarded.
const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];
/// `si_code` of a signal that the kernel sent (asm-generic/siginfo.h).
const SI_KERNEL: i32 = 0x80;
/// Added to the number of such a signal in the pipe. Numbers of signals are less.
const FROM_KERNEL: u8 = 0x80;

/// Descriptor to which the handler writes signal numbers; -1 while there is no reader.
static WRITE_END: AtomicI32 = AtomicI32::new(-1);
/// Keeps that descriptor open until the process ends: a handler may write to it at any time.
static PIPE: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();

/// A signal that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caught {
    pub(super) signal: Signal,
    /// The kernel has sent it, for a terminal.
    pub(super) by_terminal: bool,
}

/// Catches signals until it is dropped. At most one exists per process.
pub(super) struct Signals {
    reader: pipe::Receiver,
    /// The previous signal actions, restored on drop.
    previous: Vec<(Signal, SigAction)>,
}

impl Signals {
    /// Starts to catch signals. Signals that are ignored stay ignored (nohup(1)).
    pub(super) fn catch() -> io::Result<Self> {
        let (read, write) = match PIPE.get() {
            Some(pipe) => pipe,
            None => {
                let made = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
                PIPE.get_or_init(|| made)
            }
        };
        let reader = pipe::Receiver::from_owned_fd(read.try_clone()?)?;
        WRITE_END.store(write.as_raw_fd(), Ordering::SeqCst);
        let mut caught = Self { reader, previous: Vec::new() };
        let action = SigAction::new(
            SigHandler::SigAction(note),
            SaFlags::SA_RESTART | SaFlags::SA_SIGINFO,
            SigSet::empty(),
        );
        for signal in FORWARDED {
            // SAFETY: `note` calls only async-signal-safe functions.
            let old = unsafe { sigaction(signal, &action) }?;
            if matches!(old.handler(), SigHandler::SigIgn) {
                // SAFETY: restores the previous action, which sigaction(2) returned.
                unsafe { sigaction(signal, &old) }?;
            } else {
                caught.previous.push((signal, old));
            }
        }
        Ok(caught)
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> io::Result<Caught> {
        let noted = self.reader.read_u8().await?;
        let signal = Signal::try_from(i32::from(noted & !FROM_KERNEL))?;
        Ok(Caught { signal, by_terminal: noted & FROM_KERNEL != 0 })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        WRITE_END.store(-1, Ordering::SeqCst);
        for (signal, action) in &self.previous {
            // SAFETY: restores the previous action, which sigaction(2) returned. A failure is
            // ignored: drop cannot report it.
            let _ = unsafe { sigaction(*signal, action) };
        }
    }
}

/// The handler: writes the number of a signal, and whether the kernel has sent it.
extern "C" fn note(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let from_kernel = unsafe { info.as_ref() }.is_some_and(|info| info.si_code == SI_KERNEL);
    let pipe = WRITE_END.load(Ordering::SeqCst);
    if pipe < 0 {
        return;
    }
    let [number, ..] = signal.to_le_bytes();
    let noted = if from_kernel { number | FROM_KERNEL } else { number };
    let errno = Errno::last_raw();
    // SAFETY: the descriptor is never closed (PIPE) and does not block, the
    // buffer is valid, write(2) is async-signal-safe. A full pipe holds
    // thousands of signals already: this one may be lost.
    let _ = unsafe { libc::write(pipe, (&raw const noted).cast(), 1) };
    // The interrupted code must find its errno unchanged.
    Errno::set_raw(errno);
}
