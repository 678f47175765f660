//! Owns `PythonStacks`: the calling thread's Python frames as stacks of a table, and their names, which are kept for ever; and the
//! one table of a process, from which a profile and the debug hooks have their stacks. Leaves reading frames to
//! `frame_words.rs`.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Once, OnceLock};

use heap_profile::{Calls, Frame, Location, Options, ProfileError, StackSource, StackTable, Walk};
use malloc_api::immortal;
use memdebug::{FrameSink, HostStacks};
use pymem_sync::{ForkLock, HeldOverFork, Lock, Rank, hold_over_forks};

use crate::host::capi::word_at;
use crate::host::frame_words::{FrameWords, UsualWords};
use crate::host::line_table::CURSORS_READ;
use crate::host::native_frames::NativeFrames;
use crate::host::python::Host;
use crate::unwinder;

/// Tells Python stacks. A place is the address of a [`Named`] and a line.
///
/// The address of a code object stands for another one as soon as the program has dropped the first. Where every free is seen,
/// deaths are counted; else code objects that have names are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PythonStacks {
    words: FrameWords,
    deaths: Option<&'static Deaths>,
    /// Who tells the native frames, where they are asked for.
    native: Option<NativeFrames>,
    plain: Plain,
}

/// What tells the calls of a stack of Python frames alone.
#[derive(Clone, Copy, Debug)]
struct Plain {
    /// Never of the age of a source, where calls cannot be told so.
    deaths: &'static Deaths,
    words: UsualWords,
}

/// The code of every native frame, whose instruction is the address that it goes on at; no object has this address.
const NATIVE: usize = 1;

/// How many code objects have died.
#[derive(Debug)]
struct Deaths {
    all: AtomicUsize,
    /// By a hash of their addresses.
    at: [AtomicU16; DEATHS],
}

const DEATHS: usize = 4096;

/// An age that no source says, nor the walk of a thread that was told none.
static NEVER: Deaths = Deaths::new(usize::MAX - 1);

/// The bits of a frame's code that count the deaths; no address has any of them.
const DEATH_BITS: u32 = u16::BITS;

/// The address of a code object alone.
#[inline]
const fn without_deaths(code: usize) -> usize {
    code << DEATH_BITS >> DEATH_BITS
}

impl Deaths {
    /// How many there were.
    #[inline]
    fn age(&self) -> usize {
        // Relaxed: who runs code got it after the death of what was there before, in an order that the interpreter makes.
        self.all.load(Relaxed)
    }

    /// So many deaths so far, by no address.
    const fn new(all: usize) -> Self {
        Self { all: AtomicUsize::new(all), at: [const { AtomicU16::new(0) }; DEATHS] }
    }

    /// No death so far.
    fn none() -> &'static Self {
        immortal::leak(Self::new(0))
    }

    #[inline]
    fn of(&self, code: usize) -> &AtomicU16 {
        // Blocks are 16-aligned, and code objects some hundred bytes long.
        &self.at[(code >> 4 ^ code >> 16) % DEATHS]
    }

    /// The address of a code object, which may have a count of deaths, and the deaths at the address.
    #[inline]
    fn counted(&self, code: usize) -> usize {
        let code = without_deaths(code);
        // Relaxed: who runs the code got it in an order that the interpreter makes.
        code | usize::from(self.of(code).load(Relaxed)).rotate_right(DEATH_BITS)
    }
}

/// What was named. Held over a fork.
static NAMED: Lock<BTreeSet<&'static Named>> = Lock::new(BTreeSet::new());

/// What a code object is called.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    function: Arc<str>,
    file: Arc<str>,
}

impl Named {
    /// The one of these names that lives for ever.
    fn interned(self) -> &'static Self {
        let mut all = NAMED.lock();
        if let Some(known) = all.get(&self) {
            return known;
        }
        let named = immortal::leak(self);
        all.insert(named);
        named
    }

    /// The names at a place.
    fn at(place: Frame) -> &'static Self {
        // SAFETY: `place` made the word from a `Named` that lives for ever.
        unsafe { &*ptr::with_exposed_provenance(place.code) }
    }
}

/// The line of a place.
#[expect(clippy::cast_possible_truncation, reason = "`place` made it from a line")]
const fn line_of(place: Frame) -> u32 {
    place.at as u32
}

