//! Dependencies that no source file names.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use super::metadata::{self, text};
use crate::files;

/// Every `package: dependency` whose crate no source file of the package names. A build dependency
/// must be named in the build script, any other dependency in another source file.
pub(super) fn unused() -> Result<Vec<String>> {
    let mut unused = Vec::new();
    for package in metadata::packages(true)? {
        let manifest = PathBuf::from(text(&package, "manifest_path"));
        let Some(dir) = manifest.parent() else {
            continue;
        };
        let sources = sources(dir)?;
        let dependencies = package.get("dependencies").and_then(Value::as_array);
        for dependency in dependencies.into_iter().flatten() {
            let name = text(dependency, "name");
            let renamed = text(dependency, "rename");
            let used_as = if renamed.is_empty() { name } else { renamed }.replace('-', "_");
            let for_build = text(dependency, "kind") == "build";
            let named = sources
                .iter()
                .filter(|(path, _)| (path == &dir.join("build.rs")) == for_build)
                .any(|(_, source)| names(source, &used_as));
            if !named {
                unused.push(format!("{}: {name}", text(&package, "name")));
            }
        }
    }
    Ok(unused)
}

/// Every Rust source of the package at `root`, with its path.
fn sources(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let target = root.join("target");
    // A directory with a manifest is another package.
    let of_package = |dir: &Path| dir != target && !dir.join("Cargo.toml").exists();
    let mut sources = Vec::new();
    for path in files::below(root, &of_package)? {
        if files::is_rust(&path) {
            let source = files::read(&path)?;
            sources.push((path, source));
        }
    }
    Ok(sources)
}

/// Whether `source` has `word` as a whole identifier outside of line comments.
fn names(source: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    source.lines().map(|line| line.trim_start()).filter(|line| !line.starts_with("//")).any(
        |line| {
            line.match_indices(word).any(|(at, _)| {
                let before = line.get(..at).and_then(|s| s.chars().next_back());
                let after = line.get(at + word.len()..).and_then(|s| s.chars().next());
                !before.is_some_and(part) && !after.is_some_and(part)
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn only_whole_words_in_code_count() {
        assert!(names("use serde::Serialize;", "serde"));
        assert!(names("    anyhow::bail!(\"x\")", "anyhow"));
        assert!(!names("use serde_json::Value;", "serde"));
        assert!(!names("// serde is not used", "serde"));
        assert!(!names("", "serde"));
    }
}
