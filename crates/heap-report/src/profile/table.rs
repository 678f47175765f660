//! Owns the table for a terminal: what the three domains hold and what was reported, and the lines that hold the most.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};

use heap_profile::Amount;
use malloc_api::Domain;

use super::file::{Mode, NO_FRAME, ProfileFile, Row, Which};

/// Writes a profile as a table: totals by domain, then the lines of the program that held the most at the peak, by the innermost frame,
/// and those that hold the most now where that is not the same.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// What is shown.
    pub file: &'a ProfileFile,
    /// How many lines of each are shown.
    pub lines: usize,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, lines } = *self;
        let recorded = match file.mode {
            Mode::Exact => String::from("every block"),
            Mode::Sampled(interval) => format!("one block in {}", Bytes(interval)),
        };
        writeln!(f, "{} (process {}, {recorded})\n", file.program.join(" "), file.pid)?;
        writeln!(f, "{:<8}{:>14}{:>14}{:>14}", "domain", "live", "at the peak", "in all")?;
        let sum = |domain: &str, which| {
            let rows = file.rows().filter(|row| row.domain() == domain);
            rows.map(|row| row.amount(which)).fold(Amount::default(), Amount::saturating_add)
        };
        let own = Domain::ALL.map(Domain::name);
        let reported: BTreeSet<_> = file.rows().map(Row::domain).collect();
        let reported = reported.into_iter().filter(|domain| !own.contains(domain));
        for domain in own.into_iter().chain(reported) {
            write!(f, "{domain:<8}")?;
            for which in Which::ALL {
                write!(f, "{:>14}", Bytes(sum(domain, which).bytes).to_string())?;
            }
            writeln!(f)?;
        }
        if file.lost().blocks > 0 {
            writeln!(
                f,
                "not recorded, as there was no memory for it: {}",
                Bytes(file.lost().bytes)
            )?;
        }
        let most = [Which::Peak, Which::Live].map(|which| (which, largest(file, which)));
        let shown = if most[0].1 == most[1].1 { &most[1..] } else { &most };
        for (which, largest) in shown {
            writeln!(f, "\n{:>12}{:>10}  most at", which.name(), "blocks")?;
            for (line, amount) in largest.iter().take(lines) {
                let bytes = Bytes(amount.bytes).to_string();
                writeln!(f, "{bytes:>12}{:>10}  {line}", amount.blocks)?;
            }
        }
        Ok(())
    }
}

/// The innermost frame of a stack; where that is a native one, the newest frame that has a line, too.
#[derive(Default, PartialEq, Eq, PartialOrd, Ord)]
struct Line<'a> {
    innermost: (&'a str, &'a str, u32),
    called_by: Option<(&'a str, &'a str, u32)>,
}

impl<'a> Line<'a> {
    fn of(row: Row<'a>) -> Self {
        let innermost = row.stack().next().unwrap_or_default();
        let called_by = row.stack().skip(1).find(|&(_, _, line)| line > 0);
        Self { innermost, called_by: called_by.filter(|_| innermost.2 == 0) }
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.innermost {
            ("", "", _) => f.write_str(NO_FRAME.0)?,
            (function, path, 0) => write!(f, "{path} {function}")?,
            (function, path, line) => write!(f, "{path}:{line} {function}")?,
        }
        let Some((function, path, line)) = self.called_by else { return Ok(()) };
        write!(f, ", called at {path}:{line} {function}")
    }
}

/// What each line holds, the largest first.
fn largest(file: &ProfileFile, which: Which) -> Vec<(Line<'_>, Amount)> {
    let mut lines: BTreeMap<_, Amount> = BTreeMap::new();
    for row in file.rows() {
        let held = lines.entry(Line::of(row)).or_default();
        *held = held.saturating_add(row.amount(which));
    }
    let mut lines: Vec<_> = lines.into_iter().filter(|(_, amount)| amount.bytes > 0).collect();
    lines.sort_by_key(|(_, amount)| core::cmp::Reverse(*amount));
    lines
}

/// Bytes as a person reads them.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0 as f64;
        for unit in ["B", "KiB", "MiB"] {
            if rest < 1000.0 {
                return write!(f, "{:.*} {unit}", usize::from(unit != "B"), rest);
            }
            rest /= 1024.0;
        }
        write!(f, "{rest:.1} GiB")
    }
}
