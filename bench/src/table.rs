//! Owns the tables on the terminal.

use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use pymem_bench::job::Measured;

use crate::driver::TraceResult;

/// Ratios to the first row: geometric means first, then each trace.
pub(crate) fn ratios(results: &[TraceResult]) -> String {
    let mut out = String::new();
    let best = |row: &Measured| row.nanoseconds.iter().min().copied().unwrap_or(0) as f64;
    out += &one("warm time (best pass)", results, |result| result.warm.iter().map(best).collect());
    out +=
        &one("cold time (best process)", results, |result| result.cold.iter().map(best).collect());
    out += &one("RSS growth at the end", results, |result| {
        result.cold.iter().map(|row| row.end_bytes as f64).collect()
    });
    out += &one("peak RSS growth", results, |result| {
        result.cold.iter().map(|row| row.peak_bytes as f64).collect()
    });
    out += &one("RSS after freeing all", results, |result| {
        result.cold.iter().map(|row| row.freed_bytes as f64).collect()
    });
    out
}

fn one(title: &str, results: &[TraceResult], of: impl Fn(&TraceResult) -> Vec<f64>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    let mut header = vec![title.to_owned(), "geomean".to_owned()];
    header.extend(results.iter().map(|result| result.trace.clone()));
    table.set_header(header);
    let columns: Vec<Vec<f64>> = results.iter().map(of).collect();
    let names = results
        .first()
        .map(|result| result.warm.iter().map(|row| row.row.clone()).collect::<Vec<_>>());
    for (at, name) in names.unwrap_or_default().into_iter().enumerate() {
        let ratios: Vec<f64> =
            columns.iter().map(|column| column[at].max(0.0) / column[0]).collect();
        let logs: f64 = ratios.iter().map(|ratio| ratio.max(1e-9).ln()).sum();
        let mut cells = vec![name, format!("{:.3}", (logs / ratios.len() as f64).exp())];
        cells.extend(ratios.iter().map(|ratio| format!("{ratio:.3}")));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n\n")
}
