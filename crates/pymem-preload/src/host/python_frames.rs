//! Owns where the Python frames of a thread are, and the texts of a code object.
//!
//! They are read while the thread allocates or frees: nothing of the interpreter may be changed then, and no object made, as
//! before 3.12 making one can start the collector, in the middle of any operation that allocates. From 3.11 on frames are records,
//! which are read where they lie; the interpreter's own `tracemalloc` reads the same words. Their layout is known for 3.11
//! and 3.12, and told by the interpreter itself since 3.13: what it tells is tried on the first stack, by reads that cannot fault,
//! before it is trusted.
//!
//! Leaves the question whether the thread may read them to `gil.rs`, reading them to `frame_words.rs`.

use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::OnceLock;

use pymem_domains::Build;

use crate::host::capi::{PyObject, PyThreadState, symbol, word_at};
use crate::host::code_deaths::Deaths;
use crate::host::debug_offsets::DebugOffsets;
use crate::host::line_table::LineTableLayout;
use crate::host::python::Host;
use crate::request::refusal;

/// How to read the frames of `host`, found once; `None`, and a line on stderr, where they cannot be read.
pub(crate) fn reader(host: &Host) -> Option<&'static Reader> {
    static READER: OnceLock<Option<Reader>> = OnceLock::new();
    let reader = READER.get_or_init(|| {
        let reader = Reader::new(host);
        if reader.is_none() {
            refusal::say_no_frames();
        }
        reader
    });
    reader.as_ref()
}

/// The first minor version whose frames are records.
pub(crate) const FIRST_WITH_RECORDS: u32 = 11;

/// How to read the frames of this interpreter.
#[derive(Debug)]
pub(crate) struct Reader {
    /// `None` where frames are objects.
    records: Option<FrameRecords>,
    code: CodeLayout,
    length: unsafe extern "C" fn(*mut PyObject) -> isize,
    copy: unsafe extern "C" fn(*mut PyObject, *mut u32, isize, c_int) -> *mut u32,
}

/// The code in the word at an address.
///
/// # Safety
///
/// 1. A word can be read there.
#[inline(always)]
pub(crate) unsafe fn code_at(address: usize) -> usize {
    // SAFETY: 1: duty 1.
    unsafe { word_at(address) & !TAG }
}

/// The interpreter's own code without a line, once known: since 3.13 a record with it stands between an `__init__` and who makes the object,
/// where the evaluator runs both without a call.
static SHIM: AtomicUsize = AtomicUsize::new(0);

/// Whether code is none of the program's, but the interpreter's own.
#[inline(always)]
pub(crate) fn is_shim(code: usize) -> bool {
    // Relaxed: a constant of the host, which is passed over from the next stack on.
    code == SHIM.load(Relaxed)
}

/// Has records with this code passed over from now on.
pub(crate) fn pass_over(code: usize) {
    SHIM.store(code, Relaxed);
}

/// Whether the frame whose `owner` and code are at these addresses has code.
///
/// # Safety
///
/// 1. A byte and a word can be read there.
#[inline(always)]
pub(crate) unsafe fn has_code(owner: usize, code: usize) -> bool {
    // SAFETY: 1: duty 1.
    let code = unsafe { code_at(code) };
    // SAFETY: 1: duty 1.
    code != 0 && unsafe { is_of_code(owner) } && !is_shim(code)
}

/// Whether the frame whose `owner` is at this address is one of those that have code.
///
/// # Safety
///
/// 1. A byte can be read there.
#[inline(always)]
pub(crate) unsafe fn is_of_code(owner: usize) -> bool {
    // SAFETY: duty 1.
    unsafe { ptr::with_exposed_provenance::<u8>(owner).read() < FIRST_WITHOUT_CODE }
}

/// Looks up one function by its name and the type of the place it goes to.
macro_rules! function {
    ($name:literal) => {
        // SAFETY: 1: a function of CPython with this signature, in every version that exports it.
        unsafe { symbol($name) }
    };
}

/// 3.11 and newer: records, by the offsets of their fields in bytes.
#[derive(Debug)]
struct FrameRecords {
    words: WordLayout,
    /// [`UNTRIED`], [`TRUSTED`] or [`REFUSED`].
    trust: AtomicU8,
}

