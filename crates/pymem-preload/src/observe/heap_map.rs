//! Owns the heap map of a process: when it is drawn, and the file that gets it. Without a request there is none.
//!
//! It is drawn when the program is over and the interpreter still whole (a function registered with the `atexit` module),
//! else when the process exits; and by the next call of mem or obj after a SIGUSR1. That call holds the GIL, and no lock of
//! the heaps yet, so that the handler of the signal has nothing to do but to leave a note.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering::Relaxed};
use std::io::{self, Write};
use std::path::{self, Path, PathBuf};
use std::sync::OnceLock;

use heap_report::Svg;
use malloc_api::{Malloc, NewFile};
use pymem_domains::AllocatorRecord;

use crate::host::capi::{AtExitApi, PyMethodDef, PyObject};
use crate::host::python::host;
use crate::observe::drawable::Drawable;
use crate::request::refusal::Refusal;

/// What is drawn, and where it goes.
#[derive(Debug)]
struct HeapMap {
    heaps: Drawable,
    path: PathBuf,
    /// The configuration, for the title.
    name: String,
}

static MAP: OnceLock<HeapMap> = OnceLock::new();

/// The process that draws: a forked child, which runs the same handlers, does not.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// What the next call of mem or obj is to do.
static NOTES: AtomicU8 = AtomicU8::new(0);
/// Draw.
const DRAW: u8 = 1;
/// Have the interpreter draw when the program is over, as soon as it can be asked.
const REGISTER: u8 = 2;

/// Whether the map of the end was drawn.
static IS_DONE: AtomicBool = AtomicBool::new(false);

/// Has `heaps` drawn into the file at `path`, at exit and on SIGUSR1.
///
/// # Errors
///
/// What the system says about the path or the signal.
pub(crate) fn start(heaps: Drawable, path: &Path, name: String) -> io::Result<()> {
    // The program may change its folder.
    let path = path::absolute(path)?;
    MAP.get_or_init(|| HeapMap { heaps, path, name });
    // SAFETY: `getpid` has no preconditions.
    OWNER.store(unsafe { libc::getpid() }, Relaxed);
    NOTES.store(REGISTER, Relaxed);
    let handler: extern "C" fn(c_int) = on_signal;
    // SAFETY: all zeros are a valid `sigaction`: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: a filled action whose handler takes one number and only stores a note.
    if unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a function that takes nothing; with a full table of handlers the interpreter's is left.
    unsafe { libc::atexit(on_exit) };
    Ok(())
}

extern "C" fn on_signal(_signal: c_int) {
    NOTES.fetch_or(DRAW, Relaxed);
}

extern "C" fn on_exit() {
    draw_the_end();
}

/// Draws once, at the end.
fn draw_the_end() {
    if !IS_DONE.swap(true, Relaxed) {
        draw();
    }
}

/// Draws now; says so where the file cannot be written.
fn draw() {
    let Some(map) = MAP.get() else { return };
    // SAFETY: `getpid` has no preconditions.
    let process = unsafe { libc::getpid() };
    if process != OWNER.load(Relaxed) {
        return;
    }
    let snapshot = map.heaps.snapshot(format!("{}, process {process}", map.name));
    if let Err(error) = write_whole(&map.path, &Svg(&snapshot).to_string()) {
        Refusal::NoHeapMap { path: map.path.clone(), error }.say();
    }
}

/// Draws now into the file at `path`; `None` where the heap is not one that can be drawn.
pub(crate) fn draw_into(path: &Path) -> Option<io::Result<()>> {
    let map = MAP.get()?;
    let snapshot = map.heaps.snapshot(format!("{}, process {}", map.name, std::process::id()));
    Some(write_whole(path, &Svg(&snapshot).to_string()))
}

/// Writes a file such that a reader finds the old one or the new one.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut new = NewFile::beside(path)?;
    new.file().write_all(text.as_bytes())?;
    new.publish()
}

