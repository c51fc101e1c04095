//! Small crates, each with right imports or one fault.

use super::*;

const TABLE: &str = "\
# House

## Rooms

| room | what is there | may import |
|---|---|---|
| `k/src/main.rs` | the program | everything below |
| `k/src/top`, `k/src/side.rs` | above | `low`, `facts.rs` |
| `k/src/mid.rs` | between | `k/src/low` |
| `k/src/low` | below | `facts.rs` |
| `k/src/facts.rs` | the lowest | – |

## Another section

| room | what is there | may import |
|---|---|---|
| `nowhere` | not a table of rooms | – |
";

/// A tree in which every import points downward. `low` is declared by a parent that
/// re-exports what is in it.
const CLEAN: [(&str, &str); 9] = [
    ("k/Cargo.toml", "[package]\nname = \"k-k\"\n"),
    ("k/src/main.rs", "mod facts; mod low; mod mid; mod side; mod top; fn main() { top::go() }"),
    ("k/src/top/mod.rs", "mod inner; pub fn go() { inner::go(crate::low::Thing) }"),
    ("k/src/top/inner.rs", "use crate::{facts::FACT, low::Thing}; pub fn go(_: Thing) { FACT; }"),
    ("k/src/side.rs", "use std::fs; pub fn s() { fs::read(crate::facts::FACT).ok(); }"),
    ("k/src/mid.rs", "use crate::low::*; pub struct Mid(Thing);"),
    ("k/src/low/mod.rs", "mod thing; mod other; pub use thing::Thing; pub use other::Other;"),
    ("k/src/low/thing.rs", "pub struct Thing;"),
    ("k/src/facts.rs", "pub const FACT: &str = \"\";\n#[cfg(test)]\nmod tests { use crate::top; }"),
];

/// The faults of [`CLEAN`] with `low/other.rs`, where `changes` replaces the files that it names.
fn faults(changes: &[(&str, &str)]) -> Vec<String> {
    faults_with(TABLE, changes)
}

fn faults_with(table: &str, changes: &[(&str, &str)]) -> Vec<String> {
    let other = [("k/src/low/other.rs", "use super::Thing; pub struct Other(Thing);")];
    let sources: Sources = CLEAN
        .iter()
        .chain(&other)
        .chain(changes)
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
        .collect();
    examine(table, &sources, &["k/src"]).expect("the fixture is readable").faults
}

#[test]
fn a_tree_whose_imports_all_point_downward_passes() {
    assert_eq!(faults(&[]), [""; 0]);
}

#[test]
fn an_upward_import_fails_and_is_named_with_file_and_line() {
    assert_eq!(
        faults(&[("k/src/facts.rs", "pub const FACT: &str = \"\";\nuse crate::low::Thing;\n")]),
        ["k/src/facts.rs:2: room k/src/facts.rs imports room k/src/low, which is above it \
          ('crate::low::Thing' leads to k/src/low/thing.rs)"]
    );
}

#[test]
fn an_import_is_found_in_every_place_where_a_path_can_stand() {
    for code in [
        "use crate::{low::{Thing as T}};",
        "use super::low::{self, Other};",
        "pub use crate::low::Thing;",
        "fn f() { let _ = crate::low::Thing; }",
        "fn f() { use crate::low; low::go(); }",
        "fn f(_: &crate::low::Thing) {}",
        "fn f() { println!(\"{:?}\", crate::low::Thing); }",
        "macro_rules! m { () => { $crate::low::Thing }; }",
        "mod inner { use super::super::low::Thing; }",
        "#[derive(crate::low::Thing)] struct S;",
        "impl crate::low::Other { fn f() {} }",
        "use crate::low::*;",
    ] {
        let text = format!("pub const FACT: &str = \"\"; {code}");
        let faults = faults(&[("k/src/facts.rs", &text)]);
        assert!(!faults.is_empty(), "{code}");
        assert!(faults.iter().all(|fault| fault.contains("which is above it")), "{faults:?}");
    }
}

#[test]
fn what_is_no_import_of_another_room_is_not_taken_for_one() {
    for code in [
        "#[cfg(test)] use crate::low::Thing;",
        "#[cfg(test)] fn f() { crate::low::go() }",
        "struct S; impl S { #[cfg(test)] fn f() { crate::low::go() } }",
        "/// See [`crate::low::Thing`].\nstruct S;",
        "use ::low::Thing;",
        "fn f() { low::go() }",
        "struct S { low: u8 } fn f(s: S) { println!(\"{}\", s.low) }",
        "fn f() { \"crate::low::Thing\"; }",
    ] {
        let text = format!("pub const FACT: &str = \"\"; {code}");
        assert_eq!(faults(&[("k/src/facts.rs", &text)]), [""; 0], "{code}");
    }
}

#[test]
fn a_room_below_that_the_row_does_not_list_is_refused() {
    assert_eq!(
        faults(&[("k/src/side.rs", "use crate::mid::Mid;")]),
        ["k/src/side.rs:1: room k/src/top, k/src/side.rs imports room k/src/mid.rs, which is not \
          among what it may import ('crate::mid::Mid' leads to k/src/mid.rs)"]
    );
}

#[test]
fn a_circle_inside_a_room_fails() {
    assert_eq!(
        faults(&[("k/src/low/thing.rs", "\npub struct Thing(super::Other);")]),
        ["k/src/low/thing.rs:2: a circle of 2 files: k/src/low/thing.rs:2 ('super::Other') -> \
          k/src/low/other.rs:1 ('super::Thing')"]
    );
}

