//! The behaviour of every [`StateStore`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use culvert::store::{
    Change, Compare, LeaseId, Outcome, Revision, StateStore, StoreError, Watch, Write,
};
use futures::StreamExt;

use crate::backend::{Backend, in_time};

pub(crate) fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

fn put_on(key: &str, lease: LeaseId) -> Write {
    Write::Put { key: key.to_owned(), value: b"leased".to_vec(), lease: Some(lease) }
}

pub(crate) fn delete(key: &str) -> Write {
    Write::Delete(key.to_owned())
}

/// Commits without conditions.
pub(crate) async fn write(store: &dyn StateStore, writes: Vec<Write>) -> Revision {
    match store.commit(Vec::new(), writes).await.expect("commits") {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("conflict without conditions"),
    }
}

/// Keys and values below a prefix.
async fn content(store: &dyn StateStore, prefix: &str) -> Vec<(String, String)> {
    let snapshot = store.snapshot(prefix).await.expect("snapshot");
    let text = |value| String::from_utf8(value).expect("text");
    snapshot.entries.into_iter().map(|entry| (entry.key, text(entry.value))).collect()
}

async fn keys(store: &dyn StateStore, prefix: &str) -> Vec<String> {
    content(store, prefix).await.into_iter().map(|(key, _)| key).collect()
}

async fn next(watch: &mut Watch) -> Vec<Change> {
    let item = in_time("a change", watch.next()).await;
    item.expect("the watch goes on").expect("no error")
}

/// A change as one word.
fn brief(change: &Change) -> String {
    match change {
        Change::Put(entry) => {
            format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value))
        }
        Change::Delete { key, .. } => format!("-{key}"),
    }
}

pub(crate) fn briefs(changes: &[Change]) -> Vec<String> {
    changes.iter().map(brief).collect()
}

pub(crate) async fn a_snapshot_is_of_one_prefix_in_key_order(backend: impl Backend) {
    let store = backend.store();
    let empty = store.snapshot("/t/a/").await.expect("snapshot");
    assert!(empty.entries.is_empty() && empty.revision >= 1, "{empty:?}");

    let first = write(&*store, vec![put("/t/a/2", "two"), put("/t/a/1", "one")]).await;
    let second = write(&*store, vec![put("/t/a/3", "three"), put("/t/ab", "beside")]).await;
    assert_eq!(second, first + 1);

    let snapshot = store.snapshot("/t/a/").await.expect("snapshot");
    assert_eq!(snapshot.revision, second);
    let seen: Vec<_> = snapshot
        .entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry.value.as_slice(), entry.mod_revision))
        .collect();
    assert_eq!(
        seen,
        [("/t/a/1", &b"one"[..], first), ("/t/a/2", b"two", first), ("/t/a/3", b"three", second)]
    );
    assert_eq!(keys(&*store, "/t/a").await, ["/t/a/1", "/t/a/2", "/t/a/3", "/t/ab"]);
    assert_eq!(keys(&*store, "/t/ab").await, ["/t/ab"]);
}

pub(crate) async fn a_large_snapshot_is_whole(backend: impl Backend) {
    const KEYS: usize = 20_000;
    let store = backend.store();
    // The values have 400 bytes each: together more than one message of gRPC's default 4 MB.
    let value = "x".repeat(400);
    let names: Vec<_> = (0..KEYS).map(|n| format!("/t/{n:06}")).collect();
    for chunk in names.chunks(culvert::store::MAX_OPS) {
        write(&*store, chunk.iter().map(|name| put(name, &value)).collect()).await;
    }
    // A write during the snapshot must not appear in part.
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..50 {
                let value = round.to_string();
                write(&*store, vec![put("/t/000000", &value), put("/t/019999", &value)]).await;
            }
        })
    };
    for _ in 0..3 {
        let snapshot = store.snapshot("/t/").await.expect("snapshot");
        assert_eq!(snapshot.entries.len(), KEYS);
        assert!(snapshot.entries.iter().map(|entry| &entry.key).eq(names.iter()));
        let (first, last) = (&snapshot.entries[0], &snapshot.entries[KEYS - 1]);
        assert_eq!(first.value, last.value, "two revisions in one snapshot");
    }
    writer.await.expect("writer");
}

