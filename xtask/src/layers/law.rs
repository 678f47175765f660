//! Owns the layer law: which crate may import which. The law is the table in `docs/architecture.md`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// What may be imported: the name of each crate, and the names of the workspace's crates below it.
pub(super) type Law = BTreeMap<String, BTreeSet<String>>;

/// Reads the rows `| crate | layer | may import |` of the architecture document.
pub(super) fn parse(text: &str) -> Result<Law> {
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
pub(super) fn faults(law: &Law, packages: &[Value]) -> Vec<String> {
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
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TABLE: &str = "<!-- layers -->\n| crate | layer | may import |\n| --- | --- | --- |\n| `low` | L0 | - |\n| `high` | L1 | `low` |\n";

    fn packages(importer: &str, import: &str, kind: Option<&str>) -> [Value; 2] {
        let manifest = |name: &str| format!("/x/crates/{name}/Cargo.toml");
        let dependency = json!({"name": import, "kind": kind});
        [
            json!({"name": importer, "manifest_path": manifest(importer), "dependencies": [dependency]}),
            json!({"name": import, "manifest_path": manifest(import), "dependencies": []}),
        ]
    }

    #[test]
    fn a_downward_arrow_is_allowed_and_an_upward_one_is_named() {
        let law = parse(TABLE).unwrap();
        assert!(faults(&law, &packages("high", "low", None)).is_empty());
        let found = faults(&law, &packages("low", "high", None));
        assert_eq!(found, ["low imports high, which docs/architecture.md does not allow"]);
        assert_eq!(faults(&law, &packages("low", "high", Some("dev"))).len(), 1);
    }

    #[test]
    fn a_crate_without_a_row_is_named() {
        let law = parse(TABLE).unwrap();
        let found = faults(&law, &packages("stranger", "low", None));
        assert_eq!(found, ["stranger has no row in docs/architecture.md; give it a layer"]);
    }

    #[test]
    fn a_table_with_an_upward_arrow_is_refused() {
        let upward = TABLE.replace("| `low` | L0 | - |", "| `low` | L0 | `high` |");
        assert!(parse(&upward).unwrap_err().to_string().contains("arrows point down only"));
        assert!(parse("no table").is_err());
    }
}
