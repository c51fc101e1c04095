//! The follower on real stores.

use std::{collections::BTreeMap, time::Duration};

use culvert::{
    model::STORE,
    store::{
        Change, Compare, FollowOptions, Follower, Health, Known, StateStore, Update, Write,
        retry::Backoff,
    },
};

use crate::{
    backend::{Backend, Etcd, in_time},
    suite::{briefs, delete, put, write},
};

fn options() -> FollowOptions {
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
    FollowOptions { backoff, ..culvert::model::follow_options() }
}

async fn update(follower: &mut Follower) -> Update {
    in_time("an update", follower.next()).await.expect("the follower lives")
}

/// Options of a follower with a witness of its own, which it writes soon after each change.
fn with_own() -> FollowOptions {
    let own_key = Some(culvert::model::witness_key("test"));
    FollowOptions { own_key, own_every: Duration::from_millis(50), ..options() }
}

/// Waits until a follower has written its own witness after all that it has seen.
async fn own_written(follower: &Follower) -> Health {
    health(follower, "the own witness", |health| {
        health.own.as_ref().is_some_and(|own| own.revision >= health.revision)
    })
    .await
}

/// Waits until the follower's health satisfies `is`.
async fn health(follower: &Follower, what: &str, is: impl Fn(&Health) -> bool) -> Health {
    let mut health = follower.health();
    let found = in_time(what, health.wait_for(is)).await;
    found.expect("the follower lives").clone()
}

/// The contents after all updates, and the keys that the updates have deleted.
#[derive(Default)]
struct Mirror {
    held: BTreeMap<String, String>,
    deleted: Vec<String>,
    resyncs: usize,
    revision: i64,
}

impl Mirror {
    fn take(&mut self, update: &Update) {
        // A list of a store that was accepted may be of an earlier revision.
        assert!(update.resync || update.revision >= self.revision, "{update:?}");
        let is_deletion = |change: &Change| matches!(change, Change::Delete { .. });
        assert!(!update.resync || update.changes.is_sorted_by_key(is_deletion), "{update:?}");
        self.revision = update.revision;
        self.resyncs += usize::from(update.resync);
        for change in &update.changes {
            match change {
                Change::Put(entry) if entry.key == STORE => {}
                Change::Put(entry) => {
                    let value = String::from_utf8_lossy(&entry.value).into_owned();
                    self.held.insert(entry.key.clone(), value);
                }
                Change::Delete { key, .. } => {
                    assert!(self.held.remove(key).is_some(), "{key}: deleted and never there");
                    self.deleted.push(key.clone());
                }
            }
        }
    }

    async fn until(&mut self, follower: &mut Follower, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            let update = update(follower).await;
            self.take(&update);
        }
    }
}

