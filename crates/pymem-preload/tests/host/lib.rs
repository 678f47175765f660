//! A host in place of an interpreter: the functions by which the library finds one, and a constructor that uses what was
//! installed. Preloaded before the library into any program, it starts in milliseconds, so that thousands of values of a
//! variable can be tried.
//!
//! `PYMEM_HOST` says what the constructor does: `serve` (each domain once), `abi` (also every function of the C
//! interface with bad arguments), `json` (what is served), `open` (open the library at `PYMEM_HOST_LIBRARY`, set it up, close it, and use it still).

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Mutex, OnceLock};

mod record;
#[path = "../python/sweep.rs"]
mod sweep;

use record::Record;
use sweep::{State, sweep};

const INITIAL: Record = Record {
    ctx: std::ptr::null_mut(),
    malloc: Some(malloc),
    calloc: Some(calloc),
    realloc: Some(realloc),
    free: Some(free),
};

static RECORDS: Mutex<[Record; 3]> = Mutex::new([INITIAL; 3]);

unsafe extern "C" fn malloc(_: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: any size may be asked for.
    unsafe { libc::malloc(size.max(1)) }
}

unsafe extern "C" fn calloc(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: any sizes may be asked for.
    unsafe { libc::calloc(count.max(1), size.max(1)) }
}

unsafe extern "C" fn realloc(_: *mut c_void, block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's block.
    unsafe { libc::realloc(block, size.max(1)) }
}

unsafe extern "C" fn free(_: *mut c_void, block: *mut c_void) {
    // SAFETY: the caller's block.
    unsafe { libc::free(block) }
}

fn records() -> std::sync::MutexGuard<'static, [Record; 3]> {
    RECORDS.lock().expect("nobody panics while holding it")
}

/// # Safety
///
/// 1. `record` is readable.
#[unsafe(no_mangle)]
unsafe extern "C" fn PyMem_SetAllocator(domain: c_int, record: *const Record) {
    // SAFETY: duty 1.
    let record = unsafe { record.read() };
    records()[domain as usize] = record;
}

/// # Safety
///
/// 1. `record` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn PyMem_GetAllocator(domain: c_int, record: *mut Record) {
    let current = records()[domain as usize];
    // SAFETY: duty 1.
    unsafe { record.write(current) };
}

#[unsafe(no_mangle)]
extern "C" fn PyMem_SetupDebugHooks() {}

#[unsafe(no_mangle)]
extern "C" fn Py_IsInitialized() -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn Py_GetVersion() -> *const c_char {
    static VERSION: OnceLock<CString> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let version = std::env::var("PYMEM_HOST_VERSION");
        let version = version.unwrap_or_else(|_| String::from("3.11.0 (a host of the tests)"));
        CString::new(version).expect("a text without NUL")
    });
    version.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn PyGILState_Check() -> c_int {
    1
}

/// # Safety
///
/// 1. `message` is a text that ends with a NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn Py_FatalError(message: *const c_char) -> ! {
    // SAFETY: duty 1.
    eprintln!("host: fatal: {:?}", unsafe { CStr::from_ptr(message) });
    std::process::abort()
}

// The library, which stands after this one in `LD_PRELOAD`, is initialized first.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

extern "C" fn on_load() {
    match std::env::var("PYMEM_HOST").as_deref() {
        Ok("serve") => serve(),
        Ok("abi") => {
            serve();
            println!("{}", sweep(libc::RTLD_DEFAULT, State::Served));
        }
        Ok("json") => println!("{}", json()),
        Ok("open") => open(),
        _ => {}
    }
}

/// Each function of each domain once, for sizes on both sides of what the allocators cut at.
fn serve() {
    let records = *records();
    for record in records {
        for size in [0, 1, 100, 512, 513, 9000, 300_000] {
            record.exercise(size);
        }
    }
}

fn open() {
    let path = std::env::var("PYMEM_HOST_LIBRARY").expect("the library's path");
    let path = CString::new(path).expect("a path without NUL");
    // SAFETY: a library whose constructor does nothing unless it is preloaded.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "{path:?} opens");
    let before = sweep(library, State::Host);
    assert_eq!(sweep::setup(library, c"pymalloc"), 0, "a host that has not started is served");
    serve();
    // SAFETY: the handle is not used again.
    assert_eq!(unsafe { libc::dlclose(library) }, 0);
    // The host has the library's records.
    serve();
    // SAFETY: as above.
    let again = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    assert!(!again.is_null(), "a closed library stays, since its records do");
    println!("{before}; {}", sweep(again, State::Served));
}

/// What `pymem_stats_json` writes.
fn json() -> String {
    let stats_json: unsafe extern "C" fn(*mut c_char, usize) -> c_int =
        sweep::function(libc::RTLD_DEFAULT, c"pymem_stats_json");
    let mut text = vec![0_u8; 1 << 16];
    // SAFETY: so many writable bytes.
    let length = unsafe { stats_json(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(usize::try_from(length).expect("a text"));
    String::from_utf8(text).expect("a text in UTF-8")
}
