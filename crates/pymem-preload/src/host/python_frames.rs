//! Owns reading the Python frames of the calling thread while it allocates or frees.
//!
//! Nothing of the interpreter may be changed there, and no object made: before 3.12 making one can start the collector, in
//! the middle of any operation that allocates. Up to 3.10 frames are objects already, and the interpreter's functions give
//! them. From 3.11 on they are records, which are read where they lie; their layout is fixed for each minor version, and
//! versions that are not listed have no frames here. The interpreter's own `tracemalloc` reads the same words in the
//! same places.
//!
//! Leaves the question whether the thread may read them to `gil.rs`, keeping what was read to `memdebug`.

use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use core::slice;
use std::sync::OnceLock;

use memdebug::FrameSink;
use pymem_domains::Build;

use crate::host::capi::{PyObject, symbol};
use crate::host::gil;
use crate::host::python::{Host, host};

/// Most frames of one stack that are looked at: incomplete ones are passed over.
const MAX_WALKED: usize = 200;

/// Gives `sink` the frames of the calling thread, most recent call first; none if it does not hold the GIL, and before the
/// interpreter is initialized and after.
pub(crate) fn current_frames(sink: &mut dyn FrameSink) {
    static READER: OnceLock<Option<Reader>> = OnceLock::new();
    let Some(host) = host().filter(|host| host.is_initialized() && gil::full_check()) else {
        return;
    };
    if let Some(reader) = READER.get_or_init(|| Reader::new(host)) {
        // SAFETY: 1: checked above.
        unsafe { reader.walk(sink) };
    }
}

type PyErrFetch = unsafe extern "C" fn(*mut *mut PyObject, *mut *mut PyObject, *mut *mut PyObject);
type PyErrRestore = unsafe extern "C" fn(*mut PyObject, *mut PyObject, *mut PyObject);

/// How to read the frames of this interpreter.
struct Reader {
    walk: Walk,
    code: CodeLayout,
    utf8: unsafe extern "C" fn(*mut PyObject, *mut isize) -> *const c_char,
    fetch: PyErrFetch,
    restore: PyErrRestore,
    clear: unsafe extern "C" fn(),
}

/// Where frames are found.
enum Walk {
    Objects(FrameObjects),
    Records(FrameRecords),
}

/// 3.9 and 3.10: objects, by the interpreter's functions.
struct FrameObjects {
    current: unsafe extern "C" fn() -> *mut PyObject,
    back: unsafe extern "C" fn(*mut PyObject) -> *mut PyObject,
    code: unsafe extern "C" fn(*mut PyObject) -> *mut PyObject,
    line: unsafe extern "C" fn(*mut PyObject) -> c_int,
    release: unsafe extern "C" fn(*mut PyObject),
}

/// 3.11 to 3.13: records, by the offsets of their fields in bytes.
struct FrameRecords {
    layout: RecordLayout,
    /// `PyCode_Addr2Line`.
    line: unsafe extern "C" fn(*mut PyObject, c_int) -> c_int,
}

#[derive(Clone, Copy)]
struct RecordLayout {
    /// From the thread state, each step by the pointer found there, to the newest record.
    newest: &'static [usize],
    code: usize,
    previous: usize,
    instruction: usize,
    owner: usize,
}

/// An `owner` of records that stand for a call from C and have no code.
const OWNED_BY_C_STACK: u8 = 3;

impl RecordLayout {
    const V3_11: Self =
        Self { newest: &[56, 8], code: 32, previous: 48, instruction: 56, owner: 69 };
    const V3_12: Self = Self { newest: &[56, 0], code: 0, previous: 8, instruction: 56, owner: 70 };
    const V3_13: Self = Self { newest: &[72], ..Self::V3_12 };

    fn of(minor: u32) -> Option<Self> {
        match minor {
            11 => Some(Self::V3_11),
            12 => Some(Self::V3_12),
            13 => Some(Self::V3_13),
            _ => None,
        }
    }
}

