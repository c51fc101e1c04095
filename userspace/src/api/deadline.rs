//! The deadline of a request, and what the request waits for.
//!
//! A client names the deadline in the header `culvert-deadline-ms`, on the clock that all processes
//! of a host share. A request that arrives after its deadline is not carried out. This happens if
//! the agent was stopped, for example. At the deadline the server answers in any case, and its
//! answer names what the request waits for. The request goes on in a task of its own, so that no
//! change stays half made.

use std::{
    future::{Future, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::types::{ApiError, ErrorKind};

/// Header with the deadline, in ms of `CLOCK_MONOTONIC` (clock_gettime(2)).
pub(super) const HEADER: &str = "culvert-deadline-ms";

/// Longest time for which a client waits after the deadline that it names. In this time the agent's
/// answer arrives, which says more than the client's own error.
const MARGIN: Duration = Duration::from_millis(500);

tokio::task_local! {
    /// The request that the task carries out.
    static CALL: Arc<Call>;
}

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// An answer of the store.
    Store,
    /// The end of another request for this object, as in `container 'web'`.
    Turn(String),
    /// The kernel: the change of this object is in the store, but not yet in the kernel.
    Kernel(String),
}

/// A request with a deadline.
#[derive(Debug)]
struct Call {
    began: Instant,
    at: Instant,
    waits: Mutex<Option<(Wait, Instant)>>,
}

impl Call {
    // The value changes in one step: it is valid also if a thread panicked with the lock held.
    fn waits(&self) -> MutexGuard<'_, Option<(Wait, Instant)>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what the request waits for. Returns what the request waited for before. No effect after
    /// the deadline: the answer names what the request waited for at the deadline, and the task may
    /// already go on.
    fn set(&self, wait: Option<(Wait, Instant)>) -> Option<(Wait, Instant)> {
        let mut waits = self.waits();
        if Instant::now() < self.at { std::mem::replace(&mut waits, wait) } else { None }
    }

    /// The answer at the deadline. `changes`: whether the request changes something.
    fn over(&self, changes: bool) -> ApiError {
        let (wait, since) = match self.waits().take() {
            Some((wait, since)) => (Some(wait), since),
            None => (None, self.began),
        };
        let time = seconds(since.elapsed());
        let still = if changes { ", the change may still be made" } else { "" };
        let line = match wait {
            Some(Wait::Store) => {
                format!("store: it has not answered for {time}{still}: see 'culvert status'")
            }
            Some(Wait::Turn(what)) => format!(
                "{what}: another request for it has been under way for {time}: try again when it has ended"
            ),
            Some(Wait::Kernel(what)) => format!(
                "{what}: in the store, but not in the kernel after {time}: see 'culvert status'"
            ),
            None => format!(
                "agent: it answers, but has not finished this within {time}{still}: see its log"
            ),
        };
        ApiError::new(ErrorKind::Unavailable, line)
    }
}

/// A duration as text for a message: tenths of a second below 10 s, else whole seconds.
pub(super) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{:.0} s", time.as_secs_f64())
    }
}

/// Time of the clock of [`HEADER`]. The kernel always has this clock.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// The value of [`HEADER`] for a caller that waits for `limit` from now on.
pub(super) fn header(limit: Duration) -> u64 {
    let at = now() + limit.saturating_sub(MARGIN.min(limit / 10));
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

/// The deadline that a value of [`HEADER`] names.
///
/// # Errors
///
/// The value is malformed, or the deadline is over.
pub(super) fn parse(value: &[u8]) -> Result<Instant, ApiError> {
    let ms: Option<u64> = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    let ms = ms.ok_or_else(|| {
        ApiError::new(
            ErrorKind::Invalid,
            format!("API header {HEADER} is malformed: a number of milliseconds is valid"),
        )
    })?;
    let left = Duration::from_millis(ms).saturating_sub(now());
    if left.is_zero() {
        return Err(too_late());
    }
    // A deadline that `Instant` cannot hold is replaced by one in an hour.
    Ok(Instant::now().checked_add(left).unwrap_or_else(|| Instant::now() + Duration::from_hours(1)))
}

fn too_late() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "agent: the caller's --timeout was over before this was begun: it is not carried out",
    )
}

