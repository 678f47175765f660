//! Programs that must do the same with the library as without it, on every interpreter, in every row.

use std::fs;
use std::path::Path;

use crate::process::{
    few, free_threaded, interpreters, is_newest, plain, python, run, succeed, tries_all, with_gil,
};

/// What a service does: objects of all sizes, four threads, a fork whose child allocates, subprocesses, and a look at the
/// environment that they see.
const PROGRAM: &str = r"
import gc, json, os, subprocess, sys, threading, warnings
warnings.simplefilter('ignore')
print(json.dumps({'hello': [1, 2, 3]}))

def churn(seed):
    live = {}
    for i in range(1500):
        n = (i * 7919 + seed) % 1500
        live[n] = bytes([i % 256]) * n
        if n % 3 == 0:
            live.pop((n * 5) % 1500, None)
        if n % 200 == 0:
            live[n] = bytearray(300_000)
            live[n].extend(b'x' * n)
    assert all(len(set(v)) <= 2 for v in live.values())

threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
child = os.fork()
if child == 0:
    churn(4)
    os._exit(42)
assert os.waitpid(child, 0)[1] >> 8 == 42
for thread in threads: thread.join()

class Node: pass
gc.collect(); gc.disable()
for _ in range(200):
    a, b = Node(), Node()
    a.other, b.other = b, a
del a, b
print(gc.collect() >= 400, len(gc.get_objects()) > 1000)

names = ('PYTHONMALLOC', 'LD_PRELOAD')
show = 'import os; print([os.environ.get(n) for n in %r])' % (names,)
mine = str([os.environ.get(n) for n in names])
theirs = subprocess.run([sys.executable, '-c', show], stdout=subprocess.PIPE, check=True).stdout
print(mine == theirs.decode().strip(), os.environ.get('PYTHONMALLOC'))
";

#[test]
fn a_program_does_the_same_in_every_row() {
    for interpreter in with_gil() {
        // What serves is the work of the rows and of the interpreter, and not of each pair.
        let all = tries_all() || is_newest(interpreter);
        for row in interpreter.rows().filter(|row| all || matches!(*row, "mimalloc" | "debug")) {
            let expected = format!("{{\"hello\": [1, 2, 3]}}\nTrue True\nTrue {row}\n");
            let output = succeed(python(&interpreter.path, row).args(["-c", PROGRAM]));
            assert_eq!(output, expected, "{interpreter} with {row}");
        }
    }
}

#[test]
fn without_pythonmalloc_the_variable_stays_unset() {
    for interpreter in few() {
        let mut preloaded = crate::process::preloaded(&interpreter.path);
        let with = succeed(preloaded.args(["-c", PROGRAM]));
        let without = succeed(plain(&interpreter.path).args(["-c", PROGRAM]));
        assert_eq!(with, without, "{interpreter}");
        assert!(with.ends_with("True None\n"), "{interpreter}: {with}");
    }
}

/// Every domain is ours: the interpreter's records are those that the library gives out.
#[test]
fn each_domain_is_served_by_the_library() {
    const RECORDS: &str = r"
import ctypes, os
class Record(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ('ctx', 'malloc', 'calloc', 'realloc', 'free')]
def get(function, domain):
    record = Record()
    function(domain, ctypes.byref(record))
    return [getattr(record, n) for n, _ in Record._fields_]
mine = ctypes.CDLL(os.environ['LD_PRELOAD'])
for domain in range(3):
    print(get(ctypes.pythonapi.PyMem_GetAllocator, domain) == get(mine.pymem_get_allocator, domain))
print(any(get(mine.pymem_get_allocator, 3)), any(get(mine.pymem_get_allocator, -1)))
";
    for interpreter in interpreters() {
        for row in interpreter.rows() {
            let output = succeed(python(&interpreter.path, row).args(["-c", RECORDS]));
            assert_eq!(output, "True\nTrue\nTrue\nFalse False\n", "{interpreter} with {row}");
        }
    }
}

#[test]
fn compiles_its_own_packages() {
    for interpreter in interpreters() {
        let row = if interpreter.free_threaded { "default" } else { "pymalloc" };
        let mut compiled = Vec::new();
        for row in [None, Some(row)] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut command = match row {
                Some(row) => python(&interpreter.path, row),
                None => plain(&interpreter.path),
            };
            command.env("PYTHONPYCACHEPREFIX", folder.path());
            let program = "
import compileall, email, json, os
for package in (json, email):
    print(bool(compileall.compile_dir(os.path.dirname(package.__file__), force=True, quiet=1)))
";
            let output = succeed(command.args(["-c", program]));
            assert_eq!(output, "True\nTrue\n", "{interpreter}");
            compiled.push(files(folder.path()));
        }
        assert!(
            compiled[0] > 20 && compiled[0] == compiled[1],
            "{interpreter}: {compiled:?} files"
        );
    }
}

/// The number of compiled files below `folder`.
fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("a folder of the test").filter_map(Result::ok);
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path()),
            _ => usize::from(entry.path().extension().is_some_and(|ext| ext == "pyc")),
        })
        .sum()
}

/// A host without the GIL keeps mem and obj, bare or under our hooks, so that its collector still sees every object.
#[test]
fn free_threaded_hosts_keep_their_objects() {
    const PROGRAM: &str = r"
import ctypes, gc, os, sys, weakref
class Record(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ('ctx', 'malloc', 'calloc', 'realloc', 'free')]
class Info(ctypes.Structure):
    _fields_ = [('name', ctypes.c_char_p), ('base', ctypes.c_void_p), ('symbol', ctypes.c_char_p), ('address', ctypes.c_void_p)]
libc = ctypes.CDLL(None)
def owner(domain):
    record, info = Record(), Info()
    ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(record))
    libc.dladdr(ctypes.c_void_p(record.malloc), ctypes.byref(info))
    return 'pymem_preload' in info.name.decode()
print([owner(domain) for domain in range(3)])
class Node: pass
node = Node(); node.self = node
gone = weakref.ref(node)
print(any(o is node for o in gc.get_objects()))
del node; gc.collect()
print(gone() is None, sys._is_gil_enabled())
";
    for interpreter in free_threaded() {
        for (row, ours) in [
            ("", "[True, False, False]"),
            ("default", "[True, False, False]"),
            ("mimalloc", "[True, False, False]"),
            ("debug", "[True, True, True]"),
            ("mimalloc_debug", "[True, True, True]"),
        ] {
            let output = succeed(python(&interpreter.path, row).args(["-c", PROGRAM]));
            let expected = format!("{ours}\nTrue\nTrue False\n");
            assert_eq!(output, expected, "{interpreter} with {row}");
        }
        for row in ["malloc", "malloc_debug", "pymalloc", "pymalloc_debug"] {
            let outcome = run(python(&interpreter.path, row).args(["-c", "print(1)"]));
            assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
            let (sentence, hosts) = outcome.stderr.split_once('\n').expect("a line of ours");
            let expected =
                format!("pymem-preload: PYTHONMALLOC={row}: a free-threaded interpreter");
            assert!(sentence.starts_with(&expected), "{outcome:?}");
            let unknown = run(plain(&interpreter.path).env("PYTHONMALLOC", row).args(["-c", ""]));
            assert_eq!(hosts, unknown.stderr, "{interpreter} with {row}");
        }
    }
}
