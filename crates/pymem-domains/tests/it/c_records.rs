//! The examples in C, as a C compiler makes them: `PyMemAllocatorEx` records that wrap a domain's allocator or replace it.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::{env, process};

use malloc_api::testing::conformance;
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{LogReader, Op, generate, run};
use pymem_domains::{
    AllocatorName as N, AllocatorRecord, Domain, Domains, PyMemAllocatorEx, ThreadSafety,
    TypedMalloc as _,
};

/// A loaded library.
struct Library(*mut c_void);

// SAFETY: a handle that `dlsym` takes on any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// The examples, compiled and loaded once.
fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c");
        let sources = ["count_calls.c", "fail_at.c", "limit_memory.c", "log_calls.c"];
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-{}.so", process::id()));
        let mut cc = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args([
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
        ]);
        cc.arg(&path).args(sources.map(|name| folder.join(name)));
        assert!(cc.status().expect("a C compiler").success(), "{cc:?}");
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a path; the library runs nothing when it is loaded.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{}", path.display());
        fs::remove_file(&path).unwrap();
        Library(handle)
    })
}

/// The examples' function `name`.
///
/// # Safety
///
/// 1. `F` is the function's type.
unsafe fn function<F: Copy>(name: &CStr) -> F {
    // SAFETY: an open library, for ever.
    let symbol = unsafe { libc::dlsym(library().0, name.as_ptr()) };
    assert!(!symbol.is_null() && size_of::<F>() == size_of_val(&symbol), "{name:?}");
    // SAFETY: by 1, and of a pointer's size.
    unsafe { core::mem::transmute_copy(&symbol) }
}

type Wrap = extern "C" fn(PyMemAllocatorEx) -> PyMemAllocatorEx;
type Number = extern "C" fn() -> usize;

/// The record of an example.
fn record(record: PyMemAllocatorEx) -> AllocatorRecord {
    // SAFETY: 1. as the example made it. 2. it passes calls on, or serves by the C library. 3. its state is atomic.
    unsafe { AllocatorRecord::from_c(record, ThreadSafety::AnyThread) }.unwrap()
}

/// Puts an example's wrapper around the mem domain of new domains, and returns what it wraps.
fn wrapped(
    name: N,
    wrap: impl Fn(PyMemAllocatorEx) -> PyMemAllocatorEx,
) -> (Domains, AllocatorRecord) {
    let domains = Domains::new(crate::profile(), Some(name)).unwrap();
    // SAFETY: the examples' wrappers serve the very blocks of what they wrap.
    let inner = unsafe { domains.wrap_allocator(Domain::Mem, |inner| record(wrap(inner.to_c()))) };
    (domains, inner)
}

#[test]
fn calls_are_counted() {
    // SAFETY: 1: as in C.
    let count_calls: Wrap = unsafe { function(c"count_calls") };
    // SAFETY: 1: as in C.
    let calls_counted: Number = unsafe { function(c"calls_counted") };
    let (domains, inner) = wrapped(N::Debug, |inner| count_calls(inner));
    let mem = domains.get(Domain::Mem);
    let block = mem.malloc(10);
    // SAFETY: live, of this domain; the old pointer is not used again.
    let block = unsafe { mem.realloc(block, 1_000) };
    assert_eq!(calls_counted(), 2);
    domains.set_allocator(Domain::Mem, inner).unwrap();
    // SAFETY: live, of this domain, not used again; the wrapper is gone, its blocks are not.
    unsafe { mem.free(block) };
    assert_eq!((calls_counted(), domains.current_name().is_some()), (2, true));
}

/// The program of the Rust example, and one more call, survive each failure.
#[test]
fn each_allocation_can_fail() {
    // SAFETY: 1: as in C.
    let fail_at: Wrap = unsafe { function(c"fail_at") };
    // SAFETY: 1: as in C.
    let fail_from: extern "C" fn(usize) = unsafe { function(c"fail_from") };
    // SAFETY: 1: as in C.
    let allocations_tried: Number = unsafe { function(c"allocations_tried") };
    for (name, first) in
        [N::Default, N::Debug].iter().flat_map(|name| (0..=3).map(move |n| (name, n)))
    {
        let (domains, _) = wrapped(*name, |inner| fail_at(inner));
        let mem = domains.get(Domain::Mem);
        fail_from(first);
        let mut array = mem.new_array::<u64>(8);
        // SAFETY: live or none, of this domain; on failure the old one stays.
        let grown = array.is_some() && unsafe { mem.resize(&mut array, 1_000) }.is_ok();
        let zeroed = grown.then(|| mem.new_zeroed_array::<u64>(8)).flatten();
        for array in [array, zeroed] {
            // SAFETY: live or none, of this domain, not used again.
            unsafe { mem.free(array.map(|array| array.cast())) };
        }
        assert_eq!((array.is_some(), grown, zeroed.is_some()), (first > 0, first > 1, first > 2));
        assert_eq!(allocations_tried(), (first + 1).min(3));
        fail_from(usize::MAX);
        conformance(&mem);
    }
}

