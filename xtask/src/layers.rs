//! Owns the layer law: which crate may import which, where strong memory orderings may stand, and
//! which files may hold unsafe code.
//!
//! The law itself is the table in `docs/architecture.md`; this file compares `cargo metadata` and the sources with it.
//! The list of files is `docs/unsafe.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::circles;

/// The one crate in which orderings stronger than Relaxed may stand.
const ORDERING_HOME: &str = "pymem-sync";

/// What may be imported: crate name to the names of the workspace crates below it.
type Law = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn run() -> Result<()> {
    let root = crate::root();
    let path = root.join("docs/architecture.md");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let law = parse_law(&text)?;
    let shell = Shell::new()?;
    shell.change_dir(&root);
    let metadata = cmd!(shell, "cargo metadata --format-version 1 --no-deps").quiet().read()?;
    let mut faults = arrow_faults(&law, &serde_json::from_str(&metadata)?)?;
    let listed = listed_files(&fs::read_to_string(root.join("docs/unsafe.md"))?);
    let mut with_unsafe = BTreeSet::new();
    for file in sources(&root.join("crates"))? {
        let relative = file.strip_prefix(&root)?.display().to_string();
        let source = fs::read_to_string(&file)?;
        if has_unsafe_code(&source) {
            with_unsafe.insert(relative.clone());
        }
        if !relative.starts_with(&format!("crates/{ORDERING_HOME}/")) {
            faults.extend(ordering_faults(&source).map(|line| {
                format!("{relative}:{line}: an ordering stronger than Relaxed; move the structure into {ORDERING_HOME}")
            }));
        }
    }
    faults.extend(unsafe_faults(&listed, &with_unsafe));
    ensure!(
        faults.is_empty(),
        "the layer law of docs/architecture.md is broken:\n  {}",
        faults.join("\n  ")
    );
    println!("layers: {} crates import only what docs/architecture.md allows", law.len());
    Ok(())
}

/// Every circle of files, in each crate and tool.
pub(crate) fn all_circles() -> Result<Vec<String>> {
    let root = crate::root();
    let mut circles = Vec::new();
    for folder in ["crates", "bench", "xtask"] {
        for file in sources(&root.join(folder))? {
            if file.ends_with("src/lib.rs") || file.ends_with("src/main.rs") {
                circles.extend(circles::find(&file, &root)?);
            }
        }
    }
    Ok(circles)
}

/// Reads the rows `| crate | layer | may import |` of the architecture document.
fn parse_law(text: &str) -> Result<Law> {
    let mut rows = BTreeMap::new();
    let table = text
        .split("<!-- layers -->")
        .nth(1)
        .context("docs/architecture.md has no <!-- layers --> table")?;
    for line in table.lines().skip_while(|line| !line.starts_with("| ---")).skip(1) {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [name, layer, imports] = cells[..] else { break };
        let layer: u8 =
            layer.strip_prefix('L').and_then(|digit| digit.parse().ok()).with_context(|| {
                format!("row `{line}`: expected a layer such as L1, found `{layer}`")
            })?;
        let imports = imports.split(',').map(|cell| cell.trim().trim_matches('`').to_owned());
        rows.insert(
            name.trim_matches('`').to_owned(),
            (layer, imports.filter(|cell| cell != "-").collect::<BTreeSet<_>>()),
        );
    }
    ensure!(!rows.is_empty(), "the <!-- layers --> table has no rows");
    for (name, (layer, imports)) in &rows {
        for import in imports {
            let Some((below, _)) = rows.get(import) else {
                bail!("the table lets {name} import {import}, which has no row of its own")
            };
            ensure!(
                below < layer,
                "the table lets {name} (L{layer}) import {import} (L{below}): arrows point down only"
            );
        }
    }
    Ok(rows.into_iter().map(|(name, (_, imports))| (name, imports)).collect())
}

