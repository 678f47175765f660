//! Owns the page for a browser: one file that needs nothing else. Leaves what the page does with the numbers to `profile.html`, and the
//! flame graph to d3-flame-graph, both in `assets`.

use core::cmp::Reverse;
use core::fmt;
use std::collections::BTreeMap;

use heap_profile::Amount;
use serde_json::{Value, json};

use super::file::{Mode, ProfileFile, Row, Which};

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
    let mut boxes = Boxes::default();
    let mut domains: Sums<&str> = BTreeMap::new();
    let mut classes: Sums<u64> = BTreeMap::new();
    let mut lines: Sums<usize> = BTreeMap::new();
    let unknown = file.frames().count();
    for row in file.rows() {
        boxes.add(row, unknown);
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
    let totals = AMOUNTS.map(|which| file.rows().map(|row| row.amount(which).bytes).sum::<u64>());
    let (nodes, hidden) = boxes.widest(totals);
    let mut frames: Vec<Value> =
        file.frames().map(|(function, file, line)| json!([function, file, line])).collect();
    frames.push(json!(["(no Python frame)", "", 0]));
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
    sum.iter_mut().zip(AMOUNTS).for_each(|(sum, which)| *sum = sum.plus(row.amount(which)));
}

/// Each key with bytes and blocks of the three amounts.
fn rows<K: Into<Value>>(sums: Sums<K>) -> Vec<Value> {
    let row = |(key, amounts): (K, [Amount; 3])| {
        let amounts = amounts.into_iter().flat_map(|amount| [amount.bytes, amount.blocks]);
        std::iter::once(key.into()).chain(amounts.map(Value::from)).collect()
    };
    sums.into_iter().map(row).collect()
}

/// The boxes of the graph: frames with the same callers.
#[derive(Default)]
struct Boxes {
    /// Each box: its frame, its caller's number, and the bytes of the three amounts, of what the box calls too.
    all: Vec<(usize, Option<usize>, [u64; 3])>,
    numbers: BTreeMap<(Option<usize>, usize), usize>,
}

impl Boxes {
    fn add(&mut self, row: Row<'_>, unknown: usize) {
        let bytes = AMOUNTS.map(|which| row.amount(which).bytes);
        let mut stack: Vec<usize> = row.frame_numbers().collect();
        if stack.is_empty() {
            stack.push(unknown);
        }
        stack.into_iter().rev().fold(None, |caller, frame| {
            let next = self.all.len();
            let number = *self.numbers.entry((caller, frame)).or_insert(next);
            if number == next {
                self.all.push((frame, caller, [0; 3]));
            }
            let (_, _, sums) = &mut self.all[number];
            sums.iter_mut().zip(bytes).for_each(|(sum, bytes)| *sum += bytes);
            Some(number)
        });
    }

    /// The widest boxes as a list of five numbers each, callers first, and how many are left out.
    fn widest(self, totals: [u64; 3]) -> (Vec<i64>, usize) {
        let width = |bytes: &[u64; 3]| {
            let parts = bytes.iter().zip(totals);
            parts.map(|(bytes, total)| *bytes as f64 / total.max(1) as f64).fold(0.0, f64::max)
        };
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        // A caller is at least as wide as what it calls, and has a smaller number.
        order.sort_by(|a, b| {
            width(&self.all[*b].2).total_cmp(&width(&self.all[*a].2)).then(a.cmp(b))
        });
        let hidden = order.len().saturating_sub(MOST_BOXES);
        order.truncate(MOST_BOXES);
        order.sort_unstable();
        let mut place = vec![-1; self.all.len()];
        let mut numbers = Vec::with_capacity(5 * order.len());
        for (index, number) in order.into_iter().enumerate() {
            place[number] = index as i64;
            let (frame, caller, bytes) = self.all[number];
            numbers.extend([frame as i64, caller.map_or(-1, |caller| place[caller])]);
            numbers.extend(bytes.map(|bytes| bytes as i64));
        }
        (numbers, hidden)
    }
}
