//! Packets of containers whose route leads out of an interface that is no uplink. The programs drop
//! them (`not_an_uplink`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_common::abi::DropReason;

use super::{platform::OtherLinks, shared::Shared};

/// Interval at which the counter is read.
const EVERY: Duration = Duration::from_secs(1);
/// Interval at which the host's routes are read at most. A host may have very many.
const ROUTES: Duration = Duration::from_secs(60);
/// Time after the last such packet for which the problem is shown.
const SHOWN: Duration = Duration::from_secs(600);
/// Key of the problem.
const PROBLEM: &str = "egress";

/// Watches the counter until the agent stops. When it grows, `status` names the interfaces that the
/// packets may have been for. The log has the line once.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut watch = EgressWatch::default();
    loop {
        watch.look(&shared, Instant::now()).await;
        tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// State from look to look.
#[derive(Debug, Default)]
struct EgressWatch {
    /// The counter at the last look. What was counted before the first is not told.
    count: Option<u64>,
    /// When the counter has last grown, while the problem is shown.
    grown: Option<Instant>,
    /// When the routes were last read.
    read: Option<Instant>,
}

impl EgressWatch {
    async fn look(&mut self, shared: &Shared, now: Instant) {
        let Ok(count) = shared.platform.dropped(DropReason::NotAnUplink) else { return };
        let before = self.count.replace(count);
        let since = |then: Option<Instant>| then.map(|then| now.saturating_duration_since(then));
        if before.is_some_and(|before| count > before) {
            self.grown = Some(now);
            if since(self.read).is_some_and(|since| since < ROUTES) {
                return;
            }
            self.read = Some(now);
            // Without the routes the line names no interface.
            let links = shared.platform.other_links().await.unwrap_or_default();
            shared.shown.problems.set(PROBLEM, Some(line(&shared.uplinks, &links)));
        } else if since(self.grown).is_some_and(|since| since >= SHOWN) {
            *self = Self { count: self.count, ..Self::default() };
            shared.shown.problems.set(PROBLEM, None);
        }
    }
}

/// The problem, on one line. `uplinks` are the present ones.
fn line(uplinks: &[String], OtherLinks { ethernet, without_header }: &OtherLinks) -> String {
    let options: String = uplinks.iter().map(|name| format!(" --uplink {name}")).collect();
    let all: Vec<&str> = ethernet.iter().chain(without_header).map(String::as_str).collect();
    let way = match all.as_slice() {
        [] => "an interface that is no uplink ('ip route get ADDRESS' names it)".to_owned(),
        [one] => format!("{one}, which is no uplink"),
        some => format!("one of {}, which are no uplinks", some.join(", ")),
    };
    let mut line = format!(
        "egress: packets of containers were dropped (not_an_uplink), because their route leads out of {way}"
    );
    let name = match ethernet.as_slice() {
        [] if !all.is_empty() => None,
        [one] => Some(one.as_str()),
        _ => Some("NAME"),
    };
    if let Some(name) = name {
        line += &format!(
            ": if containers are to use {name}, start the agent with{options} --uplink {name}"
        );
    }
    if !without_header.is_empty() {
        line += &format!(
            "; {} cannot be an uplink without an Ethernet header: a rule of the host can lead the packets to an uplink ('ip rule add from SUBNET lookup TABLE')",
            without_header.join(", ")
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ethernet: &[&str], without_header: &[&str]) -> String {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let links = OtherLinks { ethernet: names(ethernet), without_header: names(without_header) };
        let line = line(&["eth0".to_owned()], &links);
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    #[test]
    fn interfaces_and_the_option_are_named() {
        let line = told(&["lan0"], &[]);
        assert!(line.contains("out of lan0, which is no uplink: if containers "), "{line}");
        assert!(line.ends_with("start the agent with --uplink eth0 --uplink lan0"), "{line}");
        let line = told(&["docker0", "lan0"], &["wg0"]);
        assert!(line.contains("one of docker0, lan0, wg0, which are no uplinks"), "{line}");
        assert!(line.contains("with --uplink eth0 --uplink NAME; wg0 cannot be"), "{line}");
        // The agent would refuse these.
        let line = told(&[], &["wg0", "tun0"]);
        assert!(line.contains("one of wg0, tun0, which are no uplinks; wg0, tun0 ca"), "{line}");
        assert!(!line.contains("--uplink"), "{line}");
        let line = told(&[], &[]);
        assert!(line.contains("'ip route get ADDRESS'"), "{line}");
        assert!(line.ends_with("--uplink eth0 --uplink NAME"), "{line}");
    }
}
