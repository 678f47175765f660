//! Owns the reading of one file: its safety comments, the unsafe code below them, its `# Safety` lists, its names. Leaves to
//! `citations.rs` what a comment cites.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Ident, Lit, Meta};

use super::citations::names;

/// A statement may begin so many lines before its unsafe block, below the comment.
const LINES_OF_A_STATEMENT: usize = 6;

/// A `// SAFETY:` comment.
#[derive(Debug)]
pub(super) struct Comment {
    /// The first line, from 1, and the one after the last.
    pub(super) lines: Range<usize>,
    pub(super) text: String,
}

/// Code that a comment can be about: a function, an unsafe block or an unsafe `impl`.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) lines: Range<usize>,
    pub(super) is_function: bool,
    /// Whose duties count there: the function's, those of what the block calls, those of the trait of the `impl`.
    pub(super) names: Vec<String>,
}

/// What one file says and declares.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) comments: Vec<Comment>,
    pub(super) codes: Vec<Code>,
    /// The lines of macros, whose code is only tokens.
    pub(super) macros: Vec<Range<usize>>,
    /// Each identifier of the code with its lines, except the names of methods in calls, which are in `calls`.
    pub(super) words: BTreeMap<String, Vec<usize>>,
    pub(super) calls: BTreeMap<String, Vec<usize>>,
    pub(super) declared: BTreeSet<String>,
    /// The documentation, without the code.
    pub(super) docs: String,
}

/// A `# Safety` list.
#[derive(Default)]
pub(super) struct List {
    pub(super) numbers: BTreeSet<u8>,
    /// The functions whose lists it refers to.
    pub(super) others: BTreeSet<String>,
}

impl Source {
    /// Reads the file at `path`, and adds its `# Safety` lists to `lists`.
    pub(super) fn read(
        path: &Path,
        text: &str,
        lists: &mut BTreeMap<String, List>,
    ) -> Result<Self> {
        let syntax = syn::parse_file(text).with_context(|| path.display().to_string())?;
        let mut reader = Reader { codes: Vec::new(), macros: Vec::new(), lists };
        reader.visit_file(&syntax);
        let mut source = Self {
            path: path.to_owned(),
            comments: comments(text),
            codes: reader.codes,
            macros: reader.macros,
            calls: BTreeMap::new(),
            words: BTreeMap::new(),
            declared: BTreeSet::new(),
            docs: text.lines().filter_map(documentation).collect::<Vec<_>>().join("\n"),
        };
        source.read_words(text.parse().map_err(|error| anyhow!("{error}"))?);
        Ok(source)
    }

    /// The functions around the comment, and the unsafe code right below it.
    pub(super) fn codes_of(&self, comment: &Comment) -> impl Iterator<Item = &Code> {
        let line = comment.lines.start;
        let around =
            self.codes.iter().filter(move |code| code.is_function && code.lines.contains(&line));
        let below = self
            .codes
            .iter()
            .filter(|code| !code.is_function && code.lines.start >= comment.lines.end);
        let first = below.clone().map(|code| code.lines.start).min();
        let nearest = below.filter(move |code| {
            Some(code.lines.start) == first
                && code.lines.start < comment.lines.end + LINES_OF_A_STATEMENT
        });
        around.chain(nearest)
    }

    /// The names of the file's functions.
    pub(super) fn functions(&self) -> impl Iterator<Item = &str> {
        let functions = self.codes.iter().filter(|code| code.is_function);
        functions.flat_map(|code| code.names.iter().map(String::as_str))
    }

    /// Is the method called in the code that the comment is about?
    pub(super) fn calls_near(&self, comment: &Comment, name: &str) -> bool {
        let lines = self.calls.get(name).into_iter().flatten();
        let mut near =
            lines.filter(|&line| self.codes_of(comment).any(|code| code.lines.contains(line)));
        near.next().is_some()
    }

    pub(super) fn has_invariant(&self, number: u8) -> bool {
        self.docs.contains(&format!("nvariant {number}:"))
    }

    pub(super) fn declares_type(&self, name: &str) -> bool {
        name.starts_with(char::is_uppercase) && self.declared.contains(name)
    }

