//! Owns the text of the statistics: the layout of CPython's `sys._debugmallocstats()`, line for line.

use core::fmt;

use crate::config::{ARENA_BYTES, POOL_BYTES, SMALL_MAX};
use crate::size_class::SizeClass;
use crate::stats::Stats;

/// A number in groups of three digits.
struct Grouped(usize);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 20 digits of a u64 and 6 commas.
        let mut text = [0; 26];
        let mut start = text.len();
        let mut rest = self.0;
        let mut digits = 0;
        loop {
            if digits > 0 && digits % 3 == 0 {
                start -= 1;
                text[start] = b',';
            }
            start -= 1;
            text[start] = b'0' + (rest % 10) as u8;
            digits += 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        f.pad(core::str::from_utf8(&text[start..]).map_err(|_| fmt::Error)?)
    }
}

/// A label padded to 35 columns, `=`, and a number right-aligned in 21.
fn line(f: &mut fmt::Formatter<'_>, label: impl fmt::Display, value: usize) -> fmt::Result {
    writeln!(f, "{label:<35}={:>21}", Grouped(value))
}

/// Pads what `format_args!` makes, which ignores a width by itself.
struct Label<'a>(fmt::Arguments<'a>);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Count<'a, 'b>(&'a mut fmt::Formatter<'b>, usize);
        impl fmt::Write for Count<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.1 += text.len();
                self.0.write_str(text)
            }
        }
        let width = f.width().unwrap_or(0);
        let mut count = Count(f, 0);
        fmt::Write::write_fmt(&mut count, self.0)?;
        let Count(f, written) = count;
        (written..width).try_for_each(|_| f.write_str(" "))
    }
}

impl fmt::Display for Stats {
    /// The text that CPython prints. Classes above its 32 have rows of their own when they have a pool.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes = SizeClass::SMALL_COUNT;
        writeln!(f, "Small block threshold = {SMALL_MAX}, in {classes} size classes.")?;
        writeln!(f)?;
        writeln!(f, "class   size   num pools   blocks in use  avail blocks")?;
        writeln!(f, "-----   ----   ---------   -------------  ------------")?;
        for (index, class) in self.classes.iter().enumerate() {
            if class.pools > 0 {
                writeln!(
                    f,
                    "{index:>5} {:>6} {:>11} {:>15} {:>13}",
                    class.size, class.pools, class.blocks_in_use, class.blocks_available
                )?;
            }
        }
        writeln!(f)?;
        if let Some(calls) = self.malloc_calls {
            line(f, "# times object malloc called", usize::try_from(calls).unwrap_or(usize::MAX))?;
        }
        line(f, "# arenas allocated total", self.arenas_ever)?;
        line(f, "# arenas reclaimed", self.arenas_ever - self.arenas_current)?;
        line(f, "# arenas highwater mark", self.arenas_peak)?;
        line(f, "# arenas allocated current", self.arenas_current)?;
        let arenas = self.arenas_current;
        let bytes = arenas * ARENA_BYTES;
        line(f, Label(format_args!("{arenas} arenas * {ARENA_BYTES} bytes/arena")), bytes)?;
        writeln!(f)?;
        line(f, "# bytes in allocated blocks", self.bytes_in_use())?;
        line(f, "# bytes in available blocks", self.bytes_available())?;
        let unused = self.unused_pools;
        let bytes = unused * POOL_BYTES;
        line(f, Label(format_args!("{unused} unused pools * {POOL_BYTES} bytes")), bytes)?;
        line(f, "# bytes lost to pool headers", self.header_bytes)?;
        line(f, "# bytes lost to quantization", self.quantization_bytes)?;
        line(f, "# bytes lost to arena alignment", self.alignment_bytes)?;
        line(f, "Total", self.total_bytes())?;
        writeln!(f)?;
        writeln!(f, "arena map counts")?;
        line(f, "# arena map mid nodes", self.map_tables[0])?;
        line(f, "# arena map bot nodes", self.map_tables[1])?;
        writeln!(f)?;
        line(f, "# bytes lost to arena map root", self.map_bytes[0])?;
        line(f, "# bytes lost to arena map mid", self.map_bytes[1])?;
        line(f, "# bytes lost to arena map bot", self.map_bytes[2])?;
        line(f, "Total", self.map_bytes.iter().sum())
    }
}
