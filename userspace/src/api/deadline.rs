//! The time by which a caller wants its answer, and what a request waits for.
//!
//! A client names the instant in the header `culvert-deadline-ms`, on the clock that all processes
//! of a host share. A request that arrives later, at an agent that was stopped for example, is not carried
//! out. At the instant the server answers in any case, and names what the request waits for. The
//! request then goes on in a task of its own: half of a change is never left behind.

use std::{
    future::{Future, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::types::{ApiError, ErrorKind};

/// Header with the instant of the answer, in ms of `CLOCK_MONOTONIC` (clock_gettime(2)).
pub(super) const HEADER: &str = "culvert-deadline-ms";

/// Longest time for which a client waits beyond the instant that it names. The agent's answer
/// says more than the client's own.
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
    /// The kernel: it is to get the change of this object that is in the store already.
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
    // A thread that panicked with the lock held left a valid value: it changes in one step.
    fn waits(&self) -> MutexGuard<'_, Option<(Wait, Instant)>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what the request waits for. Returns what it waited for before. No effect once the time
    /// is over: the caller is told what was waited for then, and the task may already go on.
    fn set(&self, wait: Option<(Wait, Instant)>) -> Option<(Wait, Instant)> {
        let mut waits = self.waits();
        if Instant::now() < self.at { std::mem::replace(&mut waits, wait) } else { None }
    }

    /// The answer when the time is over. `changes`: the request is to change something.
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

/// A time in a message: tenths of a second below 10 s.
pub(super) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{:.0} s", time.as_secs_f64())
    }
}

/// The clock of [`HEADER`]. It always exists.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// The value of [`HEADER`] for a caller that waits for `limit` from now on.
pub(super) fn header(limit: Duration) -> u64 {
    let at = now() + limit.saturating_sub(MARGIN.min(limit / 10));
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

/// The instant that a value of [`HEADER`] names.
///
/// # Errors
///
/// The value is malformed, or the instant is over.
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
    // An instant beyond the clock's end is as good as none.
    Ok(Instant::now().checked_add(left).unwrap_or_else(|| Instant::now() + Duration::from_hours(1)))
}

fn too_late() -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "agent: the caller's --timeout was over before this was begun: it is not carried out",
    )
}

/// Carries out a request in a task of its own, and returns its answer, at the latest at `at`.
/// `changes`: the request is to change something.
///
/// # Errors
///
/// The time is over, or the task panicked.
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

/// Awaits `work`. If the time of the present request is over meanwhile, its caller is told of
/// `wait`.
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

/// Refuses what has not begun yet, if the caller of the present request has given up.
///
/// # Errors
///
/// The caller has its answer already.
pub fn check() -> Result<(), ApiError> {
    if CALL.try_with(|call| Instant::now() >= call.at).unwrap_or(false) {
        return Err(too_late());
    }
    Ok(())
}

/// Returns at the end of the present request's time; never without a deadline.
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
