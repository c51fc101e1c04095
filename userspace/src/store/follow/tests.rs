//! The follower with a store in memory that is rolled back, compacted and cut off.

mod paper;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use self::paper::{Contents, Paper, ROOT};
use super::{FollowOptions, Follower, Health, Known};
use crate::store::{Change, retry::Backoff};

const MARK: &str = "/t/mark";
const OWN: &str = "/own";
const DEADLINE: Duration = Duration::from_secs(30);
/// Time in which a follower makes many attempts.
const WHILE: Duration = Duration::from_millis(300);

fn options() -> FollowOptions {
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    FollowOptions { backoff, ..FollowOptions::new(ROOT, MARK) }
}

/// Options of a follower that writes a witness of its own soon after each change.
fn with_own() -> FollowOptions {
    let own_key = Some(OWN.to_owned());
    FollowOptions { own_key, own_every: Duration::from_millis(20), ..options() }
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

/// Whether the follower has found out about the store.
fn is_checked(health: &Health) -> bool {
    health.identified || health.replaced.is_some()
}

/// What the next run knows of a store with this health.
fn known(health: Health) -> Known {
    let Health { revision, mark, witness, own, replaced, .. } = health;
    Known { mark: mark.unwrap(), revision, witness, own, replaced }
}

/// What a follower knows that has seen a write after the last write of its own witness, and the store
/// from before that write. The key is `/t/lost`.
async fn with_a_later_write(store: &Paper) -> (Known, Contents) {
    let follower = follow(store, with_own());
    let own = health(&follower, "the own witness", |health| health.own.is_some()).await.own;
    drop(follower);
    let backup = store.backup();
    let follower = follow(store, options());
    health(&follower, "the list", |health| health.healthy).await;
    let at = store.with(|contents| contents.put("/t/lost", "1"));
    let seen = health(&follower, "the write", |health| health.revision == at).await;
    let known = Known { own, ..known(seen) };
    assert!(known.own.as_ref().unwrap().revision < at, "{known:?}");
    (known, backup)
}

/// A follower that starts with the finding of an earlier run does not trust the store for its own
/// witness, which is older than what was lost. It trusts it for the witness.
#[tokio::test]
async fn a_finding_of_an_earlier_run_is_refuted_by_the_witness_alone() {
    let store = Paper::new(Contents::new());
    let (known, backup) = with_a_later_write(&store).await;
    let (mut right, mut other) = (store.backup(), backup);
    other.grow("/t/other", known.revision + 5);
    other.compact();
    store.exchange(other);
    let finding = Some("store: replaced: found before".to_owned());
    let known = Known { replaced: finding.clone(), ..known };
    let own_key = Some(OWN.to_owned());
    let mut follower = follow(&store, FollowOptions { known: Some(known), own_key, ..options() });
    assert!(timeout(WHILE, follower.next()).await.is_err());
    let state = follower.health().borrow().clone();
    assert!(state.replaced == finding && !state.identified, "{state:?}");

    right.put("/t/more", "1");
    right.compact();
    store.exchange(right);
    let state = health(&follower, "the trust", |health| health.healthy).await;
    assert_eq!(state.replaced, None);
}

/// A host that has forgotten so many own writes that their value no longer has the one that it knows
/// does not take the store for rolled back. A store that has forgotten an own write is.
#[tokio::test]
async fn a_host_that_was_set_back_does_not_accuse_the_store() {
    let store = Paper::new(Contents::new());
    let (known, _) = with_a_later_write(&store).await;
    let mark = store.backup().value(MARK).unwrap();
    // Only the own witness can tell: the history is compacted.
    store.with(|contents| {
        contents.delete("/t/lost");
        contents.put(OWN, r#"{"schema":1,"writes":["0"]}"#);
        contents.compact();
    });
    let mut rolled_back = Contents::new();
    rolled_back.put(MARK, &mark);
    rolled_back.grow("/t/other", known.revision + 5);
    rolled_back.compact();

    let own_key = Some(OWN.to_owned());
    let again = FollowOptions { known: Some(known), own_key, ..options() };
    let state = health(&follow(&store, again.clone()), "the check", is_checked).await;
    assert!(state.identified, "{state:?}");
    store.exchange(rolled_back);
    let state = health(&follow(&store, again), "the roll-back", is_checked).await;
    let why = state.replaced.unwrap();
    assert!(why.contains(OWN), "{why}");
}

/// After a break the store counts as unknown until it is checked: it may have been rolled back
/// meanwhile, and others are not to write to it.
#[tokio::test]
async fn a_store_is_unknown_from_a_break_to_the_next_check() {
    let store = Paper::new(Contents::new());
    let follower = follow(&store, options());
    health(&follower, "the list", |health| health.healthy && health.identified).await;
    store.cut(true);
    let state = health(&follower, "the break", |health| !health.healthy).await;
    assert!(!state.identified, "{state:?}");
    store.cut(false);
    health(&follower, "the check", |health| health.healthy && health.identified).await;
}

/// The first own witness does not wait for the time at which it is renewed. A host that is not
/// registered writes none: it may be a copy of a host that has the key.
#[tokio::test]
async fn the_own_witness_is_written_at_the_registration() {
    let store = Paper::new(Contents::new());
    let own_every = Duration::from_hours(1);
    let options = || FollowOptions { own_every, ..with_own() };
    let follower = follow(&store, options());
    health(&follower, "the list", |health| health.healthy).await;
    tokio::time::sleep(WHILE).await;
    assert_eq!(store.backup().value(OWN), None);
    let backup = store.backup();

    follower.registration().notify_one();
    let state = health(&follower, "the own witness", |health| health.own.is_some()).await;
    // A later registration finds it.
    follower.registration().notify_one();
    store.with(|contents| contents.put("/t/a", "1"));
    tokio::time::sleep(WHILE).await;
    assert_eq!(follower.health().borrow().own, state.own);
    let known = known(follower.health().borrow().clone());
    drop(follower);

    // The host starts again soon afterwards, and meets a store from before its registration.
    let mut other = backup;
    other.grow("/t/other", known.revision + 5);
    other.compact();
    store.exchange(other);
    let follower = follow(&store, FollowOptions { known: Some(known), ..options() });
    let state = health(&follower, "the check", is_checked).await;
    assert!(state.replaced.is_some_and(|why| why.contains(OWN)));
}

/// A registration is not lost while the store does not answer.
#[tokio::test]
async fn a_registration_before_a_break_counts_after_it() {
    let store = Paper::new(Contents::new());
    let own_every = Duration::from_hours(1);
    let follower = follow(&store, FollowOptions { own_every, ..with_own() });
    health(&follower, "the list", |health| health.healthy).await;
    store.cut(true);
    health(&follower, "the break", |health| !health.healthy).await;
    follower.registration().notify_one();
    tokio::time::sleep(WHILE).await;
    store.cut(false);
    health(&follower, "the own witness", |health| health.own.is_some()).await;
}

/// A follower whose connection breaks more often than its own witness is due writes it all the same,
/// once after a change.
#[tokio::test]
async fn breaks_do_not_put_off_the_own_witness() {
    let store = Paper::new(Contents::new());
    let own_every = Duration::from_millis(200);
    let follower = follow(&store, FollowOptions { own_every, ..with_own() });
    let state = follower.health();
    let mut breaks = 0;
    while state.borrow().own.is_none() {
        assert!(breaks < 500, "no own witness after {breaks} breaks");
        breaks += 1;
        store.disconnect();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let written = state.borrow().own.clone();
    tokio::time::sleep(own_every * 2).await;
    assert_eq!(state.borrow().own, written);
    store.with(|contents| contents.put("/t/a", "1"));
    let state = health(&follower, "the next write", |health| health.own != written).await;
    assert_eq!(state.own.unwrap().revision, store.backup().at(OWN));
}

/// A follower that has seen a key, and a store that has neither the key nor the history that would
/// tell of its deletion, although it has the own witness. Returns the store from before as well.
async fn in_doubt(store: &Paper, options: FollowOptions) -> (Follower, Contents) {
    let (known, _) = with_a_later_write(store).await;
    let own_key = Some(OWN.to_owned());
    let follower = follow(store, FollowOptions { known: Some(known), own_key, ..options });
    health(&follower, "the list", |health| health.healthy).await;
    let before = store.backup();
    store.cut(true);
    health(&follower, "the break", |health| !health.healthy).await;
    store.with(|contents| {
        contents.delete("/t/lost");
        contents.put("/t/more", "1");
        contents.compact();
    });
    store.cut(false);
    health(&follower, "the doubt", |health| health.replaced.is_some()).await;
    (follower, before)
}

/// A store in doubt is not listed again and again, and can be accepted at any time.
#[tokio::test]
async fn a_store_in_doubt_is_listed_seldom() {
    let store = Paper::new(Contents::new());
    let (follower, _) = in_doubt(&store, options()).await;
    let lists = store.lists();
    tokio::time::sleep(WHILE).await;
    assert_eq!(store.lists(), lists);
    follower.acceptance().notify_one();
    let state = health(&follower, "the acceptance", |health| health.healthy).await;
    assert_eq!(state.replaced, None);
}

/// With the next list the right store is trusted.
#[tokio::test]
async fn a_doubt_ends_with_the_right_store() {
    let store = Paper::new(Contents::new());
    let doubt = Duration::from_millis(20);
    let (follower, before) = in_doubt(&store, FollowOptions { doubt, ..options() }).await;
    store.exchange(before);
    let state = health(&follower, "the trust", |health| health.healthy).await;
    assert_eq!(state.replaced, None);
}

/// The own witness may be older than what a rolled-back store has lost. So a follower that finds it
/// alone at a reconnect compares a list, although it could go on watching.
#[tokio::test]
async fn a_reconnect_is_not_trusted_for_the_own_witness_alone() {
    let store = Paper::new(Contents::new());
    let (known, mut other) = with_a_later_write(&store).await;
    let own_key = Some(OWN.to_owned());
    let follower = follow(&store, FollowOptions { known: Some(known), own_key, ..options() });
    health(&follower, "the list", |health| health.healthy).await;
    // The last change is a deletion: the witness is older than that.
    store.with(|contents| contents.put("/t/brief", "1"));
    let last = store.with(|contents| contents.delete("/t/brief"));
    health(&follower, "the deletion", |health| health.revision == last).await;

    other.grow("/t/other", last + 5);
    // A watch from the last revision is possible, and the history of the witness is gone.
    other.compact_to(last);
    store.exchange(other);
    let state = health(&follower, "the comparison", |health| health.replaced.is_some()).await;
    assert!(state.replaced.unwrap().contains("/t/lost"));
}

/// A store that takes the place of the right one between the check and the list is not trusted for the
/// proof that the right one has given.
#[tokio::test]
async fn a_list_is_checked_after_it_was_read() {
    let store = Paper::new(Contents::new());
    let mut follower = follow(&store, options());
    health(&follower, "the list", |health| health.healthy).await;
    let mut other = store.backup();
    store.with(|contents| contents.put("/t/lost", "1"));
    let last = store.with(|contents| contents.put("/t/kept", "1"));
    health(&follower, "the writes", |health| health.revision == last).await;
    while timeout(WHILE, follower.next()).await.is_ok() {}

    other.grow("/t/other", last + 5);
    store.cut(true);
    health(&follower, "the break", |health| !health.healthy).await;
    // The right store proves itself by the last write, but the follower must list it.
    store.with(|contents| {
        contents.grow("/t/more", last + 5);
        contents.compact();
    });
    store.exchange_before_list(other);
    store.cut(false);
    let state = health(&follower, "the replacement", |health| health.replaced.is_some()).await;
    assert!(state.replaced.unwrap().contains("/t/kept"));
    assert!(timeout(WHILE, follower.next()).await.is_err());
}

/// An entry of an accepted store is delivered, although the store before had its key at the same
/// revision. The revision of the list is that of the accepted store.
#[tokio::test]
async fn an_accepted_store_is_delivered_as_a_whole() {
    let store = Paper::new(Contents::new());
    let mut follower = follow(&store, options());
    health(&follower, "the list", |health| health.healthy).await;
    let mut other = store.backup();
    let at = store.with(|contents| contents.put("/t/a", "1"));
    let last = store.with(|contents| contents.put("/t/b", "1"));
    health(&follower, "the writes", |health| health.revision == last).await;
    while timeout(WHILE, follower.next()).await.is_ok() {}

    assert_eq!(other.put("/t/a", "2"), at);
    store.exchange(other);
    health(&follower, "the roll-back", |health| health.replaced.is_some()).await;
    follower.acceptance().notify_one();
    let update = timeout(DEADLINE, follower.next()).await.unwrap().unwrap();
    assert!(update.listed.is_some() && update.revision == at, "{update:?}");
    let keys: Vec<&str> = update.changes.iter().map(Change::key).collect();
    assert_eq!(keys, ["/t/a", MARK, "/t/b"]);
    let Some(Change::Put(entry)) = update.changes.first() else { panic!("{update:?}") };
    assert_eq!(entry.value, b"2");
    assert_eq!(follower.health().borrow().accepted, 1);
}

/// A user that may use only the followed keys follows without a witness of its own. The health
/// names that until the user gets the permission.
#[tokio::test]
async fn a_refused_own_witness_breaks_nothing() {
    let store = Paper::new(Contents::new());
    store.narrow(true);
    let follower = follow(&store, with_own());
    let refused = |health: &Health| health.own_refused.is_some();
    let state = health(&follower, "the refusal", refused).await;
    assert!(state.healthy, "{state:?}");
    let at = store.with(|contents| contents.put("/t/a", "1"));
    let state = health(&follower, "a write", |health| health.revision == at).await;
    assert!(state.healthy && state.own.is_none(), "{state:?}");
    store.narrow(false);
    let state = health(&follower, "the own witness", |health| health.own.is_some()).await;
    assert_eq!(state.own_refused, None);
    drop(follower);

    // The permission is taken away again, and only the own witness could tell.
    let at = store.with(|contents| contents.put("/t/a", "2"));
    store.with(Contents::compact);
    store.narrow(true);
    let follower = follow(&store, FollowOptions { known: Some(known(state)), ..with_own() });
    let state = health(&follower, "the check", is_checked).await;
    assert!(state.identified, "{state:?}");
    health(&follower, "the list", |health| health.revision == at).await;
}

/// The own witness is not written to a store that takes the place of the right one at the last moment,
/// although neither of them has the key yet.
#[tokio::test]
async fn the_own_witness_is_not_written_to_another_store() {
    let store = Paper::new(Contents::new());
    let mut other = Contents::new();
    other.put("/t/first", "1");
    other.put(MARK, r#"{"schema":1,"id":"00"}"#);
    store.exchange_before_own_write(other);
    let follower = follow(&store, with_own());
    health(&follower, "the other store", |health| health.replaced.is_some()).await;
    assert_eq!(store.backup().value(OWN), None);
}

/// The own witness is not renewed in a store that may have lost what was written after it: a new one
/// would prove the history of the store that has lost it.
#[tokio::test]
async fn the_own_witness_is_not_renewed_without_a_proof() {
    let store = Paper::new(Contents::new());
    let (known, mut other) = with_a_later_write(&store).await;
    let (last, own) = (known.revision, known.own.clone());
    let own_every = Duration::from_millis(200);
    let known = Some(known);
    let follower = follow(&store, FollowOptions { known, own_every, ..with_own() });
    health(&follower, "the list", |health| health.healthy).await;
    other.grow("/t/other", last);
    other.compact_to(last + 1);
    // No break of the connection tells of it.
    store.with(|contents| *contents = other);
    tokio::time::sleep(own_every * 3).await;
    assert_eq!(store.backup().at(OWN), own.unwrap().revision);
    assert!(follower.health().borrow().healthy);
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
    let state = health(&follower, "the check", is_checked).await;
    assert!(state.identified, "{state:?}");
}
