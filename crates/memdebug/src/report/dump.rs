//! Owns the text of a report: CPython's dump of a block line for line, and what we know beyond it.
//! Leaves the facts to `violation.rs`.

use core::fmt::{self, Write};

use crate::pattern::FORBIDDENBYTE;
use crate::report::frames::{Ascii, FrameSink, Traceback, Tracing};
use crate::report::violation::{BlockFacts, Call, SHOWN_BYTES, Shape, Violation, ViolationKind};

impl Violation {
    /// The message in CPython's fatal error.
    #[must_use]
    pub fn message(&self) -> Message {
        let mut message = Message::new();
        // A `Message` takes what fits and never fails.
        let _ = write_message(self, &mut message);
        message
    }

    /// Writes the dump as CPython prints it, byte for byte, without allocating, and where the block was allocated and freed if
    /// that is known.
    ///
    /// `Display` gives the same as text: a byte of the block that is no ASCII character is shown as its Latin-1 one.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_dump(&self, out: &mut dyn DumpSink) -> fmt::Result {
        write(self, out)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self, &mut Latin1(f))
    }
}

impl core::error::Error for Violation {}

/// Takes a dump: text, and single bytes that need not be UTF-8.
pub trait DumpSink: fmt::Write {
    /// Writes one byte as it is.
    ///
    /// # Errors
    ///
    /// Those of the place written to.
    fn write_byte(&mut self, byte: u8) -> fmt::Result;

    /// Passes on what is gathered so far. Called before text whose making may go wrong: names of functions.
    ///
    /// # Errors
    ///
    /// Those of the place written to.
    fn pass_on(&mut self) -> fmt::Result {
        Ok(())
    }
}

/// Bytes in the longest message, with room for its closing NUL.
const MESSAGE_BYTES: usize = 192;

/// The message of a fatal error: bytes, as an id byte of a corrupt block is printed as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message {
    bytes: [u8; MESSAGE_BYTES],
    len: usize,
}

impl Message {
    const fn new() -> Self {
        Self { bytes: [0; MESSAGE_BYTES], len: 0 }
    }

    /// The message without a closing NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The message as a C string.
    #[must_use]
    pub fn as_c_str(&self) -> &core::ffi::CStr {
        // The last byte is never written, so a NUL is always found.
        core::ffi::CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl fmt::Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = MESSAGE_BYTES - 1 - self.len;
        let take = text.len().min(free);
        self.bytes[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

impl DumpSink for Message {
    fn write_byte(&mut self, byte: u8) -> fmt::Result {
        if self.len < MESSAGE_BYTES - 1 {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Latin1(f);
        self.as_bytes().iter().try_for_each(|&b| text.write_byte(b))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A text sink as a sink of bytes: a byte that is no ASCII character becomes its Latin-1 character.
struct Latin1<'a, W: Write>(&'a mut W);

impl<W: Write> Write for Latin1<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(text)
    }
}

impl<W: Write> DumpSink for Latin1<'_, W> {
    fn write_byte(&mut self, byte: u8) -> fmt::Result {
        self.0.write_char(char::from(byte))
    }
}

/// The message after `FUNC: `.
fn write_message(violation: &Violation, out: &mut Message) -> fmt::Result {
    let domain = violation.domain.letter();
    let found = violation.block.as_ref().and_then(BlockFacts::id).filter(|&id| id != domain);
    match (violation.kind, found) {
        (ViolationKind::WrongThread, _) => out.write_str(violation.thread_message),
        (ViolationKind::LeadingPad, _) => out.write_str("bad leading pad byte"),
        (ViolationKind::TrailingPad, _) => out.write_str("bad trailing pad byte"),
        (ViolationKind::UseAfterFree { .. }, _) => out.write_str("write to a freed block"),
        (ViolationKind::GuardPage { freed: true, .. }, _) => out.write_str("use of a freed block"),
        (ViolationKind::GuardPage { .. }, _) => out.write_str("access outside a block"),
        (ViolationKind::GivenToC, _) if violation.block.is_some() => {
            out.write_str("block of another allocator, given to the C library")
        }
        (ViolationKind::GivenToC, _) => out.write_str("pointer that the C library refused"),
        (ViolationKind::WrongDomain { allocated }, _) => bad_id(out, allocated.letter(), domain),
        // CPython's message wherever its own check would have given it.
        (_, Some(id)) => bad_id(out, id, domain),
        (ViolationKind::DoubleFree, None) => out.write_str("double free"),
        (ViolationKind::InteriorPointer { .. }, None) => out.write_str("pointer inside a block"),
        (ViolationKind::BadId | ViolationKind::ForeignPointer, None) => {
            out.write_str("pointer that is no block")
        }
    }
}

fn bad_id(out: &mut Message, allocated: u8, verified: u8) -> fmt::Result {
    out.write_str("bad ID: Allocated using API '")?;
    out.write_byte(allocated)?;
    out.write_str("', verified using API '")?;
    out.write_byte(verified)?;
    out.write_str("'")
}

/// CPython's dump of one block as it is now, whatever its state: `_PyObject_DebugDumpAddress`.
///
/// `Display` writes it. A copy: nothing is read again.
#[derive(Clone, Debug)]
pub struct BlockDump {
    facts: BlockFacts,
    traceback: Option<Traceback>,
}

impl BlockDump {
    pub(crate) fn new(facts: BlockFacts, traceback: Option<Traceback>) -> Self {
        Self { facts, traceback }
    }
}

impl fmt::Display for BlockDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_stock(&self.facts, self.traceback, &mut Latin1(f))
    }
}