#[test]
fn memory_is_limited() {
    // SAFETY: 1: as in C.
    let limit_memory: extern "C" fn(usize) -> PyMemAllocatorEx =
        unsafe { function(c"limit_memory") };
    // SAFETY: 1: as in C.
    let memory_used: Number = unsafe { function(c"memory_used") };
    let domains = Domains::new(crate::profile(), None).unwrap();
    domains.set_allocator(Domain::Mem, record(limit_memory(1_000))).unwrap();
    let mem = domains.get(Domain::Mem);
    let first = mem.malloc(600);
    assert!(first.is_some() && mem.malloc(600).is_none() && memory_used() == 600);
    // SAFETY: live, of this domain; on failure the old one stays.
    assert_eq!(unsafe { mem.realloc(first, 1_001) }, None);
    // SAFETY: as above; the old pointer is not used again.
    let first = unsafe { mem.realloc(first, 1_000) };
    assert_eq!((first.is_some(), memory_used()), (true, 1_000), "the old bytes do not count");
    // SAFETY: as above; the old pointer is not used again.
    let first = unsafe { mem.realloc(first, 100) };
    let second = mem.calloc(9, 100);
    assert!(second.is_some() && mem.malloc(1).is_none() && memory_used() == 1_000);
    for block in [first, second] {
        // SAFETY: live, of this domain, not used again.
        unsafe { mem.free(block) };
    }
    assert_eq!(memory_used(), 0);
    limit_memory(usize::MAX);
    conformance(&mem);
    assert_eq!(memory_used(), 0);
}

/// The log is one that `malloc-trace` reads: what it holds is the program that ran.
#[test]
fn calls_are_logged_as_a_trace() {
    type LogCalls = extern "C" fn(PyMemAllocatorEx, c_uint, *const c_char) -> PyMemAllocatorEx;
    // SAFETY: 1: as in C.
    let log_calls: LogCalls = unsafe { function(c"log_calls") };
    // SAFETY: 1: as in C.
    let log_close: extern "C" fn() -> c_int = unsafe { function(c"log_close") };
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-{}.log", process::id()));
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let (domains, inner) =
        wrapped(N::Default, |inner| log_calls(inner, Domain::Mem.index() as c_uint, name.as_ptr()));
    let mem = domains.get(Domain::Mem);
    let block = mem.calloc(4, 8);
    // SAFETY: live, of this domain; the old pointer is not used again.
    let block = unsafe { mem.realloc(block, 640) };
    // SAFETY: live, of this domain, not used again.
    unsafe { mem.free(block) };
    // SAFETY: there is no block.
    let block = unsafe { mem.realloc(None, 7) };
    // SAFETY: live, of this domain, not used again.
    unsafe { mem.free(block) };
    conformance(&mem);
    let calls: Vec<Op> = generate::random(1, 10_000, 3_000);
    let summary = run(&calls, &mem).unwrap();
    domains.set_allocator(Domain::Mem, inner).unwrap();
    assert_eq!(log_close(), 0);
    let mut log = LogReader::new(BufReader::new(File::open(&path).unwrap())).unwrap();
    fs::remove_file(&path).unwrap();
    let ops: Vec<Op> = log.by_ref().map(|event| event.unwrap().op).collect();
    assert_eq!((log.unread().unknown_blocks, log.unread().unseen_frees), (0, 0));
    let first = [
        Op::calloc(0, Domain::Mem, 32),
        Op::realloc(0, Domain::Mem, 640),
        Op::free(0, Domain::Mem),
    ];
    assert_eq!(
        ops[..5],
        [first.as_slice(), &[Op::realloc(0, Domain::Mem, 7), Op::free(0, Domain::Mem)]].concat()
    );
    assert!(ops.len() > calls.len() / 2 && ops.iter().all(|op| op.domain() == Domain::Mem));
    let replayed = run(&ops, &LibcMalloc).unwrap();
    assert_eq!((replayed.failed, replayed.live_blocks), (0, 0));
    assert!(replayed.peak_bytes >= summary.peak_bytes);
}
