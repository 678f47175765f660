//! Owns the native frames of the calling thread, and of what a signal interrupted in it: taking them, the guard against doing so
//! while doing so, and their text.

use core::cell::Cell;
use core::ffi::{CStr, c_int, c_void};
use core::ops::{ControlFlow, Range};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::os::machine;

pub(crate) use symbols::write;

thread_local! {
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// This thread takes or shows a backtrace. Allocations that this causes are not traced.
pub(crate) struct Alone(());

impl Alone {
    /// `None` if this thread is already capturing, or its thread-locals are gone.
    pub(crate) fn enter() -> Option<Self> {
        // Make the value only after entering, because its drop clears the mark.
        let entered = BUSY.try_with(|busy| !busy.replace(true)).unwrap_or(false);
        entered.then(|| Self(()))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Ignore the error: `enter` has found the thread-locals alive.
        let _ = BUSY.try_with(|busy| busy.set(false));
    }
}

// The unwinder that every Rust program links: no lock of ours is held here, and it allocates nothing.
unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(
        step: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        state: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
}

/// `_URC_NO_REASON`: go on.
const GO_ON: c_int = 0;
/// `_URC_END_OF_STACK`: enough.
const STOP: c_int = 5;

/// Where the hooks were entered: a place in the stack, below which every frame is theirs.
#[derive(Clone, Copy)]
pub(crate) struct Outermost(usize);

impl Outermost {
    /// The calling function as the outermost one of the hooks.
    #[inline(always)]
    pub(crate) fn here() -> Self {
        let mark = 0_u8;
        // What is there is of no interest; its address is that of a variable of the caller's, into which this is inlined.
        Self(core::hint::black_box(&raw const mark).addr())
    }
}

/// The code of the library that the hooks are part of, so that its frames lead no backtrace; empty in a program that they are
/// linked into, whose own frames stand in the same code.
fn own_code() -> Range<usize> {
    static START: AtomicUsize = AtomicUsize::new(0);
    static END: AtomicUsize = AtomicUsize::new(0);
    static ASKED: AtomicBool = AtomicBool::new(false);
    if !ASKED.load(Relaxed) {
        let mut code = 0..0;
        // SAFETY: `find_own_code` keeps to the call's rules; `code` outlives it.
        unsafe { libc::dl_iterate_phdr(Some(find_own_code), (&raw mut code).cast()) };
        START.store(code.start, Relaxed);
        END.store(code.end, Relaxed);
        ASKED.store(true, Relaxed);
    }
    START.load(Relaxed)..END.load(Relaxed)
}

/// Stores where the library lies that this function is in, from its first segment to its last, of which several may hold code; nothing
/// of the program's.
unsafe extern "C" fn find_own_code(
    object: *mut libc::dl_phdr_info,
    _bytes: usize,
    code: *mut c_void,
) -> c_int {
    let here = (find_own_code as *const ()).addr();
    // SAFETY: the loader passes a valid record.
    let object = unsafe { &*object };
    // SAFETY: the record has so many headers.
    let headers =
        unsafe { core::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).map(|header| {
        let start = (object.dlpi_addr + header.p_vaddr) as usize;
        start..start + header.p_memsz as usize
    });
    let whole = loaded.reduce(|all, one| all.start.min(one.start)..all.end.max(one.end));
    let Some(own) = whole.filter(|range| range.contains(&here)) else {
        return 0;
    };
    // SAFETY: the loader's name of an object, which ends with a NUL; the program's is empty.
    if unsafe { object.dlpi_name.read() } != 0 {
        // SAFETY: `own_code` passed it.
        unsafe { code.cast::<Range<usize>>().write(own) };
    }
    1
}

struct Progress<'a> {
    visit: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    has_begun: bool,
    entry: Outermost,
    own: Range<usize>,
}

extern "C" fn step(context: *mut c_void, state: *mut c_void) -> c_int {
    // SAFETY: `unwind` passed it, and waits.
    let progress = unsafe { &mut *state.cast::<Progress<'_>>() };
    // SAFETY: the unwinder's own context, in its own callback.
    let at = unsafe { _Unwind_GetIP(context) };
    if at == 0 {
        return STOP;
    }
    // SAFETY: as above. It is the stack pointer of the frame at its call, which of the hooks' frames, and of no other, is
    // below what the outermost of them keeps on its stack.
    let bottom = unsafe { _Unwind_GetCFA(context) };
    if bottom <= progress.entry.0 {
        return GO_ON;
    }
    if !progress.has_begun && progress.own.contains(&at) {
        return GO_ON;
    }
    progress.has_begun = true;
    if (progress.visit)(bottom, at).is_break() { STOP } else { GO_ON }
}

#[inline(never)]
fn unwind(entry: Outermost, visit: &mut dyn FnMut(usize, usize) -> ControlFlow<()>) {
    let mut progress = Progress { visit, has_begun: false, entry, own: own_code() };
    // SAFETY: `step` keeps to the unwinder's rules and never unwinds; `progress` outlives the call.
    unsafe { _Unwind_Backtrace(step, (&raw mut progress).cast()) };
}

/// Fills `frames` with return addresses, those of the hooks left out, most recent call first; gives how many.
pub(crate) fn native_frames(frames: &mut [usize], entry: Outermost) -> usize {
    let mut count = 0;
    unwind(entry, &mut |_, at| {
        let Some(place) = frames.get_mut(count) else { return ControlFlow::Break(()) };
        *place = at;
        count += 1;
        ControlFlow::Continue(())
    });
    count
}

/// Calls `visit` with the native frames of the calling thread, most recent call first, until it breaks: where the frame
/// lies in the stack, which is a number that no other has, and the address that it goes on at.
///
/// The frames of the library that this code is linked into do not come first; those of a program do. Unwinding takes some
/// microseconds and allocates nothing. A panic of `visit` aborts.
#[inline(always)]
pub fn native_stack(visit: &mut dyn FnMut(usize, usize) -> ControlFlow<()>) {
    unwind(Outermost::here(), visit);
}

/// A frame of a call that a signal interrupted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Frame {
    /// The instruction that was interrupted, or the address that a call returns to.
    pub(crate) at: usize,
    /// What the function had in the registers that its calls preserve.
    pub(crate) preserved: [usize; machine::PRESERVED.len()],
}

