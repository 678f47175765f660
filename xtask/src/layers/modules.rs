//! Owns the module tree of a crate, read from its sources: the file of each module, and the file that defines what a path names.
//! Leaves the imports between files to `circles.rs`.
//!
//! As rustc does, it follows `use` declarations and re-exports to the file that *defines* a name. If `cfg` chooses between two files
//! for one module, both count. Test modules do not count, and neither do method calls: only a path names a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use proc_macro2::{TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Ident, Item, Lit, Meta, Token, UseTree};

/// The index of a file in [`Modules::files`].
pub(super) type File = usize;
type Module = usize;

/// A longer chain of `use` declarations is taken for one that names itself.
const MAX_CHAIN: usize = 16;

/// A path in a file's code or in one of its `use` declarations.
pub(super) struct Mention {
    pub(super) file: File,
    /// From 1.
    pub(super) line: usize,
    module: Module,
    path: Vec<String>,
    is_glob: bool,
}

/// One crate's modules, from its `lib.rs` or `main.rs` down.
#[derive(Default)]
pub(super) struct Modules {
    pub(super) files: Vec<PathBuf>,
    pub(super) mentions: Vec<Mention>,
    modules: Vec<Scope>,
}

/// The names of one module.
#[derive(Default)]
struct Scope {
    file: File,
    parent: Option<Module>,
    /// The folder of the files of child modules.
    folder: PathBuf,
    /// The folder that a `#[path]` attribute is relative to.
    path_base: PathBuf,
    /// Two modules of one name are twins, chosen by `cfg`.
    children: BTreeMap<String, Vec<Module>>,
    items: BTreeSet<String>,
    imports: BTreeMap<String, Vec<Vec<String>>>,
    globs: Vec<Vec<String>>,
}

/// What a path leads to.
enum Target {
    Module(Module),
    Item(File),
}

impl Modules {
    /// Reads the crate whose root is `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let folder = root.parent().context("a root file in a folder")?;
        tree.read_file(root, folder.to_path_buf(), None)?;
        Ok(tree)
    }

    /// The files that define what `mention` names.
    pub(super) fn files_of(&self, mention: &Mention) -> Vec<File> {
        let targets = self.resolve(mention.module, &mention.path, 0);
        let files = targets.into_iter().filter_map(|target| match target {
            Target::Item(file) => Some(file),
            Target::Module(module) => mention.is_glob.then(|| self.modules[module].file),
        });
        files.collect()
    }

    fn read_file(
        &mut self,
        path: &Path,
        folder: PathBuf,
        parent: Option<Module>,
    ) -> Result<Module> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let syntax = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        let known = self.files.iter().position(|known| known == path);
        let file = known.unwrap_or(self.files.len());
        if known.is_none() {
            self.files.push(path.to_path_buf());
        }
        let path_base = path.parent().context("a file in a folder")?.to_path_buf();
        self.read_items(
            &syntax.items,
            Scope { file, folder, path_base, parent, ..Scope::default() },
        )
    }

    fn read_items(&mut self, items: &[Item], scope: Scope) -> Result<Module> {
        let module = self.modules.len();
        let file = scope.file;
        self.modules.push(scope);
        let mut reader = Reader { tree: self, module, file, failed: None };
        for item in items {
            reader.visit_item(item);
        }
        match reader.failed {
            Some(error) => Err(error),
            None => Ok(module),
        }
    }

    fn resolve(&self, from: Module, path: &[String], depth: usize) -> Vec<Target> {
        let Some((first, rest)) = path.split_first() else { return vec![Target::Module(from)] };
        let start = match first.as_str() {
            "crate" => Some(0),
            "self" => Some(from),
            "super" => self.modules[from].parent,
            _ => return self.walk(from, path, depth, None),
        };
        let Some(mut start) = start else { return Vec::new() };
        let mut rest = rest;
        while let [up, tail @ ..] = rest
            && up == "super"
        {
            let Some(parent) = self.modules[start].parent else { return Vec::new() };
            (start, rest) = (parent, tail);
        }
        // A name without a declaration, such as one that a macro makes, is taken for the module's own.
        self.walk(start, rest, depth, Some(self.modules[start].file))
    }

    /// Follows `path` down from `module`. A name that is not declared there belongs to the file `unknown`, if there is one.
    fn walk(
        &self,
        module: Module,
        path: &[String],
        depth: usize,
        unknown: Option<File>,
    ) -> Vec<Target> {
        let Some((name, rest)) = path.split_first() else { return vec![Target::Module(module)] };
        let scope = &self.modules[module];
        if depth > MAX_CHAIN {
            return Vec::new();
        }
        if let Some(children) = scope.children.get(name) {
            let below = children
                .iter()
                .flat_map(|&child| self.walk(child, rest, depth, Some(self.modules[child].file)));
            return below.collect();
        }
        if scope.items.contains(name) {
            return vec![Target::Item(scope.file)];
        }
        if let Some(imports) = scope.imports.get(name) {
            let through = imports.iter().filter(|import| import.first() != Some(name));
            let targets = through.flat_map(|import| self.resolve(module, import, depth + 1));
            return targets.flat_map(|target| self.below(target, rest, depth)).collect();
        }
        for glob in &scope.globs {
            for target in self.resolve(module, glob, depth + 1) {
                let Target::Module(from) = target else { continue };
                let found = self.walk(from, path, depth + 1, None);
                if !found.is_empty() {
                    return found;
                }
            }
        }
        unknown.map(Target::Item).into_iter().collect()
    }

    fn below(&self, target: Target, rest: &[String], depth: usize) -> Vec<Target> {
        match target {
            Target::Module(module) => {
                self.walk(module, rest, depth + 1, Some(self.modules[module].file))
            }
            Target::Item(_) => vec![target],
        }
    }
}

