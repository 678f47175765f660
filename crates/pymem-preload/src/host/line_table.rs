//! Owns the lines of a code object's instructions, from 3.11 on: the table is read where it lies, and read on from where it was read last.
//!
//! A table says how much further each line is than the one before, so that an instruction at the end of a module's code is found behind all
//! others. The host's own function begins at the start each time: in a program that imports a library, a seventh of what a
//! profile took was spent there.

use core::slice;

use pymem_sync::Lock;

use crate::host::capi::word_at;

/// Bytes of an instruction.
const UNIT: i32 = 2;

/// A code object's table of lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineTable<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) first_line: i32,
}

/// The instructions of one entry of a table, and what the next one goes on from.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Bytes from the first instruction to the entry's first one, and to the one after the last.
    start: i32,
    end: i32,
    /// -1 for instructions that are of no line.
    line: i32,
    /// The line that the next entry counts from.
    counted: i32,
    /// Where the next entry begins in the table.
    next: usize,
}

impl Entry {
    /// What comes before the first entry.
    const fn none(first_line: i32) -> Self {
        Self { start: 0, end: 0, line: -1, counted: first_line, next: 0 }
    }

    /// The next entry; `None` at the end of the table.
    #[inline]
    fn after(self, bytes: &[u8]) -> Option<Self> {
        let rest = bytes.get(self.next..)?;
        let (&head, more) = rest.split_first()?;
        let kind = head >> 3 & 15;
        let delta = match kind {
            // An entry with no line, and the ten that stay on it.
            0..=10 | 15 => 0,
            11 => 1,
            12 => 2,
            _ => signed_number(more),
        };
        let counted = self.counted.wrapping_add(delta);
        // The first byte of an entry alone has its top bit set.
        let len = 1 + more.iter().take_while(|byte| **byte & 0x80 == 0).count();
        Some(Self {
            start: self.end,
            end: self.end.wrapping_add((i32::from(head & 7) + 1) * UNIT),
            line: if kind == 15 { -1 } else { counted },
            counted,
            next: self.next + len,
        })
    }
}

/// A number in groups of six bits, the lowest first, of which each but the last is marked; the lowest bit is the sign.
fn signed_number(bytes: &[u8]) -> i32 {
    let mut number = 0_u32;
    for (byte, shift) in bytes.iter().zip((0..u32::BITS).step_by(6)) {
        number |= u32::from(byte & 63) << shift;
        if byte & 64 == 0 {
            break;
        }
    }
    let magnitude = (number >> 1) as i32;
    if number & 1 == 0 { magnitude } else { -magnitude }
}

/// Where tables were read last, by a hash of the code.
pub(crate) struct Cursors([Option<(usize, Entry)>; CURSORS]);

const CURSORS: usize = 256;

/// Where the tables of this process were read last. Held over a fork.
pub(crate) static CURSORS_READ: Lock<Cursors> = Lock::new(Cursors([None; CURSORS]));

impl Cursors {
    /// The line of the instruction `place` bytes from the first one; -1 where it has none. `key` is of this table alone.
    pub(crate) fn line(&mut self, key: usize, table: LineTable<'_>, place: i32) -> i32 {
        // Code objects are some hundred bytes long.
        let known = &mut self.0[(key >> 5 ^ key >> 13) % CURSORS];
        let mut entry = match *known {
            Some((of, entry)) if of == key && entry.start <= place => entry,
            _ => Entry::none(table.first_line),
        };
        while entry.end <= place {
            match entry.after(table.bytes) {
                Some(next) => entry = next,
                None => return -1,
            }
        }
        *known = Some((key, entry));
        entry.line
    }
}

/// Where a code object has its table, and how a bytes object is laid out: offsets in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineTableLayout {
    pub(crate) table: usize,
    pub(crate) first_line: usize,
    /// The address of `PyBytes_Type`.
    pub(crate) bytes_type: usize,
}

