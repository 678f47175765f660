//! Owns the findings of a run, which `replay.json` holds and every table, plot and page is drawn from.

use pymem_bench::job::Frees;
use serde::{Deserialize, Serialize};

/// A run of the replay benchmarks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Where and when.
    pub(crate) origin: Origin,
    /// Version of the interpreter whose allocators are the baseline.
    pub(crate) baseline: String,
    /// The allocators, in the order of every list below; the baseline is the first.
    pub(crate) rows: Vec<RowInfo>,
    /// One entry a trace.
    pub(crate) traces: Vec<TraceResult>,
    /// Replays in several threads.
    pub(crate) threads: Vec<ThreadsResult>,
}

/// The circumstances of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Processor, number of cores, memory, kernel, C library, transparent huge pages.
    pub(crate) machine: String,
    /// Day, in the order year, month, day.
    pub(crate) date: String,
    /// Commit of the measured tree; `+` says that it had changes.
    pub(crate) commit: String,
}

/// An allocator.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RowInfo {
    /// Its name.
    pub(crate) name: String,
    /// What it is, in one phrase.
    pub(crate) about: String,
}

/// One trace through every allocator.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TraceResult {
    /// The trace's name.
    pub(crate) trace: String,
    /// Operations of a pass.
    pub(crate) operations: usize,
    /// Whether the trace is a generated load, which is shown and left out of the means.
    pub(crate) generated: bool,
    /// One entry a row.
    pub(crate) cells: Vec<Cell>,
}

/// One trace through one allocator.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// Nanoseconds of the fastest pass of each warm round.
    pub(crate) warm: Vec<u64>,
    /// Page faults of that pass.
    #[serde(default)]
    pub(crate) faults: Vec<u64>,
    /// Nanoseconds of each fresh process's only pass.
    pub(crate) cold: Vec<u64>,
    /// Growth of the resident set at the end, in bytes: the median of the fresh processes.
    pub(crate) end_bytes: i64,
    /// The same at its highest.
    pub(crate) peak_bytes: i64,
    /// The same after everything was freed.
    pub(crate) freed_bytes: i64,
}

/// One trace in several threads at once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ThreadsResult {
    /// The trace's name.
    pub(crate) trace: String,
    /// Number of threads.
    pub(crate) threads: u16,
    /// Who frees what a thread leaves live.
    #[serde(default)]
    pub(crate) frees: Frees,
    /// Allocator, and millions of operations a second of all threads together: each process's best.
    pub(crate) rates: Vec<(String, Vec<f64>)>,
}

/// What a table shows of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Time of a pass over memory that is already there.
    Warm,
    /// Time of the first pass of a fresh process.
    Cold,
    /// Growth of the resident set at the end of the trace.
    End,
    /// Highest growth of the resident set.
    Peak,
    /// Growth of the resident set after everything was freed.
    Freed,
}

impl Metric {
    /// All, in the order of the tables' columns.
    pub(crate) const ALL: [Self; 5] = [Self::Warm, Self::Cold, Self::End, Self::Peak, Self::Freed];

    /// A column's title.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Warm => "warm time",
            Self::Cold => "cold time",
            Self::End => "RSS at end",
            Self::Peak => "peak RSS",
            Self::Freed => "RSS after freeing",
        }
    }

    /// Name of the plot's file.
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Warm => "warm.svg",
            Self::Cold => "cold.svg",
            Self::End => "rss-end.svg",
            Self::Peak => "rss-peak.svg",
            Self::Freed => "rss-freed.svg",
        }
    }

    fn samples(self, cell: &Cell) -> Vec<f64> {
        let times = |times: &[u64]| times.iter().map(|&time| time as f64).collect();
        match self {
            Self::Warm => times(&cell.warm),
            Self::Cold => times(&cell.cold),
            Self::End => vec![cell.end_bytes as f64],
            Self::Peak => vec![cell.peak_bytes as f64],
            Self::Freed => vec![cell.freed_bytes as f64],
        }
    }
}

/// A ratio to the baseline: the median over the rounds, and the lowest and highest round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ratio {
    /// The median.
    pub(crate) median: f64,
    /// The lowest.
    pub(crate) low: f64,
    /// The highest.
    pub(crate) high: f64,
    /// Best round of the row to best round of the baseline: least disturbed by other work on the machine.
    pub(crate) best: f64,
}

impl Ratio {
    /// Rounds of a row against the same rounds of the baseline; a negative growth counts as none.
    pub(crate) fn of(row: &[f64], baseline: &[f64]) -> Self {
        let ratios: Vec<f64> =
            row.iter().zip(baseline).map(|(row, base)| row.max(0.0) / base).collect();
        let (low, high) = bounds(&ratios);
        let best = bounds(row).0.max(0.0) / bounds(baseline).0;
        Self { median: median(&ratios), low, high, best }
    }

