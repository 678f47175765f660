//! Owns the check that the reviewed list of refusals, `crates/pymem-preload/tests/refusals.txt`, leaves none out: every
//! variant of every error type in the crates' sources has a line there. The texts themselves are the preload's test.

use std::collections::BTreeSet;
use std::fs;

use syn::Item;

use crate::workspace;

/// Names by which a type that does not implement `Error` tells that it is printed as one.
const ENDINGS: &[&str] = &["Error", "Refusal", "Rejection"];

/// Types that are not in the list, each with its reason.
const LEFT_OUT: &[&str] = &[
    // A report of many lines, which memdebug's own tests compare byte by byte.
    "memdebug::Violation",
    // What the registry answers to the hooks, which make a violation of it.
    "memdebug::Rejection",
    // Only a system without memory makes one.
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

#[test]
fn every_refusal_is_in_the_reviewed_list() {
    let path = workspace::root().join("crates/pymem-preload/tests/refusals.txt");
    let text = fs::read_to_string(path).expect("the list");
    let lines = text.lines().filter(|line| !line.starts_with(['#', ' ']));
    let listed: BTreeSet<String> = lines.map(str::to_owned).collect();
    let found = error_types();
    let missing: Vec<_> = found.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&found).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "crates/pymem-preload/src/refusals.rs is to print these, and tests/refusals.txt to have them after a review: {missing:?}\n\
         these are no error of the sources any more: {stale:?}"
    );
}
