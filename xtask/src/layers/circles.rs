//! Owns the search for circles: files of one crate that import each other, directly or through others.
//!
//! A file imports each file that defines a name in one of its paths. Parent and child modules count like any two files: a bare
//! `mod child;` is no import, but `use child::X`, `pub use child::X` and `child::f()` are.
//!
//! Re-exports are followed. `lib.rs` is the crate's face: a child that says `crate::X` imports the file that defines `X`, not
//! `lib.rs`. If `lib.rs` itself defines what a child uses, and re-exports that child, this is a circle: the definition belongs in a
//! file of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use anyhow::Result;

use super::modules::{File, Modules};

/// What each file imports, and the line of the first import.
type Imports = BTreeMap<File, BTreeMap<File, usize>>;

/// Every circle of the crate with the root file `root`, as `a.rs:1 -> b.rs:2 -> a.rs`, with the lines of the imports. Paths are relative
/// to `base`.
pub(super) fn find(root: &Path, base: &Path) -> Result<Vec<String>> {
    let tree = Modules::read(root)?;
    let circles = circles(&imports(&tree));
    let name = |file: File| {
        let path = &tree.files[file];
        path.strip_prefix(base).unwrap_or(path).display().to_string()
    };
    let show = |circle: Vec<(File, usize)>| {
        let first = circle.first().map(|&(file, _)| name(file)).unwrap_or_default();
        let steps = circle.iter().map(|&(file, line)| format!("{}:{line} -> ", name(file)));
        steps.collect::<String>() + &first
    };
    Ok(circles.into_iter().map(show).collect())
}

fn imports(tree: &Modules) -> Imports {
    let mut imports = Imports::new();
    for mention in &tree.mentions {
        for target in tree.files_of(mention) {
            if target != mention.file {
                let line = imports.entry(mention.file).or_default().entry(target);
                line.and_modify(|line| *line = mention.line.min(*line)).or_insert(mention.line);
            }
        }
    }
    imports
}

/// For each file in a circle, the shortest circle through the file; each circle once.
fn circles(imports: &Imports) -> Vec<Vec<(File, usize)>> {
    let mut seen = BTreeSet::new();
    let shortest = imports.keys().filter_map(|&file| shortest(imports, file));
    let fresh = shortest.filter(|circle| {
        seen.insert(circle.iter().map(|&(file, _)| file).collect::<BTreeSet<File>>())
    });
    fresh.collect()
}

/// The shortest way from `start` back to `start`: each file, with the line that imports the next one.
fn shortest(imports: &Imports, start: File) -> Option<Vec<(File, usize)>> {
    let mut came_from: BTreeMap<File, File> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for &target in imports.get(&file).into_iter().flat_map(BTreeMap::keys) {
            if target == start {
                let mut circle = vec![(file, imports[&file][&start])];
                let mut at = file;
                while at != start {
                    let before = came_from[&at];
                    circle.push((before, imports[&before][&at]));
                    at = before;
                }
                circle.reverse();
                return Some(circle);
            }
            came_from.entry(target).or_insert_with(|| {
                queue.push_back(target);
                file
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The circles of a crate of these files, each `name: text`.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        find(&folder.path().join("lib.rs"), folder.path()).unwrap()
    }

    #[test]
    fn two_siblings_in_a_circle_are_named_with_their_lines() {
        let circle = found(&[
            ("lib.rs", "mod a;\nmod b;\n"),
            ("a.rs", "use crate::b::B;\npub struct A;\n"),
            ("b.rs", "pub struct B;\nfn f() {\n    super::a::g();\n}\n"),
        ]);
        assert_eq!(circle, ["a.rs:1 -> b.rs:3 -> a.rs"]);
    }

    #[test]
    fn a_parent_and_its_child_count_like_any_two_files() {
        fn files(parent: &str) -> [(&str, &str); 3] {
            [("lib.rs", "mod p;\n"), ("p.rs", parent), ("p/c.rs", "use super::P;\n")]
        }
        assert!(found(&files("mod c;\npub struct P;\n")).is_empty());
        for import in ["pub use c::C;", "use self::c::C;", "fn f() { c::f() }", "use c::*;"] {
            let parent = format!("mod c;\npub struct P;\n{import}\n");
            assert_eq!(found(&files(&parent)), ["p.rs:3 -> p/c.rs:1 -> p.rs"], "{import}");
        }
    }

    #[test]
    fn what_the_face_of_a_crate_re_exports_is_imported_from_its_own_file() {
        let files = |a| {
            [
                ("lib.rs", "mod a;\nmod b;\npub use a::A;\npub use b::B;\n"),
                ("a.rs", a),
                ("b.rs", "pub struct B;\n"),
            ]
        };
        assert!(found(&files("use crate::B;\npub struct A;\n")).is_empty());
        let circle = [
            ("lib.rs", "mod a;\npub use a::A;\npub const N: u8 = 0;\n"),
            ("a.rs", "use crate::N;\npub struct A;\n"),
        ];
        assert_eq!(found(&circle), ["lib.rs:2 -> a.rs:1 -> lib.rs"]);
    }

    #[test]
    fn an_import_of_a_module_counts_where_the_module_is_used() {
        let files = |a| {
            [
                ("lib.rs", "mod a;\nmod b;\n"),
                ("a.rs", a),
                ("b.rs", "use crate::a::A;\npub fn f() {}\n"),
            ]
        };
        assert!(found(&files("use crate::b;\npub struct A;\n")).is_empty());
        assert_eq!(
            found(&files("use crate::b;\npub struct A;\nfn g() { b::f() }\n")),
            ["a.rs:3 -> b.rs:1 -> a.rs"]
        );
    }

    #[test]
    fn paths_in_macros_count_and_those_in_tests_and_comments_do_not() {
        let files = |a| {
            [
                ("lib.rs", "mod a;\nmod b;\n"),
                ("a.rs", a),
                ("b.rs", "use crate::a::A;\npub fn f() {}\n"),
            ]
        };
        assert_eq!(
            found(&files("fn g() { println!(\"{}\", crate::b::f()) }\n")),
            ["a.rs:1 -> b.rs:1 -> a.rs"]
        );
        assert!(
            found(&files("/// [`crate::b::f`]\n#[cfg(test)]\nmod tests { use crate::b::f; }\n"))
                .is_empty()
        );
    }

    #[test]
    fn both_twins_of_a_module_count() {
        let circle = found(&[
            ("lib.rs", "mod a;\n#[cfg_attr(not(x), path = \"b_off.rs\")]\nmod b;\n"),
            ("a.rs", "use crate::b::B;\npub struct A;\n"),
            ("b.rs", "pub struct B;\n"),
            ("b_off.rs", "use crate::a::A;\npub struct B;\n"),
        ]);
        assert_eq!(circle, ["a.rs:1 -> b_off.rs:1 -> a.rs"]);
    }

    #[test]
    fn a_long_circle_is_found_through_its_files() {
        let circle = found(&[
            ("lib.rs", "mod a;\nmod b;\nmod c;\n"),
            ("a.rs", "use crate::b::B;\npub struct A;\n"),
            ("b.rs", "use crate::c::C;\npub struct B;\n"),
            ("c.rs", "use crate::a::A;\npub struct C;\n"),
        ]);
        assert_eq!(circle, ["a.rs:1 -> b.rs:1 -> c.rs:1 -> a.rs"]);
    }
}