    /// Geometric mean, part by part.
    pub(crate) fn geomean(ratios: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| {
            let logs: f64 = ratios.iter().map(|ratio| of(ratio).max(1e-6).ln()).sum();
            (logs / ratios.len() as f64).exp()
        };
        Self {
            median: mean(|ratio| ratio.median),
            low: mean(|ratio| ratio.low),
            high: mean(|ratio| ratio.high),
            best: mean(|ratio| ratio.best),
        }
    }
}

/// The lowest and the highest.
pub(crate) fn bounds(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
        (low.min(value), high.max(value))
    })
}

/// The value in the middle, or the mean of the two there.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

impl TraceResult {
    /// A row's ratio to the baseline on this trace.
    pub(crate) fn ratio(&self, row: usize, metric: Metric) -> Ratio {
        Ratio::of(&metric.samples(&self.cells[row]), &metric.samples(&self.cells[0]))
    }
}

impl Report {
    /// A row's time in pass number `pass`, relative to that of another row and pass, of this report or another: the geometric mean over the
    /// traces that both have, and the highest. Passes are rounds in which every row took one pass in turn.
    pub(crate) fn passes(
        &self,
        (row, pass): (usize, usize),
        (other, other_row, other_pass): (&Self, usize, usize),
    ) -> Option<(f64, f64)> {
        let time = |trace: &TraceResult, row: usize, pass: usize| {
            trace.cells.get(row)?.warm.get(pass).map(|&time| time as f64)
        };
        let pairs = self.traces.iter().filter_map(|trace| {
            other.traces.iter().find(|each| each.trace == trace.trace).map(|each| (trace, each))
        });
        let ratios: Option<Vec<Ratio>> = pairs
            .map(|(ours, others)| {
                let base = [time(others, other_row, other_pass)?];
                Some(Ratio::of(&[time(ours, row, pass)?], &base))
            })
            .collect();
        let ratios = ratios.filter(|ratios| !ratios.is_empty())?;
        let most = bounds(&ratios.iter().map(|ratio| ratio.median).collect::<Vec<_>>()).1;
        Some((Ratio::geomean(&ratios).median, most))
    }

    /// A row's page faults in pass number `pass` of all traces.
    pub(crate) fn faults(&self, row: usize, pass: usize) -> u64 {
        self.traces.iter().filter_map(|trace| trace.cells[row].faults.get(pass)).sum()
    }

    /// A row's geometric mean over the traces of programs; over the generated loads where there is nothing else.
    pub(crate) fn geomean(&self, row: usize, metric: Metric) -> Ratio {
        let all_generated = self.traces.iter().all(|trace| trace.generated);
        let counted = self.traces.iter().filter(|trace| all_generated || !trace.generated);
        let ratios: Vec<Ratio> = counted.map(|trace| trace.ratio(row, metric)).collect();
        Ratio::geomean(&ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cell, Origin, Ratio, Report, TraceResult, median};

    #[test]
    fn passes_are_compared_with_the_same_pass_or_another() {
        let cell = |warm: [u64; 3]| Cell {
            warm: warm.into(),
            faults: vec![5, 6, 7],
            cold: Vec::new(),
            end_bytes: 0,
            peak_bytes: 0,
            freed_bytes: 0,
        };
        let trace = |name: &str, cells: [Cell; 2]| TraceResult {
            trace: name.to_owned(),
            operations: 1,
            generated: false,
            cells: cells.into(),
        };
        let report = Report {
            origin: Origin { machine: String::new(), date: String::new(), commit: String::new() },
            baseline: String::new(),
            rows: Vec::new(),
            traces: vec![
                trace("go", [cell([10, 20, 40]), cell([5, 20, 80])]),
                trace("float", [cell([10, 10, 10]), cell([20, 10, 20])]),
            ],
            threads: Vec::new(),
        };
        assert_eq!(report.passes((1, 0), (&report, 0, 0)), Some((1.0, 2.0)), "half and twice");
        assert_eq!(report.passes((1, 2), (&report, 0, 2)), Some((2.0, 2.0)));
        let (slower, most) = report.passes((1, 2), (&report, 1, 1)).unwrap();
        assert!((slower - 8.0_f64.sqrt()).abs() < 1e-9 && most == 4.0, "{slower}, {most}");
        assert_eq!(report.passes((1, 9), (&report, 0, 9)), None);
        assert_eq!((report.faults(1, 2), report.faults(1, 9)), (14, 0));
    }

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn rounds_are_compared_pairwise() {
        let ratio = Ratio::of(&[10.0, 40.0, 30.0], &[20.0, 20.0, 30.0]);
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.5, 1.0, 2.0));
        assert_eq!(ratio.best, 0.5);
    }

    #[test]
    fn a_geometric_mean_weighs_halves_like_doubles() {
        let of = |value| Ratio::of(&[value], &[1.0]);
        assert!((Ratio::geomean(&[of(0.5), of(2.0)]).median - 1.0).abs() < 1e-12);
    }
}
