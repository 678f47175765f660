//! Owns how areas of `mimalloc-heaps` become a snapshot. Leaves the walk to that crate.

use alloc::string::String;
use alloc::vec::Vec;

use mimalloc_heaps::{Area, InterpreterHeaps, World};

use crate::model::{Arena, Contents, Pool, Snapshot};

/// Bytes of address space that a row of the report stands for: mimalloc's areas are 64 KiB to 4 MiB, and rarely more.
const WINDOW_BYTES: usize = 4 << 20;

impl Snapshot {
    /// A snapshot of the heaps of one interpreter: every thread's, and those that exited threads have left.
    ///
    /// A row stands for 4 MiB of addresses with at least one area, or for more if an area ends beyond. The unused cells of a
    /// row do not belong to these heaps; another heap may have them. Stops `world` once or twice. Nothing is allocated
    /// meanwhile, so the heaps may serve the program's global allocator.
    ///
    /// # Examples
    ///
    /// ```
    /// use heap_report::{Snapshot, Text};
    /// use mimalloc_heaps::{BarrierWorld, HeapKind, InterpreterHeaps};
    ///
    /// let interpreter = InterpreterHeaps::new()?;
    /// let world = BarrierWorld::new();
    /// // SAFETY: (1) the heaps are used below only, between checkpoints, and (2) dropped before `thread`.
    /// let thread = unsafe { world.join() };
    /// let heaps = interpreter.attach()?;
    /// let block = heaps.malloc(HeapKind::Gc, 100);
    /// let snapshot = Snapshot::of_mimalloc("demo", &interpreter, &thread);
    /// assert_eq!(snapshot.totals().blocks, 1);
    /// print!("{}", Text(&snapshot));
    /// # // SAFETY: live, and not used again.
    /// # unsafe { heaps.free(block) };
    /// # drop(heaps);
    /// # Ok::<(), mimalloc_heaps::HeapError>(())
    /// ```
    #[must_use]
    pub fn of_mimalloc<W: World + ?Sized>(
        name: impl Into<String>,
        heaps: &InterpreterHeaps,
        world: &W,
    ) -> Self {
        Self { name: name.into(), arenas: rows(heaps.areas(world)) }
    }
}

/// Areas in the order of their addresses, in rows of whole windows without gaps.
fn rows(mut areas: Vec<Area>) -> Vec<Arena> {
    areas.sort_unstable_by_key(|area| area.start);
    let mut rows: Vec<Arena> = Vec::new();
    let mut end = 0;
    for area in areas {
        let window = area.start - area.start % WINDOW_BYTES;
        if window >= end {
            close(&mut rows, end);
            rows.push(Arena { address: window, pools: Vec::new() });
            end = window;
        }
        let Some(row) = rows.last_mut() else { continue };
        let gap = area.start - end;
        row.pools.extend((gap > 0).then_some(Pool { bytes: gap, contents: Contents::Unused }));
        row.pools.push(pool(&area));
        end = area.start + area.reserved_bytes;
    }
    close(&mut rows, end);
    rows
}

/// Fills the last row, which ends at `end`, up to a whole window.
fn close(rows: &mut [Arena], end: usize) {
    let bytes = end.next_multiple_of(WINDOW_BYTES) - end;
    let tail = (bytes > 0).then_some(Pool { bytes, contents: Contents::Unused });
    rows.last_mut().into_iter().for_each(|row| row.pools.extend(tail));
}

fn pool(area: &Area) -> Pool {
    let capacity = area.reserved_bytes.checked_div(area.block_bytes).unwrap_or(0);
    let capacity = capacity.max(area.used_blocks).max(1);
    let contents = Contents::Blocks { size: area.block_bytes, used: area.used_blocks, capacity };
    Pool { bytes: area.reserved_bytes, contents }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use mimalloc_heaps::HeapKind;

    use super::*;

    const KIB: usize = 1024;
    const BASE: usize = 0x7000_0000_0000;

    fn area(start: usize, reserved_bytes: usize, block_bytes: usize, used_blocks: usize) -> Area {
        Area {
            start: BASE + start,
            block_bytes,
            used_blocks,
            committed_bytes: reserved_bytes,
            reserved_bytes,
            kind: HeapKind::Mem,
            set: 0,
            is_owned: true,
        }
    }

    fn unused(bytes: usize) -> Pool {
        Pool { bytes, contents: Contents::Unused }
    }

    fn blocks(bytes: usize, size: usize, used: usize, capacity: usize) -> Pool {
        Pool { bytes, contents: Contents::Blocks { size, used, capacity } }
    }

    #[test]
    fn areas_of_one_window_share_a_row_and_gaps_are_unused() {
        let near = area(256 * KIB, 64 * KIB, 64, 3);
        let first = area(KIB, 63 * KIB, 1000, 64);
        let far = area(5 * WINDOW_BYTES, 64 * KIB, 64 * KIB, 1);
        let expected = vec![
            Arena {
                address: BASE,
                pools: vec![
                    unused(KIB),
                    blocks(63 * KIB, 1000, 64, 64),
                    unused(192 * KIB),
                    blocks(64 * KIB, 64, 3, 1024),
                    unused(WINDOW_BYTES - 320 * KIB),
                ],
            },
            Arena {
                address: BASE + 5 * WINDOW_BYTES,
                pools: vec![blocks(64 * KIB, 64 * KIB, 1, 1), unused(WINDOW_BYTES - 64 * KIB)],
            },
        ];
        assert_eq!(rows(vec![far, near, first]), expected);
    }

    #[test]
    fn an_area_beyond_its_window_makes_the_row_longer() {
        let huge = area(KIB, WINDOW_BYTES, WINDOW_BYTES, 1);
        let next = area(WINDOW_BYTES + 64 * KIB, 64 * KIB, 32, 0);
        let rows = rows(vec![next, huge]);
        let bytes: Vec<usize> = rows[0].pools.iter().map(|pool| pool.bytes).collect();
        assert_eq!(rows.len(), 1);
        assert_eq!(bytes, [KIB, WINDOW_BYTES, 63 * KIB, 64 * KIB, WINDOW_BYTES - 128 * KIB]);
    }

    #[test]
    fn a_full_window_is_a_row_of_its_own() {
        let full = [0, WINDOW_BYTES].map(|start| area(start, WINDOW_BYTES, 64 * KIB, 2));
        let rows = rows(full.to_vec());
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].pools, [blocks(WINDOW_BYTES, 64 * KIB, 2, 64)]);
    }

    #[test]
    fn no_area_is_no_row() {
        assert_eq!(rows(Vec::new()), []);
    }
}
