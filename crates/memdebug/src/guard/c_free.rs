//! Owns what a signal tells of a block that was given to the C library's `free` or `realloc`: whether the signal came out of one
//! of them, which block it was, and who called.
//! Leaves the signals to `fault.rs`.

use core::ffi::CStr;

use std::sync::OnceLock;

use crate::checks::registry::LIVE;
use crate::host::Host;
use crate::os::machine;
use crate::report::violation::{BlockFacts, Call, Violation, ViolationKind};
use crate::sites::native::{self, Frame};
use crate::sites::site::Site;
use malloc_api::{Domain, MIN_ALIGN};

/// Whom refusals are reported to.
static HOST: OnceLock<Host> = OnceLock::new();

/// Sets whom refusals are reported to, once.
pub(crate) fn set_host(host: Host) {
    let _ = HOST.get_or_init(|| host);
}

/// Reports a refusal.
pub(crate) fn report(refusal: &Violation) {
    if let Some(host) = HOST.get() {
        host.tell(refusal);
    }
}

/// Frames from the one that a signal interrupted to that of `free`: raising a signal, aborting, writing a line, naming the error.
const MOST_INNER_FRAMES: usize = 16;
/// Those, and frames of callers that a report shows.
const MOST_FRAMES: usize = 32;
/// Bytes of the header that glibc has in front of a block.
const CHUNK_HEADER_BYTES: usize = 16;

/// What the signal that interrupted a call of `free` or `realloc` tells; `None` if it came from elsewhere.
#[cold]
pub(crate) fn refused(interrupted: &libc::ucontext_t, faulted: bool) -> Option<Violation> {
    let host = HOST.get()?;
    let mut frames = [Frame::default(); MOST_FRAMES];
    let count = native::frames_of(machine::instruction(interrupted), &mut frames);
    let frames = &frames[..count];
    let mut inner = frames.iter().take(MOST_INNER_FRAMES).enumerate();
    let (index, call) =
        inner.find_map(|(index, frame)| Some((index, call_of(native::function_of(frame.at)?)?)))?;
    let (inside, callers) = frames.split_at(index + 1);
    let preserved = inside.iter().flat_map(|frame| {
        let of_caller = callers.first().unwrap_or(frame).preserved;
        let words = frame.preserved.into_iter().zip(of_caller);
        words.filter(|(word, before)| word != before).map(|(word, _)| word)
    });
    let arguments = machine::arguments(interrupted).filter(|_| faulted);
    let facts = block_at_hand(preserved.chain(arguments));
    let domain = facts.as_ref().and_then(|facts| Domain::from_letter(facts.id()?));
    let known = facts.as_ref().and_then(|facts| LIVE.get(facts.address));
    let mut refusal =
        host.violation(ViolationKind::GivenToC, call, domain.unwrap_or(Domain::Raw), facts);
    refusal.allocated = known.and_then(|known| known.site);
    refusal.caller = Site::of_frames(&frames[index..]);
    Some(refusal)
}

/// The call of the function with this name.
fn call_of(name: &CStr) -> Option<Call> {
    match name.to_bytes() {
        b"free" | b"cfree" | b"__libc_free" => Some(Call::Free),
        b"realloc" | b"__libc_realloc" => Some(Call::Realloc),
        _ => None,
    }
}

/// The live block that one of the C library's own words points to: as the caller gave it, or less the header that the C library
/// expects in front of it. Those are the words in registers that it changed since it was called; the caller's own may be other
/// blocks.
fn block_at_hand(words: impl Iterator<Item = usize>) -> Option<BlockFacts> {
    words
        .flat_map(|word| [word, word.wrapping_add(CHUNK_HEADER_BYTES)])
        .filter(|word| word % MIN_ALIGN == 0)
        .map(|address| BlockFacts::read(address, false))
        .find(BlockFacts::is_intact)
}