/// Where the type of an object, and the parts of a code object, are found.
#[derive(Clone, Copy)]
struct CodeLayout {
    /// The address of `PyCode_Type`.
    type_object: usize,
    /// Offset of an object's type.
    type_of: usize,
    file: usize,
    name: usize,
    /// Offset of the first instruction, from 3.11 on.
    instructions: usize,
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
        const MEMBERS: usize = 27;
        // SAFETY: 1: a variable, whose address is all that is used.
        let type_object = unsafe { symbol::<*const u8>(c"PyCode_Type") }?;
        let name = type_object.wrapping_add(type_of + 16).cast::<usize>();
        // SAFETY: a field of a type, in every version from 3.8 to 3.13.
        let basicsize = unsafe { name.wrapping_add(BASICSIZE).read() };
        // SAFETY: as above.
        let members = unsafe { name.wrapping_add(MEMBERS).cast::<*const Member>().read() };
        let offset = |wanted: &CStr| {
            // SAFETY: 1: the type's own list.
            unsafe { offset_of_member(members, wanted) }
        };
        Some(Self {
            type_object: type_object.addr(),
            type_of,
            file: offset(c"co_filename")?,
            name: offset(c"co_name")?,
            instructions: basicsize,
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

/// The word at `offset` bytes from `start`.
///
/// # Safety
///
/// 1. A pointer can be read there.
unsafe fn pointer_at(start: *const u8, offset: usize) -> *mut u8 {
    // SAFETY: duty 1.
    unsafe { start.wrapping_add(offset).cast::<*mut u8>().read() }
}

/// Looks up one function by its name and the type of the place it goes to.
macro_rules! function {
    ($name:literal) => {
        // SAFETY: 1: a function of CPython with this signature, in every version that exports it.
        unsafe { symbol($name) }
    };
}

impl Reader {
    fn new(host: &Host) -> Option<Self> {
        let walk = match RecordLayout::of(host.minor) {
            Some(layout) => {
                Walk::Records(FrameRecords { layout, line: function!(c"PyCode_Addr2Line")? })
            }
            None if host.minor < 11 => Walk::Objects(FrameObjects {
                current: function!(c"PyEval_GetFrame")?,
                back: function!(c"PyFrame_GetBack")?,
                code: function!(c"PyFrame_GetCode")?,
                line: function!(c"PyFrame_GetLineNumber")?,
                release: function!(c"Py_DecRef")?,
            }),
            None => return None,
        };
        Some(Self {
            walk,
            code: CodeLayout::find(host.build)?,
            utf8: function!(c"PyUnicode_AsUTF8AndSize")?,
            fetch: function!(c"PyErr_Fetch")?,
            restore: function!(c"PyErr_Restore")?,
            clear: function!(c"PyErr_Clear")?,
        })
    }

    /// # Safety
    ///
    /// 1. The host is initialized, and the calling thread holds the GIL.
    unsafe fn walk(&self, sink: &mut dyn FrameSink) {
        let [mut kind, mut value, mut trace] = [ptr::null_mut(); 3];
        // SAFETY: room for the three words of an exception that may be on its way; by duty 1.
        unsafe { (self.fetch)(&raw mut kind, &raw mut value, &raw mut trace) };
        match &self.walk {
            // SAFETY: 1: duty 1.
            Walk::Objects(objects) => unsafe { self.walk_objects(objects, sink) },
            // SAFETY: 1: duty 1.
            Walk::Records(records) => unsafe { self.walk_records(records, sink) },
        }
        // SAFETY: what `fetch` gave, once.
        unsafe { (self.restore)(kind, value, trace) };
    }

    /// # Safety
    ///
    /// 1. As [`walk`](Self::walk).
    unsafe fn walk_objects(&self, objects: &FrameObjects, sink: &mut dyn FrameSink) {
        // SAFETY: by duty 1; borrowed, or null.
        let newest = unsafe { (objects.current)() };
        let mut frame = newest;
        for _ in 0..MAX_WALKED {
            if frame.is_null() {
                return;
            }
            // SAFETY: a live frame; its line is a number that it keeps or reads off its code.
            let line = unsafe { (objects.line)(frame) };
            // SAFETY: a live frame; the code is ours to give back.
            let code = unsafe { (objects.code)(frame) };
            // SAFETY: 1: a live code object; 2: duty 1.
            unsafe { self.show(code.cast(), line, sink) };
            // SAFETY: given by `code`; the frame has it too.
            unsafe { (objects.release)(code) };
            // SAFETY: a live frame; the one before it is ours to give back, and its callee has it too.
            let back = unsafe { (objects.back)(frame) };
            if frame != newest {
                // SAFETY: given by `back`; the frame after it has it too.
                unsafe { (objects.release)(frame) };
            }
            frame = back;
        }
        if frame != newest && !frame.is_null() {
            // SAFETY: as above.
            unsafe { (objects.release)(frame) };
        }
    }

    /// # Safety
    ///
    /// 1. As [`walk`](Self::walk).
    unsafe fn walk_records(&self, records: &FrameRecords, sink: &mut dyn FrameSink) {
        let layout = records.layout;
        let mut record = gil::current().cast::<u8>();
        for &offset in layout.newest {
            if record.is_null() {
                return;
            }
            // SAFETY: 1: the thread's own state, or what it points to, in the version of this layout.
            record = unsafe { pointer_at(record, offset) };
        }
        for _ in 0..MAX_WALKED {
            if record.is_null() {
                return;
            }
            // SAFETY: a field of a record on this thread's stack.
            let owner = unsafe { record.wrapping_add(layout.owner).read() };
            // SAFETY: 1: as above.
            let code = unsafe { pointer_at(record, layout.code) };
            if owner != OWNED_BY_C_STACK && !code.is_null() {
                // SAFETY: 1: as above.
                let at = unsafe { pointer_at(record, layout.instruction) };
                let first = code.addr().wrapping_add(self.code.instructions);
                let at = at.addr().wrapping_sub(first) as isize;
                // Before the first instruction: the line of the definition.
                let at = c_int::try_from(at).unwrap_or(-1).max(-1);
                // SAFETY: 1: an object that a record of this thread has; 2: duty 1.
                unsafe { self.show_at(records, code, at, sink) };
            }
            // SAFETY: 1: as above.
            record = unsafe { pointer_at(record, layout.previous) };
        }
    }

    /// Shows the place `at` bytes into the instructions of `code`, if it is a code object.
    ///
    /// # Safety
    ///
    /// 1. `code` is a live object.
    /// 2. As [`walk`](Self::walk).
    unsafe fn show_at(
        &self,
        records: &FrameRecords,
        code: *mut u8,
        at: c_int,
        sink: &mut dyn FrameSink,
    ) {
        // SAFETY: 1: the head of an object (duty 1).
        let type_object = unsafe { pointer_at(code, self.code.type_of) };
        if type_object.addr() != self.code.type_object {
            return;
        }
        // SAFETY: a code object; it reads the table of lines, and takes any place.
        let line = unsafe { (records.line)(code.cast(), at) };
        // SAFETY: 1: a live code object; 2: duty 2.
        unsafe { self.show(code, line, sink) };
    }

    /// # Safety
    ///
    /// 1. `code` is a live code object.
    /// 2. As [`walk`](Self::walk).
    unsafe fn show(&self, code: *mut u8, line: c_int, sink: &mut dyn FrameSink) {
        let text = |offset| {
            // SAFETY: 1: a member of a code object (duty 1).
            let object = unsafe { pointer_at(code, offset) };
            // SAFETY: 1: it lives as long as the code; 2: duty 2.
            unsafe { self.text(object.cast()) }
        };
        let file = text(self.code.file).unwrap_or("<unknown>");
        sink.frame(file, u32::try_from(line).unwrap_or(0), text(self.code.name));
    }

    /// The text of a string object; `None` for one that is no UTF-8, as of a file's name with other bytes.
    ///
    /// # Safety
    ///
    /// 1. `object` is null, or a string that lives as long as the result is used.
    /// 2. As [`walk`](Self::walk); no exception is on its way.
    unsafe fn text<'a>(&self, object: *mut PyObject) -> Option<&'a str> {
        if object.is_null() {
            return None;
        }
        let mut len = 0;
        // SAFETY: a string (duty 1); it may keep a copy of its text, which is no object.
        let text = unsafe { (self.utf8)(object, &raw mut len) };
        if text.is_null() {
            // SAFETY: by duty 2: the exception is this call's.
            unsafe { (self.clear)() };
            return None;
        }
        let len = usize::try_from(len).ok()?;
        // SAFETY: `len` bytes that live as long as the string (duty 1).
        core::str::from_utf8(unsafe { slice::from_raw_parts(text.cast(), len) }).ok()
    }
}
