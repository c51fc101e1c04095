//! Certificates of the connection to etcd that expire soon.
//!
//! The paths of their files are kept in the state directory, for `culvert doctor` without an agent.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{files, shared::Shared};
use crate::{
    config::StoreAccess,
    doctor::{self, CertificateFile, Finding, Level, Role, examine_certificate},
};

/// Interval at which the files are read.
const EVERY: Duration = Duration::from_secs(60);

/// Reads the agent's certificates until the agent stops. `status` shows the certificates that
/// expire soon, have expired or are not valid yet. The log has each problem once.
pub(super) async fn keep(shared: Arc<Shared>) {
    let (dir, access) = (&shared.options.state_dir, &shared.options.store_access);
    if let Err(error) = remember(dir, access) {
        let what = dir.join(files::CERTIFICATES).display().to_string();
        tracing::warn!("{}", shared.disk.refuse(&what, error).message);
    }
    loop {
        let reading = Arc::clone(&shared);
        let read = move || lines(&reading.options.store_access);
        let lines = tokio::task::spawn_blocking(read).await;
        shared.shown.problems.set_below("store-certificate/", lines.unwrap_or_default());
        tokio::select! {
            () = shared.ending.shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Keeps the paths of the certificates in the state directory, for [`last_certificates`].
fn remember(state_dir: &Path, access: &StoreAccess) -> io::Result<()> {
    let files = doctor::certificate_files(access);
    let rows: Vec<(&str, PathBuf)> =
        files.into_iter().map(|(role, path)| (role.option(), path)).collect();
    let path = state_dir.join(files::CERTIFICATES);
    if rows.is_empty() && !path.exists() {
        return Ok(());
    }
    let text = serde_json::to_vec(&rows)?;
    // An unchanged file needs no write, which a read-only disk would refuse.
    if fs::read(&path).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    files::write_atomically(&path, &text)
}

/// The certificate files of the last agent that used this state directory, each with its role.
/// Empty if that agent had no certificates, or if its list of paths cannot be read.
pub fn last_certificates(state_dir: &Path) -> Vec<(Role, PathBuf)> {
    let text = fs::read(state_dir.join(files::CERTIFICATES)).unwrap_or_default();
    let rows: Vec<(String, PathBuf)> = serde_json::from_slice(&text).unwrap_or_default();
    let roles = rows.into_iter().map(|(option, path)| Some((Role::of_option(&option)?, path)));
    roles.flatten().collect()
}

/// The problems, a line for each file. The key has the option that names the file.
fn lines(access: &StoreAccess) -> BTreeMap<String, String> {
    let now = doctor::now();
    let files = doctor::certificate_files(access);
    let lines = files.into_iter().filter_map(|(role, path)| {
        let Finding { level, detail, advice, .. } =
            examine_certificate(&CertificateFile::read(role, &path), now);
        let line = format!("store: {detail}; {advice}");
        (level != Level::Ok).then(|| (format!("store-certificate/{}", role.option()), line))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_kept_for_the_doctor() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_certificates(dir.path()), []);
        let access = StoreAccess {
            ca: Some("/a/ca.pem".into()),
            cert: Some("/a/host.pem".into()),
            ..StoreAccess::default()
        };
        for access in [access, StoreAccess::default()] {
            remember(dir.path(), &access).unwrap();
            assert_eq!(last_certificates(dir.path()), doctor::certificate_files(&access));
        }
    }

    #[test]
    fn a_certificate_that_has_expired_is_a_problem_and_a_valid_one_is_none() {
        let file = |name: &str| {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/doctor/testdata/");
            Some(format!("{dir}{name}").into())
        };
        let (ca, cert) = (file("authority.pem"), file("client.pem"));
        let access = StoreAccess { ca, cert, ..StoreAccess::default() };
        let lines = lines(&access);
        let keys: Vec<_> = lines.keys().collect();
        assert_eq!(keys, ["store-certificate/--store-cert"]);
        let line = &lines["store-certificate/--store-cert"];
        assert!(line.starts_with("store: --store-cert /"), "{line}");
        assert!(line.contains("has expired at 2021-01-01T00:00:00Z"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}
