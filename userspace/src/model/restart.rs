//! `--restart`: when the command of a container is started again, and after which pause. Policies
//! and pauses are Docker's.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Pause before the first restart.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A command that has run for this long was started successfully: the pauses begin anew.
pub const SETTLED: Duration = Duration::from_secs(10);
/// Number of short runs in a row from which on a container counts as one that keeps failing: the
/// pauses before them sum up to 3 s.
const FAILING: u32 = 5;

/// Value of `--restart`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// `no`.
    #[default]
    No,
    /// `on-failure[:MAX]`: after an exit code other than 0.
    OnFailure {
        /// Greatest number of restarts; 0 for no limit.
        max: u32,
    },
    /// `always`.
    Always,
    /// `unless-stopped`. Nothing stops a container without removing it, so this equals
    /// [`Self::Always`].
    UnlessStopped,
}

impl RestartPolicy {
    /// Whether the policy is `no`.
    pub fn is_no(&self) -> bool {
        *self == Self::No
    }

    /// Whether the command is started again after it has ended with `code` and was started again
    /// `restarts` times before. `None`: how it ended is not known, as after a reboot.
    pub fn again(self, code: Option<i32>, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { max } => code != Some(0) && (max == 0 || restarts < max),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { max: 0 } => f.write_str("on-failure"),
            Self::OnFailure { max } => write!(f, "on-failure:{max}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let max = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok());
        match (text, text.strip_prefix("on-failure:").and_then(max).flatten()) {
            ("no", _) => Ok(Self::No),
            ("on-failure", _) => Ok(Self::OnFailure { max: 0 }),
            ("always", _) => Ok(Self::Always),
            ("unless-stopped", _) => Ok(Self::UnlessStopped),
            (_, Some(max)) => Ok(Self::OnFailure { max }),
            _ => Err(Invalid(format!(
                "restart policy '{text}' is unknown: no, on-failure[:MAX], always or unless-stopped is valid"
            ))),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

/// The pauses before the restarts of one command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pauses {
    last: Option<Duration>,
    /// Number of runs in a row that were shorter than [`SETTLED`].
    short: u32,
}

impl Pauses {
    /// The pause after a run that took `ran`: 100 ms, then twice the one before, at most 1 min. A
    /// run of 10 s begins anew.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= SETTLED {
            *self = Self::default();
        } else {
            self.short = self.short.saturating_add(1);
        }
        let pause = self.last.map_or(SHORTEST, |last| (last * 2).min(LONGEST));
        self.last = Some(pause);
        pause
    }

    /// Whether the command keeps failing: its last runs were short ones.
    pub fn failing(&self) -> bool {
        self.short >= FAILING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_written() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<RestartPolicy>(&json).unwrap(), policy);
        }
        let zero: RestartPolicy = "on-failure:0".parse().unwrap();
        assert_eq!(zero, RestartPolicy::OnFailure { max: 0 });
        for bad in [
            "",
            "Always",
            "on-failure:",
            "on-failure:-1",
            "on-failure:+1",
            "on-failure:x",
            "on-failure:4294967296",
            "always:3",
        ] {
            let line = bad.parse::<RestartPolicy>().unwrap_err().to_string();
            assert!(line.starts_with(&format!("restart policy '{bad}' is unknown")), "{line}");
        }
    }

    #[test]
    fn a_policy_decides_by_exit_code_and_number() {
        let failure = |max| RestartPolicy::OnFailure { max };
        for (policy, code, restarts, again) in [
            (RestartPolicy::No, Some(1), 0, false),
            (RestartPolicy::No, None, 0, false),
            (RestartPolicy::Always, Some(0), 1000, true),
            (RestartPolicy::UnlessStopped, Some(0), 1000, true),
            (failure(0), Some(0), 0, false),
            (failure(0), Some(1), 1000, true),
            (failure(0), None, 0, true),
            (failure(3), Some(1), 2, true),
            (failure(3), Some(1), 3, false),
            (failure(3), None, 3, false),
        ] {
            assert_eq!(policy.again(code, restarts), again, "{policy} {code:?} {restarts}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew() {
        let mut pauses = Pauses::default();
        let short = Duration::from_secs(9);
        let ms: Vec<u128> = (0..12).map(|_| pauses.after(short).as_millis()).collect();
        let doubled = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200];
        assert_eq!(ms[..10], doubled);
        assert_eq!(ms[10..], [60_000, 60_000]);
        assert!(pauses.failing());
        assert_eq!(pauses.after(SETTLED), SHORTEST);
        assert!(!pauses.failing());
        for run in 1..=FAILING {
            pauses.after(short);
            assert_eq!(pauses.failing(), run == FAILING, "{run}");
        }
    }
}