/// Reads the items of one module.
struct Reader<'a> {
    tree: &'a mut Modules,
    module: Module,
    file: File,
    failed: Option<anyhow::Error>,
}

impl Reader<'_> {
    fn scope(&mut self) -> &mut Scope {
        &mut self.tree.modules[self.module]
    }

    fn mention(&mut self, path: Vec<String>, line: usize, is_glob: bool) {
        let (file, module) = (self.file, self.module);
        self.tree.mentions.push(Mention { file, line, module, path, is_glob });
    }

    fn child(&mut self, item: &syn::ItemMod) -> Result<()> {
        let name = item.ident.to_string();
        let parent = Some(self.module);
        let Scope { folder, path_base, .. } = self.scope();
        let (folder, path_base) = (folder.clone(), path_base.clone());
        if let Some((_, items)) = &item.content {
            let folder = folder.join(&name);
            let path_base = folder.clone();
            let scope = Scope { file: self.file, folder, path_base, parent, ..Scope::default() };
            let child = self.tree.read_items(items, scope)?;
            self.scope().children.entry(name).or_default().push(child);
            return Ok(());
        }
        let usual = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
        let written = item.attrs.iter().flat_map(written_paths);
        let mut paths: BTreeSet<PathBuf> = written.map(|path| path_base.join(path)).collect();
        let is_always_elsewhere =
            item.attrs.iter().any(|attribute| attribute.path().is_ident("path"));
        if !is_always_elsewhere {
            paths.extend(usual.into_iter().filter(|path| path.exists()));
        }
        ensure!(
            !paths.is_empty(),
            "no file for `mod {name};` of {}",
            self.tree.files[self.file].display()
        );
        for path in paths {
            let child = self.tree.read_file(&path, folder.join(&name), parent)?;
            self.scope().children.entry(name.clone()).or_default().push(child);
        }
        Ok(())
    }

    /// Reads the paths in the tokens of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end_path(&mut path, line);
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end_path(&mut path, line);
                    colons = 0;
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end_path(&mut path, line);
                    colons = 0;
                }
            }
        }
        self.end_path(&mut path, line);
    }

    fn end_path(&mut self, path: &mut Vec<String>, line: usize) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.mention(path, line, false);
        }
    }

    fn declare(&mut self, tree: &UseTree, prefix: &[String]) {
        let join = |ident: &Ident| {
            let tail = (ident != "self" || prefix.is_empty()).then(|| ident.to_string());
            prefix.iter().cloned().chain(tail).collect::<Vec<_>>()
        };
        let (ident, rename) = match tree {
            UseTree::Path(path) => return self.declare(&path.tree, &join(&path.ident)),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|item| self.declare(item, prefix));
            }
            UseTree::Glob(glob) => {
                self.mention(prefix.to_vec(), glob.star_token.spans[0].start().line, true);
                return self.scope().globs.push(prefix.to_vec());
            }
            UseTree::Name(name) => (&name.ident, None),
            UseTree::Rename(rename) => (&rename.ident, Some(rename.rename.to_string())),
        };
        let path = join(ident);
        let Some(name) = rename.or_else(|| path.last().cloned()) else { return };
        self.mention(path.clone(), ident.span().start().line, false);
        self.scope().imports.entry(name).or_default().push(path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_for_tests(attributes(item)) {
            return;
        }
        if let Some(name) = declared(item) {
            self.scope().items.insert(name);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if let Err(error) = self.child(item) {
            self.failed.get_or_insert(error);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.declare(&item.tree, &[]);
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Const(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first()
            && path.segments.len() > 1
        {
            let names = path.segments.iter().map(|segment| segment.ident.to_string());
            self.mention(names.collect(), first.ident.span().start().line, false);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// The name that an item gives to its module.
fn declared(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]`, or `#[cfg(all(test, …))]`.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition == "test" || condition.starts_with("all (test")
        }
        _ => false,
    })
}

/// The files of `#[path = "…"]` and `#[cfg_attr(…, path = "…")]`.
fn written_paths(attribute: &Attribute) -> Vec<String> {
    let metas = if attribute.path().is_ident("cfg_attr") {
        let list = Punctuated::<Meta, Token![,]>::parse_terminated;
        attribute.parse_args_with(list).into_iter().flatten().collect()
    } else {
        vec![attribute.meta.clone()]
    };
    let values = metas.into_iter().filter_map(|meta| match meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match pair.value {
            Expr::Lit(syn::ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    });
    values.collect()
}
