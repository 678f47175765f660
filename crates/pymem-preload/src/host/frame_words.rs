//! Owns reading the calling thread's Python frames as words, at every allocation: which code runs in a frame, and where in
//! it. Leaves finding the words from 3.11 on to `python_frames.rs`, and the names of code, which are
//! asked for once.

use core::ffi::c_int;
use core::ptr::{self, NonNull};

use heap_profile::{Calls, Frame, Walk};
use memdebug::ThreadWord;
use pymem_domains::Build;

use crate::host::capi::{PyObject, PyThreadState, symbol, word_again, word_at};
use crate::host::code_deaths::Deaths;
use crate::host::gil;
use crate::host::line_table::CURSORS_READ;
use crate::host::python::Host;
use crate::host::python_frames::{self, FIRST_WITH_RECORDS, Reader, WordLayout};

/// How the line of a frame is found.
#[derive(Clone, Copy, Debug)]
enum Lines {
    /// `PyCode_Addr2Line`, once for each instruction: given the bytes from the code's first one.
    OfCode(unsafe extern "C" fn(*mut PyObject, c_int) -> c_int),
    /// `PyUnstable_InterpreterFrame_GetLine`, of each frame that is read: it knows a thread's own copy of the code, which a thread
    /// has without the GIL.
    OfFrame(unsafe extern "C" fn(*mut u8) -> c_int),
}

/// The layout of frame objects in 3.9 and 3.10, whose instruction is a number of four bytes.
fn of_objects(minor: u32) -> Option<WordLayout> {
    let instruction = match minor {
        9 => 104,
        10 => 96,
        _ => return None,
    };
    Some(WordLayout { newest: (24, None), code: 32, previous: 24, owner: None, instruction })
}

/// Reads frames as words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameWords {
    reader: &'static Reader,
    layout: WordLayout,
    /// Where the calling thread's state is found without a call.
    state: Option<ThreadWord>,
    minor: u32,
    lines: Lines,
}

/// The newest minor version of which it is known where a code object has its first instruction that belongs to a line.
const NEWEST_KNOWN: u32 = 15;

impl FrameWords {
    /// How to read the frames of `host`; `None` where they cannot be read.
    pub(crate) fn find(host: &Host) -> Option<Self> {
        let reader = python_frames::reader(host)?;
        let layout = match reader.word_layout() {
            Some(layout) => layout,
            None => of_objects(host.minor)?,
        };
        let lines = match host.build {
            // SAFETY: 1: a function of CPython with this signature, in every version that exports it.
            Build::Gil => Lines::OfCode(unsafe { symbol(c"PyCode_Addr2Line") }?),
            Build::FreeThreaded => {
                // SAFETY: 1: as above.
                Lines::OfFrame(unsafe { symbol(c"PyUnstable_InterpreterFrame_GetLine") }?)
            }
        };
        let state = gil::own_word(host);
        Some(Self { reader, layout, state, minor: host.minor, lines })
    }

    /// The calling thread's state; `None` if it may not call the interpreter.
    #[inline]
    fn state(&self) -> Option<NonNull<PyThreadState>> {
        match self.state {
            Some(word) => NonNull::new(ptr::with_exposed_provenance_mut(word.get())),
            None => gil::own_state(),
        }
    }

    /// An address in the stack of the calling thread's newest call of the evaluator, which runs Python frames; `None` where it is not
    /// known.
    pub(crate) fn entry(&self) -> Option<usize> {
        let state = self.state().filter(|state| self.reader.is_trusted(state.as_ptr()))?;
        // SAFETY: 1: the thread's own and current state; the layout is that of its version.
        unsafe { self.layout.entry(state.as_ptr()) }
    }

    /// Shows `walk` each frame of the calling thread that has code, newest first: its address, its code as `counted` returns it, and the
    /// instruction, or the line without the GIL. Shows nothing for a thread that may not call the interpreter.
    ///
    /// `counted` takes what it has returned, too. While the `age` is that of the thread's last walk, it returns what it did then.
    pub(crate) fn walk(&self, walk: &mut Walk<'_>, age: usize, counted: impl Fn(usize) -> usize) {
        if self.follow(walk, age, &counted) {
            return;
        }
        if let Some(state) = self.state() {
            self.walk_by_code(walk, state, age, counted);
        }
    }

