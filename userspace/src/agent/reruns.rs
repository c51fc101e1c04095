//! What commands are started again with: a file `reruns/NAME.json` in the state directory for each
//! container of `run -d --restart`. The environment often has passwords, so only the agent's user
//! can read the files, and the agent does not keep them in its memory.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::files::{RERUNS, write_private};
use crate::{api::types::Rerun, model::Name};

fn path(state_dir: &Path, name: &Name) -> PathBuf {
    state_dir.join(RERUNS).join(format!("{name}.json"))
}

/// Writes the file of a container.
///
/// # Errors
///
/// The directory cannot be made or written to.
pub(crate) fn write(state_dir: &Path, name: &Name, rerun: &Rerun) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir.join(RERUNS))?;
    write_private(&path(state_dir, name), &serde_json::to_vec(rerun)?)
}

/// Reads the file of a container.
///
/// # Errors
///
/// The file does not exist or is malformed. The error names it.
pub(crate) fn read(state_dir: &Path, name: &Name) -> io::Result<Rerun> {
    let path = path(state_dir, name);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let text = fs::read(&path).map_err(named)?;
    serde_json::from_slice(&text).map_err(|error| named(error.into()))
}

/// Removes the file of a container; it is no error if there is none.
///
/// # Errors
///
/// The file cannot be removed.
pub(crate) fn remove(state_dir: &Path, name: &Name) -> io::Result<()> {
    match fs::remove_file(path(state_dir, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files of containers of which `has_record` says that they have no record, and parts of
/// files: an agent that was killed has left them. Returns a line for each file that stays.
pub(crate) fn remove_strays(state_dir: &Path, has_record: impl Fn(&str) -> bool) -> Vec<String> {
    let files = fs::read_dir(state_dir.join(RERUNS)).into_iter().flatten().flatten();
    let stays = files.filter_map(|file| {
        let name = file.file_name();
        if name.to_str().and_then(|name| name.strip_suffix(".json")).is_some_and(&has_record) {
            return None;
        }
        let path = file.path();
        let error = fs::remove_file(&path).err()?;
        Some(format!("{}: it belongs to no container, and cannot be removed: {error}", path.display()))
    });
    stays.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::model::RestartPolicy;

    #[test]
    fn a_file_is_for_the_agent_s_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let web: Name = "web".parse().unwrap();
        let rerun = Rerun {
            restart: RestartPolicy::OnFailure { max: 3 },
            environment: vec![("PASSWORD".to_owned(), "x=y\nz".to_owned())],
            directory: "/srv".into(),
            umask: 0o027,
            log_max_size: 1000,
            log_max_files: 2,
        };
        assert!(read(dir.path(), &web).unwrap_err().to_string().contains("web.json"));
        remove(dir.path(), &web).unwrap();
        write(dir.path(), &web, &rerun).unwrap();
        // A part of a file that an agent left behind is replaced, whatever its mode is.
        fs::write(dir.path().join(RERUNS).join("web.json.new"), "part").unwrap();
        write(dir.path(), &web, &rerun).unwrap();
        assert_eq!(read(dir.path(), &web).unwrap(), rerun);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path(dir.path(), &web)), 0o600);
        assert_eq!(mode(&dir.path().join(RERUNS)), 0o700);
        remove(dir.path(), &web).unwrap();
        assert!(read(dir.path(), &web).is_err());

        let db: Name = "db".parse().unwrap();
        for name in [&web, &db] {
            write(dir.path(), name, &rerun).unwrap();
        }
        let part = dir.path().join(RERUNS).join("web.json.new");
        fs::write(&part, "part").unwrap();
        assert!(remove_strays(dir.path(), |name| name == "web").is_empty());
        assert!(read(dir.path(), &web).is_ok() && read(dir.path(), &db).is_err());
        assert!(!part.exists(), "it may have passwords, too");
    }
}