/// Repeats a write until the store answers.
async fn insist(store: &dyn StateStore, key: &str, value: &str) {
    in_time("a write", async {
        while store.commit(Vec::new(), vec![put(key, value)]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) async fn the_first_update_is_the_whole(backend: impl Backend) {
    let store = backend.store();
    let mut follower = Follower::spawn(backend.store(), options());
    let first = update(&mut follower).await;
    assert!(first.resync);
    // The only key is the mark, which the follower has written.
    assert_eq!(first.changes.iter().map(Change::key).collect::<Vec<_>>(), [STORE]);

    let revision =
        write(&*store, vec![put("/culvert/v1/x/b", "2"), put("/culvert/v1/x/a", "1")]).await;
    let second = update(&mut follower).await;
    assert_eq!((second.revision, second.resync, second.changes.len()), (revision, false, 2));
    let state = health(&follower, "health", |health| health.revision == revision).await;
    assert!(state.healthy && state.error.is_none() && state.mark.is_some(), "{state:?}");

    // A second follower sees the same mark, and gets all keys in one update.
    let mut other = Follower::spawn(backend.store(), options());
    let all = update(&mut other).await;
    assert!(all.resync && all.revision == revision, "{all:?}");
    assert_eq!(
        all.changes.iter().map(Change::key).collect::<Vec<_>>(),
        [STORE, "/culvert/v1/x/a", "/culvert/v1/x/b"]
    );
    assert_eq!(other.health().borrow().mark, state.mark);
}

pub(crate) async fn a_follower_sees_every_revision_once_across_a_restart(
    mut backend: impl Backend,
) {
    let store = backend.store();
    let mut follower = Follower::spawn(backend.store(), options());
    let mut mirror = Mirror::default();
    mirror.take(&update(&mut follower).await);
    let mut revisions = Vec::new();
    for round in 0..3 {
        for n in 0..5 {
            insist(&*store, &format!("/culvert/v1/x/{round}-{n}"), "v").await;
        }
        backend.stop().await;
        health(&follower, "the break to show", |health| !health.healthy).await;
        backend.start_again().await;
        insist(&*store, &format!("/culvert/v1/x/{round}-after"), "v").await;
        let expected = (round + 1) * 6;
        while mirror.held.len() < expected {
            let update = update(&mut follower).await;
            assert!(!update.resync, "the history was all there: {update:?}");
            revisions.push(update.revision);
            mirror.take(&update);
        }
        health(&follower, "health", |health| health.healthy).await;
    }
    assert!(revisions.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{revisions:?}");
    assert!(mirror.deleted.is_empty());
}

pub(crate) async fn after_compaction_the_difference_is_told(mut backend: impl Backend) {
    let store = backend.store();
    let mut follower = Follower::spawn(backend.store(), options());
    let mut mirror = Mirror::default();
    for name in ["kept", "changed", "gone"] {
        write(&*store, vec![put(&format!("/culvert/v1/x/{name}"), "1")]).await;
    }
    mirror.until(&mut follower, |mirror| mirror.held.len() == 3).await;

    // While the follower is cut off, the history advances and is compacted. A second handle stands
    // for another host, whose connection still works.
    let (cut, gate) = Gate::new(backend.store());
    drop(follower);
    let mut follower = Follower::spawn(gate, with_own());
    let mut mirror = Mirror::default();
    mirror.until(&mut follower, |mirror| mirror.held.len() == 3).await;
    own_written(&follower).await;
    cut.send_replace(true);
    health(&follower, "the break to show", |health| !health.healthy).await;
    write(&*store, vec![put("/culvert/v1/x/changed", "2"), delete("/culvert/v1/x/gone")]).await;
    write(&*store, vec![put("/culvert/v1/x/new", "1")]).await;
    for n in 0..5 {
        write(&*store, vec![put("/culvert/v1/x/brief", &n.to_string())]).await;
    }
    let newest = write(&*store, vec![delete("/culvert/v1/x/brief")]).await;
    backend.compact(newest).await;
    cut.send_replace(false);

    let resync = update(&mut follower).await;
    assert!(resync.resync, "history that is forgotten: {resync:?}");
    assert_eq!(resync.revision, newest);
    let mut seen = briefs(&resync.changes);
    seen.sort();
    assert_eq!(seen, ["-/culvert/v1/x/gone", "/culvert/v1/x/changed=2", "/culvert/v1/x/new=1"]);
    mirror.take(&resync);

    // The watch then continues.
    insist(&*store, "/culvert/v1/x/later", "1").await;
    mirror.until(&mut follower, |mirror| mirror.held.contains_key("/culvert/v1/x/later")).await;
    backend.stop().await;
}

/// Without a witness of its own, a follower that has missed compacted history takes a key for deleted
/// only if a younger one is still there.
pub(crate) async fn a_gap_that_nothing_proves_deletes_nothing(backend: impl Backend) {
    let store = backend.store();
    let key = |name: &str| format!("/culvert/v1/x/{name}");
    // The mark is older than all other keys.
    let mut first = Follower::spawn(backend.store(), options());
    update(&mut first).await;
    drop(first);
    for name in ["old", "kept", "young", "changed"] {
        write(&*store, vec![put(&key(name), "1")]).await;
    }
    let (cut, gate) = Gate::new(backend.store());
    let mut follower = Follower::spawn(gate, options());
    let mut mirror = Mirror::default();
    mirror.until(&mut follower, |mirror| mirror.held.len() == 4).await;
    let broken = |health: &Health| !health.healthy;
    cut.send_replace(true);
    health(&follower, "the break to show", broken).await;
    let newest = write(&*store, vec![delete(&key("old")), put(&key("changed"), "2")]).await;
    backend.compact(newest).await;
    cut.send_replace(false);
    let resync = update(&mut follower).await;
    assert_eq!(briefs(&resync.changes), ["/culvert/v1/x/changed=2", "-/culvert/v1/x/old"]);
    mirror.take(&resync);

    // Neither of the keys that were written last is there any more.
    health(&follower, "health", |health| health.healthy).await;
    cut.send_replace(true);
    health(&follower, "the break to show", broken).await;
    let newest = write(&*store, vec![delete(&key("young")), delete(&key("changed"))]).await;
    backend.compact(newest).await;
    cut.send_replace(false);
    let state = health(&follower, "the doubt to show", |health| health.replaced.is_some()).await;
    let error = state.error.expect("an error");
    assert!(error.contains("x/changed, written at revision"), "{error}");
    assert!(error.contains("and 1 more key are missing"), "{error}");
    let nothing = tokio::time::timeout(Duration::from_secs(1), follower.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    follower.acceptance().notify_one();
    mirror.take(&update(&mut follower).await);
    assert_eq!(mirror.held.keys().collect::<Vec<_>>(), [&key("kept")]);
    health(&follower, "health", |health| health.healthy).await;
}

pub(crate) async fn a_store_that_is_gone_deletes_nothing(mut backend: impl Backend) {
    let store = backend.store();
    write(&*store, vec![put("/culvert/v1/x/a", "1")]).await;
    let mut follower = Follower::spawn(backend.store(), options());
    let mut mirror = Mirror::default();
    mirror.take(&update(&mut follower).await);
    backend.stop().await;
    let state = health(&follower, "the break to show", |health| !health.healthy).await;
    let line = state.error.expect("an error");
    assert_eq!(line.lines().count(), 1, "{line}");
    // Several attempts fail without an update.
    let nothing = tokio::time::timeout(Duration::from_secs(2), follower.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    backend.start_again().await;
    insist(&*store, "/culvert/v1/x/b", "2").await;
    mirror.until(&mut follower, |mirror| mirror.held.len() == 2).await;
    assert!(mirror.deleted.is_empty());
}

pub(crate) async fn a_wiped_store_deletes_nothing_until_accepted(mut backend: impl Backend) {
    let store = backend.store();
    for n in 0..5 {
        write(&*store, vec![put(&format!("/culvert/v1/x/{n}"), "1")]).await;
    }
    let mut follower = Follower::spawn(backend.store(), options());
    let mut mirror = Mirror::default();
    mirror.take(&update(&mut follower).await);
    assert_eq!(mirror.held.len(), 5);
    // An `accept` has no effect before the follower has found that the store was replaced.
    follower.acceptance().notify_one();

    backend.stop().await;
    backend.wipe().await;
    backend.start_again().await;
    let replaced =
        |health: &Health| health.error.as_ref().is_some_and(|error| error.contains("replaced"));
    let state = health(&follower, "the replacement to show", replaced).await;
    assert!(!state.healthy);
    // The revision passes the last one seen, and the store still counts as another one.
    for n in 0..20 {
        insist(&*store, "/culvert/v1/y", &n.to_string()).await;
    }
    let nothing = tokio::time::timeout(Duration::from_secs(1), follower.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    health(&follower, "the replacement to show", |health| {
        health.error.as_ref().is_some_and(|error| error.contains("missing"))
    })
    .await;

    // `accept` has effect while the follower waits for a decision.
    in_time("the store to be accepted", async {
        loop {
            follower.acceptance().notify_one();
            let next = tokio::time::timeout(Duration::from_millis(50), follower.next()).await;
            if let Ok(next) = next {
                mirror.take(&next.expect("the follower lives"));
                return;
            }
        }
    })
    .await;
    assert_eq!(mirror.held.keys().collect::<Vec<_>>(), ["/culvert/v1/y"]);
    assert_eq!(mirror.deleted.len(), 5);
    health(&follower, "health", |health| health.healthy).await;
}

/// The store is rolled back to a backup, and then written to until its revision passes the one that
/// was seen.
pub(crate) async fn a_store_that_was_rolled_back_is_recognized(mut backend: Etcd) {
    let store = backend.store();
    write(&*store, vec![put("/culvert/v1/x/old", "1")]).await;
    let mut follower = Follower::spawn(backend.store(), options());
    let mut mirror = Mirror::default();
    mirror.take(&update(&mut follower).await);
    backend.back_up().await;
    backend.start_again().await;
    for n in 0..5 {
        insist(&*store, &format!("/culvert/v1/x/new{n}"), "1").await;
    }
    mirror.until(&mut follower, |mirror| mirror.held.len() == 6).await;
    let seen = follower.health().borrow().clone();

    // No follower runs while the store is rolled back and then written past the last revision seen.
    drop(follower);
    backend.roll_back().await;
    backend.start_again().await;
    for n in 0..30 {
        insist(&*store, "/culvert/v1/y", &n.to_string()).await;
    }
    let known = known(seen);
    let now = store.snapshot("/culvert/").await.expect("a list").revision;
    assert!(now > known.revision, "{now} {}", known.revision);
    let options = FollowOptions { known: Some(known), ..options() };
    let mut follower = Follower::spawn(backend.store(), options);
    let state =
        health(&follower, "the roll-back to show", |health| health.replaced.is_some()).await;
    let error = state.error.expect("an error");
    assert!(error.contains("rolled back") && !state.identified, "{error}");
    // Further writes do not change this.
    for n in 0..10 {
        insist(&*store, "/culvert/v1/z", &n.to_string()).await;
    }
    let nothing = tokio::time::timeout(Duration::from_secs(2), follower.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    follower.acceptance().notify_one();
    assert!(update(&mut follower).await.resync);
}

/// Rolls the store back, writes past the revision `seen`, and compacts the history.
async fn roll_back_and_compact(backend: &mut Etcd, store: &dyn StateStore, seen: i64) {
    backend.roll_back().await;
    backend.start_again().await;
    for n in 0..50 {
        insist(store, "/culvert/v1/y", &n.to_string()).await;
    }
    let now = store.snapshot("/culvert/").await.expect("a list").revision;
    assert!(now > seen, "{now} {seen}");
    backend.compact(now).await;
}

/// What the next run knows of a store.
fn known(health: Health) -> Known {
    let Health { revision, mark, witness, own, replaced, .. } = health;
    Known { mark: mark.expect("a mark"), revision, witness, own, replaced }
}

/// The store is rolled back to a backup and written to, and the history that would tell is compacted:
/// neither a follower that has run all the time nor one that starts then takes what was lost for
/// deleted.
pub(crate) async fn a_roll_back_is_recognized_in_spite_of_a_compaction(mut backend: Etcd) {
    let store = backend.store();
    write(&*store, vec![put("/culvert/v1/x/old", "1")]).await;
    let (cut, gate) = Gate::new(backend.store());
    let spawn = |options| Follower::spawn(std::sync::Arc::clone(&gate) as _, options);
    let mut followers = [spawn(with_own()), spawn(options())];
    let mut mirrors = [Mirror::default(), Mirror::default()];
    for (follower, mirror) in followers.iter_mut().zip(&mut mirrors) {
        mirror.until(follower, |mirror| mirror.held.len() == 1).await;
    }
    own_written(&followers[0]).await;
    backend.back_up().await;
    backend.start_again().await;
    for n in 0..5 {
        insist(&*store, &format!("/culvert/v1/x/new{n}"), "1").await;
    }
    for (follower, mirror) in followers.iter_mut().zip(&mut mirrors) {
        mirror.until(follower, |mirror| mirror.held.len() == 6).await;
    }
    let known = known(own_written(&followers[0]).await);

    cut.send_replace(true);
    for follower in &followers {
        health(follower, "the break to show", |health| !health.healthy).await;
    }
    roll_back_and_compact(&mut backend, &*store, known.revision).await;
    cut.send_replace(false);

    let again = FollowOptions { known: Some(known), ..with_own() };
    let [own, compared] = followers;
    let followers = [
        (own, "the write of /culvert/witnesses/test at revision"),
        (compared, "x/new0, written at revision"),
        (
            Follower::spawn(backend.store(), again),
            "the write of /culvert/witnesses/test at revision",
        ),
    ];
    for (mut follower, why) in followers {
        let state =
            health(&follower, "the roll-back to show", |health| health.replaced.is_some()).await;
        let error = state.error.expect("an error");
        assert!(error.contains(why) && error.contains("rolled back"), "{error}");
        let nothing = tokio::time::timeout(Duration::from_secs(1), follower.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    }
}

/// A host is registered, and its agent is started again soon afterwards, much sooner than its own
/// witness is renewed. Meanwhile the store is rolled back to a backup from before the registration
/// and written to, and the history that would tell is compacted.
pub(crate) async fn a_roll_back_to_before_the_registration_is_recognized(mut backend: Etcd) {
    let store = backend.store();
    // Another host has written the mark.
    let mut other = Follower::spawn(backend.store(), options());
    update(&mut other).await;
    drop(other);
    backend.back_up().await;
    backend.start_again().await;

    let host = FollowOptions { own_every: Duration::from_hours(1), ..with_own() };
    let mut follower = Follower::spawn(backend.store(), host.clone());
    let mut mirror = Mirror::default();
    mirror.take(&update(&mut follower).await);
    follower.registration().notify_one();
    health(&follower, "the own witness", |health| health.own.is_some()).await;
    for n in 0..5 {
        insist(&*store, &format!("/culvert/v1/x/new{n}"), "1").await;
    }
    mirror.until(&mut follower, |mirror| mirror.held.len() == 5).await;
    let known = known(follower.health().borrow().clone());
    drop(follower);

    roll_back_and_compact(&mut backend, &*store, known.revision).await;
    let again = FollowOptions { known: Some(known), ..host };
    let mut follower = Follower::spawn(backend.store(), again);
    let state =
        health(&follower, "the check", |health| health.identified || health.replaced.is_some())
            .await;
    let why = state.replaced.expect("it is recognized");
    assert!(why.contains("the write of /culvert/witnesses/test at revision"), "{why}");
    let nothing = tokio::time::timeout(Duration::from_secs(1), follower.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
}

pub(crate) async fn a_store_known_from_an_earlier_run_is_recognized(mut backend: impl Backend) {
    let store = backend.store();
    write(&*store, vec![put("/culvert/v1/x/a", "1")]).await;
    let mut follower = Follower::spawn(backend.store(), options());
    let first = update(&mut follower).await;
    let seen = follower.health().borrow().clone();
    let known = Some(Known { revision: first.revision, ..known(seen) });
    drop(follower);

    let again = FollowOptions { known: known.clone(), ..options() };
    let mut follower = Follower::spawn(backend.store(), again);
    assert!(update(&mut follower).await.resync);
    drop(follower);

    backend.stop().await;
    backend.wipe().await;
    backend.start_again().await;
    for n in 0..10 {
        insist(&*store, "/culvert/v1/y", &n.to_string()).await;
    }
    let mut follower = Follower::spawn(backend.store(), FollowOptions { known, ..options() });
    health(&follower, "the replacement to show", |health| {
        health.error.as_ref().is_some_and(|error| error.contains("replaced"))
    })
    .await;
    assert!(tokio::time::timeout(Duration::from_millis(500), follower.next()).await.is_err());
    // The follower has not written a mark of its own.
    let marked = store.commit(vec![Compare::Absent(STORE.to_owned())], vec![]).await;
    assert!(matches!(marked, Ok(culvert::store::Outcome::Committed(_))), "{marked:?}");
}

/// A handle that can be cut off while other handles work.
#[derive(Debug)]
struct Gate {
    store: std::sync::Arc<dyn StateStore>,
    cut: tokio::sync::watch::Receiver<bool>,
}

impl Gate {
    fn new(
        store: std::sync::Arc<dyn StateStore>,
    ) -> (tokio::sync::watch::Sender<bool>, std::sync::Arc<Self>) {
        let (sender, cut) = tokio::sync::watch::channel(false);
        (sender, std::sync::Arc::new(Self { store, cut }))
    }

    fn pass(&self) -> Result<(), culvert::store::StoreError> {
        if *self.cut.borrow() {
            Err(culvert::store::StoreError::Unavailable("cut off".to_owned()))
        } else {
            Ok(())
        }
    }
}

#[async_trait::async_trait]
impl StateStore for Gate {
    fn kind(&self) -> culvert::store::Kind {
        self.store.kind()
    }

    async fn snapshot(
        &self,
        prefix: &str,
    ) -> Result<culvert::store::Snapshot, culvert::store::StoreError> {
        self.pass()?;
        self.store.snapshot(prefix).await
    }

    async fn was_written(&self, key: &str, at: i64) -> Result<bool, culvert::store::StoreError> {
        self.pass()?;
        self.store.was_written(key, at).await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: i64,
    ) -> Result<culvert::store::Watch, culvert::store::StoreError> {
        use futures::StreamExt;
        self.pass()?;
        let mut cut = self.cut.clone();
        let until = async move {
            let _ = cut.wait_for(|cut| *cut).await;
        };
        // The watch ends when the handle is cut off.
        Ok(self.store.watch(prefix, from).await?.take_until(until).boxed())
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<culvert::store::Outcome, culvert::store::StoreError> {
        self.pass()?;
        self.store.commit(compares, writes).await
    }

    async fn grant(
        &self,
        ttl: Duration,
    ) -> Result<culvert::store::LeaseId, culvert::store::StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(
        &self,
        lease: culvert::store::LeaseId,
    ) -> Result<(), culvert::store::StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(
        &self,
        lease: culvert::store::LeaseId,
    ) -> Result<(), culvert::store::StoreError> {
        self.store.revoke(lease).await
    }
}