/// Carries out a request in a task of its own. Returns its answer, at the latest at `at`.
/// `changes`: whether the request changes something.
///
/// # Errors
///
/// The deadline is over, or the task panicked.
pub(super) async fn answer<T: Send + 'static>(
    at: Option<Instant>,
    changes: bool,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = match at {
        None => tokio::spawn(work).await,
        Some(at) => {
            let call = Arc::new(Call { began: Instant::now(), at, waits: Mutex::default() });
            let task = tokio::spawn(CALL.scope(Arc::clone(&call), work));
            match timeout_at(at, task).await {
                Ok(done) => done,
                Err(_) => return Err(call.over(changes)),
            }
        }
    };
    done.map_err(|error| {
        ApiError::new(ErrorKind::Internal, format!("agent: {error}: see its log and report it"))
    })
}

/// Awaits `work`. If the deadline of the current request passes meanwhile, the answer names `wait`.
pub async fn waiting<T>(wait: Wait, work: impl Future<Output = T>) -> T {
    /// Restores on drop what the request waited for before.
    struct Before(Arc<Call>, Option<(Wait, Instant)>);
    impl Drop for Before {
        fn drop(&mut self) {
            self.0.set(self.1.take());
        }
    }
    let before = CALL.try_with(|call| {
        let before = call.set(Some((wait, Instant::now())));
        Before(Arc::clone(call), before)
    });
    let done = work.await;
    drop(before);
    done
}

/// Refuses to begin a step after the deadline of the current request.
///
/// # Errors
///
/// The deadline is over, so that the caller has its answer already.
pub fn check() -> Result<(), ApiError> {
    if CALL.try_with(|call| Instant::now() >= call.at).unwrap_or(false) {
        return Err(too_late());
    }
    Ok(())
}

/// Returns at the deadline of the current request. Never returns if the request has none.
pub async fn over() {
    match CALL.try_with(|call| call.at) {
        Ok(at) => sleep_until(at).await,
        Err(_) => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    fn soon() -> Option<Instant> {
        Some(Instant::now() + SHORT)
    }

    async fn line(changes: bool, work: impl Future<Output = ()> + Send + 'static) -> String {
        let error = answer(soon(), changes, work).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        error.message
    }

    #[tokio::test]
    async fn who_is_waited_for_is_named() {
        let store = waiting(Wait::Store, pending());
        let told = line(false, store).await;
        assert!(told.starts_with("store: it has not answered for 0."), "{told}");
        assert!(told.ends_with(" s: see 'culvert status'"), "{told}");
        let told = line(true, waiting(Wait::Store, pending())).await;
        assert!(told.contains("the change may still be made"), "{told}");
        let told = line(true, waiting(Wait::Turn("container 'a'".to_owned()), pending())).await;
        assert!(told.starts_with("container 'a': another request"), "{told}");
        // A wait that has ended is not named.
        let told = line(false, async {
            waiting(Wait::Store, async {}).await;
            pending().await
        });
        assert!(told.await.starts_with("agent: it answers, but"));
    }

    #[tokio::test]
    async fn the_work_goes_on_and_knows_that_nobody_waits() {
        let (ended, end) = tokio::sync::oneshot::channel();
        assert!(check().is_ok());
        line(true, async {
            assert!(check().is_ok());
            over().await;
            tokio::task::yield_now().await;
            ended.send(check().is_err()).unwrap();
        })
        .await;
        assert!(end.await.unwrap());
    }

    #[tokio::test]
    async fn a_request_that_comes_too_late_is_not_begun() {
        let ms = header(Duration::from_secs(1));
        let left = parse(ms.to_string().as_bytes()).unwrap() - Instant::now();
        assert!(left < Duration::from_secs(1) && left > Duration::from_millis(500), "{left:?}");
        let error = parse(b"1").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("is not carried out"), "{error}");
        for bad in [&b""[..], b"x", b"-1", b"\xff"] {
            assert_eq!(parse(bad).unwrap_err().kind, ErrorKind::Invalid);
        }
        assert!(parse(u64::MAX.to_string().as_bytes()).is_ok());
    }
}
