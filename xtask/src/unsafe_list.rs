//! Owns the tables of `docs/unsafe.md`: every file of a library with unsafe code, and what the file's header says that it is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::workspace;

const TABLE_HEAD: &str = "| file | what it is |\n| --- | --- |\n";

/// `text` with the table below the heading of each crate as the sources have it; what else stands there stays.
///
/// # Errors
///
/// A crate with unsafe code without a heading, and one with a table that has none.
pub(crate) fn renew(text: &str) -> Result<String> {
    let mut text = text.to_owned();
    for name in workspace::CRATES {
        let rows = rows(name)?;
        let heading = format!("\n## `{name}`\n");
        let Some(at) = text.find(&heading) else {
            ensure!(
                rows.is_empty(),
                "{name} has unsafe code and no heading in docs/unsafe.md; say there why it is needed"
            );
            continue;
        };
        ensure!(
            !rows.is_empty(),
            "docs/unsafe.md has a heading for {name}, which has no unsafe code"
        );
        let start = at + heading.len();
        let end = text[start..].find("\n## ").map_or(text.len(), |length| start + length);
        let section = replace_table(&text[start..end], &rows);
        text.replace_range(start..end, &section);
    }
    Ok(text)
}

/// `section` with `rows` in place of the rows of its table.
fn replace_table(section: &str, rows: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = {
        let lines: Vec<&str> = section.split_inclusive('\n').collect();
        let first = lines.iter().position(|line| line.starts_with('|')).unwrap_or(lines.len());
        let rest = lines[first..].iter().skip_while(|line| line.starts_with('|'));
        (lines[..first].to_vec(), rest.copied().collect())
    };
    format!("{}{TABLE_HEAD}{rows}{}", before.concat(), after.concat())
}

/// A row for each file of the crate with unsafe code.
fn rows(name: &str) -> Result<String> {
    let root = workspace::root();
    let mut rows = String::new();
    for file in workspace::sources(&root.join("crates").join(name))? {
        let source = fs::read_to_string(&file)?;
        if has_unsafe_code(&source) {
            let relative = file.strip_prefix(&root)?;
            rows.push_str(&row(relative, &source)?);
        }
    }
    Ok(rows)
}

fn row(file: &Path, source: &str) -> Result<String> {
    let file = file.display();
    let what = purpose(source).with_context(|| format!("{file} has no header"))?;
    Ok(format!("| `{file}` | {what} |\n"))
}

/// The first sentence of a file's header, without "Owns" and the full stop, and without the links of rustdoc.
fn purpose(source: &str) -> Option<String> {
    let header = source.lines().map_while(|line| line.strip_prefix("//!"));
    let lines: Vec<&str> = header.map(str::trim).take_while(|line| !line.is_empty()).collect();
    let text = lines.join(" ");
    let sentence = text.split_once(". ").map_or(text.as_str(), |(sentence, _)| sentence);
    let sentence = sentence.trim_end_matches('.');
    let sentence = sentence.strip_prefix("Owns ").unwrap_or(sentence);
    let plain = sentence.replace("[`", "`").replace("`]", "`");
    let (word, rest) = plain.split_once(' ')?;
    let is_name = word.chars().skip(1).any(|c| !c.is_lowercase());
    Some(if is_name { plain } else { format!("{} {rest}", word.to_lowercase()) })
}

/// Does any line but its comment hold the word `unsafe`?
fn has_unsafe_code(source: &str) -> bool {
    let word = |part: &str| part == "unsafe";
    source
        .lines()
        .filter_map(|line| line.split("//").next())
        .any(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_is_told_from_comments_and_lints() {
        assert!(has_unsafe_code("fn f() {\n    unsafe { g() }\n}"));
        assert!(!has_unsafe_code(
            "// unsafe\n/// # Safety: unsafe\n#![deny(unsafe_op_in_unsafe_fn)]"
        ));
    }

    #[test]
    fn a_row_is_the_first_sentence_of_the_header() {
        let source = "//! Owns [`Pool`]: what a pool\n//! keeps. Leaves the rest to `arena.rs`.\n//!\n//! More.\n";
        let row = row(Path::new("src/pool.rs"), source).unwrap();
        assert_eq!(row, "| `src/pool.rs` | `Pool`: what a pool keeps |\n");
        let twin = purpose("//! Stands where `a.rs` does.\n").unwrap();
        assert_eq!(twin, "stands where `a.rs` does");
        assert!(super::row(Path::new("src/pool.rs"), "use x;\n").is_err());
    }

    #[test]
    fn only_the_table_changes() {
        let section = "\nWhy.\n\n| file | what |\n| --- | --- |\n| `old` | it |\n\nMore.\n";
        let new = replace_table(section, "| `new` | it |\n");
        assert_eq!(new, format!("\nWhy.\n\n{TABLE_HEAD}| `new` | it |\n\nMore.\n"));
    }
}
