//! Owns the check that what a safety comment cites exists: a function, a duty of a `# Safety` list, a promise of a trait, an
//! invariant. Leaves to the reader whether the argument is right.
//!
//! - `duty 2`, `promise 2` and a point `(2)`, `2:` or `2.` is a number of the list of the function that encloses the comment, of
//!   what the unsafe block below it calls, of the trait that the `unsafe impl` below it implements, or of a function that the
//!   comment names.
//! - `invariant 2` is written `invariant 2:` in the documentation of the same file, `invariant 2 of X` in that of X's file, and
//!   `(H1)` in that of the crate.
//! - A name in backticks is declared or imported in the same file, or occurs in the enclosing function, or in a path (`Pool::open`)
//!   whose parts occur in the workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::citations::{cited, labels, names, points};
use super::source::{Comment, List, Source};
use crate::workspace;

/// Names of the language, of C's library and of the malloc family, which no file has to import.
const KNOWN: &[&str] =
    &["bool", "calloc", "free", "main", "malloc", "None", "realloc", "Send", "Some", "Sync"];

/// What the files of the workspace declare.
#[derive(Default)]
struct Workspace {
    sources: Vec<Source>,
    /// The `# Safety` lists of functions and traits by name. Those of one name are one.
    lists: BTreeMap<String, List>,
    /// The models and other programs below `tests`, which an argument may cite.
    tests: BTreeSet<String>,
}

/// Every reference below `folders` that leads nowhere, as `file:line: what is wrong`.
pub(super) fn faults(folders: &[&str]) -> Result<Vec<String>> {
    let root = workspace::root();
    let mut all = Workspace::default();
    for folder in folders {
        for path in workspace::rust_files(&root.join(folder))? {
            let relative = path.strip_prefix(&root)?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            if relative.iter().any(|part| part == "src") {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                all.add(relative, &text)?;
            } else {
                all.tests.insert(stem.into_owned());
            }
        }
    }
    Ok(all.faults())
}

