//! Files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The files below `dir`, in the order of their paths. Directories of which `enters` says no are
/// left out.
///
/// # Errors
///
/// A directory cannot be read.
pub(crate) fn below(dir: &Path, enters: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let (mut left, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = left.pop() {
        let unreadable = || format!("{}: cannot be read", dir.display());
        for entry in fs::read_dir(&dir).with_context(unreadable)? {
            let path = entry.with_context(unreadable)?.path();
            if !path.is_dir() {
                files.push(path);
            } else if enters(&path) {
                left.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file is a Rust source, by its name.
pub(crate) fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// The text of a file.
///
/// # Errors
///
/// The file cannot be read, or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn the_files_below_a_directory_are_in_order_and_a_part_may_be_left_out() {
        let dir = paths::root().join("xtask/src");
        let (left_out, kept) = (dir.join("verbs"), dir.join("vm/kernel.rs"));
        let files = below(&dir, &|dir| dir != left_out).expect("readable");
        assert!(files.is_sorted() && files.contains(&kept), "{files:?}");
        assert!(!files.iter().any(|file| file.starts_with(&left_out)), "{files:?}");
        assert!(
            below(&dir, &|_| true)
                .expect("readable")
                .iter()
                .any(|file| file.starts_with(&left_out))
        );
    }
}
