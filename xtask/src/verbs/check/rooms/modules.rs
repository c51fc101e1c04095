//! The modules of a crate: what each defines, imports and names.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Ident, ImplItem, Item, ItemMod, ItemUse, Meta, UseTree, Visibility};

/// Rust sources and manifests, by their path from the repository's root.
pub(super) type Sources = BTreeMap<String, String>;

/// Index of a file in [`Crate::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId(pub(super) usize);

/// Index of a module in [`Crate::modules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ModuleId(usize);

/// A package's library and program, without code that is for tests only.
#[derive(Debug)]
pub(super) struct Crate {
    /// Files, by their path from the repository's root.
    pub(super) files: Vec<String>,
    modules: Vec<Module>,
    /// The library's root module, if there is one.
    pub(super) library: Option<ModuleId>,
    /// The package's name in Rust code: the program names its library by it.
    pub(super) name: String,
}

/// A module: a file, or a part of one.
#[derive(Debug)]
pub(super) struct Module {
    /// The file.
    pub(super) file: FileId,
    /// The parent module.
    pub(super) parent: Option<ModuleId>,
    /// The root module of its tree.
    pub(super) root: ModuleId,
    /// Child modules by name.
    pub(super) children: BTreeMap<String, ModuleId>,
    /// Names of the items that the module defines.
    pub(super) items: BTreeSet<String>,
    /// Names that its `use` lines import.
    pub(super) uses: Vec<Use>,
    /// Every path that is not in a `use` line.
    pub(super) paths: Vec<Path>,
    /// Names of the macros in it that `#[macro_export]` puts at the root.
    pub(super) exported: BTreeSet<String>,
}

/// A Rust path and its line.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// The names between the colons.
    pub(super) names: Vec<String>,
    /// Line in the file, from 1.
    pub(super) line: usize,
}

/// One name that a `use` line brings in.
#[derive(Clone, Debug)]
pub(super) struct Use {
    /// The imported path; for a glob, the module.
    pub(super) path: Path,
    /// The name; none for a glob.
    pub(super) name: Option<String>,
    /// Whether other modules may use the name, too.
    pub(super) is_reexport: bool,
}

impl Crate {
    /// Reads the crate in `folder`.
    ///
    /// # Errors
    ///
    /// A file is missing, or is not Rust.
    pub(super) fn read(folder: &str, sources: &Sources) -> Result<Self> {
        let package = folder.strip_suffix("/src").unwrap_or(folder);
        let manifest = sources.get(&format!("{package}/Cargo.toml")).map_or("", String::as_str);
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = "));
        let name = name.unwrap_or_default().trim_matches('"').replace('-', "_");
        let mut it = Self { files: Vec::new(), modules: Vec::new(), library: None, name };
        for root in ["lib.rs", "main.rs"] {
            let file = format!("{folder}/{root}");
            if sources.contains_key(&file) {
                let id = it.file(&file, folder, None, sources)?;
                if root == "lib.rs" {
                    it.library = Some(id);
                }
            }
        }
        Ok(it)
    }

    /// Every module.
    pub(super) fn modules(&self) -> impl Iterator<Item = (ModuleId, &Module)> {
        self.modules.iter().enumerate().map(|(at, module)| (ModuleId(at), module))
    }

    /// A module.
    pub(super) fn module(&self, id: ModuleId) -> Option<&Module> {
        self.modules.get(id.0)
    }

    /// Adds the module of the file `file`. The files of its child modules are in `folder`.
    fn file(
        &mut self,
        file: &str,
        folder: &str,
        parent: Option<ModuleId>,
        sources: &Sources,
    ) -> Result<ModuleId> {
        let Some(text) = sources.get(file) else { bail!("{file}: is not there") };
        let syntax = syn::parse_file(text)
            .map_err(|error| anyhow::anyhow!("{file}:{}: {error}", error.span().start().line))?;
        self.files.push(file.to_owned());
        let id = self.add(FileId(self.files.len() - 1), parent);
        self.fill(id, &syntax.items, folder, sources).with_context(|| file.to_owned())?;
        Ok(id)
    }

    fn add(&mut self, file: FileId, parent: Option<ModuleId>) -> ModuleId {
        let id = ModuleId(self.modules.len());
        let root = parent.and_then(|parent| self.module(parent)).map_or(id, |parent| parent.root);
        self.modules.push(Module {
            file,
            parent,
            root,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            uses: Vec::new(),
            paths: Vec::new(),
            exported: BTreeSet::new(),
        });
        id
    }

    /// Fills in a module, and adds its child modules.
    fn fill(
        &mut self,
        id: ModuleId,
        items: &[Item],
        folder: &str,
        sources: &Sources,
    ) -> Result<()> {
        let mut reader = Reader::default();
        for item in items {
            reader.visit_item(item);
        }
        if let Some(module) = self.modules.get_mut(id.0) {
            module.items = reader.items;
            module.uses = reader.uses;
            module.paths = reader.paths;
            module.exported = reader.exported;
        }
        for child in reader.modules {
            let name = child.ident.to_string();
            let inner = format!("{folder}/{name}");
            let added = match &child.content {
                Some((_, items)) => {
                    let Some(file) = self.module(id).map(|module| module.file) else { continue };
                    let added = self.add(file, Some(id));
                    self.fill(added, items, &inner, sources)?;
                    added
                }
                None => {
                    let plain = format!("{inner}.rs");
                    let file = if sources.contains_key(&plain) {
                        plain
                    } else {
                        format!("{inner}/mod.rs")
                    };
                    self.file(&file, &inner, Some(id), sources)?
                }
            };
            if let Some(module) = self.modules.get_mut(id.0) {
                module.children.insert(name, added);
            }
        }
        Ok(())
    }
}

