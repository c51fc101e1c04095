//! The tables of rooms in the document.

use anyhow::{Result, bail};

/// The file that has the tables.
pub(super) const DOCUMENT: &str = "docs/ARCHITECTURE.md";

/// Heading of the section that has the tables.
const HEADING: &str = "## Rooms";

/// Head of each table.
const COLUMNS: [&str; 3] = ["room", "what is there", "may import"];

/// Text of the third cell for a room that may import every room below it.
const BELOW: &str = "everything below";

/// The rooms of one crate, top to bottom.
#[derive(Debug)]
pub(super) struct Table {
    /// Line of the table's head in the document.
    pub(super) line: usize,
    rooms: Vec<Room>,
}

/// A row of a table.
#[derive(Debug)]
struct Room {
    /// Line in the document.
    line: usize,
    /// Folders and files from the repository's root, without `.rs`.
    paths: Vec<String>,
    /// Text of the first cell, without backticks.
    name: String,
    may_import: Rooms,
}

/// Rooms that a room may import, besides itself.
#[derive(Debug)]
enum Rooms {
    /// Every room below it.
    Below,
    /// The rooms of these rows.
    These(Vec<usize>),
}

/// A row as it is written: its line in the document, and its cells.
type Row = (usize, Vec<String>);

/// Index of a room in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RoomId(usize);

/// Reads every table of the section [`HEADING`].
///
/// # Errors
///
/// There is no such section, it has no table, or a row of a table is malformed.
pub(super) fn read(document: &str) -> Result<Vec<Table>> {
    let lines = (1..).zip(document.lines());
    let section = lines
        .skip_while(|(_, line)| line.trim_end() != HEADING)
        .skip(1)
        .take_while(|(_, line)| !line.starts_with("## "));
    let mut tables = Vec::new();
    // The rows of the current table, with the line of its head.
    let mut open: Option<(usize, Vec<Row>)> = None;
    for (number, line) in section.chain([(0, "")]) {
        let cells = cells(line);
        match (&mut open, cells) {
            (None, Some(cells)) if cells == COLUMNS => open = Some((number, Vec::new())),
            (Some((_, rows)), Some(cells)) if !is_rule(&cells) => rows.push((number, cells)),
            (Some(_), None) => {
                if let Some((line, rows)) = open.take() {
                    tables.push(Table::new(line, rows)?);
                }
            }
            _ => {}
        }
    }
    if tables.is_empty() {
        bail!("no table of rooms: wanted is '{HEADING}' with | {} |", COLUMNS.join(" | "));
    }
    Ok(tables)
}

/// The cells of a table's row.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(|cell| cell.trim().to_owned()).collect())
}

/// Whether `cells` are the line of dashes under a table's head.
fn is_rule(cells: &[String]) -> bool {
    cells.iter().all(|cell| cell.chars().all(|c| matches!(c, '-' | ':')))
}

/// The words of `cell` that are in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// A path without `.rs` and without a slash at the end.
fn stem(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.strip_suffix(".rs").unwrap_or(path)
}

impl Table {
    fn new(line: usize, rows: Vec<Row>) -> Result<Self> {
        let mut table = Self { line, rooms: Vec::new() };
        let mut wanted = Vec::new();
        for (line, cells) in rows {
            let [room, _, may_import] = &cells[..] else {
                bail!("line {line}: a row of rooms has {} cells, not 3", cells.len());
            };
            let paths: Vec<_> = quoted(room).map(|path| stem(path).to_owned()).collect();
            if paths.is_empty() {
                bail!("line {line}: a row of rooms names no path in backticks");
            }
            let name = room.replace('`', "");
            table.rooms.push(Room { line, paths, name, may_import: Rooms::Below });
            wanted.push((line, may_import.clone()));
        }
        for (at, (line, cell)) in wanted.into_iter().enumerate() {
            if cell == BELOW {
                continue;
            }
            let mut these = Vec::new();
            for name in quoted(&cell) {
                let Some(other) = table.named(name) else {
                    bail!("line {line}: may import '{name}', which is no room of this table");
                };
                if other < at {
                    bail!("line {line}: may import '{name}', which is above it");
                }
                these.push(other);
            }
            if these.is_empty() && !matches!(cell.as_str(), "–" | "-" | "") {
                bail!("line {line}: may import '{cell}': wanted are rooms, '{BELOW}', or '–'");
            }
            if let Some(room) = table.rooms.get_mut(at) {
                room.may_import = Rooms::These(these);
            }
        }
        Ok(table)
    }

    /// Index of the row with the path `name`. `name` may omit the crate's own folder.
    fn named(&self, name: &str) -> Option<usize> {
        let name = stem(name);
        let is_it = |path: &String| {
            path == name || path.split_once("/src/").is_some_and(|(_, rest)| rest == name)
        };
        self.rooms.iter().position(|room| room.paths.iter().any(is_it))
    }

    /// Every path of every row, without `.rs`.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.rooms.iter().flat_map(|room| &room.paths).map(String::as_str)
    }

    /// A fault for each path that does not exist.
    pub(super) fn missing(&self, exists: impl Fn(&str) -> bool) -> Vec<String> {
        let mut missing = Vec::new();
        for Room { line, paths, .. } in &self.rooms {
            for path in paths.iter().filter(|path| !exists(path)) {
                missing.push(format!("{DOCUMENT}:{line}: room {path} does not exist"));
            }
        }
        missing
    }

    /// The room of `file`: of all rooms whose path matches, the one with the longest path.
    pub(super) fn room_of(&self, file: &str) -> Option<RoomId> {
        let file = stem(file);
        let holds = |path: &str| {
            file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.rooms
            .iter()
            .enumerate()
            .flat_map(|(at, room)| room.paths.iter().map(move |path| (at, path)))
            .filter(|(_, path)| holds(path))
            .max_by_key(|(_, path)| path.len())
            .map(|(at, _)| RoomId(at))
    }

    /// Reason why `from` may not import `to`; none if it may.
    pub(super) fn refuses(&self, from: RoomId, to: RoomId) -> Option<String> {
        let (upper, lower) = (self.rooms.get(from.0)?, self.rooms.get(to.0)?);
        let allowed = match &upper.may_import {
            Rooms::Below => to > from,
            Rooms::These(these) => these.contains(&to.0),
        };
        if from == to || allowed {
            return None;
        }
        let which = if to < from { "above it" } else { "not among what it may import" };
        Some(format!("room {} imports room {}, which is {which}", upper.name, lower.name))
    }
}
