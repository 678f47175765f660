//! A program that embeds an interpreter and chooses by `pymem_setup`: the example `embed`, over every shared `libpython`.

use std::env;
use std::path::PathBuf;

use pymem_domains::AllocatorName;

use crate::interpreters::Interpreter;
use crate::process::{interpreters, plain, preloaded, run, succeed};

fn example() -> PathBuf {
    let test = env::current_exe().expect("the test knows its own path");
    let target = test.parent().and_then(|deps| deps.parent()).expect("a target folder");
    target.join("examples/embed")
}

/// The interpreter's shared `libpython`, if it was built with one.
fn shared_library(interpreter: &Interpreter) -> Option<PathBuf> {
    let ask = "import os, sysconfig
get = sysconfig.get_config_var
print(os.path.join(get('LIBDIR') or '', get('INSTSONAME') or ''))";
    let path = PathBuf::from(succeed(plain(&interpreter.path).args(["-c", ask])).trim());
    (path.to_string_lossy().contains(".so") && path.is_file()).then_some(path)
}

#[test]
fn an_embedder_chooses_once() {
    let mut ran = 0;
    for interpreter in interpreters().iter().filter(|python| !python.free_threaded) {
        let Some(library) = shared_library(interpreter) else { continue };
        let home = interpreter.path.parent().and_then(|bin| bin.parent()).expect("a prefix");
        for name in ["malloc", "pymalloc", "mimalloc_debug"] {
            // The variable, which an embedder's choice beats, would be an error if the host saw it too early.
            let mut command = plain(example());
            command.env("PYTHONHOME", home).env("PYTHONMALLOC", "nonsense");
            let output = succeed(command.arg(&library).arg(name));
            let expected = format!("{name} serves raw, mem and obj\nnonsense\n");
            assert_eq!(output, expected, "{interpreter}");
            ran += 1;
        }
    }
    if ran == 0 {
        eprintln!("skipped: no interpreter with a shared libpython is installed");
    }
}

/// A program that brings its interpreter after its start: served when the interpreter starts, whoever sees its functions. One that
/// binds the interpreter to the C library directly is not, and is told so where it asks for something by name.
#[test]
fn a_late_interpreter_is_served() {
    const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
int main(int count, char **words) {
    void *library = dlopen(words[1], RTLD_NOW | strtol(words[2], 0, 0));
    if (!library) return 2;
    ((void (*)(void))dlsym(library, "Py_Initialize"))();
    ((int (*)(const char *))dlsym(library, "PyRun_SimpleString"))("import os; print(os.environ.get('PYTHONMALLOC'))");
    return ((int (*)(void))dlsym(library, "Py_FinalizeEx"))();
}
"#;
    if run(plain("sh").args(["-c", "command -v cc"])).status != Some(0) {
        return eprintln!("skipped: there is no C compiler");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, program) = (folder.path().join("late.c"), folder.path().join("late"));
    std::fs::write(&source, PROGRAM).expect("a file of the test");
    succeed(plain("cc").arg("-o").arg(&program).arg(&source).arg("-ldl"));
    for interpreter in interpreters() {
        let Some(library) = shared_library(interpreter) else { continue };
        let home = interpreter.path.parent().and_then(|bin| bin.parent()).expect("a prefix");
        let start = |mode: i32, row: &str, variable: &str| {
            let mut command = preloaded(&program);
            command.env("PYTHONHOME", home).env("PYTHONMALLOC", row).env(variable, "1");
            let outcome = run(command.arg(&library).arg(mode.to_string()));
            let output = (outcome.status, outcome.stdout.as_str());
            assert_eq!(
                output,
                (Some(0), format!("{row}\n").as_str()),
                "{interpreter}: {outcome:?}"
            );
            outcome.stderr
        };
        for mode in [libc::RTLD_LOCAL, libc::RTLD_GLOBAL] {
            for row in ["default", "debug"] {
                let name: AllocatorName = row.parse().expect("a name of the table");
                let row_of_table = name.row(&interpreter.profile()).expect("a row");
                let serves = format!("pymem: {} (raw ", row_of_table.canonical_name());
                let told = start(mode, row, "PYMEM_STATS");
                assert!(told.starts_with(&serves), "{interpreter}, {row}: {told}");
                assert_eq!(start(mode, row, "PYMEM_OTHER"), "", "{interpreter}");
            }
        }
        let directly = libc::RTLD_GLOBAL | libc::RTLD_DEEPBIND;
        let line =
            "pymem-preload: PYMEM_STATS: nothing was served: the program brought its interpreter";
        let told = start(directly, "default", "PYMEM_STATS");
        assert!(told.starts_with(line) && told.lines().count() == 1, "{interpreter}: {told}");
        assert_eq!(start(directly, "default", "PYMEM_OTHER"), "", "{interpreter}");
    }
}
