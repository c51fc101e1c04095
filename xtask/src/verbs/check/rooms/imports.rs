//! Source and target files of the paths of a crate.

use std::collections::BTreeSet;

use super::modules::{Crate, FileId, Module, ModuleId, Path};

/// A Rust path in one file that names an item of another file.
#[derive(Clone, Debug)]
pub(super) struct Import {
    /// The file that has the path.
    pub(super) from: FileId,
    /// Line of the path in the file `from`, from 1.
    pub(super) line: usize,
    /// The file that defines the named item.
    pub(super) to: FileId,
    /// The path.
    pub(super) path: String,
}

/// Target of a path.
#[derive(Clone, Copy, Debug)]
enum Found {
    Module(ModuleId),
    /// An item, and the module that defines it.
    Item(ModuleId),
}

/// Every import of the crate `it`.
pub(super) fn of(it: &Crate) -> Vec<Import> {
    let mut imports = Vec::new();
    for (id, module) in it.modules() {
        let mut add = |path: &Path, found: Found| {
            let (Found::Module(to) | Found::Item(to)) = found;
            let Some(to) = it.module(to).map(|to| to.file).filter(|to| *to != module.file) else {
                return;
            };
            let (from, line, path) = (module.file, path.line, path.names.join("::"));
            imports.push(Import { from, line, to, path });
        };
        for one in &module.uses {
            let Some(found) = locate(it, id, &one.path.names, &mut Seen::new()) else { continue };
            let (Found::Module(to) | Found::Item(to)) = found;
            let is_parents_show_case = one.is_reexport
                && is_inside(it, to, id)
                && !one.name.as_ref().is_some_and(|name| is_named(module, name));
            if !is_parents_show_case {
                add(&one.path, found);
            }
        }
        for path in &module.paths {
            // A path of one name is skipped: this module defines the name, or a `use` line imports
            // it and is counted above.
            if path.names.len() > 1
                && let Some(found) = locate(it, id, &path.names, &mut Seen::new())
            {
                add(path, found);
            }
        }
    }
    imports
}

/// Whether the module's own code uses `name`.
fn is_named(module: &Module, name: &str) -> bool {
    module.paths.iter().any(|path| path.names.first().is_some_and(|first| first == name))
}

/// Whether `inner` is `outer` or in it.
fn is_inside(it: &Crate, inner: ModuleId, outer: ModuleId) -> bool {
    let mut at = Some(inner);
    while let Some(id) = at {
        if id == outer {
            return true;
        }
        at = it.module(id).and_then(|module| module.parent);
    }
    false
}

/// Names that are being resolved. A name that leads back to itself has no target.
type Seen = BTreeSet<(ModuleId, String)>;

/// Target of `names` in module `from`; none if the target is in another crate.
fn locate(it: &Crate, from: ModuleId, names: &[String], seen: &mut Seen) -> Option<Found> {
    let (first, rest) = names.split_first()?;
    let module = it.module(from)?;
    let start = match first.as_str() {
        "crate" => Found::Module(module.root),
        "self" => Found::Module(from),
        "super" => Found::Module(module.parent?),
        "Self" => return None,
        name => match member(it, from, name, seen) {
            Some(found) => found,
            None if *name == it.name => Found::Module(it.library?),
            None => return None,
        },
    };
    let mut at = start;
    for name in rest {
        let Found::Module(here) = at else { break };
        at = match name.as_str() {
            "super" => Found::Module(it.module(here)?.parent?),
            // An item that a macro defines is not in the list of items: the module is the target.
            name => member(it, here, name, seen).unwrap_or(Found::Item(here)),
        };
    }
    Some(at)
}

/// The module or item that `name` names in module `id`.
fn member(it: &Crate, id: ModuleId, name: &str, seen: &mut Seen) -> Option<Found> {
    let module = it.module(id)?;
    if !seen.insert((id, name.to_owned())) {
        return None;
    }
    if let Some(child) = module.children.get(name) {
        return Some(Found::Module(*child));
    }
    if module.items.contains(name) {
        return Some(Found::Item(id));
    }
    if let Some(one) = module.uses.iter().find(|one| one.name.as_deref() == Some(name)) {
        // A re-exported item of another crate counts as defined in this module.
        return locate(it, id, &one.path.names, seen).or(Some(Found::Item(id)));
    }
    for glob in module.uses.iter().filter(|one| one.name.is_none()) {
        if let Some(Found::Module(inner)) = locate(it, id, &glob.path.names, seen)
            && let Some(found) = member(it, inner, name, seen)
        {
            return Some(found);
        }
    }
    if id == module.root {
        let exports = |module: &Module| module.root == id && module.exported.contains(name);
        return it.modules().find(|(_, other)| exports(other)).map(|(id, _)| Found::Item(id));
    }
    None
}
