//! Checks imports against the table, and finds circles of imports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::imports::Import;
use super::modules::{Crate, FileId};
use super::table::Table;

/// Every fault of a crate, one line each, in the order of files and lines.
pub(super) fn faults(table: &Table, it: &Crate, imports: &[Import]) -> Vec<String> {
    let mut faults = BTreeSet::new();
    let name = |file: FileId| it.files.get(file.0).map_or("", String::as_str);
    for file in &it.files {
        if table.room_of(file).is_none() {
            faults.insert((file.clone(), 1, "is in no room".to_owned()));
        }
    }
    for Import { from, line, to, path } in imports {
        let (Some(upper), Some(lower)) = (table.room_of(name(*from)), table.room_of(name(*to)))
        else {
            continue;
        };
        if let Some(why) = table.refuses(upper, lower) {
            let fault = format!("{why} ('{path}' leads to {})", name(*to));
            faults.insert((name(*from).to_owned(), *line, fault));
        }
    }
    for circle in circles(imports) {
        let steps: Vec<_> = circle
            .iter()
            .map(|Import { from, line, path, .. }| format!("{}:{line} ('{path}')", name(*from)))
            .collect();
        if let Some(first) = circle.first() {
            let fault = format!("a circle of {} files: {}", circle.len(), steps.join(" -> "));
            faults.insert((name(first.from).to_owned(), first.line, fault));
        }
    }
    faults.into_iter().map(|(file, line, fault)| format!("{file}:{line}: {fault}")).collect()
}

/// The shortest circle through each file that is in a circle. A file is skipped if it is in a
/// circle that was found for an earlier file.
fn circles(imports: &[Import]) -> Vec<Vec<&Import>> {
    // One import represents all imports from one file to another.
    let mut arrows: BTreeMap<FileId, BTreeMap<FileId, &Import>> = BTreeMap::new();
    for import in imports {
        arrows.entry(import.from).or_default().entry(import.to).or_insert(import);
    }
    let mut told = BTreeSet::new();
    let mut circles = Vec::new();
    for &start in arrows.keys() {
        if told.contains(&start) {
            continue;
        }
        if let Some(circle) = circle_through(start, &arrows) {
            told.extend(circle.iter().map(|import| import.from));
            circles.push(circle);
        }
    }
    circles
}

/// The shortest circle through `start`: the imports that it consists of.
fn circle_through<'a>(
    start: FileId,
    arrows: &BTreeMap<FileId, BTreeMap<FileId, &'a Import>>,
) -> Option<Vec<&'a Import>> {
    // The import by which a file was reached first.
    let mut reached: BTreeMap<FileId, &Import> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for (&to, &import) in arrows.get(&file).into_iter().flatten() {
            if let std::collections::btree_map::Entry::Vacant(entry) = reached.entry(to) {
                entry.insert(import);
                queue.push_back(to);
            }
        }
    }
    let mut circle = vec![*reached.get(&start)?];
    while let Some(import) = circle.last().filter(|import| import.from != start) {
        circle.push(reached.get(&import.from)?);
    }
    circle.reverse();
    Some(circle)
}
