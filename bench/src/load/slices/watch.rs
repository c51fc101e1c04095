//! What disturbs a slice: stolen time, and involuntary context switches.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use crate::load::Side;

/// Threads whose context switches are counted. Clones share the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched(Arc<Mutex<Vec<i32>>>);

impl Watched {
    /// Adds a thread of this process, by its id.
    pub(super) fn add(&self, thread: i32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Number of involuntary context switches of all the threads since they began.
    ///
    /// # Errors
    ///
    /// A thread has ended.
    pub(super) fn switches(&self) -> Result<u64> {
        let mut sum = 0;
        for thread in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let path = format!("/proc/self/task/{thread}/status");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            sum += involuntary(&text).with_context(|| format!("{path}: not as expected"))?;
        }
        Ok(sum)
    }
}

/// Involuntary context switches in the text of `/proc/PID/status` (proc(5)).
fn involuntary(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
    value.trim().parse().ok()
}

/// Time that the hypervisor has stolen from the cores of both ends since the machine's start, in
/// ticks of 10 ms.
pub(super) fn steal() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let mut cores = vec![Side::Client.core(), Side::Server.core()];
    cores.dedup();
    stolen(&text, &cores).context("/proc/stat: not as expected")
}

/// Stolen time of `cores` in the text of `/proc/stat` (proc(5)), ticks.
fn stolen(stat: &str, cores: &[usize]) -> Option<u64> {
    let of = |core: &usize| {
        let name = format!("cpu{core}");
        let mut words = stat
            .lines()
            .map(str::split_whitespace)
            .find(|words| words.clone().next() == Some(name.as_str()))?;
        words.nth(8)?.parse::<u64>().ok()
    };
    cores.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_that_of_the_cores_used() {
        let stat = "cpu  9 9 9 9 9 9 9 99 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n\
                    cpu1 1 2 3 4 5 6 7 30 0 0\ncpu10 1 2 3 4 5 6 7 500 0 0\nintr 1 2\n";
        assert_eq!(stolen(stat, &[0, 1]), Some(38));
        assert_eq!(stolen(stat, &[10]), Some(500));
        assert_eq!(stolen(stat, &[2]), None);
        steal().expect("of this machine");
    }

    #[test]
    fn switches_are_those_of_the_threads() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t12\n";
        assert_eq!(involuntary(status), Some(12));
        assert_eq!(involuntary("Name:\tx\n"), None);
        let watched = Watched::default();
        assert_eq!(watched.switches().expect("none"), 0);
        watched.add(nix::unistd::gettid().as_raw());
        watched.switches().expect("of this thread");
    }
}
