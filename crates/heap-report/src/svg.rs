//! Owns the picture of a snapshot: a self-contained SVG that is readable on light and on dark pages.

use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::model::{Contents, Pool, Snapshot};

/// Draws a snapshot as an SVG heap map.
///
/// Arenas are rows and pools are cells, as wide as their bytes. The hue of a cell is its block size, from blue for the
/// smallest to red for the largest of the snapshot; how high it is filled is how many of its blocks are handed out.
/// Every cell has a title that browsers show when the pointer is over it. Nothing outside the file is needed.
#[derive(Debug, Clone, Copy)]
pub struct Svg<'a>(pub &'a Snapshot);

/// Lengths in pixels.
const MARGIN: usize = 16;
const LABEL_WIDTH: usize = 130;
const MAP_WIDTH: usize = 1024;
const ROW_HEIGHT: usize = 22;
const CELL_HEIGHT: usize = 18;
const HEADER_HEIGHT: usize = 56;
const LEGEND_COLUMN: usize = 190;
const LEGEND_COLUMNS: usize = (LABEL_WIDTH + MAP_WIDTH) / LEGEND_COLUMN;
const LEGEND_ROW: usize = 20;

const STYLE: &str = "\
svg{background:#fff;font:12px ui-sans-serif,system-ui,sans-serif;fill:#1f2328}\
.b{font-size:15px;font-weight:600}.m{fill:#59636e}.a{font-family:ui-monospace,monospace;font-size:11px}\
.u{fill:#eaeef2}.r{fill:#8c959f}.e{fill-opacity:.22}\
@media(prefers-color-scheme:dark){svg{background:#0d1117;fill:#e6edf3}.m{fill:#9198a1}.u{fill:#21262d}.r{fill:#6e7681}\
.e{fill-opacity:.3}}";

impl fmt::Display for Svg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (snapshot, totals, sizes) = (self.0, self.0.totals(), self.0.sizes());
        let row_bytes =
            snapshot.arenas.iter().map(|arena| arena.pools.iter().map(|p| p.bytes).sum());
        let row_bytes: usize = row_bytes.max().unwrap_or(0).max(1);
        let legend_top = HEADER_HEIGHT + MARGIN + snapshot.arenas.len() * ROW_HEIGHT + MARGIN;
        // Two entries beside the sizes: unused pools and records.
        let legend_rows = (sizes.len() + 2).div_ceil(LEGEND_COLUMNS);
        let width = MARGIN + LABEL_WIDTH + MAP_WIDTH + MARGIN;
        let height = legend_top + (legend_rows + 1) * LEGEND_ROW + MARGIN;
        writeln!(
            f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\">"
        )?;
        writeln!(f, "<title>{}</title>\n<style>{STYLE}</style>", Escaped(&snapshot.name))?;
        writeln!(
            f,
            "<text class=\"b\" x=\"{MARGIN}\" y=\"28\">{}</text>",
            Escaped(&snapshot.name)
        )?;
        writeln!(
            f,
            "<text class=\"m\" x=\"{MARGIN}\" y=\"48\">{} arenas, {} pools ({} unused), {} KiB; {} blocks, {} KiB</text>",
            totals.arenas,
            totals.pools,
            totals.unused_pools,
            totals.bytes / 1024,
            totals.blocks,
            totals.block_bytes.div_ceil(1024)
        )?;
        for (row, arena) in snapshot.arenas.iter().enumerate() {
            let y = HEADER_HEIGHT + MARGIN + row * ROW_HEIGHT;
            writeln!(
                f,
                "<text class=\"a\" x=\"{MARGIN}\" y=\"{}\">{:#x}</text>",
                y + 13,
                arena.address
            )?;
            let mut start = 0;
            for pool in &arena.pools {
                let x = MARGIN + LABEL_WIDTH + start * MAP_WIDTH / row_bytes;
                start += pool.bytes;
                let end = MARGIN + LABEL_WIDTH + start * MAP_WIDTH / row_bytes;
                let hue = |size| hue(sizes.iter().position(|s| s.size == size), sizes.len());
                write_pool(f, pool, x, y, (end - x).saturating_sub(1).max(1), hue)?;
            }
        }
        for entry in 0..sizes.len() + 2 {
            let x = MARGIN + entry % LEGEND_COLUMNS * LEGEND_COLUMN;
            let y = legend_top + entry / LEGEND_COLUMNS * LEGEND_ROW;
            let text_x = x + 18;
            let text_y = y + 11;
            match sizes.get(entry) {
                Some(s) => {
                    let hue = hue(Some(entry), sizes.len());
                    write!(
                        f,
                        "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{hue}\"/>"
                    )?;
                    writeln!(
                        f,
                        "<text x=\"{text_x}\" y=\"{text_y}\">{} B: {} of {}</text>",
                        s.size, s.used, s.capacity
                    )?;
                }
                None => {
                    let unused = entry == sizes.len();
                    let (class, label) = if unused { ("u", "unused") } else { ("r", "records") };
                    write!(
                        f,
                        "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\"/>"
                    )?;
                    writeln!(f, "<text x=\"{text_x}\" y=\"{text_y}\">{label}</text>")?;
                }
            }
        }
        writeln!(f, "</svg>")
    }
}

/// A colour that differs from its neighbours' on white and on black, by the place of a size among all sizes.
fn hue(place: Option<usize>, sizes: usize) -> String {
    let place = place.unwrap_or(0);
    format!("hsl({},65%,52%)", 225 - 225 * place / sizes.max(2).saturating_sub(1))
}

/// Draws one cell; `width` is without the gap to its neighbour.
fn write_pool(
    f: &mut fmt::Formatter<'_>,
    pool: &Pool,
    x: usize,
    y: usize,
    width: usize,
    hue: impl Fn(usize) -> String,
) -> fmt::Result {
    let area = |y, height| format!("x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"");
    match pool.contents {
        Contents::Unused => writeln!(
            f,
            "<rect class=\"u\" {}><title>unused, {} bytes</title></rect>",
            area(y, CELL_HEIGHT),
            pool.bytes
        ),
        Contents::Records => writeln!(
            f,
            "<rect class=\"r\" {}><title>records, {} bytes</title></rect>",
            area(y, CELL_HEIGHT),
            pool.bytes
        ),
        Contents::Blocks { size, used, capacity } => {
            let filled = (CELL_HEIGHT * used).div_ceil(capacity.max(1)).min(CELL_HEIGHT);
            let hue = hue(size);
            writeln!(
                f,
                "<g fill=\"{hue}\"><title>{used} of {capacity} blocks of {size} bytes</title>\
                 <rect class=\"e\" {}/><rect {}/></g>",
                area(y, CELL_HEIGHT),
                area(y + CELL_HEIGHT - filled, filled)
            )
        }
    }
}

/// Text as XML has it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}
