//! What commands are started again with: a file `reruns/NAME.json` in the state directory for each
//! container of `run -d --restart`. The environment often has passwords, so only the agent's user
//! can read the files, and the agent does not keep them in its memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::files::{RERUNS, remove_if_there, write_atomically};
use crate::{api::types::Rerun, model::Name, private};

fn path(state_dir: &Path, name: &Name) -> PathBuf {
    state_dir.join(RERUNS).join(format!("{name}.json"))
}

/// Checks what a command is to be started again with: the command line checks it before, and other
/// clients may not.
///
/// # Errors
///
/// One line with what is wrong and what would be valid.
pub(crate) fn check(rerun: &Rerun) -> Result<(), String> {
    let Rerun { restart, environment, directory, umask, log_max_size, log_max_files } = rerun;
    let wrong = |(name, value): &&(String, String)| {
        name.is_empty() || name.contains('\0') || value.contains('\0')
    };
    let why = if restart.is_no() {
        "restart policy 'no' starts nothing again: on-failure[:MAX], always or unless-stopped is valid"
            .to_owned()
    } else if let Some((name, _)) = environment.iter().find(wrong) {
        format!("environment variable {name:?} is malformed: a name, and no NUL byte, is valid")
    } else if !directory.is_absolute() {
        format!("working directory {}: an absolute path is valid", directory.display())
    } else if *umask > 0o777 {
        format!("umask {umask:#o} is too large: 0 to 0o777 is valid")
    } else if *log_max_size < 1000 {
        format!("log size of {log_max_size} bytes is too small: 1000 or more is valid")
    } else if !(1..=1000).contains(log_max_files) {
        format!("{log_max_files} files of the log: 1 to 1000 is valid")
    } else {
        return Ok(());
    };
    Err(why)
}

/// Writes the file of a container.
///
/// # Errors
///
/// The directory cannot be made or written to.
pub(crate) fn write(state_dir: &Path, name: &Name, rerun: &Rerun) -> io::Result<()> {
    private::make_dir(&state_dir.join(RERUNS))?;
    write_atomically(&path(state_dir, name), &serde_json::to_vec(rerun)?)
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
    remove_if_there(&path(state_dir, name))
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
        Some(format!(
            "{}: it belongs to no container, and cannot be removed: {error}",
            path.display()
        ))
    });
    stays.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::model::RestartPolicy;

    #[test]
    fn what_no_command_line_sends_is_refused() {
        let good = || Rerun {
            restart: RestartPolicy::Always,
            environment: vec![("A".to_owned(), "b=c".to_owned())],
            directory: "/".into(),
            umask: 0o777,
            log_max_size: 1000,
            log_max_files: 1000,
        };
        assert_eq!(check(&good()), Ok(()));
        let variable = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        for (wrong, words) in [
            (Rerun { restart: RestartPolicy::No, ..good() }, "restart policy 'no'"),
            (Rerun { environment: variable("", "x"), ..good() }, "environment variable"),
            (Rerun { environment: variable("A", "secret\0"), ..good() }, "variable \"A\""),
            (Rerun { directory: "srv".into(), ..good() }, "working directory srv"),
            (Rerun { umask: 0o1000, ..good() }, "umask 0o1000"),
            (Rerun { log_max_size: 999, ..good() }, "999 bytes"),
            (Rerun { log_max_files: 0, ..good() }, "0 files"),
            (Rerun { log_max_files: 1001, ..good() }, "1001 files"),
        ] {
            let line = check(&wrong).unwrap_err();
            assert!(line.contains(words) && !line.contains("secret"), "{line}");
        }
    }

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