/// The record of `inner`, whose calls look for notes first.
pub(crate) fn attentive(inner: AllocatorRecord) -> AllocatorRecord {
    AllocatorRecord::leak(Attentive(inner))
}

struct Attentive(AllocatorRecord);

/// Does what the notes say.
#[cold]
fn attend(notes: u8) {
    if notes & DRAW != 0 {
        NOTES.fetch_and(!DRAW, Relaxed);
        draw();
    }
    if notes & REGISTER != 0 && host().is_some_and(|host| host.is_initialized()) {
        NOTES.fetch_and(!REGISTER, Relaxed);
        if let Some(api) = AtExitApi::find() {
            // A full list of calls costs the moment alone: the process's own exit is left.
            // SAFETY: may be called from any thread; the function takes any argument.
            unsafe { (api.add_pending_call)(register, ptr::null_mut()) };
        }
    }
}

#[inline]
fn look() {
    let notes = NOTES.load(Relaxed);
    if notes != 0 {
        attend(notes);
    }
}

// SAFETY: each method is the same one of a record, which keeps promises 1-5; what is added allocates from the C library
// alone and does not unwind.
unsafe impl Malloc for Attentive {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        look();
        self.0.malloc(size)
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        look();
        self.0.calloc(nelem, elsize)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        look();
        // SAFETY: the caller's duties 1 and 2 are the record's.
        unsafe { self.0.realloc(ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are the record's.
        unsafe { self.0.free(ptr) }
    }
}

/// The function that the interpreter calls when the program is over. It is written by nobody.
static AT_EXIT: MethodDef = MethodDef(PyMethodDef {
    name: c"draw_heap_map".as_ptr(),
    function: at_exit,
    flags: PyMethodDef::NO_ARGUMENTS,
    doc: ptr::null(),
});

struct MethodDef(PyMethodDef);

// SAFETY: it is constant, and its pointers are to constants.
unsafe impl Sync for MethodDef {}

/// Registers with the `atexit` module. The interpreter calls it between two steps of its program, with the GIL.
unsafe extern "C" fn register(_argument: *mut c_void) -> c_int {
    let Some(api) = AtExitApi::find() else { return 0 };
    // SAFETY: 1: as the interpreter calls.
    if unsafe { register_with(&api) }.is_none() {
        // SAFETY: the thread holds the GIL.
        unsafe { (api.clear_error)() };
    }
    0
}

/// `None` where the interpreter has set an exception.
///
/// # Safety
///
/// 1. The calling thread holds the GIL.
unsafe fn register_with(api: &AtExitApi) -> Option<()> {
    const MODULE: &CStr = c"atexit";
    // SAFETY: a text that ends with a NUL; the GIL is held (duty 1), as for every call below.
    let module = NonNull::new(unsafe { (api.import_module)(MODULE.as_ptr()) })?;
    let definition = (&raw const AT_EXIT.0).cast_mut();
    // SAFETY: a definition that lives for ever and is only read; no object and no module belong to it.
    let function =
        NonNull::new(unsafe { (api.new_function)(definition, ptr::null_mut(), ptr::null_mut()) })?;
    let (method, format): (*const c_char, *const c_char) = (c"register".as_ptr(), c"O".as_ptr());
    // SAFETY: two live objects and two texts; the format asks for one object.
    let answer = NonNull::new(unsafe {
        (api.call_method)(module.as_ptr(), method, format, function.as_ptr())
    });
    for object in [Some(module), Some(function), answer].into_iter().flatten() {
        // SAFETY: a reference of ours, given up once.
        unsafe { (api.dec_ref)(object.as_ptr()) };
    }
    answer.map(drop)
}

/// Draws, and answers `None`.
unsafe extern "C" fn at_exit(_of: *mut PyObject, _arguments: *mut PyObject) -> *mut PyObject {
    draw_the_end();
    match AtExitApi::find() {
        // SAFETY: an empty format, which asks for nothing and makes `None`; the caller holds the GIL.
        Some(api) => unsafe { (api.build_value)(c"".as_ptr()) },
        None => ptr::null_mut(),
    }
}
