use std::{fs, time::Instant as StdInstant};

use futures::StreamExt;

use super::*;

const SOON: Duration = Duration::from_secs(30);

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

async fn write(store: &FileStore, writes: Vec<Write>) -> Revision {
    match store.commit(Vec::new(), writes).await.expect("commit") {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("conflict without conditions"),
    }
}

#[tokio::test]
async fn a_second_opener_is_told_who_is_first() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("a/b");
    let first = FileStore::open(&path).await.expect("opens, and makes the directories");
    let error = FileStore::open(&path).await.expect_err("is in use");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let line = error.to_string();
    let pid = format!("process {}", std::process::id());
    assert!(line.contains(&pid) && line.contains(&path.display().to_string()), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    drop(first);
    reopen(&path).await;
}

/// Opens the store once its last user has closed it.
async fn reopen(path: &Path) -> FileStore {
    let deadline = StdInstant::now() + SOON;
    loop {
        match FileStore::open(path).await {
            Ok(store) => return store,
            Err(error) => assert!(StdInstant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_cannot_be_a_store_is_refused_in_one_line() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("file");
    fs::write(&file, "x").expect("write");
    let garbage = dir.path().join("garbage");
    fs::create_dir(&garbage).expect("directory");
    fs::write(garbage.join("store.redb"), "this is no database".repeat(500)).expect("write");
    for path in [&file, &garbage] {
        let error = FileStore::open(path).await.expect_err("is refused");
        assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
        let line = error.to_string();
        assert!(line.contains(&path.display().to_string()), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[tokio::test]
async fn no_other_user_can_read_the_store_and_no_link_is_followed() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    let dir = tempfile::tempdir().expect("temporary directory");
    let (path, file) = (dir.path().join("store"), dir.path().join("store/store.redb"));
    drop(FileStore::open(&path).await.expect("opens"));
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
    // As an earlier version has made it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("mode");
    drop(reopen(&path).await);
    assert_eq!(mode(&file), 0o600);

    let (other, victim) = (dir.path().join("other"), dir.path().join("victim"));
    fs::create_dir(&other).expect("directory");
    fs::write(&victim, "theirs").expect("write");
    symlink(&victim, other.join("lock")).expect("link");
    let error = FileStore::open(&other).await.expect_err("is refused");
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    assert_eq!(fs::read(&victim).expect("file"), b"theirs");
}

#[tokio::test]
async fn a_store_of_another_format_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    {
        let database = redb::Database::create(dir.path().join("store.redb")).expect("database");
        let txn = database.begin_write().expect("transaction");
        let meta: redb::TableDefinition<'_, &str, i64> = redb::TableDefinition::new("meta");
        txn.open_table(meta).expect("table").insert("format", 99).expect("insert");
        txn.commit().expect("commit");
    }
    let error = FileStore::open(dir.path()).await.expect_err("is refused");
    assert!(error.to_string().contains("format 99"), "{error}");
}

#[tokio::test]
async fn the_history_is_bounded() {
    let dir = tempfile::tempdir().expect("temporary directory");
    // Writes directly to the database: its commits need not wait for the disk.
    let store = FileStore::open(dir.path()).await.expect("opens");
    let work = store
        .run(|inner| {
            let mut newest = 0;
            for n in 0..db::KEEP + 600 {
                let writes = [put("/t/a", &n.to_string())];
                if let Outcome::Committed(revision) = inner.db.commit_fast(&writes)? {
                    newest = revision;
                }
            }
            inner.announce(newest);
            Ok(newest)
        })
        .await;
    let newest = match work {
        Ok(newest) => newest,
        // A slow disk may take longer than the timeout of a call.
        Err(StoreError::Unavailable(_)) => return,
        Err(other) => panic!("{other}"),
    };
    let gone = store.watch("/t/", 2).await.map(drop).expect_err("is gone");
    let StoreError::Compacted { oldest } = gone else { panic!("{gone}") };
    assert!(newest - oldest >= db::KEEP && newest - oldest <= db::KEEP + 600, "{oldest} {newest}");
    let mut watch = store.watch("/t/", oldest).await.expect("watch");
    for revision in oldest..=newest {
        let changes = watch.next().await.expect("item").expect("changes");
        assert_eq!(changes.first().map(Change::revision), Some(revision));
    }
}

#[tokio::test]
async fn a_watch_ends_when_the_store_is_closed_and_does_not_keep_it_open() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::open(dir.path()).await.expect("opens");
    let revision = write(&store, vec![put("/t/a", "1")]).await;
    let mut watch = store.watch("/t/", revision + 1).await.expect("watch");
    drop(store);
    let item = tokio::time::timeout(SOON, watch.next()).await.expect("in time").expect("an item");
    assert!(matches!(item, Err(StoreError::Unavailable(_))), "{item:?}");
    assert!(watch.next().await.is_none());
    let store = reopen(dir.path()).await;
    assert_eq!(store.snapshot("/t/").await.expect("snapshot").revision, revision);
}

#[tokio::test]
async fn a_revision_yet_to_come_cannot_be_compacted_to() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = FileStore::open(dir.path()).await.expect("opens");
    let revision = write(&store, vec![put("/t/a", "1")]).await;
    assert!(matches!(store.compact(revision + 1).await, Err(StoreError::Refused(_))));
    store.compact(revision).await.expect("compacts");
    store.compact(1).await.expect("is done already");
    assert_eq!(store.snapshot("/t/").await.expect("snapshot").entries.len(), 1);
}

/// A full disk: committed data stay, and the store works again as soon as there is space, without
/// being opened again by its user.
#[tokio::test]
#[ignore = "needs root"]
async fn a_full_disk_refuses_commits_until_there_is_space() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = crate::testing::SmallDisk::at(&dir.path().join("store"), "4m");
    let store = FileStore::open(disk.path()).await.expect("opens");
    write(&store, vec![put("/kept", "1")]).await;
    disk.fill();
    let large = "x".repeat(64 << 10);
    let mut written = 0;
    // Free pages of the file are used before it grows.
    let error = loop {
        match store.commit(Vec::new(), vec![put(&format!("/n/{written}"), &large)]).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 200, "the disk is not full");
    };
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let line = error.to_string();
    assert!(line.contains(&disk.path().display().to_string()), "{line}");
    assert!(line.contains("No space left on device"), "{line}");
    disk.empty();
    write(&store, vec![put("/after", &large)]).await;
    let snapshot = store.snapshot("/").await.expect("reads");
    let keys: Vec<_> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys.len(), written + 2, "{keys:?}");
    assert!(keys.contains(&"/kept") && keys.contains(&"/after"));
}
