//! Owns writing the file of a running profile row by row. Leaves what the rows are to `file.rs`, which reads them.
//!
//! A program of a second has a hundred thousand sites, whose rows are written while the program is counted as running: numbers are
//! put there one by one, as a general serializer takes six times as long for them.

use std::io::{self, Write};

use heap_profile::{Location, Node, Origin, Row, StackSource, Tables};

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
        text.push(b'[');
        number(text, location.into());
        text.push(b',');
        node_or_null(text, caller);
        text.push(b']');
        Ok(())
    })?;
    rows.text.extend(br#"],"sites":["#);
    let mut names = Names::default();
    rows.list(tables.sites(), |text, Row { node, origin, class_bytes, live, peak, total }| {
        text.push(b'[');
        node_or_null(text, node);
        text.push(b',');
        text.extend_from_slice(names.of(origin)?.as_bytes());
        text.push(b',');
        number(text, class_bytes);
        for amount in [live, peak, total] {
            text.push(b',');
            number(text, amount.bytes);
            text.push(b',');
            number(text, amount.blocks);
        }
        text.push(b']');
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

/// Adds the number of a node before, or `null`.
fn node_or_null(text: &mut Vec<u8>, node: Option<u32>) {
    match node {
        Some(node) => number(text, node.into()),
        None => text.extend_from_slice(b"null"),
    }
}

/// What the origins of the rows so far are called, in quotes: a few, in any order.
#[derive(Default)]
struct Names(Vec<(Origin, String)>);

impl Names {
    fn of(&mut self, origin: Origin) -> io::Result<&str> {
        let Self(known) = self;
        let at = match known.iter().position(|(of, _)| *of == origin) {
            Some(at) => at,
            None => {
                known.push((origin, serde_json::to_string(&origin.to_string())?));
                known.len() - 1
            }
        };
        Ok(&known[at].1)
    }
}

#[inline]
fn number(text: &mut Vec<u8>, number: u64) {
    // Most are: sites that count one block, none of which is live.
    match number {
        0..10 => text.push(b'0' + number as u8),
        _ => text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_digits() {
        let small = 0..12_000;
        let ends =
            (0..=19).map(|digits| 10_u64.pow(digits)).flat_map(|end| [end - 1, end, end + 1]);
        for each in small.chain(ends).chain([u64::MAX]) {
            let mut text = b"x".to_vec();
            number(&mut text, each);
            assert_eq!(String::from_utf8(text).expect("digits"), format!("x{each}"));
        }
    }
}