pub(crate) async fn compares_mean_what_they_say(backend: impl Backend) {
    let store = backend.store();
    let first = write(&*store, vec![put("/t/a/1", "v")]).await;
    let second = write(&*store, vec![put("/t/a/2", "v")]).await;
    write(&*store, vec![put("/t/b", "v")]).await;

    let absent = |key: &str| Compare::Absent(key.to_owned());
    let unchanged = |key: &str, revision| Compare::Unchanged(key.to_owned(), revision);
    let empty = |prefix: &str| Compare::PrefixEmpty(prefix.to_owned());
    let quiet = |prefix: &str, revision| Compare::PrefixUnchanged(prefix.to_owned(), revision);
    for (holds, compare) in [
        (true, absent("/t/a/3")),
        (true, absent("/t/a/")),
        (false, absent("/t/a/1")),
        (true, unchanged("/t/a/1", first)),
        (false, unchanged("/t/a/1", first + 1)),
        (false, unchanged("/t/a/1", first - 1)),
        (false, unchanged("/t/a/3", first)),
        (true, empty("/t/c/")),
        (true, empty("/t/a/1/")),
        (false, empty("/t/a/")),
        (false, empty("/t/")),
        (false, empty("/t/b")),
        (true, quiet("/t/a/", second)),
        (true, quiet("/t/a/", second + 1)),
        (false, quiet("/t/a/", first)),
        (false, quiet("/t/a/", 0)),
        (true, quiet("/t/c/", 0)),
        (false, quiet("/t/", second)),
    ] {
        let text = format!("{compare:?}");
        let outcome = store.commit(vec![compare], vec![delete("/t/none")]).await.expect("commit");
        assert_eq!(outcome != Outcome::Conflict, holds, "{text}");
    }

    // A deletion does not count as a write below the prefix.
    write(&*store, vec![delete("/t/a/2")]).await;
    let outcome =
        store.commit(vec![quiet("/t/a/", second)], vec![put("/t/d", "v")]).await.expect("commit");
    assert!(matches!(outcome, Outcome::Committed(_)));
    // A deleted key is absent, and its old revision does not return.
    let third = write(&*store, vec![put("/t/a/2", "again")]).await;
    for (holds, compare) in
        [(false, unchanged("/t/a/2", second)), (true, unchanged("/t/a/2", third))]
    {
        let outcome = store.commit(vec![compare], Vec::new()).await.expect("commit");
        assert_eq!(outcome != Outcome::Conflict, holds);
    }
}

pub(crate) async fn a_conflict_writes_nothing(backend: impl Backend) {
    let store = backend.store();
    let revision = write(&*store, vec![put("/t/a", "v")]).await;
    let compares = vec![
        Compare::Absent("/t/b".to_owned()),
        Compare::Absent("/t/a".to_owned()),
        Compare::Unchanged("/t/a".to_owned(), revision),
    ];
    let writes = vec![put("/t/b", "new"), delete("/t/a"), Write::DeletePrefix("/t/c/".to_owned())];
    assert_eq!(store.commit(compares, writes).await.expect("commit"), Outcome::Conflict);
    let snapshot = store.snapshot("/t/").await.expect("snapshot");
    assert_eq!(snapshot.revision, revision);
    assert_eq!(content(&*store, "/t/").await, [("/t/a".to_owned(), "v".to_owned())]);
}

pub(crate) async fn a_transaction_without_effect_is_no_revision(backend: impl Backend) {
    let store = backend.store();
    let revision = write(&*store, vec![put("/t/a", "v")]).await;
    let nothing = vec![delete("/t/none"), Write::DeletePrefix("/t/none/".to_owned())];
    assert_eq!(write(&*store, nothing).await, revision);
    assert_eq!(write(&*store, Vec::new()).await, revision);
    // A write of the same value is a write, too.
    assert_eq!(write(&*store, vec![put("/t/a", "v")]).await, revision + 1);
}

pub(crate) async fn a_malformed_transaction_is_refused(backend: impl Backend) {
    let store = backend.store();
    let many: Vec<_> = (0..=culvert::store::MAX_OPS).map(|n| put(&format!("/t/{n}"), "")).collect();
    for writes in [
        many,
        vec![put("/t/a", "1"), put("/t/a", "2")],
        vec![put("/t/a/b", "1"), Write::DeletePrefix("/t/a/".to_owned())],
    ] {
        let refused = store.commit(Vec::new(), writes).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    }
    assert!(keys(&*store, "/t/").await.is_empty());
}

