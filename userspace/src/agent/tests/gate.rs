//! Gates, by which a test holds up what an agent does.

use std::sync::{Condvar, Mutex};

use super::paper::DEADLINE;

/// A gate: threads wait while it is closed. The wait ends after some time, so that a failing
/// test ends.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    moved: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    waiting: usize,
    passed: usize,
}

impl Gate {
    /// Waits while the gate is closed.
    pub(super) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        let closed = |state: &mut GateState| state.closed;
        (state, _) = self.moved.wait_timeout_while(state, 3 * DEADLINE, closed).unwrap();
        state.waiting -= 1;
        state.passed += 1;
    }

    pub(super) fn close(&self, closed: bool) {
        self.state.lock().unwrap().closed = closed;
        self.moved.notify_all();
    }

    /// Number of threads that wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting
    }

    /// Number of threads that have passed.
    pub(super) fn passed(&self) -> usize {
        self.state.lock().unwrap().passed
    }
}