    /// As [`walk`](Self::walk), of a thread whose last walk was of this `age`; `false`, and nothing is shown, where it was not, and where
    /// frames are no records that tell their instruction.
    fn follow(&self, walk: &mut Walk<'_>, age: usize, counted: impl Fn(usize) -> usize) -> bool {
        let owner = self.layout.owner.filter(|_| self.tells_instructions() && walk.is_of_age(age));
        let Some(owner) = owner else { return false };
        let Some(state) = self.state() else { return false };
        // SAFETY: 1: the thread's own and current state; the layout is that of its version, and was trusted when the age was said.
        let newest = unsafe { self.layout.newest(state.as_ptr()) };
        let WordLayout { code, previous, instruction, .. } = self.layout;
        let words = KnownWords { code, previous, instruction, owner };
        let records = Records { words, counted };
        // A caller was shown as one that has code, and its record is that of the same code while nothing died.
        walk.follow(records.with_code(newest), &records);
        true
    }

    /// The words of a frame where they are those of the usual layout, and the thread's state is found without a call.
    pub(crate) fn usual(&self) -> Option<UsualWords> {
        let WordLayout { newest: (newest, None), code, previous, owner, instruction } = self.layout
        else {
            return None;
        };
        let is_usual = (code, previous, instruction) == (CODE, PREVIOUS, INSTRUCTION);
        let (owner, state) =
            owner.zip(self.state).filter(|_| is_usual && self.tells_instructions())?;
        Some(UsualWords { state, newest, owner: Usual { owner } })
    }

    /// Whether a frame is where its instruction is, and not at a line.
    const fn tells_instructions(&self) -> bool {
        matches!(self.lines, Lines::OfCode(_))
    }

    /// As [`walk`](Self::walk), of frames whose code may be another one at the same address, or that are no records.
    #[cold]
    #[inline(never)]
    fn walk_by_code(
        &self,
        walk: &mut Walk<'_>,
        state: NonNull<PyThreadState>,
        age: usize,
        counted: impl Fn(usize) -> usize,
    ) {
        if !self.reader.is_trusted(state.as_ptr()) {
            return;
        }
        walk.set_age(age);
        // SAFETY: 1: the thread's own and current state; the layout is that of its version.
        let newest = unsafe { self.layout.newest(state.as_ptr()) };
        // SAFETY: 1: the thread's own.
        let newest = unsafe { self.layout.with_code(newest) };
        walk.follow(newest, &Counted { words: self, counted });
    }

    /// The frame at `call`; `None` if it has no code.
    ///
    /// # Safety
    ///
    /// 1. `call` is one of the calling thread's frames.
    #[inline]
    unsafe fn frame(&self, call: usize, counted: impl Fn(usize) -> usize) -> Option<Frame> {
        // SAFETY: 1: duty 1; the layout is that of the thread's version.
        let code = unsafe { self.layout.code(call) }?;
        let at = match self.lines {
            // SAFETY: 1: as above.
            Lines::OfCode(_) => unsafe { self.layout.instruction(call) },
            Lines::OfFrame(line) => {
                // SAFETY: 1: an object that one of the thread's frames has (duty 1).
                if !unsafe { self.reader.is_code(ptr::with_exposed_provenance_mut(code)) } {
                    return None;
                }
                // SAFETY: one of the thread's frames (duty 1), which has code.
                let line = unsafe { line(ptr::with_exposed_provenance_mut(call)) };
                usize::try_from(line).unwrap_or(0)
            }
        };
        Some(Frame { code: counted(code), at })
    }

    /// The line of the instruction `at` in `code`, 0 where that is not known; `None` for a frame that is still being set up, or runs no code
    /// object. `key` stands for this code alone, also of those that have been at its address.
    ///
    /// # Safety
    ///
    /// 1. The calling thread has been shown both by [`walk`](Self::walk), and the object lives.
    pub(crate) unsafe fn line(&self, code: usize, at: usize, key: usize) -> Option<u32> {
        let object: *mut PyObject = ptr::with_exposed_provenance_mut(code);
        // SAFETY: 1: by duty 1.
        if !unsafe { self.reader.is_code(object) } {
            return None;
        }
        let line = match self.lines {
            Lines::OfFrame(_) => c_int::try_from(at).unwrap_or(0),
            Lines::OfCode(line) => {
                let place = self.place(code, at)?;
                // SAFETY: a code object (duty 1); the function reads its table of lines, and takes any place.
                let told = || unsafe { line(object, place) };
                // SAFETY: 1: as above.
                let read = unsafe { self.line_at(code, key, place) };
                debug_assert!(read.is_none_or(|read| read == told()), "{read:?}, not {}", told());
                read.unwrap_or_else(told)
            }
        };
        Some(u32::try_from(line).unwrap_or(0))
    }

    /// The file and the function of `code`, each `None` where it cannot be told.
    ///
    /// # Safety
    ///
    /// 1. [`line`](Self::line) has just told one of a code object there.
    pub(crate) unsafe fn names(&self, code: usize) -> [Option<String>; 2] {
        // SAFETY: 1: a live code object; the thread holds the GIL, or is attached (duty 1).
        unsafe { self.reader.names(ptr::with_exposed_provenance_mut(code)) }
    }