pub(crate) async fn a_key_never_has_two_owners(backend: impl Backend) {
    const TASKS: usize = 8;
    const KEYS: usize = 40;
    let store = backend.store();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut won = Vec::new();
                for index in 0..KEYS {
                    // Each task starts at another key, and all tasks compete for every key.
                    let key = format!("/t/{:03}", (index + task * KEYS / TASKS) % KEYS);
                    let claim = vec![put(&key, &task.to_string())];
                    let compares = vec![Compare::Absent(key.clone())];
                    match store.commit(compares, claim).await.expect("commit") {
                        Outcome::Committed(_) => won.push(key),
                        Outcome::Conflict => {}
                    }
                }
                won
            })
        })
        .collect();
    let mut owners = BTreeMap::new();
    for (task, handle) in tasks.into_iter().enumerate() {
        for key in handle.await.expect("task") {
            assert_eq!(owners.insert(key.clone(), task.to_string()), None, "{key}: two owners");
        }
    }
    let held = content(&*store, "/t/").await;
    assert_eq!(held.len(), KEYS);
    assert_eq!(held, owners.into_iter().collect::<Vec<_>>());
}

pub(crate) async fn no_increment_is_lost(backend: impl Backend) {
    const TASKS: usize = 8;
    const ROUNDS: usize = 10;
    let store = backend.store();
    write(&*store, vec![put("/t/n", "0")]).await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    loop {
                        let snapshot = store.snapshot("/t/n").await.expect("snapshot");
                        let entry = &snapshot.entries[0];
                        let text = std::str::from_utf8(&entry.value).expect("text");
                        let number: usize = text.parse().expect("number");
                        let compares =
                            vec![Compare::Unchanged("/t/n".to_owned(), entry.mod_revision)];
                        let writes = vec![put("/t/n", &(number + 1).to_string())];
                        let outcome = store.commit(compares, writes).await.expect("commit");
                        if let Outcome::Committed(_) = outcome {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    let expected = (TASKS * ROUNDS).to_string();
    assert_eq!(content(&*store, "/t/n").await, [("/t/n".to_owned(), expected)]);
}

pub(crate) async fn a_watch_tells_revisions_in_order_and_whole(backend: impl Backend) {
    let store = backend.store();
    let start = write(&*store, vec![put("/t/old", "v")]).await;
    // One watch starts in the past, one starts at the next revision, and one has another prefix.
    let mut past = store.watch("/t/", start).await.expect("watch");
    let mut coming = store.watch("/t/", start + 1).await.expect("watch");
    let mut beside = store.watch("/u/", start).await.expect("watch");

    let one = write(&*store, vec![put("/t/c", "1"), put("/t/a", "1"), put("/t/b", "1")]).await;
    write(&*store, vec![put("/not", "watched")]).await;
    let two = write(&*store, vec![delete("/t/a"), put("/t/b", "2"), delete("/t/none")]).await;
    let three =
        write(&*store, vec![Write::DeletePrefix("/t/".to_owned()), put("/u/end", "v")]).await;

    assert_eq!(briefs(&next(&mut past).await), ["/t/old=v"]);
    for watch in [&mut past, &mut coming] {
        for (revision, expected) in [
            (one, vec!["/t/a=1", "/t/b=1", "/t/c=1"]),
            (two, vec!["-/t/a", "/t/b=2"]),
            (three, vec!["-/t/b", "-/t/c", "-/t/old"]),
        ] {
            let changes = next(watch).await;
            assert!(changes.iter().all(|change| change.revision() == revision), "{changes:?}");
            let mut seen = briefs(&changes);
            seen.sort();
            assert_eq!(seen, expected);
        }
    }
    assert_eq!(briefs(&next(&mut beside).await), ["/u/end=v"]);
}

/// The history tells whether a key was written at a revision, until it is compacted.
pub(crate) async fn a_write_is_known_by_its_revision(backend: impl Backend) {
    let store = backend.store();
    let first = write(&*store, vec![put("/t/a", "1"), put("/t/b", "1")]).await;
    let second = write(&*store, vec![put("/t/a", "2")]).await;
    let third = write(&*store, vec![delete("/t/a")]).await;
    for (key, at, expected) in [
        ("/t/a", first, true),
        ("/t/b", first, true),
        ("/t/a", second, true),
        ("/t/b", second, false),
        ("/t/a", third, false),
        ("/t/", first, false),
        ("/t/none", second, false),
    ] {
        let written = store.was_written(key, at).await.expect("answer");
        assert_eq!(written, expected, "{key} at {at}");
    }
    backend.compact(second).await;
    let forgotten = store.was_written("/t/a", first).await;
    assert!(matches!(forgotten, Err(StoreError::Compacted { .. })), "{forgotten:?}");
    assert!(store.was_written("/t/a", second).await.expect("answer"));
    assert!(!store.was_written("/t/a", third).await.expect("answer"));
}

pub(crate) async fn a_watch_keeps_up_with_many_writers(backend: impl Backend) {
    const TASKS: usize = 8;
    const ROUNDS: usize = 20;
    let store = backend.store();
    let start = store.snapshot("/t/").await.expect("snapshot").revision;
    let mut watch = store.watch("/t/", start + 1).await.expect("watch");
    for task in 0..TASKS {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let writes = vec![
                    put(&format!("/t/{task}/a"), &round.to_string()),
                    put(&format!("/t/{task}/b"), &round.to_string()),
                ];
                write(&*store, writes).await;
            }
        });
    }
    let mut last = start;
    for _ in 0..TASKS * ROUNDS {
        let changes = next(&mut watch).await;
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert!(changes.iter().all(|change| change.revision() == last + 1), "{changes:?}");
        last += 1;
    }
    let snapshot = store.snapshot("/t/").await.expect("snapshot");
    assert_eq!(snapshot.revision, last);
}

