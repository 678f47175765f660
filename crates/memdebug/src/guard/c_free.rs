//! Owns what a signal tells of a block that was given to the C library's `free` or `realloc`: whether the signal came out of one
//! of them, which block it was, and who called.
//! Leaves the signals to `fault.rs`.

use core::ffi::CStr;

use std::sync::OnceLock;

use crate::block::id_word;
use crate::checks::registry::LIVE;
use crate::host::Host;
use crate::os::{machine, probe};
use crate::report::violation::{BlockFacts, Call, Violation, ViolationKind};
use crate::sites::native::{self, Frame, NativePlace};
use crate::sites::site::Site;
use malloc_api::{Domain, MIN_ALIGN};

/// What is known before the first refusal.
struct Known {
    /// Whom refusals are reported to.
    host: Host,
    /// Where the C library has the address of its last words, as the tools that gather crashes know; 0 if it has none.
    last_words: usize,
}

static KNOWN: OnceLock<Known> = OnceLock::new();

/// Sets whom refusals are reported to, once.
pub(crate) fn set_host(host: Host) {
    // SAFETY: a name that ends with a NUL.
    let place = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__abort_msg".as_ptr()) };
    let _ = KNOWN.get_or_init(|| Known { host, last_words: place.addr() });
}

/// Frames from the one that a signal interrupted to that of `free`: raising a signal, aborting, writing a line, naming the error.
const MOST_INNER_FRAMES: usize = 16;
/// Those, and frames of callers that a report shows.
const MOST_FRAMES: usize = 32;
/// Bytes of the header that glibc has in front of a block.
const CHUNK_HEADER_BYTES: usize = 16;

/// Reports the call of `free` or `realloc` that a signal interrupted, if it did; whether it `faulted` there.
#[cold]
pub(crate) fn report(interrupted: &libc::ucontext_t, faulted: bool) {
    let Some(known) = KNOWN.get() else { return };
    if let Some(refusal) = refused(known, interrupted, faulted) {
        known.host.tell(&refusal);
    }
}

fn refused(known: &Known, interrupted: &libc::ucontext_t, faulted: bool) -> Option<Violation> {
    let Known { host, last_words } = known;
    let mut frames = [Frame::default(); MOST_FRAMES];
    let count = native::frames_of(machine::instruction(interrupted), &mut frames);
    let frames = &frames[..count];
    let (index, name) = outermost(&frames[..count.min(MOST_INNER_FRAMES)])?;
    let (inside, callers) = frames.split_at(index + 1);
    let own_words = inside.iter().flat_map(|frame| {
        let of_caller = callers.first().unwrap_or(frame).preserved;
        let words = frame.preserved.into_iter().zip(of_caller);
        words.filter(|(word, before)| word != before).map(|(word, _)| word)
    });
    let arguments = machine::arguments(interrupted).filter(|_| faulted);
    let words = own_words.chain(arguments);
    let facts = block_at_hand(words.clone());
    let takes_pads_for_a_size = || words.clone().any(is_chunk_size) && facts.is_some();
    let call = match name.and_then(call_of) {
        Some(call) => call,
        // A function that `free` has jumped to has no name.
        None if faulted => takes_pads_for_a_size().then_some(Call::Free)?,
        None => call_that_said(*last_words)?,
    };
    let domain = facts.as_ref().and_then(|facts| Domain::from_letter(facts.id()?));
    let known = facts.as_ref().and_then(|facts| LIVE.get(facts.address));
    let mut refusal =
        host.violation(ViolationKind::GivenToC, call, domain.unwrap_or(Domain::Raw), facts);
    refusal.allocated = match known {
        Some(known) => known.site,
        None => refusal.block.as_ref().and_then(BlockFacts::site),
    };
    refusal.caller = Site::of_frames(&frames[index..]);
    Some(refusal)
}

/// The outermost of the C library's frames that lead to the innermost one, and its name; `None` if the innermost is none of the C
/// library's.
fn outermost(frames: &[Frame]) -> Option<(usize, Option<&'static CStr>)> {
    let mark = (libc::gnu_get_libc_version as *const ()).addr();
    // SAFETY: 1: the C library stays.
    let NativePlace { library, .. } = unsafe { NativePlace::of(mark) }?;
    // SAFETY: 1: the library has a call on this thread's stack.
    let places = frames.iter().map(|frame| unsafe { NativePlace::of(frame.at) });
    let places = places.take_while(|place| place.is_some_and(|place| place.library == library));
    places.flatten().map(|place| place.function).enumerate().last()
}

/// The call of the function with this name.
fn call_of(name: &CStr) -> Option<Call> {
    match name.to_bytes() {
        b"free" | b"cfree" | b"__libc_free" => Some(Call::Free),
        b"realloc" | b"__libc_realloc" => Some(Call::Realloc),
        _ => None,
    }
}

/// The call that the C library's last words are of. `place` has the address of a length and the words, or null.
fn call_that_said(place: usize) -> Option<Call> {
    const LONGEST: usize = 16;
    let words = usize::from_ne_bytes(probe::peek(place)?).checked_add(size_of::<u32>())?;
    let words = probe::peek::<LONGEST>(words)?;
    let begin = |start: &&[u8]| words.starts_with(start);
    if [&b"realloc()"[..], b"mremap_chunk()"].iter().any(begin) {
        Some(Call::Realloc)
    } else {
        let free = [&b"free()"[..], b"munmap_chunk()", b"double free"].iter().any(begin);
        free.then_some(Call::Free)
    }
}

/// Whether glibc would make this of the header of a block, as the size of one of its own: the three lowest bits are marks to it.
fn is_chunk_size(word: usize) -> bool {
    Domain::ALL.iter().any(|domain| word as u64 == id_word(*domain) & !7)
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
