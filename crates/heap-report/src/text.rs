//! Owns the text of a snapshot: one character a pool, for terminals and logs.

use core::fmt;

use crate::model::{Contents, Pool, Snapshot};

/// Draws a snapshot as text: its totals, one line an arena with one character a pool, and a line for each block size.
///
/// `.` is an unused pool, `#` holds records, `0` to `9` is how full a pool is in tenths, `F` is a full one.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(pub &'a Snapshot);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.0.totals();
        writeln!(
            f,
            "{}: {} arenas, {} pools ({} unused), {} bytes, {} blocks of {} bytes",
            self.0.name,
            totals.arenas,
            totals.pools,
            totals.unused_pools,
            totals.bytes,
            totals.blocks,
            totals.block_bytes
        )?;
        for arena in &self.0.arenas {
            write!(f, "{:#014x} ", arena.address)?;
            for pool in &arena.pools {
                write!(f, "{}", mark(pool))?;
            }
            writeln!(f)?;
        }
        for sizes in self.0.sizes() {
            writeln!(
                f,
                "{:>6} bytes: {:>5} pools, {:>8} of {:>8} blocks",
                sizes.size, sizes.pools, sizes.used, sizes.capacity
            )?;
        }
        Ok(())
    }
}

fn mark(pool: &Pool) -> char {
    match pool.contents {
        Contents::Unused => '.',
        Contents::Records => '#',
        Contents::Blocks { used, capacity, .. } if used >= capacity => 'F',
        Contents::Blocks { used, capacity, .. } => {
            char::from_digit((10 * used / capacity) as u32, 10).unwrap_or('F')
        }
    }
}
