//! `pymem.h` is C, and C++, with `Python.h` and without.

use std::path::Path;
use std::process::Command;

use rstest::rstest;

use crate::process::{few, plain, run, succeed};

#[rstest]
#[case::c("c")]
#[case::cxx("c++")]
fn the_header_compiles(#[case] language: &str) {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/pymem.h");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut includes = vec![(String::new(), String::from("."))];
    for interpreter in few() {
        let ask = "import os, sysconfig; p = sysconfig.get_paths()['include']
print(p if os.path.exists(p + '/Python.h') else '')";
        let path = succeed(plain(&interpreter.path).args(["-c", ask]));
        if !path.trim().is_empty() {
            includes.push((String::from("#include <Python.h>\n"), path.trim().to_owned()));
        }
    }
    for (first, path) in includes {
        let source = folder.path().join("use.c");
        let text = format!(
            "{first}#include \"{}\"\nint main(void) {{ PyMemAllocatorEx r; pymem_get_allocator(0, &r); return r.ctx != 0; }}\n",
            header.display()
        );
        std::fs::write(&source, text).expect("a file of the test");
        if Command::new("cc").arg("--version").output().is_err() {
            return eprintln!("skipped: there is no C compiler");
        }
        // Debian's headers are in two folders, the second one beside the first, maybe with a C library's of its own: last.
        let beside = format!("{path}/..");
        let outcome = run(plain("cc")
            .args(["-x", language, "-fsyntax-only", "-Wall", "-Werror"])
            .args(["-I", &path, "-idirafter", &beside])
            .arg(&source));
        assert_eq!(outcome.status, Some(0), "{path}: {outcome:?}");
    }
}