/// The words of a frame: offsets in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WordLayout {
    /// From the thread state, each step by the pointer found there, to the newest frame.
    pub(crate) newest: (usize, Option<usize>),
    pub(crate) code: usize,
    pub(crate) previous: usize,
    /// A byte that says who owns the frame; `None` where every frame has code.
    pub(crate) owner: Option<usize>,
    pub(crate) instruction: usize,
}

impl WordLayout {
    /// The newest frame; 0 for none.
    ///
    /// # Safety
    ///
    /// 1. `state` is the calling thread's own and current state, in the version of this layout.
    #[inline]
    pub(crate) unsafe fn newest(self, state: *mut PyThreadState) -> usize {
        // SAFETY: 1: words of the thread's own state (duty 1).
        let word = |at: usize| unsafe { word_at(at) };
        let (first, second) = self.newest;
        let at = word(state.expose_provenance() + first);
        match second {
            Some(second) if at != 0 => word(at + second),
            _ => at,
        }
    }

    /// The frame that has called this one; 0 for none.
    ///
    /// # Safety
    ///
    /// 1. `frame` is one of the calling thread, in the version of this layout.
    #[inline]
    pub(crate) unsafe fn caller(self, frame: usize) -> usize {
        // SAFETY: 1: a word of the frame (duty 1).
        unsafe { word_at(frame + self.previous) }
    }

    /// The nearest caller that has code; 0 for none.
    ///
    /// # Safety
    ///
    /// 1. That of [`caller`](Self::caller).
    #[inline]
    pub(crate) unsafe fn caller_with_code(self, frame: usize) -> usize {
        // SAFETY: 1: duty 1.
        let caller = unsafe { self.caller(frame) };
        // SAFETY: 1: the thread's own, that a newer one names as its caller.
        unsafe { self.with_code(caller) }
    }

    /// The frame itself, or its nearest caller that has code; 0 for none.
    ///
    /// # Safety
    ///
    /// 1. `frame` is 0, or one of the calling thread, in the version of this layout.
    #[inline]
    pub(crate) unsafe fn with_code(self, frame: usize) -> usize {
        let mut next = frame;
        // SAFETY: 1: the thread's own (duty 1), or one that a newer one names as its caller.
        while next != 0 && unsafe { self.code(next) }.is_none() {
            // SAFETY: 1: as above.
            next = unsafe { self.caller(next) };
        }
        next
    }

    /// The code of a frame; `None` for one that has none.
    ///
    /// # Safety
    ///
    /// 1. That of [`caller`](Self::caller).
    #[inline]
    pub(crate) unsafe fn code(self, frame: usize) -> Option<usize> {
        // SAFETY: 1: a byte of the frame (duty 1).
        let has_code = self.owner.is_none_or(|owner| unsafe { is_of_code(frame + owner) });
        // SAFETY: 1: duty 1.
        let code = unsafe { code_at(frame + self.code) };
        (has_code && code != 0 && !is_shim(code)).then_some(code)
    }

    /// The instruction that a frame is at.
    ///
    /// # Safety
    ///
    /// 1. That of [`caller`](Self::caller).
    #[inline]
    pub(crate) unsafe fn instruction(self, frame: usize) -> usize {
        // SAFETY: 1: a word of the frame (duty 1).
        let word = unsafe { word_at(frame + self.instruction) };
        // Four bytes where frames are objects.
        if self.has_records() { word } else { word & u32::MAX as usize }
    }

    /// Whether frames are records, whose instruction is an address.
    #[inline]
    pub(crate) const fn has_records(self) -> bool {
        self.owner.is_some()
    }

    /// An address in the stack of the newest call of the interpreter's evaluator, where it keeps a record of the call; `None` where it
    /// keeps none, or is not at work.
    ///
    /// # Safety
    ///
    /// 1. That of [`newest`](Self::newest).
    pub(crate) unsafe fn entry(self, state: *mut PyThreadState) -> Option<usize> {
        // SAFETY: 1: words of the thread's own state and frames (duty 1).
        let word = |at: usize| unsafe { word_at(at) };
        let owner = self.owner?;
        let from = state.expose_provenance();
        let (first, second) = self.newest;
        let mut at = word(from + first);
        if second.is_some() {
            // The record that leads to the newest frame.
            return Some(at);
        }
        while at != 0 {
            // SAFETY: 1: one of the thread's frames (duty 1).
            if !unsafe { is_of_code(at + owner) } {
                return Some(at);
            }
            at = word(at + self.previous);
        }
        None
    }
}

