//! Owns writing the file of a running profile row by row. Leaves what the rows are to `file.rs`, which reads them.

use std::fmt::Display;
use std::io::{self, Write};

use heap_profile::{Location, Node, Row, StackSource, Tables};
use serde::{Serialize, Serializer};

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
    let frame = |Location { function, file, line }| (Text(function), Text(file), line);
    let node = |Node { location, caller }| (location, caller);
    let site = |Row { node, origin, class_bytes, live, peak, total }| {
        let [live, peak] = [live, peak].map(|amount| (amount.bytes, amount.blocks));
        let (origin, total) = (Text(origin), (total.bytes, total.blocks));
        (node, origin, class_bytes, live.0, live.1, peak.0, peak.1, total.0, total.1)
    };
    let lost = tables.lost();
    let streamed = Streamed {
        format: FORMAT,
        version: VERSION,
        program,
        pid,
        mode,
        frames: Rows(|| tables.locations().map(frame)),
        nodes: Rows(|| tables.nodes().map(node)),
        sites: Rows(|| tables.sites().map(site)),
        lost: (lost.bytes, lost.blocks),
        kept: tables.frames(),
    };
    serde_json::to_writer(to, &streamed).map_err(Into::into)
}

/// The members of a `ProfileFile`, in their order.
#[derive(Serialize)]
struct Streamed<'a, Frames, Nodes, Sites> {
    format: &'static str,
    version: u32,
    program: &'a [String],
    pid: u32,
    mode: Mode,
    frames: Frames,
    nodes: Nodes,
    sites: Sites,
    lost: (u64, u64),
    kept: usize,
}

/// A list whose elements are made when they are written.
struct Rows<F>(F);

impl<T: Iterator<Item: Serialize>, F: Fn() -> T> Serialize for Rows<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// Something that is written as its text.
struct Text<T>(T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
