//! A program that embeds an interpreter and chooses by `pymem_setup`: the example `embed`, over every shared `libpython`.

use std::env;
use std::path::PathBuf;

use pymem_domains::AllocatorName;

use crate::interpreters::Interpreter;
use crate::process::{compiled, interpreters, library, plain, preloaded, run, succeed};

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
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(program) = compiled(folder.path(), PROGRAM, &[]) else { return };
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

/// A program in which each letter is a step, with an interpreter of its own.
const STEPS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
typedef struct {
    void *ctx, *(*malloc)(void *, size_t), *(*calloc)(void *, size_t, size_t), *(*realloc)(void *, void *, size_t), (*free)(void *, void *);
} Record;
static void *own_malloc(void *ctx, size_t size) { char *p = malloc(size + 16); return p ? p + 16 : 0; }
static void *own_calloc(void *ctx, size_t n, size_t size) { char *p = calloc(1, n * size + 16); return p ? p + 16 : 0; }
static void *own_realloc(void *ctx, void *old, size_t size) { char *p = realloc(old ? (char *)old - 16 : 0, size + 16); return p ? p + 16 : 0; }
static void own_free(void *ctx, void *p) { if (p) free((char *)p - 16); }
int main(int count, char **words) {
    void *library = dlopen(words[1], RTLD_NOW | RTLD_GLOBAL), *block = 0;
    if (!library) return 2;
    setvbuf(stdout, 0, _IONBF, 0);
    for (const char *step = words[2]; *step; step++) {
        Record record = {0, own_malloc, own_calloc, own_realloc, own_free};
        switch (*step) {
        case 'o':
            for (int domain = 0; domain < 3; domain++) ((void (*)(int, Record *))dlsym(library, "PyMem_SetAllocator"))(domain, &record);
            break;
        case 'm': block = ((void *(*)(size_t))dlsym(library, "PyMem_RawMalloc"))(100); break;
        case 'f': ((void (*)(void *))dlsym(library, "PyMem_RawFree"))(block); break;
        case 'k':
            ((void (*)(int, Record *))dlsym(library, "PyMem_GetAllocator"))(2, &record);
            printf("kept %d\n", record.malloc == own_malloc);
            break;
        case 's': printf("setup %d\n", ((int (*)(const char *))dlsym(dlopen(words[3], RTLD_NOW), "pymem_setup"))("malloc")); break;
        case '+': ((void (*)(void))dlsym(library, "Py_Initialize"))(); break;
        case '-': printf("end %d\n", ((int (*)(void))dlsym(library, "Py_FinalizeEx"))()); break;
        case 'p':
            ((int (*)(const char *))dlsym(library, "PyRun_SimpleString"))("import json, re, threading, os; print(os.environ.get('PYTHONMALLOC'), flush=True)");
        }
    }
    return 0;
}
"#;

/// What the program of [`STEPS`] prints over each shared interpreter.
fn each_embedded(mut embed: impl FnMut(&Interpreter, &mut dyn FnMut(bool, &str, &str) -> String)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(program) = compiled(folder.path(), STEPS, &[]) else { return };
    for interpreter in interpreters().iter().filter(|python| !python.free_threaded) {
        let Some(libpython) = shared_library(interpreter) else { continue };
        let home = interpreter.path.parent().and_then(|bin| bin.parent()).expect("a prefix");
        embed(interpreter, &mut |is_preloaded, row, steps| {
            let mut command = if is_preloaded { preloaded(&program) } else { plain(&program) };
            command.env("PYTHONHOME", home).env("PYTHONMALLOC", row).arg(&libpython).arg(steps);
            succeed(command.arg(library()))
        });
    }
}

/// Blocks of the program's own allocator stay its own.
#[test]
fn an_embedders_allocator_stays() {
    each_embedded(|interpreter, steps| {
        assert_eq!(steps(true, "", "om+kf-"), "kept 1\nend 0\n", "{interpreter}");
    });
}

/// A second run is asked for as the first one is.
#[test]
fn a_second_run_sees_the_variable() {
    each_embedded(|interpreter, steps| {
        for row in ["default", "debug"] {
            let expected = format!("{row}\nend 0\n{row}\nend 0\n");
            assert_eq!(steps(true, row, "+p-+p-"), expected, "{interpreter}");
        }
    });
}

/// Blocks of the first run outlive it up to 3.11; later versions have a duty in the place of an answer.
#[test]
fn it_is_too_late_after_a_run() {
    each_embedded(|interpreter, steps| {
        if interpreter.minor <= 11 {
            let told = steps(false, "default", "+p-s+p-");
            assert_eq!(told, "default\nend 0\nsetup -2\ndefault\nend 0\n", "{interpreter}");
        }
    });
}