/// The offsets were told by the interpreter, and no stack was read yet.
const UNTRIED: u8 = 0;
/// They are a table's, or a whole stack was read.
const TRUSTED: u8 = 1;
/// A stack made no sense.
const REFUSED: u8 = 2;

/// From here on an `owner` says that the record stands for a call from C, and has no code.
const FIRST_WITHOUT_CODE: u8 = 3;
/// The last `owner` that there is.
const LAST_OWNER: u8 = 4;

/// The bits of a reference to an object that are not of its address, since 3.14.
const TAG: usize = 3;

impl FrameRecords {
    fn new(host: &Host, code: &CodeLayout) -> Option<Self> {
        let layout = |newest, code, previous, owner, instruction| WordLayout {
            newest,
            code,
            previous,
            owner: Some(owner),
            instruction,
        };
        let (words, trust) = match host.minor {
            ..=FIRST_WITH_RECORDS => (layout((56, Some(8)), 32, 48, 69, 56), TRUSTED),
            12 => (layout((56, Some(0)), 0, 8, 70, 56), TRUSTED),
            _ => {
                let told = DebugOffsets::read(&DebugOffsets::words()?, host.minor, host.build)?;
                // What the type of code objects says of its members is the same, or one of them is wrong.
                let own = (code.type_of, code.file, code.name, code.instructions);
                if own != (told.type_of, told.file, told.name, told.instructions) {
                    return None;
                }
                let DebugOffsets { newest, code, previous, owner, instruction, .. } = told;
                (layout((newest, None), code, previous, owner, instruction), UNTRIED)
            }
        };
        Some(Self { words, trust: AtomicU8::new(trust) })
    }

    /// Reads a whole stack by reads that cannot fault; whether it makes sense, `None` where the thread has no frames but
    /// the one at the bottom, which has no code.
    fn try_stack(&self, state: *mut PyThreadState, code: &CodeLayout) -> Option<bool> {
        let (first, second) = self.words.newest;
        let mut steps = [Some(first), second].into_iter().flatten();
        let newest = steps.try_fold(state.expose_provenance(), |at, offset| {
            if at == 0 { Some(0) } else { careful_word(at.wrapping_add(offset)) }
        });
        let Some(newest) = newest else { return Some(false) };
        if newest == 0 {
            return None;
        }
        let owner_of = |record: usize| {
            let [owner] = careful(record.wrapping_add(self.words.owner?))?;
            Some(owner)
        };
        let mut record = newest;
        let mut has_code = false;
        for depth in 0..MOST_TRIED {
            let Some(owner) = owner_of(record) else {
                return Some(false);
            };
            if owner > LAST_OWNER {
                return Some(false);
            }
            if owner < FIRST_WITHOUT_CODE {
                let object = careful_word(record.wrapping_add(self.words.code));
                let type_object =
                    object.and_then(|object| careful_word((object & !TAG) + code.type_of));
                if type_object != Some(code.type_object) {
                    return Some(false);
                }
                has_code = true;
            }
            match careful_word(record.wrapping_add(self.words.previous)) {
                Some(0) => return (has_code || depth > 0).then_some(has_code),
                Some(previous) => record = previous,
                None => return Some(false),
            }
        }
        // The first stack is that of a program that starts: so many frames are a circle.
        Some(false)
    }

    /// Whether records may be read where they lie, by this thread now.
    #[inline]
    fn are_trusted(&self, state: *mut PyThreadState, code: &CodeLayout) -> bool {
        self.trust.load(Relaxed) == TRUSTED || self.become_trusted(state, code)
    }

    #[cold]
    fn become_trusted(&self, state: *mut PyThreadState, code: &CodeLayout) -> bool {
        if self.trust.load(Relaxed) == REFUSED {
            return false;
        }
        let Some(makes_sense) = self.try_stack(state, code) else { return false };
        let trust = if makes_sense { TRUSTED } else { REFUSED };
        if self.trust.swap(trust, Relaxed) == UNTRIED && !makes_sense {
            refusal::say_no_frames();
        }
        makes_sense
    }
}