/// Reads the items of a module, without the items of its child modules.
#[derive(Default)]
struct Reader {
    items: BTreeSet<String>,
    uses: Vec<Use>,
    paths: Vec<Path>,
    exported: BTreeSet<String>,
    modules: Vec<ItemMod>,
    /// Nesting depth of the current item.
    depth: usize,
}

impl Reader {
    fn define(&mut self, name: &Ident) {
        // An item inside a function is not visible elsewhere.
        if self.depth == 0 {
            self.items.insert(name.to_string());
        }
    }

    /// Adds the paths among a macro's tokens.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Option<Path> = None;
        // Colons since the last name. Two colons join two names to a path.
        let mut colons = 0;
        // A name after a dot is a method or a field.
        let mut dotted = false;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    match &mut path {
                        Some(path) if colons == 2 => path.names.push(name.to_string()),
                        _ => {
                            self.end(path.take());
                            if !dotted {
                                let line = name.span().start().line;
                                path = Some(Path { names: vec![name.to_string()], line });
                            }
                        }
                    }
                    colons = 0;
                    dotted = false;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    dotted = false;
                }
                other => {
                    self.end(path.take());
                    colons = 0;
                    dotted = matches!(&other, TokenTree::Punct(punct) if punct.as_char() == '.');
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.end(path);
    }

    fn end(&mut self, path: Option<Path>) {
        self.paths.extend(path);
    }

    fn tree(&mut self, tree: &UseTree, before: &[String], is_reexport: bool) {
        let line = tree.span().start().line;
        let path = |names: &[String]| Path { names: names.to_vec(), line };
        match tree {
            UseTree::Path(inner) => {
                let names = [before, &[inner.ident.to_string()]].concat();
                self.tree(&inner.tree, &names, is_reexport);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(tree, before, is_reexport);
                }
            }
            UseTree::Glob(_) => {
                self.uses.push(Use { path: path(before), name: None, is_reexport });
            }
            UseTree::Name(last) => self.name(&last.ident, &last.ident, before, line, is_reexport),
            UseTree::Rename(last) => {
                self.name(&last.ident, &last.rename, before, line, is_reexport);
            }
        }
    }

    fn name(
        &mut self,
        last: &Ident,
        name: &Ident,
        before: &[String],
        line: usize,
        is_reexport: bool,
    ) {
        let (names, name) = if last == "self" {
            // `a::b::{self}` imports `a::b`, with the name `b` unless `as` gives another name.
            let own = if name == "self" {
                before.last().cloned().unwrap_or_default()
            } else {
                name.to_string()
            };
            (before.to_vec(), own)
        } else {
            ([before, &[last.to_string()]].concat(), name.to_string())
        };
        self.uses.push(Use { path: Path { names, line }, name: Some(name), is_reexport });
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if attributes(item).iter().any(is_for_tests) {
            return;
        }
        match item {
            Item::Const(it) => self.define(&it.ident),
            Item::Enum(it) => self.define(&it.ident),
            Item::Fn(it) => self.define(&it.sig.ident),
            Item::Macro(it) => {
                if let Some(name) = &it.ident {
                    self.define(name);
                    if it.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                        self.exported.insert(name.to_string());
                    }
                }
            }
            Item::Static(it) => self.define(&it.ident),
            Item::Struct(it) => self.define(&it.ident),
            Item::Trait(it) => self.define(&it.ident),
            Item::TraitAlias(it) => self.define(&it.ident),
            Item::Type(it) => self.define(&it.ident),
            Item::Union(it) => self.define(&it.ident),
            Item::Mod(it) => {
                self.modules.push(it.clone());
                return;
            }
            _ => {}
        }
        self.depth += 1;
        visit::visit_item(self, item);
        self.depth -= 1;
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(it) => &it.attrs,
            ImplItem::Fn(it) => &it.attrs,
            ImplItem::Type(it) => &it.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !attributes.iter().any(is_for_tests) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_reexport = !matches!(item.vis, Visibility::Inherited);
        // `::a` is a path of another crate.
        if item.leading_colon.is_none() {
            self.tree(&item.tree, &[], is_reexport);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.paths.push(Path { names, line: path.span().start().line });
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, it: &'ast syn::Macro) {
        self.tokens(it.tokens.clone());
        visit::visit_macro(self, it);
    }

    fn visit_attribute(&mut self, it: &'ast Attribute) {
        if let Meta::List(list) = &it.meta {
            self.tokens(list.tokens.clone());
        }
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // `pub(in crate::a)` restricts who may import, and imports nothing.
    }
}

/// Whether an item with this attribute is compiled for tests only.
fn is_for_tests(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else { return false };
    list.path.is_ident("cfg") && list.tokens.to_string() == "test"
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(it) => &it.attrs,
        Item::Enum(it) => &it.attrs,
        Item::Fn(it) => &it.attrs,
        Item::ForeignMod(it) => &it.attrs,
        Item::Impl(it) => &it.attrs,
        Item::Macro(it) => &it.attrs,
        Item::Mod(it) => &it.attrs,
        Item::Static(it) => &it.attrs,
        Item::Struct(it) => &it.attrs,
        Item::Trait(it) => &it.attrs,
        Item::Type(it) => &it.attrs,
        Item::Union(it) => &it.attrs,
        Item::Use(it) => &it.attrs,
        _ => &[],
    }
}