impl Workspace {
    fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        let source = Source::read(path, text, &mut self.lists)?;
        self.sources.push(source);
        Ok(())
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for source in &self.sources {
            for comment in &source.comments {
                let at = format!("{}:{}", source.path.display(), comment.lines.start);
                let mut wrong = self.wrong_numbers(source, comment);
                wrong.extend(self.wrong_invariants(source, comment));
                wrong.extend(self.wrong_labels(source, comment));
                wrong.extend(self.wrong_names(source, comment));
                faults.extend(wrong.iter().map(|wrong| format!("{at}: {wrong}")));
            }
        }
        faults
    }

    /// Duties, promises and points that no list has. The code of a macro is not known.
    fn wrong_numbers(&self, source: &Source, comment: &Comment) -> Vec<String> {
        if source.macros.iter().any(|lines| lines.contains(&comment.lines.start)) {
            return Vec::new();
        }
        let named = names(&comment.text).filter_map(|name| name.rsplit("::").next());
        let own = source.codes_of(comment).flat_map(|code| code.names.iter().map(String::as_str));
        let lists: Vec<&str> =
            own.chain(named).filter(|name| self.lists.contains_key(*name)).collect();
        let has = |names: &[&str], number| names.iter().any(|name| self.has(name, number, 0));
        // "Duty 1 of the constructors" is one of some function in the file.
        let in_file: Vec<&str> = match comment.text.contains(" of the ") {
            true => source.functions().collect(),
            false => Vec::new(),
        };
        let duties = cited(&comment.text, &["duty", "duties", "promise", "promises"]);
        let duties = duties.into_iter().filter(|&n| !has(&lists, n) && !has(&in_file, n));
        let points = points(&comment.text).into_iter().filter(|_| !lists.is_empty());
        let points = points.filter(|&number| !has(&lists, number));
        duties
            .map(|number| format!("there is no duty or promise {number}"))
            .chain(points.map(|number| format!("there is no list with a point {number}")))
            .collect()
    }

    /// Does the list of `name`, or one that it refers to, have this number?
    fn has(&self, name: &str, number: u8, depth: u8) -> bool {
        self.lists.get(name).is_some_and(|list| {
            list.numbers.contains(&number)
                || depth < 4 && list.others.iter().any(|other| self.has(other, number, depth + 1))
        })
    }

    fn wrong_invariants(&self, source: &Source, comment: &Comment) -> Vec<String> {
        let mut wrong = Vec::new();
        for number in cited(&comment.text, &["invariant", "invariants"]) {
            let owner = comment.text.split_once(&format!("invariant {number} of `"));
            let owner = owner.and_then(|(_, rest)| rest.split('`').next());
            let found = match owner {
                None => source.has_invariant(number),
                Some(owner) => self
                    .sources
                    .iter()
                    .any(|source| source.declares_type(owner) && source.has_invariant(number)),
            };
            if !found {
                let owner = owner.map(|owner| format!(" of `{owner}`")).unwrap_or_default();
                wrong.push(format!("there is no invariant {number}{owner}"));
            }
        }
        wrong
    }

    /// Invariants with a letter that the crate does not document.
    fn wrong_labels(&self, source: &Source, comment: &Comment) -> Vec<String> {
        let of_crate: PathBuf = source.path.iter().take(2).collect();
        let is_known = |label: &&str| {
            let marks = [format!("({label})"), format!("[{label}\\]")];
            let mut files = self.sources.iter().filter(|other| other.path.starts_with(&of_crate));
            files.any(|file| marks.iter().any(|mark| file.docs.contains(mark)))
        };
        let unknown = labels(&comment.text).filter(|label| !is_known(label));
        unknown.map(|label| format!("there is no invariant ({label})")).collect()
    }

    fn wrong_names(&self, source: &Source, comment: &Comment) -> Vec<String> {
        let unknown = names(&comment.text).filter(|name| match name.rsplit_once("::") {
            None => !self.knows(source, comment, name),
            Some((owner, item)) => !self.knows_path(owner, item),
        });
        unknown.map(|name| format!("`{name}` is not declared, imported or used here")).collect()
    }

    fn knows(&self, source: &Source, comment: &Comment, name: &str) -> bool {
        let is_type = name.starts_with(char::is_uppercase);
        KNOWN.contains(&name)
            || source.words.contains_key(name)
            || source.calls_near(comment, name)
            || self.tests.contains(name)
            || is_type && self.sources.iter().any(|source| source.words.contains_key(name))
    }

    /// Is `item` declared where the type `owner` is known? A path into another library is not looked at.
    fn knows_path(&self, owner: &str, item: &str) -> bool {
        let owner = owner.rsplit("::").next().unwrap_or(owner);
        let is_ours = self.sources.iter().any(|source| source.declares_type(owner));
        let mut files = self.sources.iter().filter(|source| source.words.contains_key(owner));
        !is_ours || files.any(|source| source.declared.contains(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults of one file with this code.
    fn found(code: &str) -> Vec<String> {
        let mut all = Workspace::default();
        let pool = "/// Invariant 1: whole.\nstruct Pool;\nimpl Pool { fn open(&self) {} }\n";
        all.add(Path::new("crates/a/src/pool.rs"), pool).unwrap();
        all.add(Path::new("crates/a/src/lib.rs"), code).unwrap();
        all.faults().iter().map(|fault| fault.split_once(": ").unwrap().1.to_owned()).collect()
    }

    /// A function with two duties, and one that calls it below this comment.
    fn with_comment(comment: &str) -> String {
        format!(
            "/// Reads.\n///\n/// # Safety\n///\n/// 1. Live.\n/// 2. Whole.\nunsafe fn read() {{}}\n\
             fn caller() {{\n    // SAFETY: {comment}\n    unsafe {{ read() }};\n}}\n"
        )
    }

    #[test]
    fn a_duty_that_no_list_has_is_named() {
        assert!(found(&with_comment("1: live; 2: whole.")).is_empty());
        assert!(found(&with_comment("(1) live; (2) duty 2 of `read`.")).is_empty());
        assert_eq!(
            found(&with_comment("1. live; 2. whole; 3. more.")),
            ["there is no list with a point 3"]
        );
        assert_eq!(found(&with_comment("duties 1 and 4.")), ["there is no duty or promise 4"]);
    }

    #[test]
    fn a_list_may_refer_to_another() {
        let alias = "/// # Safety\n///\n/// As [`read`].\nunsafe fn peek() {\n    // SAFETY: 1: duties 1 and 2.\n    unsafe { read() };\n}\n";
        assert!(found(&(with_comment("duty 1.") + alias)).is_empty());
        let other = "impl A { /// # Safety\n///\n/// 1. Live.\nunsafe fn peek(&self) {} }\n";
        assert!(found(&(other.to_owned() + &with_comment("duty 1.") + alias)).is_empty());
        let wrong = alias.replace("As [`read`]", "Live");
        assert_eq!(
            found(&(with_comment("duty 1.") + &wrong.replace("1 and 2", "1 and 3"))),
            ["there is no duty or promise 3"]
        );
    }

    #[test]
    fn an_invariant_that_is_not_documented_is_named() {
        let documented = |comment| {
            format!("/// Invariant 3: kept. (H1) Never null.\nstruct A;\n{}", with_comment(comment))
        };
        assert!(found(&documented("invariant 3 (H1), and invariant 1 of `Pool`.")).is_empty());
        assert_eq!(found(&documented("invariant 2.")), ["there is no invariant 2"]);
        assert_eq!(
            found(&documented("invariant 3 of `Pool`.")),
            ["there is no invariant 3 of `Pool`"]
        );
        assert_eq!(found(&documented("live (H2).")), ["there is no invariant (H2)"]);
    }

    #[test]
    fn a_function_of_another_file_is_named_by_its_path() {
        assert!(
            found(&with_comment("`Pool::open` made it, `None` is not given; `caller` waits."))
                .is_empty()
        );
        assert_eq!(
            found(&with_comment("`open` made it.")),
            ["`open` is not declared, imported or used here"]
        );
        assert_eq!(
            found(&with_comment("`Pool::shut` made it.")),
            ["`Pool::shut` is not declared, imported or used here"]
        );
    }
}
