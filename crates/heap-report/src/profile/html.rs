//! Owns the page for a browser: one file that needs nothing else. Leaves what the page does with the numbers to `profile.html`, and the
//! flame graph to d3-flame-graph, both in `assets`.

use core::cmp::Reverse;
use core::fmt;
use std::collections::BTreeMap;

use heap_profile::Amount;
use serde_json::{Value, json};

use super::file::{Mode, NO_FRAME, ProfileFile, Row, Which};

const PAGE: &str = include_str!("../../assets/profile.html");
const LIBRARY: &str = include_str!("../../assets/d3-flame-graph.min.js");

/// Most boxes of the graph; a graph has some thousand columns on the widest screen.
const MOST_BOXES: usize = 60_000;
/// Most lines of the table, for each of the three amounts.
const MOST_LINES: usize = 500;

/// The three amounts in the order of the page.
const AMOUNTS: [Which; 3] = [Which::Peak, Which::Live, Which::Total];

/// Writes a profile as one HTML page: flame graphs of the peak, of what is live at the end and of all that was allocated, the lines
/// that hold the most, and sums by domain and by size.
///
/// The page loads nothing. Boxes are left out that would be narrower than a pixel, so that a profile of any size makes a page of at
/// most some megabytes.
#[derive(Clone, Copy, Debug)]
pub struct Html<'a>(pub &'a ProfileFile);

impl fmt::Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In a page nothing but the element's own end may look like one.
        let data = data(self.0).to_string().replace('<', "\\u003c");
        let (before, rest) = PAGE.split_once("/*DATA*/").unwrap_or((PAGE, ""));
        let (between, after) = rest.split_once("/*LIBRARY*/").unwrap_or((rest, ""));
        [before, &data, between, LIBRARY, after].into_iter().try_for_each(|part| f.write_str(part))
    }
}

/// Everything that the page shows.
fn data(file: &ProfileFile) -> Value {
    let mut domains: Sums<&str> = BTreeMap::new();
    let mut classes: Sums<u64> = BTreeMap::new();
    let mut lines: Sums<usize> = BTreeMap::new();
    let mut totals = [0; 3];
    let unknown = file.frames().count();
    for row in file.rows() {
        add_all(&mut totals, AMOUNTS.map(|which| row.amount(which).bytes));
        add(&mut domains, row.domain(), row);
        add(&mut classes, row.class_bytes(), row);
        add(&mut lines, row.frame_numbers().next().unwrap_or(unknown), row);
    }
    let mut most: Vec<usize> = Vec::new();
    for amount in 0..AMOUNTS.len() {
        let mut all: Vec<_> =
            lines.iter().map(|(line, sums)| (sums[amount].bytes, *line)).collect();
        all.sort_by_key(|&(bytes, _)| Reverse(bytes));
        most.extend(all.into_iter().take(MOST_LINES).map(|(_, line)| line));
    }
    most.sort_unstable();
    most.dedup();
    lines.retain(|line, _| most.binary_search(line).is_ok());
    let (nodes, hidden) = Boxes::new(file, unknown).widest(totals);
    let mut frames: Vec<Value> =
        file.frames().map(|(function, file, line)| json!([function, file, line])).collect();
    frames.push(json!(NO_FRAME));
    json!({
        "program": file.program.join(" "),
        "pid": file.pid,
        "sampled": match file.mode { Mode::Exact => None, Mode::Sampled(interval) => Some(interval) },
        "grown": file.is_growth(),
        "lost": file.lost().bytes,
        "totals": totals,
        "hidden": hidden,
        "frames": frames,
        "nodes": nodes,
        "lines": rows(lines),
        "domains": rows(domains),
        "classes": rows(classes),
    })
}

/// The three amounts of what has one key.
type Sums<K> = BTreeMap<K, [Amount; 3]>;

fn add<K: Ord>(sums: &mut Sums<K>, key: K, row: Row<'_>) {
    let sum = sums.entry(key).or_default();
    sum.iter_mut()
        .zip(AMOUNTS)
        .for_each(|(sum, which)| *sum = sum.saturating_add(row.amount(which)));
}

/// Each key with bytes and blocks of the three amounts.
fn rows<K: Into<Value>>(sums: Sums<K>) -> Vec<Value> {
    let row = |(key, amounts): (K, [Amount; 3])| {
        let amounts = amounts.into_iter().flat_map(|amount| [amount.bytes, amount.blocks]);
        std::iter::once(key.into()).chain(amounts.map(Value::from)).collect()
    };
    sums.into_iter().map(row).collect()
}

/// The boxes of the graph: the frames with the same callers, each the number of its frame and of its caller's box.
struct Boxes {
    all: Vec<(usize, Option<usize>)>,
    /// The bytes of the three amounts, of what the box calls too.
    sums: Vec<[u64; 3]>,
}

impl Boxes {
    /// The box of each stack of `file`, and a last one, whose frame is `unknown`, for what has none.
    fn new(file: &ProfileFile, unknown: usize) -> Self {
        let mut all: Vec<_> = file.nodes().collect();
        let outside = all.len();
        all.push((unknown, None));
        let mut sums = vec![[0; 3]; all.len()];
        for row in file.rows() {
            let bytes = AMOUNTS.map(|which| row.amount(which).bytes);
            add_all(&mut sums[row.node().unwrap_or(outside)], bytes);
        }
        // A caller has a smaller number than what it calls.
        for number in (0..all.len()).rev() {
            if let (_, Some(caller)) = all[number] {
                let of_callee = sums[number];
                add_all(&mut sums[caller], of_callee);
            }
        }
        Self { all, sums }
    }

    /// The widest boxes as a list of five numbers each, callers first, and how many are left out.
    fn widest(self, totals: [u64; 3]) -> (Vec<i64>, usize) {
        let width = |bytes: &[u64; 3]| {
            let parts = bytes.iter().zip(totals);
            parts.map(|(bytes, total)| *bytes as f64 / total.max(1) as f64).fold(0.0, f64::max)
        };
        let widths: Vec<f64> = self.sums.iter().map(width).collect();
        let mut order: Vec<usize> = (0..self.all.len()).filter(|&at| widths[at] > 0.0).collect();
        let hidden = order.len().saturating_sub(MOST_BOXES);
        // A caller is at least as wide as what it calls, and has a smaller number.
        order.sort_by(|&a, &b| widths[b].total_cmp(&widths[a]).then(a.cmp(&b)));
        order.truncate(MOST_BOXES);
        order.sort_unstable();
        let mut place = vec![-1; self.all.len()];
        let mut numbers = Vec::with_capacity(5 * order.len());
        for (index, number) in order.into_iter().enumerate() {
            place[number] = index as i64;
            let (frame, caller) = self.all[number];
            numbers.extend([frame as i64, caller.map_or(-1, |caller| place[caller])]);
            numbers.extend(self.sums[number].map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)));
        }
        (numbers, hidden)
    }
}

/// Adds up to the largest number that there is: a file may say anything.
fn add_all(sums: &mut [u64; 3], amounts: [u64; 3]) {
    sums.iter_mut().zip(amounts).for_each(|(sum, amount)| *sum = sum.saturating_add(amount));
}