/// What CPython writes.
fn write_stock(
    block: &BlockFacts,
    traceback: Option<Traceback>,
    out: &mut dyn DumpSink,
) -> fmt::Result {
    write_block(block, out)?;
    if block.address == 0 {
        return Ok(());
    }
    write_traceback(traceback, block.address, out)
}

/// The whole dump.
fn write(violation: &Violation, out: &mut dyn DumpSink) -> fmt::Result {
    if let Some(block) = &violation.block {
        write_stock(block, violation.traceback, out)?;
    }
    write_verdict(violation, out)?;
    for (site, what) in
        [(violation.allocated, "Memory block allocated"), (violation.freed, "Memory block freed")]
    {
        if let Some(site) = site {
            out.pass_on()?;
            writeln!(out, "{what} by (most recent call first):")?;
            write!(out, "{site}")?;
            out.write_str("\n")?;
        }
    }
    Ok(())
}

/// CPython's part. Every line of it is one of `_PyObject_DebugDumpAddress`'s, but for those about unreadable memory, where
/// CPython dies.
fn write_block(block: &BlockFacts, out: &mut dyn DumpSink) -> fmt::Result {
    if block.address == 0 {
        return out.write_str("Debug memory block at address p=(nil):\n");
    }
    write!(out, "Debug memory block at address p={:#x}:", block.address)?;
    let (Some(id), Some(size), Some(pads)) = (block.id(), block.size(), block.pads()) else {
        return out.write_str("\n    The 16 header bytes at p-16 cannot be read.\n\n");
    };
    out.write_str(" API '")?;
    out.write_byte(id)?;
    out.write_str("'\n")?;
    writeln!(out, "    {size} bytes originally requested")?;
    match block.shape {
        Shape::Full => {
            write_pads(pads, block.pads_intact(), out)?;
            write_tail(block, size, out)?;
        }
        Shape::Freed => out.write_str("    The block is freed, and held in the quarantine.\n")?,
        Shape::Guarded => out.write_str("    The block stands between guard pages.\n")?,
    }
    if let Some(serial) = block.serial {
        match serial {
            Some(bytes) => writeln!(
                out,
                "    The block was made by call #{} to debug malloc/realloc.",
                u64::from_be_bytes(bytes)
            )?,
            None => out.write_str("    The number of the call that made it cannot be read.\n")?,
        }
    }
    write_data(block, out)?;
    out.write_str("\n")
}

fn write_pads(pads: &[u8], intact: bool, out: &mut dyn DumpSink) -> fmt::Result {
    let count = pads.len();
    write!(out, "    The {count} pad bytes at p-{count} are ")?;
    if intact {
        return out.write_str("FORBIDDENBYTE, as expected.\n");
    }
    writeln!(out, "not all FORBIDDENBYTE (0x{FORBIDDENBYTE:02x}):")?;
    for (index, &byte) in pads.iter().enumerate() {
        write!(out, "        at p-{}: ", count - index)?;
        write_guard_byte(byte, out)?;
    }
    out.write_str(
        "    Because memory is corrupted at the start, the count of bytes requested\n       \
         may be bogus, and checking the trailing pad bytes may segfault.\n",
    )
}

fn write_tail(block: &BlockFacts, size: u64, out: &mut dyn DumpSink) -> fmt::Result {
    if block.plausible_size().is_none() {
        return writeln!(
            out,
            "    No block has {size} bytes: the trailing pad bytes are not read."
        );
    }
    let at = block.address as u64 + size;
    let Some(tail) = block.tail else {
        return writeln!(out, "    The 8 pad bytes at tail={at:#x} cannot be read.");
    };
    write!(out, "    The {} pad bytes at tail={at:#x} are ", tail.len())?;
    if tail.iter().all(|&b| b == FORBIDDENBYTE) {
        return out.write_str("FORBIDDENBYTE, as expected.\n");
    }
    writeln!(out, "not all FORBIDDENBYTE (0x{FORBIDDENBYTE:02x}):")?;
    for (index, &byte) in tail.iter().enumerate() {
        write!(out, "        at tail+{index}: ")?;
        write_guard_byte(byte, out)?;
    }
    Ok(())
}

