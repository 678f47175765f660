//! Owns the moments at which a process tells something of itself: the end of its program, and a signal. Without a request there are
//! none.
//!
//! The end is when the program is over and the interpreter still whole (a function registered with the `atexit` module), else
//! when the process exits. A signal is answered by the next call of mem or obj: that call holds the GIL, and no lock of an
//! allocator yet, so that the handler of the signal has nothing to do but to leave a note.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::io;
use std::sync::OnceLock;

use malloc_api::Malloc;

use crate::host::capi::{AtExitApi, PyMethodDef, PyObject};
use crate::host::python::host;

/// A moment at which somebody is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The program is over. A forked child comes to an end of its own.
    End,
    /// After a SIGUSR1.
    User1,
    /// After a SIGUSR2.
    User2,
}

/// What is called at a moment.
type Work = fn();

/// Who is called when; a place for each that there can be.
static ALL: [OnceLock<(Moment, Work)>; 6] = [const { OnceLock::new() }; 6];

/// The signals that are answered, by what is called, and the notes of their handlers.
const SIGNALS: [(c_int, Moment, u8); 2] =
    [(libc::SIGUSR1, Moment::User1, 2), (libc::SIGUSR2, Moment::User2, 4)];

/// What the next call of mem or obj is to do: the notes of signals, or this one.
static NOTES: AtomicU8 = AtomicU8::new(0);
/// Have the interpreter tell when the program is over, as soon as it can be asked.
const REGISTER: u8 = 1;

/// Whether the end has come.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Has `work` called at each `moment`. A signal that the program has a handler for stays the program's.
///
/// # Errors
///
/// What the system says about a signal.
pub(crate) fn at(moment: Moment, work: Work) -> io::Result<()> {
    let is_first = !ALL.iter().filter_map(OnceLock::get).any(|(other, _)| *other == moment);
    // There are as many places as callers.
    let _ = ALL.iter().find(|place| place.set((moment, work)).is_ok());
    if !is_first {
        return Ok(());
    }
    let Some((number, ..)) = SIGNALS.into_iter().find(|(_, other, _)| *other == moment) else {
        NOTES.fetch_or(REGISTER, Relaxed);
        // SAFETY: a function that takes nothing; with a full table of handlers the interpreter's is left.
        unsafe { libc::atexit(on_exit) };
        return Ok(());
    };
    let handler: extern "C" fn(c_int) = note_signal;
    // SAFETY: all zeros are a valid `sigaction`: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: room for what the signal does now.
    if unsafe { libc::sigaction(number, ptr::null(), &raw mut action) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction) {
        return Ok(());
    }
    // SAFETY: as above.
    action = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: a filled action whose handler takes one number and only stores a note.
    if unsafe { libc::sigaction(number, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn call(moment: Moment) {
    let all = ALL.iter().filter_map(OnceLock::get);
    all.filter(|(other, _)| *other == moment).for_each(|(_, work)| work());
}

extern "C" fn note_signal(signal: c_int) {
    for (number, _, note) in SIGNALS {
        if number == signal {
            NOTES.fetch_or(note, Relaxed);
        }
    }
}

extern "C" fn on_exit() {
    end();
}

/// Tells once that the program is over.
pub(crate) fn end() {
    if !IS_OVER.swap(true, Relaxed) {
        call(Moment::End);
    }
}

/// An allocator whose calls look for notes first.
#[derive(Debug)]
pub(crate) struct Attentive<A>(pub(crate) A);

/// Does what the notes say.
#[cold]
fn attend(notes: u8) {
    for (_, moment, note) in SIGNALS {
        if notes & note != 0 {
            NOTES.fetch_and(!note, Relaxed);
            call(moment);
        }
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

/// Whether there is something to do.
#[inline(always)]
pub(crate) fn is_noted() -> bool {
    NOTES.load(Relaxed) != 0
}

/// Does what is to be done, in a call of mem or obj.
#[inline]
pub(crate) fn look() {
    let notes = NOTES.load(Relaxed);
    if notes != 0 {
        attend(notes);
    }
}

// A call that has something to do first is one of its own, so that all others are gone on with and not called.
impl<A: Malloc> Attentive<A> {
    #[cold]
    #[inline(never)]
    fn look_and_malloc(&self, size: usize) -> Option<NonNull<u8>> {
        look();
        self.0.malloc(size)
    }
}

// SAFETY: each method is the same one of an allocator, which keeps promises 1-5; what is added allocates from the C library
// alone and does not unwind.
unsafe impl<A: Malloc> Malloc for Attentive<A> {
    #[inline]
    fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
        if is_noted() { self.look_and_malloc(size) } else { self.0.malloc(size) }
    }

    #[inline]
    fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
        look();
        self.0.calloc(nelem, elsize)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, new_size: usize) -> Option<NonNull<u8>> {
        look();
        // SAFETY: the caller's duties 1 and 2 are the inner one's.
        unsafe { self.0.realloc(ptr, new_size) }
    }

    #[inline]
    unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
        // SAFETY: the caller's duties 1 and 2 are the inner one's.
        unsafe { self.0.free(ptr) }
    }
}

/// The function that the interpreter calls when the program is over. It is written by nobody.
static AT_EXIT: MethodDef = MethodDef(PyMethodDef {
    name: c"pymem_at_the_end".as_ptr(),
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

/// Tells that the program is over, and answers `None`.
unsafe extern "C" fn at_exit(_of: *mut PyObject, _arguments: *mut PyObject) -> *mut PyObject {
    end();
    match AtExitApi::find() {
        // SAFETY: an empty format, which asks for nothing and makes `None`; the caller holds the GIL.
        Some(api) => unsafe { (api.build_value)(c"".as_ptr()) },
        None => ptr::null_mut(),
    }
}
