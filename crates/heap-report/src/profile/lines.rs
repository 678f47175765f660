//! Owns the list of lines: what a program reads that asks about itself.

use core::cmp::Reverse;
use core::fmt;
use std::collections::HashMap;

use heap_profile::Amount;

use super::file::{NO_FRAME, ProfileFile, Row, Which};

/// Writes what each line of the program holds as one JSON array, the largest first: function, file, line, bytes and blocks.
///
/// The line is that of a stack's newest frame that has one; of a stack whose frames are all native, it is the newest of them, with line 0. What
/// has no stack stands as the function `(no frame)`, without a file. Lines without blocks are left out.
#[derive(Clone, Copy, Debug)]
pub struct Lines<'a>(pub &'a ProfileFile, pub Which);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(file, which) = *self;
        let mut held: HashMap<_, Amount> = HashMap::new();
        for row in file.rows() {
            let sum = held.entry(line(row)).or_default();
            *sum = sum.saturating_add(row.amount(which));
        }
        let row = |((function, file, line), Amount { bytes, blocks })| {
            (function, file, line, bytes, blocks)
        };
        let mut lines: Vec<(&str, &str, u32, u64, u64)> =
            held.into_iter().map(row).filter(|line| line.4 > 0).collect();
        lines.sort_unstable_by_key(|&(function, file, line, bytes, _)| {
            (Reverse(bytes), file, line, function)
        });
        f.write_str(&serde_json::to_string(&lines).map_err(|_| fmt::Error)?)
    }
}

/// The line that a site is counted at.
fn line(row: Row<'_>) -> (&str, &str, u32) {
    let told = row.stack().find(|&(_, _, line)| line > 0);
    told.or_else(|| row.stack().next()).unwrap_or(NO_FRAME)
}