    /// The line `place` bytes from the first instruction of `code`; `None` where its table is not known.
    ///
    /// # Safety
    ///
    /// 1. `code` is a live code object of a host with the GIL, which the calling thread holds.
    unsafe fn line_at(&self, code: usize, key: usize, place: c_int) -> Option<c_int> {
        if place < 0 || !(FIRST_WITH_RECORDS..=NEWEST_KNOWN).contains(&self.minor) {
            return None;
        }
        // SAFETY: 1: duty 1; the layout is that of the host.
        let table = unsafe { self.reader.line_tables()?.of(code) }?;
        Some(CURSORS_READ.lock().line(key, table, place))
    }

    /// How many code objects have died: from now on, or from when this was first asked on.
    pub(crate) fn deaths(&self) -> &'static Deaths {
        self.reader.deaths()
    }

    /// The bytes from the code's first instruction to `at`; `None` before the first one that belongs to a line. Code without a line is passed over
    /// from then on.
    fn place(&self, code: usize, at: usize) -> Option<c_int> {
        /// Bytes of an instruction.
        const UNIT: usize = 2;
        if self.minor < FIRST_WITH_RECORDS {
            #[expect(clippy::cast_possible_truncation, reason = "four bytes were read")]
            let last = at as u32 as c_int;
            return Some(if self.minor < 10 { last } else { last * UNIT as c_int });
        }
        let first = code + self.reader.instructions();
        let place = at.wrapping_sub(first);
        if self.minor <= NEWEST_KNOWN {
            // SAFETY: 1: of a code object, two words before its instructions.
            let belongs_to_line = unsafe { word_at(first - 2 * size_of::<usize>()) };
            #[expect(clippy::cast_possible_truncation, reason = "the number has four bytes")]
            let belongs_to_line = belongs_to_line as u32 as usize;
            if (place as isize) < (belongs_to_line * UNIT) as isize {
                // SAFETY: 1: the number of instructions, behind the head of a code object with the GIL.
                let count = unsafe { word_at(code + 2 * size_of::<usize>()) };
                // Code that is made of a program has its first one, or none, within.
                if belongs_to_line > count && !python_frames::is_shim(code) {
                    python_frames::pass_over(code);
                    self.deaths().grow_older();
                }
                return None;
            }
        }
        c_int::try_from(place as isize).ok()
    }
}

/// Where the words of a record are, in bytes.
trait RecordWords {
    fn code(&self) -> usize;
    fn previous(&self) -> usize;
    fn instruction(&self) -> usize;
    fn owner(&self) -> usize;
}

/// A [`WordLayout`] whose words all are there.
struct KnownWords {
    code: usize,
    previous: usize,
    instruction: usize,
    owner: usize,
}

impl RecordWords for KnownWords {
    fn code(&self) -> usize {
        self.code
    }

    fn previous(&self) -> usize {
        self.previous
    }

    fn instruction(&self) -> usize {
        self.instruction
    }

    fn owner(&self) -> usize {
        self.owner
    }
}

/// The layout of 3.12 and newer with the GIL: numbers that are known here spare a load each.
#[derive(Clone, Copy, Debug)]
struct Usual {
    owner: usize,
}

const CODE: usize = 0;
const PREVIOUS: usize = 8;
const INSTRUCTION: usize = 56;

impl RecordWords for Usual {
    #[inline(always)]
    fn code(&self) -> usize {
        CODE
    }

    #[inline(always)]
    fn previous(&self) -> usize {
        PREVIOUS
    }

    #[inline(always)]
    fn instruction(&self) -> usize {
        INSTRUCTION
    }

    #[inline(always)]
    fn owner(&self) -> usize {
        self.owner
    }
}

/// Where the other words are, of records of that layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsualWords {
    /// Where the calling thread's state is.
    state: ThreadWord,
    /// From the state to the newest frame.
    newest: usize,
    owner: Usual,
}

/// The state of no thread.
static NO_STATE: usize = 0;

impl UsualWords {
    /// Those of nothing.
    pub(crate) const fn none() -> Self {
        // SAFETY: 1: a word that lives for ever. 2: it is always 0.
        let state = unsafe { ThreadWord::of_process(&raw const NO_STATE) };
        Self { state, newest: 0, owner: Usual { owner: 0 } }
    }

    /// The newest record of the calling thread, and who tells of its calls; `None` where the thread may not call the interpreter.
    ///
    /// # Safety
    ///
    /// 1. The records of this layout are trusted.
    #[inline(always)]
    pub(crate) unsafe fn calls<C: Fn(usize) -> usize>(
        &self,
        counted: C,
    ) -> Option<(usize, impl Calls)> {
        let state = self.state.get();
        if state == 0 {
            return None;
        }
        // SAFETY: 1: the thread's own and current state, in the version of this layout (duty 1).
        let newest = unsafe { word_at(state + self.newest) };
        Some((newest, Records { words: self.owner, counted }))
    }
}

