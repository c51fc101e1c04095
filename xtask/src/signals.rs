//! Ctrl-C and SIGTERM: the signal is passed to the foreground child, then the verb stops in order.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Process group of the child in the foreground; 0 when there is none.
static FOREGROUND: AtomicI32 = AtomicI32::new(0);

/// The signals that end a verb.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Makes the ending signals set a flag and pass SIGTERM to the child in the foreground.
pub(crate) fn install() -> Result<()> {
    // Without SA_RESTART, so that a blocking call of ours returns.
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::empty(), SigSet::empty());
    for signal in ENDING {
        // SAFETY: on_signal only loads and stores atomics and calls kill(2), which signal-safety(7)
        // lists as async-signal-safe.
        unsafe { sigaction(signal, &action) }
            .with_context(|| format!("cannot install the handler for {signal}"))?;
    }
    Ok(())
}

extern "C" fn on_signal(_: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
    forward();
}

/// Sends SIGTERM to the foreground child's process group, if there is a child.
fn forward() {
    let group = FOREGROUND.load(Ordering::SeqCst);
    if group > 0 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-group), Signal::SIGTERM);
    }
}

/// Whether an ending signal has arrived.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails when an ending signal has arrived.
pub(crate) fn check() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Names the child that ending signals go to, until the guard is dropped.
pub(crate) fn foreground(group: u32) -> Foreground {
    FOREGROUND.store(i32::try_from(group).unwrap_or(0), Ordering::SeqCst);
    // A signal may have come between the child's start and here.
    if interrupted() {
        forward();
    }
    Foreground
}

/// Proof that a child is in the foreground; none is when it is dropped.
#[derive(Debug)]
pub(crate) struct Foreground;

impl Drop for Foreground {
    fn drop(&mut self) {
        FOREGROUND.store(0, Ordering::SeqCst);
    }
}
