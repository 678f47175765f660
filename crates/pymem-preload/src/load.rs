//! Owns what happens when the library is loaded: nothing, unless it was preloaded into an interpreter that has not
//! started. The dynamic linker runs it after relocation and before `main`, on the only thread.

use core::ffi::{CStr, c_char, c_int};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::OnceLock;

use pymem_domains::{AllocatorName, Build, Rejection};

use crate::host::python::{Host, host};
use crate::host::{behind, gil, late};
use crate::observe::report;
use crate::request::command_line::CommandLine;
use crate::request::environment;
use crate::request::options::{self, Choice, Requests, RowRequest};
use crate::request::refusal::Refusal;
use crate::service::{self, Service};
use crate::start_pages;

// The linker passes `main`'s three arguments, as glibc does; musl passes none, and its loader none that are valid.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = on_load;

extern "C" fn on_load(argc: c_int, argv: *const *const c_char, _envp: *const *const c_char) {
    // SAFETY: 1: constructors run one after another; threads of an earlier one are not known to change the environment.
    if !unsafe { is_preloaded() } {
        return;
    }
    // SAFETY: 1: as above.
    unsafe { environment::take_back() };
    let Some(host) = host() else {
        // SAFETY: 1: as above.
        return unsafe { await_host() };
    };
    if host.is_initialized() {
        return;
    }
    // SAFETY: 1: the linker runs this before `main`, with all that it loads for the program in place.
    unsafe { gil::host_is_in_program() };
    // SAFETY: 1: the arguments of the process, as the linker passes them.
    let line = unsafe { CommandLine::of_process(argc, argv) };
    // SAFETY: 1: as above.
    unsafe { on_start(host, line) };
}

/// Whether the program had no interpreter at its start, and none has been met since.
static IS_AWAITED: AtomicBool = AtomicBool::new(false);

/// Has an interpreter that the program brings later served when it starts, and a program that asks for something by name told at
/// its exit where that was not possible.
///
/// # Safety
///
/// 1. No other thread changes the environment.
unsafe fn await_host() {
    static ASKED: OnceLock<(u32, &CStr)> = OnceLock::new();
    extern "C" fn on_exit() {
        let Some((process, name)) = ASKED.get() else { return };
        let is_asked = *process == std::process::id() && IS_AWAITED.load(Relaxed);
        if is_asked && service::installed().is_none() && late::arrived().is_some() {
            Refusal::LateHost(name.to_string_lossy().into_owned()).say();
        }
    }
    IS_AWAITED.store(true, Relaxed);
    // SAFETY: 1: by duty 1.
    if let Some(name) = unsafe { options::asked_by_name() } {
        ASKED.get_or_init(|| (std::process::id(), name));
        // SAFETY: a function that takes nothing; a full table of handlers costs the line alone.
        unsafe { libc::atexit(on_exit) };
    }
}

/// Serves an interpreter that has come since the program's start, if it has not been initialized, and the program has set no allocator
/// of its own.
///
/// # Safety
///
/// 1. The calling thread initializes the interpreter, or no thread uses it; no other thread uses the environment.
pub(crate) unsafe fn serve_late_host() {
    if !IS_AWAITED.load(Relaxed) {
        return;
    }
    let is_untouched =
        |host: &&Host| !host.is_initialized() && !host.has_blocks() && host.has_own_records();
    let Some(host) = late::arrived().filter(is_untouched) else { return };
    if service::installed().is_none() && IS_AWAITED.swap(false, Relaxed) {
        // SAFETY: 1: not initialized, and by duty 1.
        unsafe { on_start(host, CommandLine::default()) };
    }
}

/// Installs what the environment asks for, and ends the process on a request that cannot be met.
///
/// # Safety
///
/// 1. The host is not initialized, and no other thread uses it or the environment.
unsafe fn on_start(host: &'static Host, line: CommandLine) {
    // SAFETY: 1: by duty 1.
    match unsafe { Choice::of_process(line, &host.profile()) } {
        // SAFETY: 1: by duty 1.
        Choice::Serve(name) => match unsafe { setup(host, name, line) } {
            Ok(service) => {
                // SAFETY: 1: by duty 1.
                if unsafe { options::asks_for_malloc_stats(line) } {
                    report::print_malloc_stats(service);
                }
                behind::look_up();
                start_pages::give_back();
            }
            Err(refusal) => {
                refusal.say();
                // SAFETY: always allowed; nothing of the process has started that a handler would have to end.
                unsafe { libc::_exit(1) }
            }
        },
        // SAFETY: 1: by duty 1.
        Choice::StepAside => unsafe { explain(host, line) },
    }
}

