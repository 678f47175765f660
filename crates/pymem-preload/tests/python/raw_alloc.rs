//! The example of `pymem-raw-alloc`, an extension module in Rust: Python sees its memory, on plain CPython and on the library.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use rstest::rstest;
use tempfile::TempDir;

use crate::process::{few_with_gil, plain, python, run, succeed};

/// A folder with the module, for every interpreter.
fn module() -> TempDir {
    let test = env::current_exe().expect("the test knows its own path");
    let folder = test.ancestors().nth(2).expect("the folder of the build");
    let library = folder.join("examples/libextension.so");
    assert!(
        library.is_file(),
        "{} is missing: cargo build --workspace --examples",
        library.display()
    );
    let module = tempfile::tempdir().expect("a folder");
    fs::copy(library, module.path().join("extension.so")).expect("a copy");
    module
}

/// Plain CPython, and the library in three rows, each running `code`.
fn everywhere(code: &str, check: impl Fn(&str, &mut Command)) {
    let module = module();
    for interpreter in few_with_gil() {
        let commands = [
            ("CPython's default", plain(&interpreter.path)),
            ("pymalloc", python(&interpreter.path, "pymalloc")),
            ("mimalloc", python(&interpreter.path, "mimalloc")),
            ("debug", python(&interpreter.path, "debug")),
        ];
        for (row, mut command) in commands {
            command
                .args(["-c", code])
                .env("PYTHONPATH", module.path())
                .env("PYTHONDONTWRITEBYTECODE", "1");
            check(&format!("{interpreter} with {row}"), &mut command);
        }
    }
}

#[test]
fn tracemalloc_has_its_leak_at_its_line() {
    let code = "
import tracemalloc; tracemalloc.start()
import extension
def hoard():
    extension.leak(1 << 20)
hoard()
first = tracemalloc.take_snapshot().statistics('lineno')[0]
print(first.traceback[0].lineno, first.size, first.count)
";
    everywhere(code, |what, command| assert_eq!(succeed(command), "5 1048576 1\n", "{what}"));
}

#[test]
fn a_profile_has_its_leak_at_its_line() {
    let module = module();
    let profile = module.path().join("held.collapsed");
    let code = "import extension\ndef hoard():\n    extension.leak(1 << 20)\nhoard()";
    for interpreter in few_with_gil() {
        let mut command = python(&interpreter.path, "default");
        command.args(["-c", code]).env("PYTHONPATH", module.path()).env("PYMEM_PROFILE", &profile);
        succeed(&mut command);
        let stacks = fs::read_to_string(&profile).expect("the profile");
        let line = stacks.lines().find(|line| line.contains("hoard")).expect("the function's line");
        assert!(line.ends_with("hoard (<string>:3) 1048576"), "{interpreter}: {line}");
    }
}

/// The main thread keeps memory until its locals' destructors run, after the interpreter's end.
///
/// The other threads must have come to their ends before that of the interpreter: `join` does not wait for their destructors, and
/// CPython takes `tracemalloc` down while a thread may be in it (without the library two runs in sixty crashed).
#[test]
fn aligned_and_late_blocks_are_whole() {
    let code = "
import extension, os, threading, time
threads = [threading.Thread(target=extension.keep, args=(100_000,)) for _ in range(4)]
for thread in threads: thread.start()
tasks = [thread.native_id for thread in threads]
for thread in threads: thread.join()
while any(os.path.exists(f'/proc/self/task/{task}') for task in tasks): time.sleep(0.001)
extension.keep(1000)
address, zeros = extension.page()
print(address % 4096, zeros)
";
    everywhere(code, |what, command| {
        assert_eq!(succeed(command.env("PYTHONTRACEMALLOC", "5")), "0 4096\n", "{what}");
    });
}

#[rstest]
#[case::hooks_of_cpython(false)]
#[case::hooks_of_the_library(true)]
fn an_overrun_is_reported(#[case] preloaded: bool) {
    let module = module();
    let code = "import extension\ndef greet():\n    extension.overrun()\ngreet()";
    for interpreter in few_with_gil() {
        let path: &Path = &interpreter.path;
        let mut command = if preloaded { python(path, "debug") } else { plain(path) };
        command.env("PYTHONMALLOC", "debug").env("PYTHONPATH", module.path());
        let outcome = run(command.args(["-c", code]));
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{interpreter}: {outcome:?}");
        for said in [
            "API 'r'",
            "    5 bytes originally requested",
            "bad trailing pad byte",
            "line 3 in greet",
        ] {
            assert!(outcome.stderr.contains(said), "{interpreter}: {said}: {outcome:?}");
        }
    }
}
