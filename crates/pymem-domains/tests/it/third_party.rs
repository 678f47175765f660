//! Crates that know nothing of us, at work on the process-wide obj domain, under every name that the build accepts.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use pymem_domains::global;
use pymem_domains::{AllocatorName, Profile};

use crate::process::{child, is_child};

const WORK: &str = "third_party::child_works";

#[test]
fn regex_and_json_work_under_every_name() {
    for name in AllocatorName::ALL {
        if name.row(&Profile::NEWEST).is_err() {
            continue;
        }
        let output = child(WORK, &[("PYTHONMALLOC", name.as_str())]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stdout}\n{stderr}");
        assert!(stdout.contains(&format!("worked under {name}")), "{name}: {stdout}");
    }
}

/// A child: the work, on four threads, which hand their results, and so their blocks, to the first.
#[test]
fn child_works() {
    if !is_child(WORK) {
        return;
    }
    let threads: Vec<_> =
        (0..4).map(|seed| std::thread::spawn(move || (words(seed), documents(seed)))).collect();
    for (seed, thread) in (0..4).zip(threads) {
        let (counts, document) = thread.join().unwrap();
        assert_eq!(counts.values().sum::<usize>(), 400);
        assert_eq!(counts[&format!("name{seed}")], 100);
        // The text survives a second round through values.
        let value: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), document);
        assert_eq!(value.as_array().unwrap().len(), 50);
    }
    println!("worked under {}", global::domains().row().name());
}

/// Compiles many expressions, and counts what one of them captures in a text.
fn words(seed: usize) -> BTreeMap<String, usize> {
    for width in 1..6 {
        let pattern = regex::Regex::new(&format!(r"(?i)(\w{{{width}}})-(\d+)|[a-f]+{width}"));
        assert!(pattern.unwrap().is_match(&format!("{}-{width}", "x".repeat(width))));
    }
    let mut text = String::new();
    for index in 0..400 {
        let _ = write!(text, "name{}: <tag id='{index}'>{}</tag>; ", (seed + index) % 4, index * 7);
    }
    let pattern = regex::Regex::new(r"(?<name>name\d): <tag id='(\d+)'>(\d+)</tag>").unwrap();
    let mut counts = BTreeMap::new();
    for capture in pattern.captures_iter(&text) {
        *counts.entry(capture["name"].to_owned()).or_default() += 1;
    }
    counts
}

/// Builds nested values and writes them as text.
fn documents(seed: usize) -> String {
    let mut random = fastrand::Rng::with_seed(seed as u64);
    let document: Vec<HashMap<String, serde_json::Value>> = (0..50)
        .map(|index| {
            let key = format!("key {index}");
            let value = serde_json::json!({
                "text": "a".repeat(random.usize(0..2_000)),
                "list": (0..random.usize(0..60)).collect::<Vec<_>>(),
                "inner": { "null": null, "float": 0.5, "bool": true },
            });
            HashMap::from([(key, value)])
        })
        .collect();
    serde_json::to_string(&document).unwrap()
}