impl LineTableLayout {
    /// The table of a code object; `None` where it is no bytes object.
    ///
    /// # Safety
    ///
    /// 1. `code` is a code object that lives as long as the table is used, of a host with the GIL, and the offsets are those of its version.
    pub(crate) unsafe fn of<'a>(self, code: usize) -> Option<LineTable<'a>> {
        // The object's head: a count, its type, its length, its hash.
        const TYPE: usize = 8;
        const LEN: usize = 16;
        const BYTES: usize = 32;
        // SAFETY: a member of the code object (duty 1).
        let word = |at: usize| unsafe { word_at(at) };
        let object = word(code + self.table);
        if object == 0 || word(object + TYPE) != self.bytes_type {
            return None;
        }
        let bytes = core::ptr::with_exposed_provenance(object + BYTES);
        // SAFETY: a bytes object, which never changes, and lives as long as its code (duty 1).
        let bytes = unsafe { slice::from_raw_parts(bytes, word(object + LEN)) };
        #[expect(clippy::cast_possible_truncation, reason = "the number has four bytes")]
        let first_line = word(code + self.first_line) as i32;
        Some(LineTable { bytes, first_line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `co_linetable` of a function of 3.13 with loops, `with` and `try`, 80 empty lines and a comprehension of three lines.
    const TABLE: &[u8] = &[
        128, 0, 216, 9, 10, 216, 8, 9, 241, 3, 1, 10, 10, 128, 65, 228, 13, 18, 144, 49, 142, 88,
        136, 1, 216, 8, 9, 137, 6, 138, 1, 241, 3, 0, 14, 22, 228, 9, 13, 136, 97, 140, 23, 144,
        65, 240, 2, 3, 9, 18, 216, 12, 16, 224, 16, 17, 137, 65, 247, 9, 0, 10, 17, 241, 110, 2, 0,
        9, 10, 243, 5, 2, 12, 11, 225, 8, 9, 240, 3, 0, 15, 16, 138, 1, 217, 8, 9, 241, 5, 2, 12,
        11, 240, 0, 2, 5, 11, 248, 240, 99, 2, 0, 17, 18, 137, 65, 250, 247, 9, 0, 10, 17, 141, 23,
        252, 242, 106, 2, 2, 12, 11,
    ];

    /// The line of each of its instructions, as `co_positions` tells them.
    const LINES: &[i32] = &[
        1, 2, 3, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 4, 4, 6, 6,
        6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7, 8, 10, 10, 10, 6, 6, 6, 6, 6, 6, 6, 6, 93, 93, 91, 91, 91,
        91, 93, 93, 92, 92, 92, 92, 93, 93, 91, 91, 91, -1, 10, 10, 10, -1, -1, -1, 6, 6, 6, 6, 6,
        6, 6, 6, 6, 6, 6, 6, 6, 6, -1, -1, -1, -1, -1, 91, 91, 91,
    ];

    #[test]
    fn lines_are_those_of_the_host_in_any_order() {
        let table = LineTable { bytes: TABLE, first_line: 1 };
        let mut cursors = Cursors([None; CURSORS]);
        let count = LINES.len();
        let forth = 0..count;
        let about = (0..count).map(|step| step * 41 % count);
        for place in forth.clone().chain(forth.rev()).chain(about) {
            let line = cursors.line(64, table, place as i32 * UNIT);
            assert_eq!(line, LINES[place], "instruction {place}");
        }
        assert_eq!(cursors.line(64, table, count as i32 * UNIT), -1, "behind the end");
    }

    #[test]
    fn one_code_does_not_go_on_where_another_was_read() {
        let mut cursors = Cursors([None; CURSORS]);
        let mut line =
            |key, first_line| cursors.line(key, LineTable { bytes: TABLE, first_line }, 20);
        assert_eq!([line(64, 1), line(1 << 40 | 64, 101), line(64, 1)], [4, 104, 4]);
    }
}