pub(crate) async fn a_watch_catches_up_with_a_long_history(backend: impl Backend) {
    const REVISIONS: usize = 300;
    const PER_REVISION: usize = 20;
    let store = backend.store();
    let start = store.snapshot("/t/").await.expect("snapshot").revision;
    // 6 MB: more than one message of gRPC's default 4 MB.
    let value = "y".repeat(1000);
    for n in 0..REVISIONS {
        let writes = (0..PER_REVISION).map(|k| put(&format!("/t/{k:02}-{}", n % 7), &value));
        write(&*store, writes.collect()).await;
    }
    let mut watch = store.watch("/t/", start + 1).await.expect("watch");
    for n in 0..REVISIONS {
        let changes = next(&mut watch).await;
        let revision = start + 1 + n as Revision;
        assert_eq!(changes.len(), PER_REVISION, "at {revision}");
        assert!(changes.iter().all(|change| change.revision() == revision));
    }
}

pub(crate) async fn a_compacted_revision_cannot_be_watched_from(backend: impl Backend) {
    let store = backend.store();
    let first = write(&*store, vec![put("/t/a", "1")]).await;
    for n in 2..10 {
        write(&*store, vec![put("/t/a", &n.to_string())]).await;
    }
    let newest = write(&*store, vec![put("/t/a", "10")]).await;
    backend.compact(newest - 2).await;

    // The error comes from the call or as the first item.
    let result = match store.watch("/t/", first).await {
        Err(error) => error,
        Ok(mut watch) => {
            let item = in_time("an item", watch.next()).await.expect("an item");
            let error = item.expect_err("the revision is gone");
            assert!(in_time("the end", watch.next()).await.is_none(), "ends after an error");
            error
        }
    };
    match result {
        StoreError::Compacted { oldest } => assert_eq!(oldest, newest - 2),
        other => panic!("{other}"),
    }
    let mut watch = store.watch("/t/", newest).await.expect("watch");
    assert_eq!(briefs(&next(&mut watch).await), ["/t/a=10"]);
    // The present contents are unchanged.
    assert_eq!(content(&*store, "/t/").await, [("/t/a".to_owned(), "10".to_owned())]);
}

