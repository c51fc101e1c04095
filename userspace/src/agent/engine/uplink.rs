//! The uplink where the default route tells it, see [`super::choice`].

use tokio::time::Instant;

use super::{Engine, choice::Course};

/// Key of the problem.
const PROBLEM: &str = "uplink-choice";

impl Engine {
    /// Looks at the choice of the uplinks again, if it may have changed.
    pub(super) async fn check_changed_choice(&mut self) {
        if self.informed && self.choice.is_stale() {
            self.check_choice().await;
        }
    }

    /// Looks at the choice of the uplinks again, and follows it once it is steady.
    pub(super) async fn check_choice(&mut self) {
        let shared = &self.shared;
        let (given, vtep_ip) = (&shared.options.uplinks, shared.options.vtep_ip);
        let now = match shared.platform.choose_uplinks(given, vtep_ip).await {
            Ok(now) => now,
            Err(error) => {
                let line = format!("uplink: {}; trying again", error.message);
                shared.shown.problems.set(PROBLEM, Some(line));
                self.choice.look_again(Instant::now() + self.periods.retry);
                return;
            }
        };
        let vtep = shared.node.vtep;
        let course = self.choice.course(now, (&shared.uplinks, vtep), !given.is_empty());
        match self.choice.settle(course, Instant::now(), self.periods.steady) {
            None => {}
            Some(Course::Stay) => shared.shown.problems.set(PROBLEM, None),
            Some(Course::Tell(line)) => shared.shown.problems.set(PROBLEM, Some(line)),
            Some(Course::Follow(line, _)) => shared.ending.start_anew(line),
        }
    }
}
