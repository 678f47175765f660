//! Owns the pictures: one of time against memory, one a metric with every trace, one of threads.

use std::path::Path;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use pymem_bench::job::Frees;

use crate::report::{Metric, Report, ThreadsResult, bounds, median};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Text and lines on the white ground of every picture.
const INK: RGBColor = RGBColor(40, 40, 40);
/// Grid lines.
const FAINT: RGBColor = RGBColor(225, 225, 225);

/// The colour of an allocator: ours blue, mimalloc orange, the others each their own.
fn colour(row: &str) -> RGBColor {
    match row {
        "cpython" => RGBColor(110, 110, 110),
        "pymalloc" => RGBColor(11, 61, 145),
        "pymalloc-all" => RGBColor(30, 110, 220),
        "pymalloc-locked" => RGBColor(110, 165, 240),
        "domains-pymalloc" => RGBColor(0, 150, 190),
        "domains-mimalloc" => RGBColor(180, 60, 0),
        "mimalloc3" => RGBColor(235, 110, 20),
        "mimalloc2" => RGBColor(250, 170, 80),
        "jemalloc" => RGBColor(40, 140, 60),
        "snmalloc" => RGBColor(140, 70, 170),
        "libc" => RGBColor(150, 110, 60),
        _ => RGBColor(190, 190, 190),
    }
}

/// Writes every picture of `report` into `folder`.
pub(crate) fn all(report: &Report, folder: &Path) -> Result<()> {
    tradeoff(report, &folder.join("time-and-memory.svg"))?;
    for metric in Metric::ALL {
        by_trace(report, metric, &folder.join(metric.file()))?;
    }
    if !report.threads.is_empty() {
        threads(&report.threads, &folder.join("threads.svg"))?;
    }
    Ok(())
}

fn text<'a>(size: i32, anchor: HPos) -> TextStyle<'a> {
    let font = ("sans-serif", f64::from(size)).into_font();
    TextStyle::from(font).color(&INK).pos(Pos::new(anchor, VPos::Center))
}

fn label(area: &Area<'_>, words: &str, at: (i32, i32), style: &TextStyle<'_>) -> Result<()> {
    area.draw(&Text::new(words.to_owned(), at, style.clone()))?;
    Ok(())
}

/// Linear scale from values to pixels.
#[derive(Clone, Copy)]
struct Scale {
    origin: i32,
    pixels: i32,
    most: f64,
}

impl Scale {
    fn at(self, value: f64) -> i32 {
        self.origin + (f64::from(self.pixels) * value / self.most).round() as i32
    }

    /// A step of 1, 2 or 5 times a power of ten that gives at most ten steps.
    fn step(self) -> f64 {
        let rough = self.most / 10.0;
        let power = 10f64.powf(rough.log10().floor());
        power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= rough).unwrap_or(10.0)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        let step = self.step();
        (0..)
            .map(move |at| f64::from(at) * step)
            .take_while(move |value| *value <= self.most * 1.000_1)
    }
}

