//! Owns `cargo xtask layers`: the rules for what may stand where in the sources. The table in `docs/architecture.md` says which
//! crate may import which. Memory orderings stronger than Relaxed are allowed in `pymem-sync` alone.

mod circles;
mod citations;
mod law;
mod modules;
mod references;
mod source;

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// The one crate in which orderings stronger than Relaxed may stand.
const ORDERING_HOME: &str = "pymem-sync";

/// The folders whose files are checked.
const FOLDERS: &[&str] = &["crates", "bench", "xtask"];

/// Checks every rule.
///
/// # Errors
///
/// Every place that breaks a rule, with its file.
pub(crate) fn run() -> Result<()> {
    let root = workspace::root();
    let path = root.join("docs/architecture.md");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let law = law::parse(&text)?;
    let mut faults = law::faults(&law, &workspace::packages(&workspace::shell()?)?);
    for file in workspace::sources(&root.join("crates"))? {
        let relative = file.strip_prefix(&root)?.display().to_string();
        if !relative.starts_with(&format!("crates/{ORDERING_HOME}/")) {
            let source = fs::read_to_string(&file)?;
            faults.extend(strong_orderings(&source).map(|line| {
                format!("{relative}:{line}: an ordering stronger than Relaxed; move the structure into {ORDERING_HOME}")
            }));
        }
    }
    for folder in FOLDERS {
        for file in workspace::sources(&root.join(folder))? {
            if file.ends_with("src/lib.rs") || file.ends_with("src/main.rs") {
                let circles = circles::find(&file, &root)?;
                faults.extend(circles.iter().map(|circle| format!("a circle of files: {circle}")));
            }
        }
    }
    faults.extend(references::faults(FOLDERS)?);
    ensure!(
        faults.is_empty(),
        "the rules of docs/architecture.md are broken:\n  {}",
        faults.join("\n  ")
    );
    println!(
        "layers: {} crates import only what docs/architecture.md allows, no files import each other in a circle, and safety \
         comments cite what exists",
        law.len()
    );
    Ok(())
}

/// Line numbers, from 1, of orderings stronger than Relaxed.
fn strong_orderings(source: &str) -> impl Iterator<Item = usize> {
    let strong = ["Acquire", "Release", "AcqRel", "SeqCst"];
    source.lines().enumerate().filter_map(move |(index, line)| {
        let code = line.split("//").next().unwrap_or_default();
        let hit = strong.iter().any(|name| code.contains(&format!("Ordering::{name}")))
            || code.contains("fence(");
        hit.then_some(index + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strong_orderings_are_found_and_comments_are_not() {
        let source = "x.load(Ordering::Relaxed);\nx.load(Ordering::Acquire);\n// Ordering::SeqCst\nfence(order);\n";
        assert_eq!(strong_orderings(source).collect::<Vec<_>>(), [2, 4]);
    }
}