impl StackSource for PythonStacks {
    fn capture(&self, walk: &mut Walk<'_>) {
        if let Some(native) = self.native {
            let mut is_full = false;
            native.walk(self.words.entry(), |call, at| {
                let next = walk.visit(call, Frame { code: NATIVE, at });
                is_full = next.is_break();
                next
            });
            if is_full {
                return;
            }
        }
        match self.deaths {
            None => self.words.walk(walk, 0, |code| code),
            Some(deaths) => self.words.walk(walk, deaths.age(), |code| deaths.counted(code)),
        }
    }

    #[inline(always)]
    fn plain_calls(&self, age: usize) -> Option<(usize, impl Calls)> {
        let Plain { deaths, words } = &self.plain;
        if deaths.age() != age {
            return None;
        }
        // SAFETY: 1: the layout was trusted when the age was said.
        unsafe { words.calls(|code| deaths.counted(code)) }
    }

    fn usage(&self, frame: Frame) -> (Frame, u32) {
        let code = without_deaths(frame.code);
        let deaths = frame.code.rotate_left(DEATH_BITS) as u16;
        (Frame { code, at: frame.at }, deaths.into())
    }

    fn place(&self, frame: Frame) -> Option<Frame> {
        let (Frame { code, at }, _) = self.usage(frame);
        if code == NATIVE {
            return Some(Frame { code, at: NativeFrames::place(at) });
        }
        if self.deaths.is_some_and(|deaths| deaths.counted(code) != frame.code) {
            return None;
        }
        let mut taken = Taken::default();
        // SAFETY: 1: a place is asked for by the thread that has just captured the frame, or has captured it before and its code
        // has not died.
        unsafe { self.words.describe(code, at, frame.code, &mut taken) };
        let (named, line) = taken.0?;
        if self.deaths.is_none() {
            // SAFETY: 1: as above.
            unsafe { self.words.keep(code) };
        }
        let named = named.interned();
        Some(Frame { code: ptr::from_ref(named).expose_provenance(), at: line as usize })
    }

    fn locate(&self, place: Frame) -> Location {
        if place.code == NATIVE {
            return NativeFrames::locate(place.at);
        }
        let named = Named::at(place);
        let line = line_of(place);
        Location { function: named.function.clone(), file: named.file.clone(), line }
    }
}

/// Takes the one frame that is shown.
#[derive(Default)]
struct Taken(Option<(Named, u32)>);

impl FrameSink for Taken {
    fn frame(&mut self, file: &str, line: u32, function: Option<&str>) {
        self.0 =
            Some((Named { function: function.unwrap_or("?").into(), file: file.into() }, line));
    }

    fn is_full(&self) -> bool {
        self.0.is_some()
    }
}

/// The stacks of this process.
static TABLE: OnceLock<&'static StackTable<PythonStacks>> = OnceLock::new();

/// The table of this process, which has stacks of as many frames as `options` say, or as whoever came first asked for; with `native`
/// a table of its own, as the hooks show Python frames alone. Code objects need not be kept where the table
/// [`mourns`](PythonStacks::mourner) each of them, as `sees_all` says. `None` where the interpreter does not tell its frames.
///
/// # Errors
///
/// No memory, or a number of frames that is none.
pub(crate) fn table(
    host: &Host,
    options: Options,
    native: bool,
    sees_all: bool,
) -> Result<Option<&'static StackTable<PythonStacks>>, ProfileError> {
    let deaths = sees_all.then(Deaths::none);
    if !native {
        return start(host, options, deaths);
    }
    let Some(native) = NativeFrames::find() else { return Ok(None) };
    unwinder::load();
    make(host, options, deaths, Some(native))
}

fn start(
    host: &Host,
    options: Options,
    deaths: Option<&'static Deaths>,
) -> Result<Option<&'static StackTable<PythonStacks>>, ProfileError> {
    if let Some(table) = TABLE.get() {
        return Ok(Some(table));
    }
    let table = make(host, options, deaths, None)?;
    Ok(table.map(|table| *TABLE.get_or_init(|| table)))
}

