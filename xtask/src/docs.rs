//! Owns `cargo xtask docs`: the generated parts of the documentation. The table of configurations is written between markers;
//! the list of files with unsafe code is the work of `unsafe_list.rs`. What is written by hand is checked where a program can: the map
//! of the code, and the length of the design notes.
//!
//! `<!-- table -->` and `<!-- /table -->` enclose the default configurations, `<!-- full table -->` and
//! `<!-- /full table -->` what every name installs in every build, `<!-- names -->` and `<!-- /names -->` the names as Python has
//! them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use pymem_domains::{AllocatorName, Build, Domain, Profile, Row, TABLE, Version};

use crate::{unsafe_list, workspace};

/// A marker's name and what belongs between its two halves.
type Part = (&'static str, fn() -> Result<String>);

const PARTS: &[Part] = &[("table", defaults), ("full table", every_row), ("names", names)];

/// Every file with a marked part, and the parts that it must have.
const FILES: &[(&str, &[&str])] = &[
    ("README.md", &["table"]),
    ("crates/pymem-domains/README.md", &["table"]),
    ("docs/design/domains.md", &["table", "full table"]),
    ("python/src/pymem_domains/_request.py", &["names"]),
];

/// The document whose tables list the files with unsafe code.
const UNSAFE_LIST: &str = "docs/unsafe.md";

/// Writes the generated parts; with `check`, compares them instead.
///
/// # Errors
///
/// A file that cannot be read or written or lacks a marker; with `check`, every file that is out of date. A map of the code with a file
/// that there is not, and a design note that is too long.
pub(crate) fn run(check: bool) -> Result<()> {
    let mut stale = Vec::new();
    for (file, parts) in FILES {
        stale.extend(renew(file, check, |text| {
            parts.iter().try_fold(text, |text, part| {
                let (name, generate) =
                    PARTS.iter().find(|(name, _)| name == part).context("a known part")?;
                replace(&text, name, &generate()?)
            })
        })?);
    }
    stale.extend(renew(UNSAFE_LIST, check, |text| unsafe_list::renew(&text))?);
    ensure!(
        !check || stale.is_empty(),
        "these differ from the code: {}; run `cargo xtask docs`",
        stale.join(", ")
    );
    every_file_of_the_code_map_exists()?;
    design_notes_are_short()?;
    println!("docs: {} files, {} changed", FILES.len() + 1, stale.len());
    Ok(())
}

/// The map of `docs/architecture.md` has a row for each crate, and names files that there are.
fn every_file_of_the_code_map_exists() -> Result<()> {
    let text = fs::read_to_string(workspace::root().join("docs/architecture.md"))?;
    let (_, map) =
        text.split_once("## Code map").context("docs/architecture.md has no code map")?;
    let map = map.split("\n## ").next().unwrap_or_default();
    let rows: Vec<&str> = map.lines().filter(|line| line.starts_with("| `")).collect();
    let (count, crates) = (rows.len(), workspace::CRATES.len());
    ensure!(
        count == crates,
        "the code map of docs/architecture.md has {count} rows for {crates} crates"
    );
    for row in rows {
        let words: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let source = workspace::root().join("crates").join(words[0]).join("src");
        for file in words.iter().filter(|word| word.ends_with(".rs")) {
            let exists = source.join(file).exists();
            ensure!(exists, "the code map of docs/architecture.md names {file} of {}", words[0]);
        }
    }
    Ok(())
}

/// A longer note is two notes.
fn design_notes_are_short() -> Result<()> {
    for entry in fs::read_dir(workspace::root().join("docs/design"))? {
        let path = entry?.path();
        let lines = fs::read_to_string(&path)?.lines().count();
        ensure!(lines <= 200, "{} has {lines} lines; at most 200", path.display());
    }
    Ok(())
}

/// Replaces the text of `file` by what `change` makes of it; with `check`, only compares. Returns the file's name if the texts differ.
pub(crate) fn renew(
    file: &'static str,
    check: bool,
    change: impl FnOnce(String) -> Result<String>,
) -> Result<Option<&'static str>> {
    let path = workspace::root().join(file);
    let old = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
    let new = change(old.clone()).with_context(|| format!("in {file}"))?;
    if new == old {
        return Ok(None);
    }
    if !check {
        write(&path, &new)?;
    }
    Ok(Some(file))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// `text` with `part` between the markers of `name`.
pub(crate) fn replace(text: &str, name: &str, part: &str) -> Result<String> {
    let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let Some((before, rest)) = text.split_once(&open) else {
        bail!("the marker {open} is missing");
    };
    let Some((_, after)) = rest.split_once(&close) else {
        bail!("the marker {close} is missing after {open}");
    };
    Ok(format!("{before}{open}\n{part}{close}{after}"))
}

/// The default configuration of each build in the newest version.
fn defaults() -> Result<String> {
    let builds = [
        ("Release build", Build::Gil, true, false),
        ("Debug build", Build::Gil, true, true),
        ("Release build, without pymalloc", Build::Gil, false, false),
        ("Debug build, without pymalloc", Build::Gil, false, true),
        ("Free-threaded build", Build::FreeThreaded, true, false),
        ("Free-threaded debug build", Build::FreeThreaded, true, true),
    ];
    let mut rows = Vec::new();
    for (about, build, pymalloc, pydebug) in builds {
        let profile = Profile::new(Version::NEWEST, build, pymalloc, true, pydebug)?;
        let row =
            AllocatorName::Default.row(&profile).map_err(|reason| anyhow::anyhow!("{reason}"))?;
        let mut cells = vec![about.to_owned(), format!("`{}`", row.canonical_name())];
        cells.extend(Domain::ALL.map(|domain| row.serves(domain)));
        rows.push(cells);
    }
    Ok(markdown(&["Configuration", "Name", "raw", "mem", "obj"], &rows))
}

/// Every row of the table, with its builds and versions.
fn every_row() -> Result<String> {
    let rows: Vec<Vec<String>> = TABLE
        .iter()
        .map(|row| {
            let mut cells = vec![format!("`{}`", row.name()), builds(row), versions(row)];
            cells.extend(Domain::ALL.map(|domain| row.serves(domain)));
            cells
        })
        .collect();
    Ok(markdown(&["Name", "Builds", "Versions", "raw", "mem", "obj"], &rows))
}

/// The names as a tuple of Python's, and the beginning of the comment that holds the second marker.
fn names() -> Result<String> {
    let lines = AllocatorName::ALL.map(|name| format!("    \"{name}\",\n"));
    Ok(format!("ROWS = (\n{})\n# ", lines.concat()))
}

fn builds(row: &Row) -> String {
    let mut text = row.build().to_string();
    match row.pymalloc() {
        Some(true) => text.push_str(", with pymalloc"),
        Some(false) => text.push_str(", without pymalloc"),
        None => {}
    }
    match row.pydebug() {
        Some(true) => text.push_str(", debug"),
        Some(false) => text.push_str(", release"),
        None => {}
    }
    text
}

fn versions(row: &Row) -> String {
    match row.versions() {
        (Version::V3_13, Version::NEWEST) => String::from("all"),
        // The rows of 3.14 are the same in all its releases.
        (Version::V3_13, Version::V3_14_10) => String::from("to 3.14"),
        (Version::V3_13, last) => format!("to {last}"),
        (first, _) => format!("from {first}"),
    }
}

/// A table whose columns line up in plain text too.
pub(crate) fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].len());
            cells.chain([header[column].len()]).max().unwrap_or_default()
        })
        .collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        format!("|{}\n", padded.collect::<String>())
    };
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let lines = [line(&header), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row)));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = "a\n<!-- table -->\nold\n<!-- /table -->\nb\n";
        let new = replace(text, "table", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- table -->\nnew\n<!-- /table -->\nb\n");
        assert_eq!(replace(&new, "table", "new\n").unwrap(), new);
        let missing = replace("<!-- table -->", "table", "").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "the marker <!-- /table --> is missing after <!-- table -->"
        );
    }

    #[test]
    fn columns_line_up() {
        let table = markdown(&["a", "long"], &[vec!["wide".into(), "x".into()]]);
        assert_eq!(table, "| a    | long |\n| ---- | ---- |\n| wide | x    |\n");
    }
}
