//! The rooms of each crate, and the direction of its imports.
//!
//! `docs/ARCHITECTURE.md` has one table of rooms for each crate, top room first. A room is a
//! folder, or a file with the folder of its name. The check reads the table and the sources,
//! and finds
//!
//! 1. imports that the table does not allow, which includes every upward import,
//! 2. circles between files, inside a room too,
//! 3. files that are in no room,
//! 4. rows whose path does not exist.
//!
//! An import is a `use`, or a path in code that leads to another file of the crate, also in a
//! macro's arguments. It leads to the file that *defines* the item: a re-export in between is
//! followed. So `use super::Pair` leads to the file that has `struct Pair`, although the parent
//! module re-exports it. A parent module that declares and re-exports its children's items
//! imports nothing by the re-export. A re-exported name counts as an import if the parent's own
//! code uses it.
//!
//! Code under `#[cfg(test)]` may import anything and is not read. A package's tests, examples and
//! benchmarks are not read either.

mod faults;
mod imports;
mod modules;
mod table;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{files, paths, ui};
use modules::{Crate, Sources};
use table::{DOCUMENT, Table};

/// Folders of sources that must have a table.
const DEMANDED: [&str; 4] = ["ebpf/src", "userspace/src", "bench/src", "xtask/src"];

/// Checks every crate that has a table, and checks that every folder of [`DEMANDED`] has one.
/// Returns a note with the number of files and crates that were read.
///
/// # Errors
///
/// There are faults: each is printed as a line, `file:line: what is wrong`.
pub(super) fn check() -> Result<String> {
    let root = paths::root();
    let document = files::read(&root.join(DOCUMENT))?;
    let sources = sources(&root)?;
    let report = examine(&document, &sources, &DEMANDED)?;
    for fault in &report.faults {
        ui::error(fault);
    }
    if !report.faults.is_empty() {
        bail!("{} faults; docs/ARCHITECTURE.md has the tables of rooms", report.faults.len());
    }
    Ok(format!("{} files of {} crates", report.files, report.crates))
}

/// Result of the check.
#[derive(Debug, Default)]
struct Report {
    /// Faults, one line each.
    faults: Vec<String>,
    /// How many files were read.
    files: usize,
    /// How many crates were read.
    crates: usize,
}

/// Checks `sources` against the tables in `document`.
///
/// # Errors
///
/// A table or a source cannot be read.
fn examine(document: &str, sources: &Sources, demanded: &[&str]) -> Result<Report> {
    let mut report = Report::default();
    let tables = table::read(document).with_context(|| DOCUMENT.to_owned())?;
    for folder in demanded {
        if !tables.iter().any(|table| source_folder(table, sources).as_deref() == Some(folder)) {
            report.faults.push(format!("{DOCUMENT}: no table of rooms for {folder}"));
        }
    }
    for table in &tables {
        report.faults.extend(table.missing(|path| exists(path, sources)));
        let Some(folder) = source_folder(table, sources) else {
            report.faults.push(format!(
                "{DOCUMENT}:{}: a table of rooms whose rooms are not all in one crate",
                table.line
            ));
            continue;
        };
        let it = Crate::read(&folder, sources)?;
        report.files += it.files.len();
        report.crates += 1;
        report.faults.extend(faults::faults(table, &it, &imports::of(&it)));
    }
    Ok(report)
}

/// The folder of the crate that all rows of `table` are in: the one with `lib.rs` or `main.rs`.
fn source_folder(table: &Table, sources: &Sources) -> Option<String> {
    let mut folders = table.paths().filter_map(|path| {
        Path::new(path).ancestors().find_map(|folder| {
            let folder = folder.to_str()?;
            ["lib.rs", "main.rs"]
                .iter()
                .any(|root| sources.contains_key(&format!("{folder}/{root}")))
                .then(|| folder.to_owned())
        })
    });
    let first = folders.next()?;
    folders.all(|folder| folder == first).then_some(first)
}

/// Whether a row's path is a source file or a folder of source files.
fn exists(path: &str, sources: &Sources) -> bool {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let folder = format!("{stem}/");
    sources.contains_key(&format!("{stem}.rs"))
        || sources.range(folder.clone()..).next().is_some_and(|(file, _)| file.starts_with(&folder))
}

/// Every Rust source and manifest of the repository.
fn sources(root: &Path) -> Result<Sources> {
    let has_sources = |dir: &Path| {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        name != "target" && !name.starts_with('.')
    };
    let mut sources = Sources::new();
    for path in files::below(root, &has_sources)? {
        if files::is_rust(&path) || path.ends_with("Cargo.toml") {
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            sources.insert(name, files::read(&path)?);
        }
    }
    Ok(sources)
}