struct Search<'a> {
    from: usize,
    frames: &'a mut [Frame],
    count: usize,
}

extern "C" fn step_outward(context: *mut c_void, state: *mut c_void) -> c_int {
    // SAFETY: `frames_of` passed it, and waits.
    let search = unsafe { &mut *state.cast::<Search<'_>>() };
    // SAFETY: the unwinder's own context, in its own callback.
    let at = unsafe { _Unwind_GetIP(context) };
    if search.count == 0 && at != search.from {
        return GO_ON;
    }
    let Some(place) = search.frames.get_mut(search.count).filter(|_| at != 0) else {
        return STOP;
    };
    // SAFETY: as above; the unwinder knows every register that a call preserves.
    let preserved = machine::PRESERVED.map(|register| unsafe { _Unwind_GetGR(context, register) });
    *place = Frame { at, preserved };
    search.count += 1;
    GO_ON
}

/// For handlers of signals: fills `frames` from the interrupted instruction `from` outward, those of the handler left out; gives
/// how many.
#[inline(never)]
pub(crate) fn frames_of(from: usize, frames: &mut [Frame]) -> usize {
    let mut search = Search { from, frames, count: 0 };
    // SAFETY: `step_outward` keeps to the unwinder's rules and never unwinds; `search` outlives the call.
    unsafe { _Unwind_Backtrace(step_outward, (&raw mut search).cast()) };
    search.count
}

/// What the dynamic symbol table says of a place in the code.
#[derive(Clone, Copy, Debug)]
pub struct NativePlace {
    /// The function, where the table has it: that of the library or program may have exported ones alone.
    pub function: Option<&'static CStr>,
    /// The file of the library or program.
    pub library: &'static CStr,
    /// Bytes from where the file starts in memory.
    pub offset: usize,
}

impl NativePlace {
    /// The place of an address; `None` outside of all code that was loaded from a file.
    ///
    /// Nothing is allocated.
    ///
    /// # Safety
    ///
    /// 1. The library that `at` lies in stays loaded as long as the texts are used.
    #[must_use]
    pub unsafe fn of(at: usize) -> Option<Self> {
        // SAFETY: `Dl_info` is plain pointers, for which zero is a value.
        let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
        // SAFETY: any address may be asked for; `info` is writable.
        let known = unsafe { libc::dladdr(core::ptr::without_provenance(at), &mut info) } != 0;
        let text = |name: *const libc::c_char| {
            // SAFETY: `dladdr` gives null or a string that lives as long as its library (duty 1).
            (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) })
        };
        let library = text(info.dli_fname).filter(|_| known)?;
        let offset = at - info.dli_fbase.addr();
        Some(Self { function: text(info.dli_sname), library, offset })
    }
}

/// The text of a frame, from the dynamic symbol table alone: nothing is allocated.
#[cfg(not(feature = "backtrace"))]
mod symbols {
    use core::fmt;

    use super::NativePlace;

    /// Writes the line of one return address.
    pub(crate) fn write(frame: usize, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "  {frame:#x}")?;
        // The call is before the address that it returns to.
        // SAFETY: 1: the texts are not kept; a report says what is loaded at its time.
        if let Some(place) = unsafe { NativePlace::of(frame - 1) } {
            if let Some(name) = place.function {
                write!(out, " in {}", name.to_bytes().escape_ascii())?;
            }
            let (file, offset) = (place.library.to_bytes().escape_ascii(), place.offset + 1);
            write!(out, " ({file}+{offset:#x})")?;
        }
        out.write_str("\n")
    }
}

/// The text of a frame, from debug information: function, file and line, inlined calls too. Making it allocates.
#[cfg(feature = "backtrace")]
mod symbols {
    use core::fmt;

    /// Writes the lines of one return address.
    pub(crate) fn write(frame: usize, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut result = Ok(());
        let mut any = false;
        // The call is before the address that it returns to.
        let at = core::ptr::without_provenance_mut(frame - 1);
        backtrace::resolve(at, |symbol| {
            any = true;
            result = result.and_then(|()| write_symbol(frame, symbol, out));
        });
        if !any {
            writeln!(out, "  {frame:#x}")?;
        }
        result
    }

    fn write_symbol(
        frame: usize,
        symbol: &backtrace::Symbol,
        out: &mut dyn fmt::Write,
    ) -> fmt::Result {
        write!(out, "  {frame:#x}")?;
        if let Some(name) = symbol.name() {
            write!(out, " in {name:#}")?;
        }
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            write!(out, " ({}:{line})", file.display())?;
        }
        out.write_str("\n")
    }
}
