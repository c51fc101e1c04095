//! The functions of the object file, and the calls between them.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

use anyhow::{Context as _, Result, bail};
use object::{
    File, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex,
    SectionKind, SymbolIndex, SymbolKind,
};

use super::chain::Function;
use super::code::{self, Body, Place, Symbol};
use super::name;

/// Beginning of the names of the sections with functions that are no programs.
const NO_PROGRAMS: &str = ".text";

/// The functions of an object.
#[derive(Debug, Default)]
pub(super) struct Functions {
    /// All of them.
    pub(super) all: Vec<Function>,
    /// Those that are programs: indices in `all`.
    pub(super) programs: Vec<usize>,
}

/// Reads an object file.
///
/// # Errors
///
/// `bytes` is no object file, or a reference leads to code where no function begins.
pub(super) fn read(bytes: &[u8]) -> Result<Functions> {
    let file = File::parse(bytes)?;
    let little = file.is_little_endian();
    let (mut functions, mut bodies) = (Functions::default(), Vec::new());
    // Indices of the functions by the places where they begin.
    let mut known = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let name = name::short(symbol.name()?);
        let section = file.section_by_index(index)?;
        let code = section
            .data_range(symbol.address(), symbol.size())?
            .with_context(|| format!("{name}: is outside of its section"))?;
        let place = Place { section: index.0, offset: symbol.address() };
        let at = functions.all.len();
        // A second symbol may name the same function.
        let Entry::Vacant(entry) = known.entry(place) else {
            continue;
        };
        entry.insert(at);
        if symbol.is_global() && !section.name()?.starts_with(NO_PROGRAMS) {
            functions.programs.push(at);
        }
        let body = code::read(code, little);
        functions.all.push(Function { name, uses: body.uses, calls: BTreeSet::new() });
        bodies.push((place, body));
    }
    let relocations = relocations(&file);
    for (function, (begin, body)) in functions.all.iter_mut().zip(&bodies) {
        function.calls = calls(&file, &relocations, &known, *begin, body)
            .with_context(|| function.name.clone())?;
    }
    Ok(functions)
}

/// The symbol of each relocation of the code, by the place of the instruction.
fn relocations(file: &File<'_>) -> BTreeMap<Place, SymbolIndex> {
    let mut symbols = BTreeMap::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        for (offset, relocation) in section.relocations() {
            if let RelocationTarget::Symbol(symbol) = relocation.target() {
                symbols.insert(Place { section: section.index().0, offset }, symbol);
            }
        }
    }
    symbols
}

/// The functions that the function at `begin` calls or passes on. `known` has all functions.
fn calls(
    file: &File<'_>,
    relocations: &BTreeMap<Place, SymbolIndex>,
    known: &BTreeMap<Place, usize>,
    begin: Place,
    body: &Body,
) -> Result<BTreeSet<usize>> {
    let mut calls = BTreeSet::new();
    for reference in &body.references {
        let own = Place { offset: begin.offset + reference.offset, ..begin };
        let symbol = match relocations.get(&own) {
            Some(index) => {
                let symbol = file.symbol_by_index(*index)?;
                let Some(section) = symbol.section_index() else {
                    if reference.is_call {
                        bail!("calls {}, which is not in the object", symbol.name()?);
                    }
                    continue;
                };
                let place = Place { section: section.0, offset: symbol.address() };
                Some(Symbol { place, is_section: symbol.kind() == SymbolKind::Section })
            }
            None => None,
        };
        let Some(target) = reference.target(own, symbol) else {
            continue;
        };
        match known.get(&target) {
            Some(callee) => {
                calls.insert(*callee);
            }
            // A load may lead to data.
            None if is_code(file, target) => bail!(
                "the instruction at {:#x} leads to {:#x} of section {}, where no function begins",
                own.offset,
                target.offset,
                target.section
            ),
            None => {}
        }
    }
    Ok(calls)
}

/// Whether the section of `place` has code.
fn is_code(file: &File<'_>, place: Place) -> bool {
    let section = file.section_by_index(SectionIndex(place.section));
    section.is_ok_and(|section| section.kind() == SectionKind::Text)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_file_that_is_no_object_is_refused() {
        assert!(read(b"").is_err());
        assert!(read(b"#!/bin/sh\nexit 0\n").is_err());
    }
}
