//! Owns `PythonStacks`: the calling thread's Python frames as stacks of a table, and their names, which are kept for ever; and the
//! one table of a process, from which a profile and the debug hooks have their stacks. Leaves reading frames to
//! `frame_words.rs`.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Once, OnceLock};

use heap_profile::{
    Calls, Frame, Location, Options, PlainSource, ProfileError, StackSource, StackTable, Walk,
};
use malloc_api::immortal;
use memdebug::{FrameSink, HostStacks};
use pymem_sync::{ForkLock, HeldOverFork, Lock, Rank, hold_over_forks};

use crate::host::code_deaths::{DEATH_BITS, Deaths, NEVER, without_deaths};
use crate::host::frame_words::{FrameWords, UsualWords};
use crate::host::line_table::CURSORS_READ;
use crate::host::native_frames::NativeFrames;
use crate::host::python::Host;
use crate::unwinder;

/// Tells Python stacks. A place is the address of a [`Named`] and a line.
///
/// The address of a code object stands for another one as soon as the program has dropped the first: deaths are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PythonStacks {
    words: FrameWords,
    deaths: &'static Deaths,
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

// SAFETY: 1: a call has the address of its record. 2: words are read.
unsafe impl PlainSource for Plain {
    #[inline(always)]
    fn plain_calls(&self, age: usize) -> Option<(usize, impl Calls)> {
        let Self { deaths, words } = self;
        if deaths.age() != age {
            return None;
        }
        // SAFETY: 1: the layout was trusted when the age was said.
        unsafe { words.calls(|code| deaths.counted(code)) }
    }
}

/// The code of every native frame, whose instruction is the address that it goes on at; no object has this address.
const NATIVE: usize = 1;

/// What was named. Held over a fork.
static NAMED: Lock<Names> =
    Lock::new(Names { all: BTreeSet::new(), of_code: [const { (0, None) }; CODES] });

/// How many code objects are remembered by their words: of one that runs for the first time, each line asks for the names.
const CODES: usize = 64;

/// All names, and those of the last code objects.
struct Names {
    all: BTreeSet<&'static Named>,
    /// By a hash, the word of a code object, which counts deaths, and its names.
    of_code: [(usize, Option<&'static Named>); CODES],
}

impl Names {
    const fn place(code: usize) -> usize {
        (code >> 4 ^ code >> 10) % CODES
    }

    /// The names of the code object with this word, if they are remembered.
    fn of_code(&self, code: usize) -> Option<&'static Named> {
        let (known, named) = self.of_code[Self::place(code)];
        named.filter(|_| known == code)
    }

    /// The ones of these names that live for ever, which are those of `code` from now on.
    fn intern(&mut self, code: usize, named: Named) -> &'static Named {
        let named = match self.all.get(&named) {
            Some(known) => known,
            None => {
                let named = immortal::leak(named);
                self.all.insert(named);
                named
            }
        };
        self.of_code[Self::place(code)] = (code, Some(named));
        named
    }
}

/// What a code object is called.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    function: Arc<str>,
    file: Arc<str>,
}

impl Named {
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
        self.words.walk(walk, self.deaths.age(), |code| self.deaths.counted(code));
    }

    #[inline(always)]
    fn plain(&self) -> Option<&impl PlainSource> {
        Some(&self.plain)
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
        if self.deaths.counted(code) != frame.code {
            return None;
        }
        // SAFETY: 1: a place is asked for by the thread that has just captured the frame, or has captured it before and its code
        // has not died.
        let line = unsafe { self.words.line(code, at, frame.code) }?;
        let known = NAMED.lock().of_code(frame.code);
        let named = known.unwrap_or_else(|| {
            // SAFETY: 1: told just now.
            let [file, function] = unsafe { self.words.names(code) };
            let file = file.as_deref().unwrap_or("<unknown>").into();
            let function = function.as_deref().unwrap_or("?").into();
            NAMED.lock().intern(frame.code, Named { function, file })
        });
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

/// The stacks of this process.
static TABLE: OnceLock<&'static StackTable<PythonStacks>> = OnceLock::new();

/// The table of this process, which has stacks of as many frames as `options` say, or as whoever came first asked for; with `native`
/// a table of its own, as the hooks show Python frames alone. `None` where the interpreter does not tell its frames.
///
/// # Errors
///
/// No memory, or a number of frames that is none.
pub(crate) fn table(
    host: &Host,
    options: Options,
    native: bool,
) -> Result<Option<&'static StackTable<PythonStacks>>, ProfileError> {
    if !native {
        return start(host, options);
    }
    let Some(native) = NativeFrames::find() else { return Ok(None) };
    unwinder::load();
    make(host, options, Some(native))
}

fn start(
    host: &Host,
    options: Options,
) -> Result<Option<&'static StackTable<PythonStacks>>, ProfileError> {
    if let Some(table) = TABLE.get() {
        return Ok(Some(table));
    }
    let table = make(host, options, None)?;
    Ok(table.map(|table| *TABLE.get_or_init(|| table)))
}

fn make(
    host: &Host,
    options: Options,
    native: Option<NativeFrames>,
) -> Result<Option<&'static StackTable<PythonStacks>>, ProfileError> {
    static NAMES_HELD: Once = Once::new();
    let Some(words) = FrameWords::find(host) else { return Ok(None) };
    let deaths = words.deaths();
    let plain = match words.usual().filter(|_| native.is_none()) {
        Some(words) => Plain { deaths, words },
        None => Plain { deaths: &NEVER, words: UsualWords::none() },
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
pub(crate) static HOOKS: HostStacks = HostStacks { current, show, alike };

/// Prepares the stacks of the hooks, of which reports show `frames` frames. Where the interpreter does not tell its frames, or without
/// memory, there are none.
pub(crate) fn start_for_hooks(host: &Host, frames: u8) {
    SHOWN.store(frames, Relaxed);
    // As many as a profile has that is not told how many, as it would share the table.
    let frames = Options::default().frames.max(frames.into());
    let _ = start(host, Options { frames, ..Options::default() });
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
