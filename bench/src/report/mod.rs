//! The report of a run: tables in the terminal, JSON, a page, README's table, and a comparison with
//! an earlier run.

pub(crate) mod compare;
mod escape;
mod fixture;
pub(crate) mod grid;
pub(crate) mod html;
pub(crate) mod readme;
pub(crate) mod table;
pub(crate) mod targets;
pub(crate) mod words;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::results::{Results, VERSION};

/// Outputs of a run's results besides the terminal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    /// All figures, as JSON.
    pub(crate) json: Option<PathBuf>,
    /// The page.
    pub(crate) html: Option<PathBuf>,
    /// JSON of an earlier run to compare with.
    pub(crate) compare: Option<PathBuf>,
    /// README.md to write the table into.
    pub(crate) write_readme: Option<PathBuf>,
}

impl Output {
    /// Checks all outputs in advance, since a run may take half an hour.
    ///
    /// # Errors
    ///
    /// A file to read cannot be read or lacks the markers, or a directory to write to does not
    /// exist.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(path) = &self.compare {
            load(path)?;
        }
        if let Some(path) = &self.write_readme {
            readme_with(path, "")?;
        }
        for path in [&self.json, &self.html].into_iter().flatten() {
            let directory = directory_of(path);
            if !directory.is_dir() || path.is_dir() {
                bail!("{}: is to be a file in a directory that exists", path.display());
            }
        }
        Ok(())
    }
}

/// Prints the tables and writes what `output` asks for. True if it compares with an earlier
/// run and something of Culvert's got slower.
///
/// # Errors
///
/// A file cannot be read or written. The outputs before it in [`Output`] are written nevertheless:
/// the figures of a long run are not lost to a mistake in another path.
pub(crate) fn show(results: &Results, output: &Output) -> Result<bool> {
    print(&format!("{}\n", table::terminal(results)))?;
    if let Some(path) = &output.json {
        save(path, results)?;
    }
    if let Some(path) = &output.html {
        write(path, &html::page(results)?)?;
    }
    if let Some(path) = &output.write_readme {
        write(path, &readme_with(path, &readme::render(results))?)?;
    }
    let Some(path) = &output.compare else {
        return Ok(false);
    };
    let comparison = compare::compare(&load(path)?, results);
    print(&comparison.to_string())?;
    Ok(comparison.slower())
}

/// Prints to stdout. A closed stdout is no error.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("stdout: cannot be written")
        }
        _ => Ok(()),
    }
}

/// Reads the JSON that [`save`] wrote.
///
/// # Errors
///
/// The file cannot be read, is not the result of a benchmark, or has another version.
pub(crate) fn load(path: &Path) -> Result<Results> {
    /// The common beginning of every version.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
    let none = || format!("{name}: is not what 'cargo xtask bench --json' writes");
    let Head { version } = serde_json::from_str(&text).with_context(none)?;
    if version != VERSION {
        bail!("{name}: is of version {version}, this is version {VERSION}: measure it again");
    }
    serde_json::from_str(&text).with_context(none)
}

/// Writes all figures to a file. If this fails, the file keeps its contents.
///
/// # Errors
///
/// The file cannot be written.
pub(crate) fn save(path: &Path, results: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(results)?;
    text.push('\n');
    write(path, &text)
}

/// Writes a made-up run, `sample.json`, and its page, `sample.html`, into `directory`: for a
/// person who changes the page.
///
/// # Errors
///
/// A chart cannot be drawn, or a file cannot be written.
pub(crate) fn sample(directory: &Path) -> Result<()> {
    let results = fixture::results();
    save(&directory.join("sample.json"), &results)?;
    write(&directory.join("sample.html"), &html::page(&results)?)
}

/// README.md's text with `table` in its place.
fn readme_with(path: &Path, table: &str) -> Result<String> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
    readme::replace(&text, table).with_context(|| name.to_string())
}

/// Writes a file atomically: a reader sees the old text or the new one.
fn write(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{}: is no file", path.display()))?;
    let beside =
        directory_of(path).join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| {
            // This error is ignored: the first error is reported.
            let _ = fs::remove_file(&beside);
        })
        .with_context(|| format!("{}: cannot be written", path.display()))
}

/// The directory a file is in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run.json");
        let results = fixture::results();
        save(&path, &results).expect("saved");
        save(&path, &results).expect("saved again");
        let back = load(&path).expect("loaded");
        assert_eq!(format!("{back:?}"), format!("{results:?}"));
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn another_version_and_garbage_are_refused_in_a_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("old.json");
        let next = VERSION + 1;
        for (text, says) in [
            (format!("{{\"version\": {next}, \"runs\": 1}}"), "is of version 2"),
            ("hello".into(), "is not what 'cargo xtask bench --json' writes"),
            ("{\"version\": 1}".into(), "is not what 'cargo xtask bench --json' writes"),
            (String::new(), "is not what 'cargo xtask bench --json' writes"),
        ] {
            fs::write(&path, text).expect("written");
            let error = format!("{:#}", load(&path).expect_err("refused"));
            assert!(error.contains(says) && !error.contains('\n'), "{error}");
        }
        let error = format!("{:#}", load(&directory.path().join("none")).expect_err("refused"));
        assert!(error.contains("cannot be read"), "{error}");
    }

    #[test]
    fn outputs_are_checked_before_a_run() {
        let directory = tempfile::tempdir().expect("a directory");
        let within = |name: &str| Some(directory.path().join(name));
        let readme = within("README.md");
        fs::write(readme.as_ref().expect("a path"), "no markers").expect("written");
        let good = Output { json: within("a.json"), html: within("a.html"), ..Output::default() };
        good.check().expect("can be written");
        for bad in [
            Output { json: within("none/a.json"), ..Output::default() },
            Output { html: within(""), ..Output::default() },
            Output { compare: within("none.json"), ..Output::default() },
            Output { write_readme: readme, ..Output::default() },
        ] {
            bad.check().expect_err("refused");
        }
    }

    #[test]
    fn all_of_it_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let within = |name: &str| directory.path().join(name);
        let markers = "<!-- begin: cargo xtask bench --write -->\n<!-- end: bench -->\n";
        fs::write(within("README.md"), markers).expect("written");
        let old = fixture::results();
        save(&within("old.json"), &old).expect("saved");
        let output = Output {
            json: Some(within("new.json")),
            html: Some(within("new.html")),
            compare: Some(within("old.json")),
            write_readme: Some(within("README.md")),
        };
        assert!(!show(&old, &output).expect("shown"));
        load(&within("new.json")).expect("loaded");
        let readme = fs::read_to_string(within("README.md")).expect("read");
        assert!(readme.contains("| A | container to container, overlay |"), "{readme}");
        let slow = fixture::slower("culvert-overlay", 0.8);
        assert!(show(&slow, &output).expect("shown"));
    }
}
