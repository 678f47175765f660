//! Owns which of CPython's tests run: the modules of a short run, what a whole run leaves out, and what must fail.
//! Each entry that is left out or expected to fail has its reason beside it.

/// Modules chosen for what they allocate: each object type, containers, strings of every width, buffers, threads, forks,
/// subprocesses, cyclic garbage, interpreters, C extensions, and the allocator's own tests. A version that lacks one of
/// them leaves it out.
pub(super) const MODULES: [&str; 62] = [
    "test_array",
    "test_ast",
    "test_asyncgen",
    "test_bisect",
    "test_buffer",
    "test_bytes",
    "test_capi",
    "test_class",
    "test_collections",
    "test_compile",
    "test_contextlib",
    "test_copy",
    "test_coroutines",
    "test_csv",
    "test_ctypes",
    "test_dataclasses",
    "test_defaultdict",
    "test_deque",
    "test_descr",
    "test_dict",
    "test_enumerate",
    "test_exceptions",
    "test_float",
    "test_fork1",
    "test_format",
    "test_free_threading",
    "test_functools",
    "test_gc",
    "test_generators",
    "test_heapq",
    "test_int",
    "test_io",
    "test_iter",
    "test_itertools",
    "test_json",
    "test_list",
    "test_long",
    "test_marshal",
    "test_memoryview",
    "test_mmap",
    "test_ordered_dict",
    "test_pickle",
    "test_pyexpat",
    "test_queue",
    "test_re",
    "test_repl",
    "test_set",
    "test_sort",
    "test_sqlite3",
    "test_str",
    "test_struct",
    "test_subprocess",
    "test_sys",
    "test_thread",
    "test_threading",
    "test_tracemalloc",
    "test_tuple",
    "test_unicode",
    "test_weakref",
    "test_weakset",
    "test_xml_etree",
    "test_zlib",
];

/// Modules and packages that a run of the whole suite leaves out: they need a network, sockets, a compiler or a terminal, or take
/// minutes for what other modules show too.
pub(super) const EXCLUDED: [(&str, &str); 49] = [
    ("test_asynchat", SOCKETS),
    ("test_asyncio", SOCKETS),
    ("test_asyncore", SOCKETS),
    ("test_bigmem", "needs gigabytes"),
    ("test_cext", COMPILER),
    ("test_clinic", COMPILER),
    ("test_compileall", "compiles the whole library, once for each worker"),
    ("test_concurrent_futures", PROCESSES),
    ("test_cppext", COMPILER),
    ("test_curses", TERMINAL),
    ("test_docxmlrpc", SOCKETS),
    ("test_ensurepip", "installs packages"),
    ("test_ftplib", SOCKETS),
    ("test_gdb", "runs the interpreter in a debugger, which the preload does not enter"),
    ("test_httplib", SOCKETS),
    ("test_httpservers", SOCKETS),
    ("test_idle", TERMINAL),
    ("test_imaplib", SOCKETS),
    ("test_largefile", "writes gigabytes"),
    ("test_lib2to3", "parses the whole library, for minutes"),
    ("test_multiprocessing_fork", PROCESSES),
    ("test_multiprocessing_forkserver", PROCESSES),
    ("test_multiprocessing_main_handling", PROCESSES),
    ("test_multiprocessing_spawn", PROCESSES),
    ("test_nntplib", SOCKETS),
    ("test_peg_generator", COMPILER),
    ("test_perf_profiler", "needs the profiler of the kernel"),
    ("test_poplib", SOCKETS),
    ("test_pty", TERMINAL),
    ("test_pyrepl", TERMINAL),
    ("test_regrtest", "runs the test runner in the test runner, for minutes"),
    ("test_robotparser", SOCKETS),
    ("test_smtpd", SOCKETS),
    ("test_smtplib", SOCKETS),
    ("test_smtpnet", SOCKETS),
    ("test_socket", SOCKETS),
    ("test_socketserver", SOCKETS),
    ("test_ssl", SOCKETS),
    ("test_telnetlib", SOCKETS),
    ("test_timeout", SOCKETS),
    ("test_tkinter", TERMINAL),
    ("test_tools", COMPILER),
    ("test_ttk", TERMINAL),
    ("test_urllib2_localnet", SOCKETS),
    ("test_urllib2net", SOCKETS),
    ("test_urllibnet", SOCKETS),
    ("test_venv", "installs packages"),
    ("test_xmlrpc", SOCKETS),
    ("test_zipfile64", "writes gigabytes"),
];

const SOCKETS: &str = "talks to a network or to sockets of its own";
const COMPILER: &str = "runs a compiler or another tool of CPython's own build";
const PROCESSES: &str =
    "starts hundreds of processes, for minutes; test_fork1 and test_subprocess show the same";
const TERMINAL: &str = "needs a terminal or a display";

/// Tests that fail under any preloaded allocator, and why.
pub(super) const EXPECTED_FAILURES: [(&str, &str); 3] = [
    (
        "test_pythonmalloc",
        "asks the interpreter for the name of its allocator, which is not one of its own",
    ),
    (
        "test_getallocatedblocks",
        "counts the blocks of the interpreter's own pools, which hold none",
    ),
    ("test_debugmallocstats", "looks for the statistics of the interpreter's own pools"),
];

/// Tests that fail in rows whose names begin with the first text, and why.
pub(super) const EXPECTED_IN_ROWS: [(&str, &str, &str); 1] = [(
    "mimalloc",
    "test.test_external_inspection.test_self_trace",
    "reads past the end of a string into memory that mimalloc has not committed; it fails on the interpreter's own mimalloc too",
)];

/// What fails with options of the hooks, and why.
pub(super) const EXPECTED_WITH_OPTIONS: (&str, &str) = (
    "test.test_cmd_line.CmdLineTest.test_xdev",
    "reads what dev mode prints, and a line of the library says there that options are not served",
);

/// Does a run of the whole suite leave out `module`, such as `test_a` or `test.test_a.test_b`?
pub(super) fn is_excluded(module: &str) -> bool {
    let name = module.strip_prefix("test.").unwrap_or(module);
    let name = name.split('.').next().unwrap_or(name);
    EXCLUDED.iter().any(|(excluded, _)| *excluded == name)
}

#[cfg(test)]
mod tests {
    use super::{EXCLUDED, MODULES, is_excluded};

    #[test]
    fn the_lists_are_sorted_and_long_enough() {
        assert!(MODULES.is_sorted());
        assert!(MODULES.len() >= 40);
        assert!(EXCLUDED.is_sorted_by_key(|(module, _)| *module));
        assert!(!MODULES.iter().any(|module| is_excluded(module)));
    }

    #[test]
    fn what_is_below_an_excluded_name_is_excluded() {
        assert!(is_excluded("test_socket") && is_excluded("test.test_asyncio.test_tasks"));
        assert!(!is_excluded("test_sockets") && !is_excluded("test.test_inspect.test_inspect"));
    }
}
