//! Ctrl-C and SIGTERM: the handler passes the signal to the foreground children, then the verb
//! stops in order.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Process groups of the children in the foreground. 0 marks a free slot.
static FOREGROUND: [AtomicI32; 8] = [const { AtomicI32::new(0) }; 8];

/// The signals that end a verb.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Makes the ending signals set a flag and pass SIGTERM to the children in the foreground.
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

/// Sends SIGTERM to the process groups of the foreground children.
fn forward() {
    for place in &FOREGROUND {
        let group = place.load(Ordering::SeqCst);
        if group > 0 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-group), Signal::SIGTERM);
        }
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

/// Registers the process group of a child that gets the ending signals, until the guard is dropped.
/// If no slot is free, the child gets no signals.
pub(crate) fn foreground(group: u32) -> ForegroundSlot {
    let group = i32::try_from(group).unwrap_or(0);
    let take = |place: &&AtomicI32| {
        place.compare_exchange(0, group, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    };
    let place = FOREGROUND.iter().find(take);
    // A signal may have come between the child's start and here.
    if interrupted() {
        forward();
    }
    ForegroundSlot(place)
}

/// Guard of the slot of a child in the foreground. Its drop frees the slot.
#[derive(Debug)]
pub(crate) struct ForegroundSlot(Option<&'static AtomicI32>);

impl Drop for ForegroundSlot {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(0, Ordering::SeqCst);
        }
    }
}
