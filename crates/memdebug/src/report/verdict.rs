//! Owns naming what is wrong with a block that failed its check, from nothing but memory.
//! Leaves reading the block to `violation.rs`; where a registry knows better, `checked.rs` asks it first.

use malloc_api::MIN_ALIGN;

use crate::block::{Extra, HEADER_BYTES, TAIL_BYTES, max_request};
use crate::os::probe;
use crate::pattern::{DEADBYTE, FORBIDDENBYTE};
use crate::report::violation::{BlockFacts, ViolationKind};
use malloc_api::Domain;

/// Bytes searched in front of a pointer for the block that it may point into.
const SEARCH_BYTES: usize = 4 << 20;
/// Bytes read at a time in that search.
const WINDOW_BYTES: usize = 4096;

/// CPython's order of checks, each refined by what the memory around it shows.
pub(crate) fn kind(facts: &BlockFacts, domain: Domain) -> ViolationKind {
    let Some(id) = facts.id() else {
        return ViolationKind::ForeignPointer;
    };
    if id != domain.letter() {
        return bad_id(facts, id);
    }
    if !facts.pads_intact() || facts.tail.is_none() {
        // A size that leads nowhere was overwritten from the front, too.
        return ViolationKind::LeadingPad;
    }
    ViolationKind::TrailingPad
}

fn bad_id(facts: &BlockFacts, id: u8) -> ViolationKind {
    if facts.header_is_dead() {
        return ViolationKind::DoubleFree;
    }
    if let Some(allocated) = Domain::from_letter(id).filter(|_| facts.pads_intact()) {
        return ViolationKind::WrongDomain { allocated };
    }
    if let Some((block, size)) = enclosing_block(facts.address) {
        return ViolationKind::InteriorPointer { block, size };
    }
    if looks_freed(facts) {
        return ViolationKind::DoubleFree;
    }
    if facts.address % MIN_ALIGN != 0 || probe::is_no_heap(facts.address) {
        return ViolationKind::ForeignPointer;
    }
    ViolationKind::BadId
}

/// The live block whose data `address` lies in, found by its intact header and guard.
fn enclosing_block(address: usize) -> Option<(usize, usize)> {
    let mut window = [0_u8; WINDOW_BYTES + HEADER_BYTES];
    // Headers are 16-aligned; the nearest one before `address` comes first.
    let mut end = address & !(HEADER_BYTES - 1);
    let lowest = end.saturating_sub(SEARCH_BYTES);
    while end > lowest {
        let start = (end - 1) & !(WINDOW_BYTES - 1);
        let bytes = &mut window[..end - start];
        if !probe::read(start, bytes) {
            return None;
        }
        for (index, header) in bytes.chunks_exact(HEADER_BYTES).enumerate().rev() {
            if header[HEADER_BYTES - 1] != FORBIDDENBYTE {
                continue;
            }
            let block = start + (index + 1) * HEADER_BYTES;
            let inside = |&size: &usize| address > block && address - block < size;
            let size = stated_by_intact_header(header).filter(inside);
            if let Some(size) = size.filter(|&size| guard_is_intact(block + size)) {
                return Some((block, size));
            }
        }
        end = start;
    }
    None
}

fn stated_by_intact_header(header: &[u8]) -> Option<usize> {
    let (size, id) = header.split_first_chunk::<8>()?;
    Domain::from_letter(id[0])?;
    if id[1..].iter().any(|&b| b != FORBIDDENBYTE) {
        return None;
    }
    let size = usize::try_from(u64::from_be_bytes(*size)).ok()?;
    (size <= max_request(Extra::NONE)).then_some(size)
}

/// Whether a free left its fill behind. A C library puts its own words over the header of a free block, and over the first
/// two of a large one's data too.
pub(crate) fn looks_freed(facts: &BlockFacts) -> bool {
    let is_written = |id| id != FORBIDDENBYTE;
    facts.header_is_dead()
        || facts.id().is_some_and(is_written)
            && (is_dead::<8>(facts.address) || is_dead::<64>(facts.address.wrapping_add(16)))
}

/// Whether the `N` bytes at `address` were filled by a free.
fn is_dead<const N: usize>(address: usize) -> bool {
    probe::peek::<N>(address) == Some([DEADBYTE; N])
}

fn guard_is_intact(tail: usize) -> bool {
    probe::peek::<TAIL_BYTES>(tail) == Some([FORBIDDENBYTE; TAIL_BYTES])
}
