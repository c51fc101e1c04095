//! The follower with a store in memory that is rolled back, compacted and cut off.

mod paper;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use self::paper::{Contents, Paper, ROOT};
use super::{FollowOptions, Follower, Health, Known};
use crate::store::retry::Backoff;

const MARK: &str = "/t/mark";
const DEADLINE: Duration = Duration::from_secs(30);
/// Time in which a follower makes many attempts.
const WHILE: Duration = Duration::from_millis(300);

fn options() -> FollowOptions {
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    FollowOptions { backoff, ..FollowOptions::new(ROOT, MARK) }
}

fn follow(store: &Paper, options: FollowOptions) -> Follower {
    Follower::spawn(Arc::new(store.clone()), options)
}

/// Waits until the follower's health satisfies `is`.
async fn health(follower: &Follower, what: &str, is: impl Fn(&Health) -> bool) -> Health {
    let mut health = follower.health();
    let found = timeout(DEADLINE, health.wait_for(is)).await;
    found.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}")).unwrap().clone()
}

/// What the next run knows of a store with this health.
fn known(health: Health) -> Known {
    let Health { revision, mark, witness, own, .. } = health;
    Known { mark: mark.unwrap(), revision, witness, own }
}

/// A store whose watches deliver nothing for long is not taken for one that was rolled back.
#[tokio::test]
async fn silence_proves_nothing() {
    let store = Paper::new(Contents::new());
    let follower = follow(&store, options());
    health(&follower, "the list", |health| health.healthy).await;
    let at = store.with(|contents| contents.put("/t/a", "1"));
    let seen = health(&follower, "the write", |health| health.revision == at).await;
    drop(follower);
    // The witness was changed later, so only the history has it.
    store.with(|contents| contents.put("/t/a", "2"));
    store.silence();
    let known = known(seen);
    assert_eq!(known.witness.as_ref().unwrap().key, "/t/a");
    let follower = follow(&store, FollowOptions { known: Some(known), ..options() });
    let state = health(&follower, "the check", |health| health.identified || health.replaced).await;
    assert!(state.identified, "{state:?}");
}
