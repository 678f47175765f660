//! Owns writing the file of a running profile row by row. Leaves what the rows are to `file.rs`, which reads them.
//!
//! A program of a second has a hundred thousand sites, whose rows are written while the program is counted as running: numbers are
//! made here, as a general serializer takes six times as long for them.

use std::io::{self, Write};

use heap_profile::{Location, Node, Row, StackSource, Tables};

use super::file::{FORMAT, Mode, VERSION};

/// Writes what a profile knows as the file that [`ProfileFile::read`](super::ProfileFile::read) takes, without a copy of it
/// in memory; `to` gets a few bytes at a time.
///
/// # Errors
///
/// Those of `to`.
pub fn stream<S: StackSource>(
    tables: &Tables<S>,
    program: &[String],
    pid: u32,
    mode: Mode,
    to: impl Write,
) -> io::Result<()> {
    let mut rows = Rows { text: Vec::with_capacity(FLUSH_BYTES + ROOM_BYTES), to };
    let program = serde_json::to_string(program)?;
    let mode = serde_json::to_string(&mode)?;
    let text = &mut rows.text;
    write!(text, r#"{{"format":"{FORMAT}","version":{VERSION},"program":{program},"#)?;
    write!(text, r#""pid":{pid},"mode":{mode},"frames":["#)?;
    rows.list(tables.locations(), |text, Location { function, file, line }| {
        serde_json::to_writer(text, &(function.as_ref(), file.as_ref(), line)).map_err(Into::into)
    })?;
    rows.text.extend(br#"],"nodes":["#);
    rows.list(tables.nodes(), |text, Node { location, caller }| {
        let mut row = Short::new();
        row.put(b'[');
        row.number(location.into());
        row.put(b',');
        row.node(caller);
        row.put(b']');
        text.extend_from_slice(row.bytes());
        Ok(())
    })?;
    rows.text.extend(br#"],"sites":["#);
    let (mut last, mut name) = (None, String::new());
    rows.list(tables.sites(), |text, Row { node, origin, class_bytes, live, peak, total }| {
        if last.replace(origin) != Some(origin) {
            name = serde_json::to_string(&origin.to_string())?;
        }
        let mut row = Short::new();
        row.put(b'[');
        row.node(node);
        row.put(b',');
        text.extend_from_slice(row.bytes());
        text.extend_from_slice(name.as_bytes());
        let mut row = Short::new();
        row.put(b',');
        row.number(class_bytes);
        for amount in [live, peak, total] {
            row.put(b',');
            row.number(amount.bytes);
            row.put(b',');
            row.number(amount.blocks);
        }
        row.put(b']');
        text.extend_from_slice(row.bytes());
        Ok(())
    })?;
    let (lost, kept) = (tables.lost(), tables.frames());
    let Rows { mut text, mut to } = rows;
    write!(text, r#"],"lost":[{},{}],"kept":{kept}}}"#, lost.bytes, lost.blocks)?;
    to.write_all(&text)
}

/// After so many bytes the text is given on.
const FLUSH_BYTES: usize = 1 << 15;
/// Room for the last row before that.
const ROOM_BYTES: usize = 1 << 10;

/// The text so far, and who gets it.
struct Rows<W> {
    text: Vec<u8>,
    to: W,
}

impl<W: Write> Rows<W> {
    /// Writes the elements of a list, as `put` makes each.
    fn list<T>(
        &mut self,
        list: impl Iterator<Item = T>,
        mut put: impl FnMut(&mut Vec<u8>, T) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut is_first = true;
        for element in list {
            if !is_first {
                self.text.push(b',');
            }
            is_first = false;
            put(&mut self.text, element)?;
            if self.text.len() >= FLUSH_BYTES {
                self.to.write_all(&self.text)?;
                self.text.clear();
            }
        }
        Ok(())
    }
}

/// Some numbers of a row: seven with what stands between them are shorter.
struct Short {
    bytes: [u8; SHORT_BYTES],
    len: usize,
}

const SHORT_BYTES: usize = 256;
const _: () = assert!(7 * (u64::MAX.ilog10() as usize + 2) < SHORT_BYTES);

impl Short {
    #[inline]
    const fn new() -> Self {
        Self { bytes: [0; SHORT_BYTES], len: 0 }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    #[inline]
    fn put(&mut self, byte: u8) {
        if let Some(free) = self.bytes.get_mut(self.len) {
            *free = byte;
            self.len += 1;
        }
    }

    /// Adds a number of a list before, or `null`.
    #[inline]
    fn node(&mut self, number: Option<u32>) {
        match number {
            Some(number) => self.number(number.into()),
            None => b"null".iter().for_each(|byte| self.put(*byte)),
        }
    }

    /// Adds a number; most have one digit.
    #[inline]
    fn number(&mut self, number: u64) {
        if number < 10 { self.put(b'0' + number as u8) } else { self.digits(number) }
    }

    fn digits(&mut self, number: u64) {
        let count = number.ilog10() as usize + 1;
        let Some(digits) = self.bytes.get_mut(self.len..self.len + count) else { return };
        let mut left = number;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        self.len += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_digits() {
        for number in [0, 9, 10, 99, 100, 12_345, u32::MAX.into(), u64::MAX - 1, u64::MAX] {
            let mut row = Short::new();
            row.put(b'[');
            row.number(number);
            assert_eq!(row.bytes(), format!("[{number}").as_bytes());
        }
    }
}