    fn read_words(&mut self, tokens: TokenStream) {
        const KEYWORDS: &[&str] = &[
            "fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod", "let",
            "mut", "ref", "for",
        ];
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut in_use = false;
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Ident(ident) => {
                    let word = ident.to_string();
                    let before =
                        at.checked_sub(1).map(|at| tokens[at].to_string()).unwrap_or_default();
                    let after = |by: usize| {
                        tokens.get(at + by).map(ToString::to_string).unwrap_or_default()
                    };
                    let has_type = after(1) == ":" && after(2) != ":";
                    in_use |= word == "use";
                    if in_use || has_type || before == "|" || KEYWORDS.contains(&&*before) {
                        self.declared.insert(word.clone());
                    }
                    let words = if before == "." { &mut self.calls } else { &mut self.words };
                    words.entry(word).or_default().push(ident.span().start().line);
                }
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    let text = text.trim_start_matches(['b', 'c']).trim_matches('"').to_owned();
                    self.words.entry(text).or_default().push(literal.span().start().line);
                }
                TokenTree::Group(group) if in_use => {
                    self.read_imports(group.stream());
                }
                TokenTree::Group(group) => self.read_words(group.stream()),
                TokenTree::Punct(punct) if punct.as_char() == ';' => in_use = false,
                _ => {}
            }
        }
    }

    fn read_imports(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    self.words
                        .entry(ident.to_string())
                        .or_default()
                        .push(ident.span().start().line);
                    self.declared.insert(ident.to_string());
                }
                TokenTree::Group(group) => self.read_imports(group.stream()),
                _ => {}
            }
        }
    }
}

/// Collects the functions and the unsafe code of a file, and its `# Safety` lists.
struct Reader<'a> {
    codes: Vec<Code>,
    macros: Vec<Range<usize>>,
    lists: &'a mut BTreeMap<String, List>,
}

impl Reader<'_> {
    fn code(&mut self, span: Span, is_function: bool, names: Vec<String>) {
        let lines = span.start().line..span.end().line + 1;
        self.codes.push(Code { lines, is_function, names });
    }

    fn list(&mut self, name: &Ident, attributes: &[Attribute]) {
        let Some(text) = safety_text(attributes) else { return };
        let list = self.lists.entry(name.to_string()).or_default();
        let point = |line: &str| line.trim().split_once(". ")?.0.parse::<u8>().ok();
        let numbers: Vec<u8> = text.lines().filter_map(point).collect();
        if numbers.is_empty() {
            // A text without a list is one point, and may name other lists.
            list.numbers.insert(1);
            let others = names(&text).filter_map(|name| name.rsplit("::").next());
            list.others.extend(others.map(str::to_owned));
        }
        list.numbers.extend(numbers);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.list(&item.sig.ident, &item.attrs);
        self.code(item.span(), true, vec![item.sig.ident.to_string()]);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.list(&item.sig.ident, &item.attrs);
        self.code(item.span(), true, vec![item.sig.ident.to_string()]);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.list(&item.sig.ident, &item.attrs);
        self.code(item.span(), true, vec![item.sig.ident.to_string()]);
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_foreign_item_fn(&mut self, item: &'ast syn::ForeignItemFn) {
        self.list(&item.sig.ident, &item.attrs);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.list(&item.ident, &item.attrs);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.unsafety.is_some() {
            let name = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
            let names = name.map(|segment| segment.ident.to_string());
            self.code(item.span(), false, names.into_iter().collect());
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.macros.push(item.span().start().line..item.span().end().line + 1);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        let mut calls = Calls(Vec::new());
        calls.visit_block(&block.block);
        self.code(block.span(), false, calls.0);
        visit::visit_expr_unsafe(self, block);
    }
}

/// The names of what is called.
struct Calls(Vec<String>);

impl<'ast> Visit<'ast> for Calls {
    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let Expr::Path(path) = &*call.func
            && let Some(last) = path.path.segments.last()
        {
            self.0.push(last.ident.to_string());
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.0.push(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }
}

/// The text below `# Safety`.
fn safety_text(attributes: &[Attribute]) -> Option<String> {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(syn::ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let (_, list) = text.split_once("# Safety")?;
    list.split("\n # ").next().map(str::to_owned)
}

/// A line of documentation.
fn documentation(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))
}

fn comments(text: &str) -> Vec<Comment> {
    let mut comments: Vec<Comment> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix("// ") else { continue };
        if let Some(argument) = comment.strip_prefix("SAFETY:") {
            comments.push(Comment { lines: at + 1..at + 2, text: argument.to_owned() });
        } else if let Some(last) = comments.last_mut().filter(|last| last.lines.end == at + 1) {
            last.lines.end += 1;
            last.text.push(' ');
            last.text.push_str(comment);
        }
    }
    comments
}