/// A tick's text, without needless zeros.
fn tick(value: f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

/// Geometric means: memory to the right, time upwards; the corner at the lower left is the place to be.
fn tradeoff(report: &Report, path: &Path) -> Result<()> {
    let (width, height) = (760, 520);
    let area = SVGBackend::new(path, (width, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let points: Vec<(&str, f64, f64)> = (0..report.rows.len())
        .map(|at| {
            let x = report.geomean(at, Metric::End).median;
            (report.rows[at].name.as_str(), x, report.geomean(at, Metric::Warm).median)
        })
        .filter(|(name, ..)| *name != "null")
        .collect();
    let most = |of: fn(&(&str, f64, f64)) -> f64| {
        1.1 * bounds(&points.iter().map(of).collect::<Vec<_>>()).1
    };
    let x = Scale { origin: 70, pixels: 480, most: most(|point| point.1) };
    let y = Scale { origin: 460, pixels: -400, most: most(|point| point.2) };
    label(
        &area,
        "Time and memory, relative to CPython's allocators",
        (70, 24),
        &text(18, HPos::Left),
    )?;
    label(&area, "warm time", (70, 46), &text(13, HPos::Left))?;
    label(&area, "growth of the resident set at the end", (550, 500), &text(13, HPos::Right))?;
    for value in x.ticks() {
        area.draw(&PathElement::new([(x.at(value), 60), (x.at(value), 460)], FAINT))?;
        label(&area, &tick(value), (x.at(value), 476), &text(12, HPos::Center))?;
    }
    for value in y.ticks() {
        area.draw(&PathElement::new([(70, y.at(value)), (550, y.at(value))], FAINT))?;
        label(&area, &tick(value), (62, y.at(value)), &text(12, HPos::Right))?;
    }
    for line in [[(x.at(1.0), 60), (x.at(1.0), 460)], [(70, y.at(1.0)), (550, y.at(1.0))]] {
        area.draw(&PathElement::new(line, INK))?;
    }
    let places: Vec<(i32, i32)> =
        points.iter().map(|&(_, memory, time)| (x.at(memory), y.at(time))).collect();
    let column = 590;
    let heights = leader_heights(&places, column, (70, 450));
    for ((name, ..), (&place, &height)) in points.iter().zip(places.iter().zip(&heights)) {
        let leader = [place, (column, height)];
        area.draw(&PathElement::new(leader, colour(name)))?;
        let swatch = [(column, height - 5), (column + 10, height + 5)];
        area.draw(&Rectangle::new(swatch, colour(name).filled()))?;
        label(&area, name, (column + 16, height), &text(13, HPos::Left))?;
    }
    for ((name, ..), &place) in points.iter().zip(&places) {
        area.draw(&Circle::new(place, 6, WHITE.filled()))?;
        area.draw(&Circle::new(place, 5, colour(name).filled()))?;
    }
    area.present()?;
    Ok(())
}

/// Heights of the names in a column right of the points, such that no two lines from a point to its name cross.
///
/// Two lines that cross are longer than the two that join the same ends the other way, so exchanging the names of such
/// pairs comes to an end.
fn leader_heights(points: &[(i32, i32)], column: i32, (top, bottom): (i32, i32)) -> Vec<i32> {
    const LINE: i32 = 20;
    let count = points.len() as i32;
    let mean = points.iter().map(|point| point.1).sum::<i32>() / count.max(1);
    let last_first = (bottom - (count - 1) * LINE).max(top);
    let first = (mean - (count - 1) * LINE / 2).clamp(top, last_first);
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&at| points[at].1);
    let mut heights = vec![0; points.len()];
    for (place, at) in order.into_iter().enumerate() {
        heights[at] = first + place as i32 * LINE;
    }
    let crossing = |heights: &[i32]| {
        let all = (0..points.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        all.into_iter().find(|&(a, b)| {
            cross((points[a], (column, heights[a])), (points[b], (column, heights[b])))
        })
    };
    while let Some((a, b)) = crossing(&heights) {
        heights.swap(a, b);
    }
    heights
}

type Line = ((i32, i32), (i32, i32));

/// Whether two lines have a point in common that is the end of neither.
fn cross((a, b): Line, (c, d): Line) -> bool {
    let side = |(px, py): (i32, i32), (qx, qy): (i32, i32), (rx, ry): (i32, i32)| {
        (i64::from(qx - px) * i64::from(ry - py) - i64::from(qy - py) * i64::from(rx - px)).signum()
    };
    side(a, b, c) * side(a, b, d) < 0 && side(c, d, a) * side(c, d, b) < 0
}

/// Every trace, a bar an allocator, with the span of the rounds.
fn by_trace(report: &Report, metric: Metric, path: &Path) -> Result<()> {
    const BAR: i32 = 9;
    const GAP: i32 = 12;
    let shown: Vec<usize> =
        (0..report.rows.len()).filter(|&at| report.rows[at].name != "null").collect();
    let group = shown.len() as i32 * BAR + GAP;
    let height = 90 + report.traces.len() as i32 * group;
    let area = SVGBackend::new(path, (900, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let ratios = report
        .traces
        .iter()
        .flat_map(|trace| shown.iter().map(|&at| trace.ratio(at, metric).median));
    // One allocator far outside must not press all others to the wall: the bar is cut, and the figure stands beside the bar.
    let longest = bounds(&ratios.collect::<Vec<_>>()).1;
    let x = Scale { origin: 160, pixels: 560, most: longest.clamp(1.2, 4.0) * 1.02 };
    let title = format!("{}, relative to CPython's allocators (less is better)", metric.title());
    label(&area, &title, (20, 22), &text(18, HPos::Left))?;
    let (top, bottom) = (45, height - 40);
    for value in x.ticks() {
        area.draw(&PathElement::new([(x.at(value), top), (x.at(value), bottom)], FAINT))?;
        label(&area, &tick(value), (x.at(value), bottom + 14), &text(12, HPos::Center))?;
    }
    for (number, trace) in report.traces.iter().enumerate() {
        let first = top + GAP / 2 + number as i32 * group;
        label(&area, &trace.trace, (152, first + (group - GAP) / 2), &text(13, HPos::Right))?;
        for (place, &at) in shown.iter().enumerate() {
            let ratio = trace.ratio(at, metric);
            let upper = first + place as i32 * BAR;
            let end = x.at(ratio.median.min(x.most));
            let bar = [(x.origin, upper + 1), (end, upper + BAR - 1)];
            area.draw(&Rectangle::new(bar, colour(&report.rows[at].name).filled()))?;
            let span =
                [ratio.low, ratio.high].map(|value| (x.at(value.min(x.most)), upper + BAR / 2));
            area.draw(&PathElement::new(span, INK))?;
            if ratio.median > x.most {
                label(
                    &area,
                    &tick(ratio.median),
                    (end + 4, upper + BAR / 2),
                    &text(10, HPos::Left),
                )?;
            }
        }
    }
    area.draw(&PathElement::new([(x.at(1.0), top), (x.at(1.0), bottom)], INK))?;
    let names: Vec<&str> = shown.iter().map(|&at| report.rows[at].name.as_str()).collect();
    legend(&area, &names, (760, top + 10))?;
    area.present()?;
    Ok(())
}

fn legend(area: &Area<'_>, names: &[&str], (left, top): (i32, i32)) -> Result<()> {
    for (at, name) in names.iter().enumerate() {
        let line = top + 18 * at as i32;
        area.draw(&Rectangle::new(
            [(left, line - 5), (left + 14, line + 5)],
            colour(name).filled(),
        ))?;
        label(area, name, (left + 20, line), &text(12, HPos::Left))?;
    }
    Ok(())
}

/// Millions of operations a second against the number of threads.
fn threads(results: &[ThreadsResult], path: &Path) -> Result<()> {
    let own = results.iter().filter(|result| result.threads == 1 || result.frees == Frees::Own);
    let results: Vec<&ThreadsResult> = own.collect();
    let area = SVGBackend::new(path, (900, 460)).into_drawing_area();
    area.fill(&WHITE)?;
    let names: Vec<&str> = results[0]
        .rates
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| *name != "null")
        .collect();
    let rate = |result: &ThreadsResult, name: &str| {
        result.rates.iter().find(|(row, _)| row == name).map_or(0.0, |(_, rates)| median(rates))
    };
    let all = results.iter().flat_map(|result| names.iter().map(|name| rate(result, name)));
    let most = 1.05 * bounds(&all.collect::<Vec<_>>()).1;
    let y = Scale { origin: 410, pixels: -340, most };
    let place = |at: usize| 110 + (at as i32 * 560) / (results.len() as i32 - 1).max(1);
    let title =
        format!("Millions of operations a second, trace {} in each thread", results[0].trace);
    label(&area, &title, (20, 22), &text(18, HPos::Left))?;
    for value in y.ticks() {
        area.draw(&PathElement::new([(90, y.at(value)), (690, y.at(value))], FAINT))?;
        label(&area, &tick(value), (82, y.at(value)), &text(12, HPos::Right))?;
    }
    for (at, result) in results.iter().enumerate() {
        let words = crate::table::threads_text(result);
        label(&area, &words, (place(at), 430), &text(12, HPos::Center))?;
    }
    for name in &names {
        let points: Vec<(i32, i32)> = results
            .iter()
            .enumerate()
            .map(|(at, result)| (place(at), y.at(rate(result, name))))
            .collect();
        area.draw(&PathElement::new(points.clone(), colour(name).stroke_width(2)))?;
        for point in points {
            area.draw(&Circle::new(point, 4, colour(name).filled()))?;
        }
    }
    legend(&area, &names, (760, 60))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{cross, leader_heights};

    #[test]
    fn lines_to_names_do_not_cross() {
        let points: Vec<(i32, i32)> =
            (0..12).map(|at| (100 + at * 173 % 400, 100 + at * 97 % 300)).collect();
        let heights = leader_heights(&points, 590, (70, 450));
        for a in 0..points.len() {
            for b in 0..a {
                let line = |at: usize| (points[at], (590, heights[at]));
                assert!(!cross(line(a), line(b)), "{a} and {b}");
                assert!(heights[a].abs_diff(heights[b]) >= 20);
            }
        }
    }
}