/// Frames of the first stack that are tried.
const MOST_TRIED: usize = 1000;

/// The bytes at `address`, read by the system; `None` where nothing can be read.
fn careful<const N: usize>(address: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let to = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: N };
    let from = libc::iovec { iov_base: ptr::with_exposed_provenance_mut(address), iov_len: N };
    // SAFETY: `getpid` has no preconditions.
    let this = unsafe { libc::getpid() };
    // SAFETY: the system writes `N` bytes of our own, or says that it cannot read.
    let count = unsafe { libc::process_vm_readv(this, &raw const to, 1, &raw const from, 1, 0) };
    (count == N as isize).then_some(bytes)
}

fn careful_word(address: usize) -> Option<usize> {
    careful(address).map(usize::from_ne_bytes)
}

/// Where the type of an object, and the parts of a code object, are found.
#[derive(Clone, Copy, Debug)]
struct CodeLayout {
    /// The address of `PyCode_Type`.
    type_object: usize,
    /// Where the type has what frees a code object.
    destructor: &'static AtomicPtr<()>,
    /// Offset of an object's type.
    type_of: usize,
    file: usize,
    name: usize,
    /// Offset of the first instruction, from 3.11 on.
    instructions: usize,
    /// The members that tell lines, from 3.10 on.
    lines: Option<LineTableLayout>,
}

/// `PyMemberDef`.
#[repr(C)]
struct Member {
    name: *const c_char,
    kind: c_int,
    offset: isize,
    flags: c_int,
    doc: *const c_char,
}

impl CodeLayout {
    /// Reads the layout off the type of code objects, which lists its members.
    fn find(build: Build) -> Option<Self> {
        // An object's head: a count and the type. Without the GIL there are two counts, an owner and flags before it.
        let type_of = match build {
            Build::Gil => 8,
            Build::FreeThreaded => 24,
        };
        /// Words of a type from its name on.
        const BASICSIZE: usize = 1;
        const DESTRUCTOR: usize = 3;
        const MEMBERS: usize = 27;
        // SAFETY: 1: a variable, whose address is all that is used.
        let type_object = unsafe { symbol::<*const u8>(c"PyCode_Type") }?;
        let name = type_object.wrapping_add(type_of + 16).cast::<usize>();
        // SAFETY: a field of a type, in every version since 3.8.
        let basicsize = unsafe { name.wrapping_add(BASICSIZE).read() };
        // SAFETY: as above.
        let members = unsafe { name.wrapping_add(MEMBERS).cast::<*const Member>().read() };
        let destructor = name.wrapping_add(DESTRUCTOR).cast_mut().cast();
        // SAFETY: as above, of a type that the interpreter itself writes to: it lives for ever, and is read as a word.
        let destructor = unsafe { AtomicPtr::from_ptr(destructor) };
        let offset = |wanted: &CStr| {
            // SAFETY: 1: the type's own list.
            unsafe { offset_of_member(members, wanted) }
        };
        Some(Self {
            type_object: type_object.addr(),
            destructor,
            type_of,
            file: offset(c"co_filename")?,
            name: offset(c"co_name")?,
            instructions: basicsize,
            lines: offset(c"co_linetable").zip(offset(c"co_firstlineno")).and_then(
                |(table, first_line)| {
                    // SAFETY: 1: a variable, whose address is all that is used.
                    let bytes_type = unsafe { symbol::<*const u8>(c"PyBytes_Type") }?.addr();
                    Some(LineTableLayout { table, first_line, bytes_type })
                },
            ),
        })
    }
}

/// The offset of the member called `wanted`.
///
/// # Safety
///
/// 1. `member` starts a list of members that ends with one without a name, or is null.
unsafe fn offset_of_member(mut member: *const Member, wanted: &CStr) -> Option<usize> {
    if member.is_null() {
        return None;
    }
    loop {
        // SAFETY: an element of the list (duty 1): the one without a name is not passed.
        let Member { name, offset, .. } = *unsafe { &*member };
        if name.is_null() {
            return None;
        }
        // SAFETY: a member's name ends with a NUL.
        if unsafe { CStr::from_ptr(name) } == wanted {
            return usize::try_from(offset).ok();
        }
        member = member.wrapping_add(1);
    }
}