/// Names every dependency between workspace crates that the law does not list.
fn arrow_faults(law: &Law, metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let names: BTreeSet<&str> =
        packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        if !manifest.contains("/crates/") {
            continue; // Tools may use everything.
        }
        let Some(allowed) = law.get(name) else {
            faults.push(format!("{name} has no row in docs/architecture.md; give it a layer"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let import = dependency["name"].as_str().unwrap_or_default();
            let is_dev = dependency["kind"].as_str() == Some("dev");
            let is_self = import == name; // A crate's own test features.
            let for_tests = is_dev && (import == "malloc-trace" || is_self);
            if names.contains(import) && !allowed.contains(import) && !for_tests {
                faults.push(format!(
                    "{name} imports {import}, which docs/architecture.md does not allow"
                ));
            }
        }
    }
    Ok(faults)
}

/// Line numbers, from 1, of orderings stronger than Relaxed.
fn ordering_faults(source: &str) -> impl Iterator<Item = usize> {
    let strong = ["Acquire", "Release", "AcqRel", "SeqCst"];
    source.lines().enumerate().filter_map(move |(index, line)| {
        let code = line.split("//").next().unwrap_or_default();
        let hit = strong.iter().any(|name| code.contains(&format!("Ordering::{name}")))
            || code.contains("fence(");
        hit.then_some(index + 1)
    })
}

/// Does any line but its comment hold the word `unsafe`?
fn has_unsafe_code(source: &str) -> bool {
    let word = |part: &str| part == "unsafe";
    source
        .lines()
        .filter_map(|line| line.split("//").next())
        .any(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(word))
}

/// The files in the tables of `docs/unsafe.md`.
fn listed_files(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `crates/"));
    rows.filter_map(|row| row.split('`').next()).map(|file| format!("crates/{file}")).collect()
}

/// Names every file that has unsafe code without being listed, or is listed without having any.
fn unsafe_faults(listed: &BTreeSet<String>, found: &BTreeSet<String>) -> Vec<String> {
    let missing = found.difference(listed).map(|file| {
        format!("{file} has unsafe code and no row in docs/unsafe.md; say there why it is needed")
    });
    let stale = listed
        .difference(found)
        .map(|file| format!("docs/unsafe.md lists {file}, which has no unsafe code"));
    missing.chain(stale).collect()
}

/// Every Rust file below the `src` folders of `folder`.
pub(crate) fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs")
                && path.components().any(|part| part.as_os_str() == "src")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "<!-- layers -->\n| crate | layer | may import |\n| --- | --- | --- |\n| `low` | L0 | - |\n| `high` | L1 | `low` |\n";

    fn metadata(importer: &str, import: &str, kind: Option<&str>) -> Value {
        serde_json::json!({"packages": [
            {"name": importer, "manifest_path": format!("/x/crates/{importer}/Cargo.toml"), "dependencies": [{"name": import, "kind": kind}]},
            {"name": import, "manifest_path": format!("/x/crates/{import}/Cargo.toml"), "dependencies": []},
        ]})
    }

    #[test]
    fn a_downward_arrow_is_allowed_and_an_upward_one_is_named() {
        let law = parse_law(TABLE).unwrap();
        assert!(arrow_faults(&law, &metadata("high", "low", None)).unwrap().is_empty());
        let faults = arrow_faults(&law, &metadata("low", "high", None)).unwrap();
        assert_eq!(faults, ["low imports high, which docs/architecture.md does not allow"]);
        assert_eq!(arrow_faults(&law, &metadata("low", "high", Some("dev"))).unwrap().len(), 1);
    }

    #[test]
    fn a_crate_without_a_row_is_named() {
        let law = parse_law(TABLE).unwrap();
        let faults = arrow_faults(&law, &metadata("stranger", "low", None)).unwrap();
        assert_eq!(faults, ["stranger has no row in docs/architecture.md; give it a layer"]);
    }

    #[test]
    fn a_table_with_an_upward_arrow_is_refused() {
        let upward = TABLE.replace("| `low` | L0 | - |", "| `low` | L0 | `high` |");
        assert!(parse_law(&upward).unwrap_err().to_string().contains("arrows point down only"));
        assert!(parse_law("no table").is_err());
    }

    #[test]
    fn strong_orderings_are_found_and_comments_are_not() {
        let source = "x.load(Ordering::Relaxed);\nx.load(Ordering::Acquire);\n// Ordering::SeqCst\nfence(order);\n";
        assert_eq!(ordering_faults(source).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn a_file_with_unsafe_code_must_be_listed_and_a_listed_one_must_have_some() {
        assert!(has_unsafe_code("fn f() {\n    unsafe { g() }\n}"));
        assert!(!has_unsafe_code(
            "// unsafe\n/// # Safety: unsafe\n#![deny(unsafe_op_in_unsafe_fn)]"
        ));
        let listed = listed_files(
            "| file | what |\n| `crates/a/src/x.rs` | it |\n| `crates/a/src/y.rs` | it |",
        );
        let found = ["crates/a/src/y.rs", "crates/a/src/z.rs"].map(str::to_owned).into();
        let faults = unsafe_faults(&listed, &found);
        assert_eq!(faults.len(), 2);
        assert!(faults[0].starts_with("crates/a/src/z.rs has unsafe code and no row"));
        assert!(faults[1].ends_with("crates/a/src/x.rs, which has no unsafe code"));
    }
}