fn make(
    host: &Host,
    options: Options,
    deaths: Option<&'static Deaths>,
    native: Option<NativeFrames>,
) -> Result<Option<&'static StackTable<PythonStacks>>, ProfileError> {
    static NAMES_HELD: Once = Once::new();
    let Some(words) = FrameWords::find(host) else { return Ok(None) };
    let usual = deaths.filter(|_| native.is_none()).zip(words.usual());
    let plain = match usual {
        Some((deaths, words)) => Plain { deaths, words },
        None => Plain { deaths: &NEVER, words: UsualWords::NONE },
    };
    let source = PythonStacks { words, deaths, native, plain };
    let table = StackTable::new(source, options.frames, options.buckets)?;
    // Of one rank, the locks that are added last are taken first. Without memory for the handlers a child may find a lock
    // held, as without these calls.
    let hold = |held: &'static dyn HeldOverFork| {
        let _ = hold_over_forks(immortal::leak(ForkLock::new(Rank::Wrapper, held)));
    };
    NAMES_HELD.call_once(|| {
        hold(&NAMED);
        hold(&CURSORS_READ);
    });
    hold(table);
    Ok(Some(table))
}

/// Frames that a report of the hooks shows.
static SHOWN: AtomicU8 = AtomicU8::new(0);

/// The stacks that the debug hooks ask for.
pub(crate) static HOOKS: HostStacks = HostStacks { current, show, alike, freed };

/// Prepares the stacks of the hooks, of which reports show `frames` frames; code objects need not be kept where the hooks
/// see each of them `freed`. Where the interpreter does not tell its frames, or without memory, there are none.
pub(crate) fn start_for_hooks(host: &Host, frames: u8, sees_all: bool) {
    SHOWN.store(frames, Relaxed);
    let deaths = sees_all.then(Deaths::none);
    // As many as a profile has that is not told how many, as it would share the table.
    let frames = Options::default().frames.max(frames.into());
    let _ = start(host, Options { frames, ..Options::default() }, deaths);
}

fn current() -> Option<u32> {
    let Some(table) = TABLE.get() else { return Some(0) };
    table.current().map(|stack| stack.map_or(0, NonZeroU32::get))
}

fn show(stack: u32, sink: &mut dyn FrameSink) {
    let Some((table, stack)) = TABLE.get().zip(NonZeroU32::new(stack)) else { return };
    for place in table.places(stack).take(SHOWN.load(Relaxed).into()) {
        let Named { function, file } = Named::at(place);
        sink.frame(file, line_of(place), Some(function));
    }
}

fn alike(stack: u32) -> u32 {
    let cut = TABLE
        .get()
        .zip(NonZeroU32::new(stack))
        .and_then(|(table, stack)| table.cut(stack, SHOWN.load(Relaxed).into()));
    cut.map_or(stack, NonZeroU32::get)
}

fn freed(block: NonNull<u8>, size: usize) {
    let Some(table) = TABLE.get() else { return };
    let Some(mourner) = table.source().mourner() else { return };
    let has_head = size >= table.source().words.head_bytes();
    // SAFETY: 1: the block is the hooks' to read until it is freed.
    if has_head && unsafe { mourner.is_code(block) } {
        mourner.count(block);
    }
}

/// Counts the deaths of code objects, as whoever sees every free is to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mourner {
    deaths: &'static Deaths,
    /// Where an object has its type, in bytes, and what stands there in a code object.
    type_word: (usize, usize),
}

impl Mourner {
    /// Whether a code object is at `block`.
    ///
    /// # Safety
    ///
    /// 1. The head of an object can be read at `block`, which is 16-aligned: 16 bytes with the GIL.
    #[inline(always)]
    pub(crate) unsafe fn is_code(&self, block: NonNull<u8>) -> bool {
        let (type_of, code_type) = self.type_word;
        // SAFETY: 1: duty 1.
        unsafe { word_at(block.as_ptr().expose_provenance() + type_of) == code_type }
    }

    /// Counts the death of the code object at `block`.
    pub(crate) fn count(&self, block: NonNull<u8>) {
        self.deaths.of(block.addr().get()).fetch_add(1, Relaxed);
        self.deaths.all.fetch_add(1, Relaxed);
    }
}

impl PythonStacks {
    /// Who is to be told of each block that is freed; `None` where code objects with names are kept.
    pub(crate) fn mourner(&self) -> Option<Mourner> {
        let type_word = self.words.code_type();
        self.deaths.map(|deaths| Mourner { deaths, type_word })
    }
}
