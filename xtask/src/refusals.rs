//! Owns the check that the reviewed lists of refusals, `tests/refusals.txt` of each crate, leave none out: every variant of
//! every error type in the crates' sources has a line there. A test of each crate compares the texts.

use std::collections::BTreeSet;
use std::fs;

use syn::Item;

use crate::workspace;

/// A type whose name ends so is printed as an error, even if it does not implement `Error`.
const ENDINGS: &[&str] = &["Error", "Refusal", "Rejection"];

/// Types that are not in the list, each with its reason.
const LEFT_OUT: &[&str] = &[
    // A report of many lines, which memdebug's own tests compare byte by byte.
    "memdebug::Violation",
    // The registry's answer to the hooks, which turn it into a violation.
    "memdebug::Rejection",
    // Occurs only when the system has no memory left.
    "pymem_sync::RegisterError",
];

/// `crate::Type` of every error type without variants, and `crate::Type::Variant` of the others.
fn error_types() -> BTreeSet<String> {
    let root = workspace::root().join("crates");
    let mut names = BTreeSet::new();
    for path in workspace::sources(&root).expect("the sources") {
        let library = path.strip_prefix(&root).expect("below it").iter().next();
        let library = library.and_then(|name| name.to_str()).expect("a crate").replace('-', "_");
        let file = syn::parse_file(&fs::read_to_string(&path).expect("a source"));
        let items = file.unwrap_or_else(|error| panic!("{}: {error}", path.display())).items;
        let implement = implementors_of_error(&items);
        for item in &items {
            let (ident, attributes, variants) = match item {
                Item::Enum(item) => (&item.ident, &item.attrs, Some(&item.variants)),
                Item::Struct(item) => (&item.ident, &item.attrs, None),
                _ => continue,
            };
            let name = ident.to_string();
            let ends_so = ENDINGS.iter().any(|ending| name.ends_with(ending));
            if !(ends_so || implement.contains(&name) || attributes.iter().any(derives_error)) {
                continue;
            }
            let path = format!("{library}::{name}");
            if LEFT_OUT.contains(&&*path) {
                continue;
            }
            match variants {
                Some(variants) => {
                    names.extend(
                        variants.iter().map(|variant| format!("{path}::{}", variant.ident)),
                    );
                }
                None => _ = names.insert(path),
            }
        }
    }
    names
}

fn derives_error(attribute: &syn::Attribute) -> bool {
    let mut found = false;
    if attribute.path().is_ident("derive") {
        let visit = |meta: syn::meta::ParseNestedMeta<'_>| {
            found |= meta.path.segments.last().is_some_and(|last| last.ident == "Error");
            Ok(())
        };
        attribute.parse_nested_meta(visit).expect("a list of traits");
    }
    found
}

/// Names of the types in `impl Error for NAME`.
fn implementors_of_error(items: &[Item]) -> BTreeSet<String> {
    let implementations = items.iter().filter_map(|item| match item {
        Item::Impl(item) => Some(item),
        _ => None,
    });
    let of_error = implementations.filter(|item| {
        let path = item.trait_.as_ref().map(|(_, path, _)| path);
        path.and_then(|path| path.segments.last()).is_some_and(|last| last.ident == "Error")
    });
    let types = of_error.filter_map(|item| match &*item.self_ty {
        syn::Type::Path(path) => path.path.get_ident().map(ToString::to_string),
        _ => None,
    });
    types.collect()
}

/// The lists of all crates as one text.
fn lists() -> String {
    let crates = fs::read_dir(workspace::root().join("crates")).expect("the crates");
    let paths = crates.map(|entry| entry.expect("a crate").path().join("tests/refusals.txt"));
    paths.filter_map(|path| fs::read_to_string(path).ok()).collect()
}

#[test]
fn every_refusal_is_in_a_reviewed_list() {
    let text = lists();
    let lines = text.lines().filter(|line| !line.starts_with(' '));
    let listed: BTreeSet<String> = lines.map(str::to_owned).collect();
    let found = error_types();
    let missing: Vec<_> = found.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "no tests/refusals.txt has these; add them to the crate's list and to its test, and review the texts: {missing:?}\n\
         these are no longer errors of the sources: {stale:?}"
    );
}

/// A message is a part of a sentence, which others put their own words before: it begins small, and has no full stop.
#[test]
fn refusals_have_one_form() {
    for message in lists().lines().filter_map(|line| line.strip_prefix("    ")) {
        assert!(!message.ends_with('.'), "{message}");
        let first = message.split([' ', ':', '=']).next().unwrap_or_default();
        let is_variable = first.to_uppercase() == first;
        assert!(is_variable || !message.starts_with(char::is_uppercase), "{message}");
    }
}