/// The most characters of a name that is told.
const MOST_CHARACTERS: usize = 1 << 16;

impl Reader {
    fn new(host: &Host) -> Option<Self> {
        let code = CodeLayout::find(host.build)?;
        let records = match host.minor {
            ..FIRST_WITH_RECORDS => None,
            _ => Some(FrameRecords::new(host, &code)?),
        };
        Some(Self {
            records,
            code,
            length: function!(c"PyUnicode_GetLength")?,
            copy: function!(c"PyUnicode_AsUCS4")?,
        })
    }

    /// Where the words of a record are; `None` where frames are objects.
    pub(crate) fn word_layout(&self) -> Option<WordLayout> {
        self.records.as_ref().map(|records| records.words)
    }

    /// Whether the frames of the thread with this state, which is the calling one, may be read where they lie.
    #[inline]
    pub(crate) fn is_trusted(&self, state: *mut PyThreadState) -> bool {
        self.records.as_ref().is_none_or(|records| records.are_trusted(state, &self.code))
    }

    /// Offset of a code object's first instruction, from 3.11 on.
    pub(crate) const fn instructions(&self) -> usize {
        self.code.instructions
    }

    /// Where a code object tells its lines, from 3.10 on.
    pub(crate) const fn line_tables(&self) -> Option<LineTableLayout> {
        self.code.lines
    }

    /// How many code objects have died: from now on, or from when this was first asked on.
    pub(crate) fn deaths(&self) -> &'static Deaths {
        // SAFETY: 1: the slot of the type of code objects.
        unsafe { Deaths::watched(self.code.destructor) }
    }

    /// Whether `object` is a code object.
    ///
    /// # Safety
    ///
    /// 1. `object` is live.
    pub(crate) unsafe fn is_code(&self, object: *mut PyObject) -> bool {
        // SAFETY: 1: the head of an object (duty 1).
        let type_of = unsafe { word_at(object.expose_provenance() + self.code.type_of) };
        type_of == self.code.type_object
    }

    /// The file and the function of `code`, in which U+FFFD stands for each lone surrogate: a file's name has one for each byte that is no UTF-8.
    /// `None` for more than [`MOST_CHARACTERS`], and without memory.
    ///
    /// # Safety
    ///
    /// 1. `code` is a live code object, and the calling thread holds the GIL.
    pub(crate) unsafe fn names(&self, code: *mut PyObject) -> [Option<String>; 2] {
        [self.code.file, self.code.name].map(|offset| {
            // SAFETY: 1: a member of a code object (duty 1).
            let object = unsafe { word_at(code.expose_provenance() + offset) };
            // SAFETY: 1: a member of a live code object (duty 1). 2: the GIL is held (duty 1).
            unsafe { self.text(ptr::with_exposed_provenance_mut(object)) }
        })
    }

    /// The text of a string object, as [`names`](Self::names) tells it.
    ///
    /// The characters are copied: asked for UTF-8, the interpreter raises for such a name, and an exception is an object.
    ///
    /// # Safety
    ///
    /// 1. `object` is null, or a live string.
    /// 2. The calling thread holds the GIL.
    unsafe fn text(&self, object: *mut PyObject) -> Option<String> {
        if object.is_null() {
            return None;
        }
        // SAFETY: a string (duties 1 and 2), which has a length.
        let count = unsafe { (self.length)(object) };
        let len = usize::try_from(count).ok().filter(|len| *len <= MOST_CHARACTERS)?;
        let mut characters = Vec::<u32>::new();
        characters.try_reserve_exact(len).ok()?;
        // SAFETY: a string (duties 1 and 2), and room for its characters.
        let copied = unsafe { (self.copy)(object, characters.as_mut_ptr(), count, 0) };
        if copied.is_null() {
            return None;
        }
        // SAFETY: so many were written.
        unsafe { characters.set_len(len) };
        if characters.iter().fold(0, |all, character| all | character) < 0x80 {
            // By 16 at a time; most names are of these.
            return String::from_utf8(characters.iter().map(|ascii| *ascii as u8).collect()).ok();
        }
        let told = |character| char::from_u32(character).unwrap_or(char::REPLACEMENT_CHARACTER);
        Some(characters.into_iter().map(told).collect())
    }
}
