//! Owns the JSON of a snapshot. Written by hand: the allocators' reports must not pull a serialiser into a process.

use core::fmt::{self, Write};

use crate::model::{Arena, Contents, Snapshot};

/// Writes a snapshot as one JSON object: `name`, `totals`, `sizes`, and `arenas` with their `pools`.
///
/// An unused pool is `null`, one of records is `"records"`, another one `[size, used, capacity]`. Addresses are strings,
/// as JSON numbers need not hold them.
#[derive(Debug, Clone, Copy)]
pub struct Json<'a>(pub &'a Snapshot);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.0.totals();
        write!(f, "{{\"name\":{},\"totals\":{{", Quoted(&self.0.name))?;
        write!(f, "\"arenas\":{},\"pools\":{},", totals.arenas, totals.pools)?;
        write!(f, "\"unused_pools\":{},\"bytes\":{},", totals.unused_pools, totals.bytes)?;
        write!(f, "\"blocks\":{},\"block_bytes\":{}}},", totals.blocks, totals.block_bytes)?;
        f.write_str("\"sizes\":[")?;
        for (index, sizes) in self.0.sizes().iter().enumerate() {
            comma(f, index)?;
            write!(f, "{{\"size\":{},\"pools\":{},", sizes.size, sizes.pools)?;
            write!(f, "\"used\":{},\"capacity\":{}}}", sizes.used, sizes.capacity)?;
        }
        f.write_str("],\"arenas\":[")?;
        for (index, arena) in self.0.arenas.iter().enumerate() {
            comma(f, index)?;
            write_arena(f, arena)?;
        }
        f.write_str("]}")
    }
}

fn write_arena(f: &mut fmt::Formatter<'_>, arena: &Arena) -> fmt::Result {
    write!(f, "{{\"address\":\"{:#x}\",\"pools\":[", arena.address)?;
    for (index, pool) in arena.pools.iter().enumerate() {
        comma(f, index)?;
        match pool.contents {
            Contents::Unused => f.write_str("null")?,
            Contents::Records => f.write_str("\"records\"")?,
            Contents::Blocks { size, used, capacity } => write!(f, "[{size},{used},{capacity}]")?,
        }
    }
    f.write_str("]}")
}

fn comma(f: &mut fmt::Formatter<'_>, index: usize) -> fmt::Result {
    if index > 0 { f.write_char(',') } else { Ok(()) }
}

/// A string as JSON has it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}