pub(crate) async fn a_lease_takes_its_keys_with_it(backend: impl Backend) {
    let store = backend.store();
    let short = store.grant(Duration::from_secs(2)).await.expect("grant");
    let kept = store.grant(Duration::from_secs(2)).await.expect("grant");
    let ended = store.grant(Duration::from_secs(60)).await.expect("grant");
    let start = write(
        &*store,
        vec![
            put_on("/t/short/1", short),
            put_on("/t/short/2", short),
            put_on("/t/kept", kept),
            put_on("/t/ended", ended),
            put_on("/t/freed", short),
            put_on("/t/moved", short),
        ],
    )
    .await;
    // A later write detaches a key from its lease, or attaches it to another lease.
    write(&*store, vec![put("/t/freed", "v"), put_on("/t/moved", kept)]).await;
    let mut watch = store.watch("/t/", start + 2).await.expect("watch");

    store.revoke(ended).await.expect("revoke");
    assert_eq!(briefs(&next(&mut watch).await), ["-/t/ended"]);

    let keeper = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            loop {
                store.keep_alive(kept).await.expect("keep alive");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        })
    };
    let mut gone = briefs(&next(&mut watch).await);
    gone.sort();
    assert_eq!(gone, ["-/t/short/1", "-/t/short/2"]);
    assert_eq!(keys(&*store, "/t/").await, ["/t/freed", "/t/kept", "/t/moved"]);
    // A lease also expires after its renewal has stopped.
    assert!(!keeper.is_finished());
    keeper.abort();
    let mut gone = briefs(&next(&mut watch).await);
    gone.sort();
    assert_eq!(gone, ["-/t/kept", "-/t/moved"]);
    assert_eq!(keys(&*store, "/t/").await, ["/t/freed"]);
}

pub(crate) async fn a_lease_that_is_gone_is_named(backend: impl Backend) {
    let store = backend.store();
    let lease = store.grant(Duration::from_secs(60)).await.expect("grant");
    store.keep_alive(lease).await.expect("keep alive");
    store.revoke(lease).await.expect("revoke");
    let gone = |result: Result<(), StoreError>| match result {
        Err(StoreError::LeaseGone(named)) => assert_eq!(named, lease),
        other => panic!("{other:?}"),
    };
    gone(store.keep_alive(lease).await);
    gone(store.revoke(lease).await);
    gone(store.commit(Vec::new(), vec![put_on("/t/a", lease), put("/t/b", "v")]).await.map(drop));
    assert!(keys(&*store, "/t/").await.is_empty());
}

pub(crate) async fn a_lease_survives_a_restart(mut backend: impl Backend) {
    let store = backend.store();
    let lease = store.grant(Duration::from_secs(3)).await.expect("grant");
    let revision = write(&*store, vec![put_on("/t/a", lease)]).await;
    backend.stop().await;
    backend.start_again().await;
    let store = backend.store();
    assert_eq!(keys(&*store, "/t/").await, ["/t/a"]);
    store.keep_alive(lease).await.expect("keep alive");
    let mut watch = store.watch("/t/", revision + 1).await.expect("watch");
    assert_eq!(briefs(&next(&mut watch).await), ["-/t/a"]);
}

pub(crate) async fn a_restart_keeps_what_is_committed(mut backend: impl Backend) {
    let store = backend.store();
    let first = write(&*store, vec![put("/t/a", "1")]).await;
    let second = write(&*store, vec![put("/t/b", "2")]).await;
    let mut watch = store.watch("/t/", second + 1).await.expect("watch");
    backend.stop().await;
    let error = in_time("the watch to notice", watch.next()).await.expect("an error");
    assert!(matches!(error, Err(StoreError::Unavailable(_))), "{error:?}");
    assert!(in_time("the end", watch.next()).await.is_none());
    let error = store.snapshot("/t/").await.expect_err("is down");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");

    backend.start_again().await;
    // The same handle works, and the watch continues where it was.
    let snapshot = crate::backend::answer(&*store, "/t/").await;
    assert_eq!(snapshot.revision, second);
    assert_eq!(keys(&*store, "/t/").await, ["/t/a", "/t/b"]);
    let mut watch = store.watch("/t/", first).await.expect("watch");
    let third = write(&*store, vec![put("/t/c", "3")]).await;
    assert_eq!(third, second + 1);
    for expected in ["/t/a=1", "/t/b=2", "/t/c=3"] {
        assert_eq!(briefs(&next(&mut watch).await), [expected]);
    }
}