fn write_guard_byte(byte: u8, out: &mut dyn DumpSink) -> fmt::Result {
    let mark = if byte == FORBIDDENBYTE { "" } else { " *** OUCH" };
    writeln!(out, "0x{byte:02x}{mark}")
}

fn write_data(block: &BlockFacts, out: &mut dyn DumpSink) -> fmt::Result {
    let size = block.data_bytes;
    if size == 0 {
        return Ok(());
    }
    let (Some(first), Some(last)) = (block.first, block.last) else {
        return out.write_str("    Data at p cannot be read.\n");
    };
    out.write_str("    Data at p:")?;
    let head = size.min(SHOWN_BYTES);
    for byte in &first[..head] {
        write!(out, " {byte:02x}")?;
    }
    let rest = size - head;
    if rest > SHOWN_BYTES {
        out.write_str(" ...")?;
    }
    for byte in &last[..rest.min(SHOWN_BYTES)] {
        write!(out, " {byte:02x}")?;
    }
    out.write_str("\n")
}

/// Frames in CPython's form for a block's traceback: without the function.
struct AllocationFrames<'a> {
    out: &'a mut dyn DumpSink,
    result: fmt::Result,
    any: bool,
}

impl FrameSink for AllocationFrames<'_> {
    fn frame(&mut self, file: &str, line: u32, _function: Option<&str>) {
        if self.result.is_err() {
            return;
        }
        if !self.any {
            self.any = true;
            self.result =
                self.out.write_str("Memory block allocated at (most recent call first):\n");
        }
        self.result = self
            .result
            .and_then(|()| writeln!(self.out, "  File \"{}\", line {line}", Ascii(file)));
    }
}

fn write_traceback(
    traceback: Option<Traceback>,
    address: usize,
    out: &mut dyn DumpSink,
) -> fmt::Result {
    let off = "Enable tracemalloc to get the memory block allocation traceback\n\n";
    let Some(supplier) = traceback else {
        return out.write_str(off);
    };
    let mut frames = AllocationFrames { out: &mut *out, result: Ok(()), any: false };
    let tracing = supplier(address, &mut frames);
    let (result, any) = (frames.result, frames.any);
    result?;
    match tracing {
        Tracing::Off => out.write_str(off),
        Tracing::Known if any => out.write_str("\n"),
        Tracing::Known | Tracing::Unknown => Ok(()),
    }
}

/// What we found beyond CPython's own checks. Nothing for the kinds that CPython reports alike.
fn write_verdict(violation: &Violation, out: &mut dyn DumpSink) -> fmt::Result {
    match violation.kind {
        ViolationKind::BadId
        | ViolationKind::WrongDomain { .. }
        | ViolationKind::LeadingPad
        | ViolationKind::TrailingPad
        | ViolationKind::WrongThread => return Ok(()),
        ViolationKind::DoubleFree => out.write_str("memdebug: double free: the block was freed before.")?,
        ViolationKind::UseAfterFree { offset, found, changed } => write!(
            out,
            "memdebug: use after free: {changed} of the freed block's bytes changed, the first at p{offset:+} is \
             0x{found:02x} instead of DEADBYTE (0xdd)."
        )?,
        ViolationKind::InteriorPointer { block, size } => {
            let address = violation.address().unwrap_or(block);
            write!(
                out,
                "memdebug: interior pointer: it points {} bytes into the block of {size} bytes at {block:#x}.",
                address.wrapping_sub(block)
            )?;
        }
        ViolationKind::ForeignPointer => out.write_str(
            "memdebug: foreign pointer: these hooks never returned it, or its memory is already gone.",
        )?,
        ViolationKind::GivenToC if violation.block.is_some() => write!(
            out,
            "memdebug: a live block was given to C's {}: it must go to the functions of the domain that made it.",
            violation.func()
        )?,
        ViolationKind::GivenToC => write!(
            out,
            "memdebug: C's {} refused a pointer: a block of another allocator, or C's own heap was overwritten.",
            violation.func()
        )?,
        ViolationKind::GuardPage { offset, freed, write } => {
            let access = match write {
                Some(true) => "write",
                Some(false) => "read",
                None => "access",
            };
            let what = match (freed, offset < 0) {
                (true, _) => "use after free",
                (false, true) => "underflow",
                (false, false) => "overflow",
            };
            write!(out, "memdebug: {what}: {access} at p{offset:+} of a guarded block.")?;
        }
    }
    if violation.call == Call::Check {
        out.write_str(" Found by a later check of the block.")?;
    }
    out.write_str("\n\n")
}
