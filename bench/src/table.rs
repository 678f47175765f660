//! Owns the tables on the terminal.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, LineStyle, Table};

use crate::idle::{FIGURES, Idle};
use crate::programs::{Column, Programs};
use crate::report::{Metric, Ratio, Report, ThreadsResult, TraceResult, median};
use pymem_bench::job::Frees;

/// Geometric means of all metrics first, then the main ones trace by trace, then threads.
pub(crate) fn all(report: &Report) -> String {
    let mut out = overview(report);
    for metric in [Metric::Warm, Metric::Cold, Metric::End] {
        for generated in [false, true] {
            out += &by_trace(report, metric, generated);
        }
    }
    if !report.threads.is_empty() {
        out += &threads(&report.threads);
    }
    out
}

fn overview(report: &Report) -> String {
    let mut lines = Lines::new("relative to cpython, geomean");
    for metric in Metric::ALL {
        lines.column(metric.title());
    }
    lines.column("warm (best)");
    lines.column("cold (best)");
    for (at, row) in report.rows.iter().enumerate() {
        let mut cells: Vec<String> =
            Metric::ALL.iter().map(|&metric| with_spread(report.geomean(at, metric))).collect();
        cells.extend(
            [Metric::Warm, Metric::Cold]
                .map(|metric| format!("{:.3}", report.geomean(at, metric).best)),
        );
        lines.row(&row.name, cells);
    }
    lines.draw()
}

/// A metric on each program's trace, or on each generated load; nothing where there is none.
fn by_trace(report: &Report, metric: Metric, generated: bool) -> String {
    let traces: Vec<&TraceResult> =
        report.traces.iter().filter(|trace| trace.generated == generated).collect();
    if traces.is_empty() {
        return String::new();
    }
    let mut lines = Lines::new(metric.title());
    for trace in &traces {
        lines.column(&trace.trace);
    }
    for (at, row) in report.rows.iter().enumerate() {
        lines.row(
            &row.name,
            traces.iter().map(|trace| with_spread(trace.ratio(at, metric))).collect(),
        );
    }
    lines.draw()
}

/// Rates of several threads, relative to the C library with as many threads.
fn threads(results: &[ThreadsResult]) -> String {
    let mut lines = Lines::new(&format!("{}, Mops/s (relative to libc)", results[0].trace));
    for result in results {
        lines.column(&threads_text(result));
    }
    for (at, (name, _)) in results[0].rates.iter().enumerate() {
        let cells = results.iter().map(|result| {
            let rate = median(&result.rates[at].1);
            let libc = result.rates.iter().find(|(name, _)| name == "libc");
            let libc = libc.map(|(_, rates)| median(rates));
            libc.map_or(format!("{rate:.1}"), |libc| format!("{rate:.1} ({:.2})", rate / libc))
        });
        lines.row(name, cells.collect());
    }
    lines.draw()
}

/// Passes of all rows in turn: how the first, second and tenth compare with CPython's, and with each other.
pub(crate) fn passes(report: &Report) -> String {
    let mut lines = Lines::new("passes in turn");
    PASSES_TITLES.iter().for_each(|title| lines.column(title));
    for (at, row) in report.rows.iter().enumerate() {
        lines.row(&row.name, passes_cells(report, at));
    }
    lines.draw()
}

/// Titles of what [`passes_cells`] gives.
pub(crate) const PASSES_TITLES: [&str; 7] = [
    "first",
    "second",
    "tenth",
    "tenth to second",
    "of the worst trace",
    "faults of second",
    "of tenth",
];

/// What passes in turn found of a row.
pub(crate) fn passes_cells(report: &Report, row: usize) -> Vec<String> {
    let text = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let mut cells: Vec<String> = [0, 1, 9]
        .map(|pass| text(report.passes((row, pass), (report, 0, pass)).map(|found| found.0)))
        .into();
    let settled = report.passes((row, 9), (report, row, 1));
    cells.extend([text(settled.map(|found| found.0)), text(settled.map(|found| found.1))]);
    cells.extend([1, 9].map(|pass| report.faults(row, pass).to_string()));
    cells
}

/// Memory of a process that starts and idles, in MiB.
pub(crate) fn idle(run: &Idle) -> String {
    let mut lines = Lines::new(&format!("{}, MiB", run.interpreter));
    FIGURES.iter().for_each(|(title, ..)| lines.column(title));
    for (name, figures) in &run.setups {
        lines.row(name, figures.iter().map(|figure| format!("{figure:.1}")).collect());
    }
    lines.draw()
}

/// Whole programs, each column relative to its baseline.
pub(crate) fn programs(programs: &Programs) -> String {
    let figure = |title: &str, which: usize| {
        let mut lines = Lines::new(title);
        programs.columns.iter().for_each(|column| lines.column(&column.title));
        let row = |of: &dyn Fn(&Column) -> [Ratio; 2]| {
            programs.columns.iter().map(|column| with_spread(of(column)[which])).collect()
        };
        for result in &programs.results {
            lines.row(&result.program, row(&|column| result.ratios(column)));
        }
        lines.row("geomean", row(&|column| programs.means(column)));
        lines.draw()
    };
    figure("CPU time, relative to the baseline", 0)
        + &figure("peak RSS, relative to the baseline", 1)
}

/// `1 thread`, `2 threads`, `2, handed over`.
pub(crate) fn threads_text(result: &ThreadsResult) -> String {
    match (result.threads, result.frees) {
        (1, _) => "1 thread".to_owned(),
        (threads, Frees::Own) => format!("{threads} threads"),
        (threads, Frees::Neighbour) => format!("{threads}, handed over"),
    }
}

/// A median and how far the rounds lie from it: `0.62 ±0.01`, or without the second part where it rounds to nothing.
pub(crate) fn with_spread(ratio: Ratio) -> String {
    let spread = (ratio.high - ratio.median).max(ratio.median - ratio.low);
    if spread < 0.005 {
        format!("{:.2}", ratio.median)
    } else {
        format!("{:.2} ±{spread:.2}", ratio.median)
    }
}

/// A table whose first column is text and whose others are figures.
struct Lines {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Lines {
    fn new(title: &str) -> Self {
        Self { header: vec![title.to_owned()], rows: Vec::new() }
    }

    fn column(&mut self, title: &str) {
        self.header.push(title.to_owned());
    }

    fn row(&mut self, name: &str, cells: Vec<String>) {
        let mut row = vec![name.to_owned()];
        row.extend(cells);
        self.rows.push(row);
    }

    fn draw(self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
        table.set_header(self.header);
        table.add_rows(self.rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{table}\n\n")
    }
}