/// Installs `name` with what the environment asks for besides, as far as `line` lets it.
///
/// # Errors
///
/// What cannot be done; nothing is changed.
///
/// # Safety
///
/// 1. The host is not initialized, and no other thread uses it or the environment.
pub(crate) unsafe fn setup(
    host: &'static Host,
    name: AllocatorName,
    line: CommandLine,
) -> Result<&'static Service, Refusal> {
    let has_hooks = name.row(&host.profile()).is_ok_and(|row| row.debug());
    // SAFETY: 1: by duty 1.
    let options = unsafe { options::debug_options(has_hooks) }?;
    // SAFETY: 1: by duty 1.
    unsafe { options::choose_report_files() }?;
    // SAFETY: 1: by duty 1.
    let mut requests = unsafe { Requests::take() }?;
    // SAFETY: 1: by duty 1.
    requests.huge_pages = host.has_huge_pages() && unsafe { options::asks_for_huge_pages(line) };
    if let Some(request) = &requests.stats {
        report::report_at_exit(request)?;
    }
    // SAFETY: 1: by duty 1.
    unsafe { environment::hide_pythonmalloc() };
    // SAFETY: 1: by duty 1.
    let result = unsafe { service::install(host, name, options, &requests) };
    if result.is_err() {
        // SAFETY: 1: by duty 1.
        unsafe { environment::restore() };
    }
    result
}

/// Says what of a request is not served: in dev mode anything that was asked for by name, and a configuration that a
/// free-threaded host cannot have, and then refuses too. Ends the process on a `PYMEM_MALLOC` that the host cannot have, since
/// the host does not read it.
///
/// # Safety
///
/// 1. No other thread changes the environment.
unsafe fn explain(host: &Host, line: CommandLine) {
    // SAFETY: 1: by duty 1.
    if unsafe { options::is_dev_mode(line) } {
        // SAFETY: 1: by duty 1.
        if let Some(name) = unsafe { options::asked_by_name() } {
            Refusal::DevMode(name.to_string_lossy().into_owned()).say();
        }
        return;
    }
    // SAFETY: 1: by duty 1.
    let Some(asked) = (unsafe { RowRequest::of_process(line) }) else { return };
    let value = asked.value();
    let Err(error) = AllocatorName::parse(value, &host.profile()) else { return };
    match asked {
        RowRequest::Own(_) => {
            Refusal::Row(error).say();
            // SAFETY: as in `on_start`.
            unsafe { libc::_exit(1) }
        }
        RowRequest::Interpreters(_)
            if error.reason() == Rejection::OtherBuild(Build::FreeThreaded) =>
        {
            Refusal::FreeThreaded(String::from_utf8_lossy(value).into_owned()).say();
        }
        RowRequest::Interpreters(_) => {}
    }
}

/// Whether the dynamic linker was told to preload this very library. One that a program links or opens waits for
/// `pymem_setup`.
///
/// # Safety
///
/// 1. No other thread changes the environment.
unsafe fn is_preloaded() -> bool {
    let mut this = libc::Dl_info {
        dli_fname: core::ptr::null(),
        dli_fbase: core::ptr::null_mut(),
        dli_sname: core::ptr::null(),
        dli_saddr: core::ptr::null_mut(),
    };
    let address: *const () = on_load as *const ();
    // SAFETY: any address may be asked for; `this` is writable.
    if unsafe { libc::dladdr(address.cast(), &raw mut this) } == 0 || this.dli_fname.is_null() {
        return false;
    }
    // SAFETY: `dladdr` gives a text that ends with a NUL and lives as long as the library.
    let path = unsafe { CStr::from_ptr(this.dli_fname) }.to_bytes();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    // SAFETY: 1: by duty 1.
    let preloads = unsafe { environment::value(c"LD_PRELOAD") }.unwrap_or_default();
    preloads
        .split(|byte| matches!(byte, b' ' | b':'))
        .any(|entry| entry.rsplit(|byte| *byte == b'/').next() == Some(name))
}