#[test]
fn a_parent_that_uses_what_it_reexports_is_in_a_circle_with_its_child() {
    let parent = "mod thing; mod other; pub use thing::Thing; pub use other::Other;\n\
                  pub const COUNT: usize = 1; pub fn make() -> Other { Other::new() }";
    let child = "use super::Thing; pub struct Other([Thing; super::COUNT]);";
    let faults = faults(&[("k/src/low/mod.rs", parent), ("k/src/low/other.rs", child)]);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("a circle of 2 files: k/src/low/mod.rs:1"), "{faults:?}");
}

#[test]
fn a_reexport_is_followed_to_the_file_that_defines_the_item() {
    // The name of the parent stands for the child's item, by a glob and by another name.
    for parent in [
        "mod thing; mod other; pub use thing::*; pub use other::Other;",
        "mod thing; mod other; pub use self::thing::{Thing as It}; pub use It as Thing;",
    ] {
        let upward = ("k/src/facts.rs", "pub const FACT: &str = \"\"; use crate::low::Thing;");
        let faults = faults(&[("k/src/low/mod.rs", parent), upward]);
        assert!(faults.len() == 1 && faults[0].contains("low/thing.rs"), "{faults:?}");
    }
}

#[test]
fn an_exported_macro_leads_to_its_definition() {
    let text = "#[macro_export]\nmacro_rules! look { () => {}; }\npub struct Thing;";
    let user = ("k/src/facts.rs", "pub const FACT: &str = \"\"; fn f() { crate::look!() }");
    let faults = faults(&[("k/src/low/thing.rs", text), user]);
    assert!(faults.len() == 1 && faults[0].contains("low/thing.rs"), "{faults:?}");
}

#[test]
fn a_program_names_its_library_by_the_packages_name() {
    let table = TABLE.replace("k/src/main.rs", "k/src/lib.rs` `k/src/main.rs");
    let program = ("k/src/main.rs", "mod args; fn main() { k_k::top::go() }");
    let library = ("k/src/lib.rs", "pub mod facts; pub mod low; mod mid; mod side; pub mod top;");
    let faults = faults_with(&table, &[program, library, ("k/src/args.rs", "")]);
    assert_eq!(faults, ["k/src/args.rs:1: is in no room"]);
}

#[test]
fn a_file_in_no_room_and_a_row_without_files_are_named() {
    let table = TABLE.replace("`k/src/mid.rs`", "`k/src/middle`");
    assert_eq!(
        faults_with(&table, &[]),
        [
            "docs/ARCHITECTURE.md:9: room k/src/middle does not exist",
            "k/src/mid.rs:1: is in no room",
        ]
    );
}

#[test]
fn every_crate_that_must_have_a_table_is_asked_for() {
    let report = examine(TABLE, &Sources::new(), &["other/src"]).expect("readable");
    let first = report.faults.first().map(String::as_str);
    assert_eq!(first, Some("docs/ARCHITECTURE.md: no table of rooms for other/src"));
}

/// The floors in the documentation of the programs, and the rows of the table of rooms.
#[test]
fn a_room_of_the_programs_may_import_all_lower_floors_and_no_other() {
    let read = |path: &str| files::read(&paths::root().join(path)).expect(path);
    let tables = table::read(&read(DOCUMENT)).expect("the tables are readable");
    let root = "ebpf/src/main.rs";
    let table =
        tables.iter().find(|table| table.room_of(root).is_some()).expect("a table of ebpf/");
    let programs = read(root);
    let mut rooms = Vec::new();
    // A row is `//! | FLOOR | ROOMS | what is there |`.
    for row in programs.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let (floor, rest) = row.split_once(" | ").expect(row);
        let Ok(floor) = floor.parse::<u8>() else { continue };
        let (names, _) = rest.split_once(" | ").expect(row);
        for name in names.split('`').skip(1).step_by(2) {
            let room = table.room_of(&format!("ebpf/src/{name}.rs")).expect(name);
            rooms.push((floor, name, room));
        }
    }
    assert_eq!(rooms.len() + 1, table.paths().count(), "main.rs alone has no floor: {rooms:?}");
    for (upper, from, above) in &rooms {
        for (lower, to, below) in rooms.iter().filter(|(_, to, _)| to != from) {
            let may_import = table.refuses(*above, *below).is_none();
            assert_eq!(may_import, upper > lower, "{from} imports {to}");
        }
    }
}

#[test]
fn a_table_that_is_not_as_it_should_be_is_refused() {
    for (from, to, wanted) in [
        ("## Rooms", "## Halls", "no table of rooms"),
        ("| `k/src/low`", "| k/src/low", "names no path in backticks"),
        ("`low`, `facts.rs`", "`attic`", "'attic', which is no room of this table"),
        ("between | `k/src/low`", "between | `top`", "'top', which is above it"),
        ("| everything below", "| most things", "wanted are rooms"),
        ("| below |", "|", "has 2 cells, not 3"),
    ] {
        let error = examine(&TABLE.replace(from, to), &Sources::new(), &[]).expect_err(to);
        assert!(format!("{error:#}").contains(wanted), "{error:#}");
    }
}

#[test]
fn a_file_that_is_not_rust_or_not_there_is_named() {
    let read = |path: &str, text: &str| {
        let mut sources = Sources::from([(path.to_owned(), text.to_owned())]);
        sources.entry("k/src/main.rs".to_owned()).or_insert_with(|| "mod facts;".to_owned());
        format!("{:#}", examine(TABLE, &sources, &[]).expect_err(path))
    };
    assert!(read("k/src/facts.rs", "\nfn {").contains("k/src/facts.rs:2: "));
    assert!(read("k/src/other.rs", "").contains("k/src/facts/mod.rs: is not there"));
}