/// Records with code, with the GIL, of which each is in the code that it was in.
struct Records<L, C> {
    words: L,
    counted: C,
}

impl<L: RecordWords, C> Records<L, C> {
    /// The record itself, or its nearest caller that has code; 0 for none.
    #[inline(always)]
    fn with_code(&self, record: usize) -> usize {
        let (owner, code) = (self.words.owner(), self.words.code());
        let mut next = record;
        // SAFETY: 1: the walk asks for the frames that it has come to, and each names its caller.
        while next != 0 && !unsafe { python_frames::has_code(next + owner, next + code) } {
            // SAFETY: 1: as above.
            next = unsafe { word_at(next + self.words.previous()) };
        }
        next
    }
}

impl<L: RecordWords, C: Fn(usize) -> usize> Calls for Records<L, C> {
    #[inline(always)]
    fn frame(&self, call: usize) -> Option<Frame> {
        // SAFETY: 1: the walk asks for the frames that it has come to, all of which have code.
        let code = unsafe { python_frames::code_at(call + self.words.code()) };
        Some(Frame { code: (self.counted)(code), at: self.at(call) })
    }

    #[inline(always)]
    fn at(&self, call: usize) -> usize {
        // SAFETY: 1: as above.
        unsafe { word_at(call + self.words.instruction()) }
    }

    #[inline(always)]
    fn is_at(&self, call: usize, frame: Frame) -> bool {
        // An address of an instruction is in one code alone.
        self.at(call) == frame.at
    }

    #[inline(always)]
    fn is_called_by(&self, call: usize, caller: usize) -> bool {
        // SAFETY: 1: as above.
        let nearest = unsafe { word_at(call + self.words.previous()) };
        nearest == caller || self.with_code(nearest) == caller
    }

    #[inline(always)]
    fn is_plainly_called_by(&self, call: usize, caller: usize) -> bool {
        // SAFETY: 1: as above.
        let nearest = unsafe { word_at(call + self.words.previous()) };
        if nearest == caller {
            return true;
        }
        // The usual record between two with code is that of a call from C, or a shim, and the one behind it has code, as it had last time. The
        // word is read again: kept, it takes a register and an instruction of those calls that need no second look.
        // SAFETY: 1: as above.
        let nearest = unsafe { word_again(call + self.words.previous()) };
        if nearest == 0 {
            return false;
        }
        // SAFETY: 1: as above.
        if unsafe { python_frames::is_of_code(nearest + self.words.owner()) } {
            // SAFETY: 1: as above.
            let code = unsafe { python_frames::code_at(nearest + self.words.code()) };
            if !python_frames::is_shim(code) {
                return false;
            }
        }
        // SAFETY: 1: as above.
        unsafe { word_at(nearest + self.words.previous()) == caller }
    }

    #[inline(always)]
    fn is_plainly_outermost(&self, call: usize) -> bool {
        // SAFETY: 1: as above.
        let nearest = unsafe { word_at(call + self.words.previous()) };
        if nearest == 0 {
            return true;
        }
        // The usual record behind the outermost with code is that of a call from C, and the last.
        // SAFETY: 1: as above.
        let has_code = unsafe { python_frames::is_of_code(nearest + self.words.owner()) };
        // SAFETY: 1: as above.
        !has_code && unsafe { word_at(nearest + self.words.previous()) } == 0
    }

    #[inline(always)]
    fn with_frame(&self, record: usize) -> usize {
        self.with_code(record)
    }

    #[inline(always)]
    fn caller(&self, call: usize) -> usize {
        // SAFETY: 1: as above.
        self.with_code(unsafe { word_at(call + self.words.previous()) })
    }
}

/// Frames whose code is compared as it is `counted`.
struct Counted<'a, C> {
    words: &'a FrameWords,
    counted: C,
}

impl<C: Fn(usize) -> usize> Calls for Counted<'_, C> {
    #[inline]
    fn frame(&self, call: usize) -> Option<Frame> {
        // SAFETY: 1: the walk asks for the frames that it has come to.
        unsafe { self.words.frame(call, &self.counted) }
    }

    fn at(&self, call: usize) -> usize {
        self.frame(call).unwrap_or_default().at
    }

    fn is_at(&self, call: usize, frame: Frame) -> bool {
        self.frame(call) == Some(frame)
    }

    fn is_called_by(&self, call: usize, caller: usize) -> bool {
        self.caller(call) == caller
    }

    #[inline]
    fn caller(&self, call: usize) -> usize {
        // SAFETY: 1: the walk asks for the frames that it has come to.
        unsafe { self.words.layout.caller_with_code(call) }
    }
}
