//! `PYMEM_STATS=FILE`: the reports of a process and of its children.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::process::{interpreters, preloaded, run, succeed};

/// Two children that end in two ways, and one that borrows its parent's memory and cannot start.
const PROGRAM: &str = "\
import os, subprocess, sys, warnings
warnings.simplefilter('ignore')
children = []
for end in (os._exit, sys.exit):
    child = os.fork()
    if child == 0:
        more = [bytes(n) for n in range(600, 30_600)]
        end(0)
    children.append(child)
    os.waitpid(child, 0)
os.chdir('/')
try:
    subprocess.run(['/nobody/has/this'])
except OSError:
    print(*children)
";

/// The calls of `malloc` in raw, mem and obj together.
fn mallocs(path: &Path) -> u64 {
    let text = fs::read_to_string(path).expect("a report");
    assert!(text.starts_with("pymem: "), "{text}");
    let of = |domain| {
        let line = text.lines().find(|line| line.starts_with(domain)).expect("a line a domain");
        line.split_whitespace().nth(1).expect("a count").parse::<u64>().expect("a number")
    };
    ["raw ", "mem ", "obj "].into_iter().map(of).sum()
}

#[test]
fn a_forked_child_writes_a_report_of_its_own_however_it_ends() {
    for interpreter in interpreters() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = preloaded(&interpreter.path);
        command.current_dir(folder.path()).env("PYMEM_STATS", "stats.txt");
        let output = succeed(command.args(["-c", PROGRAM]));
        let own = mallocs(&folder.path().join("stats.txt"));
        for child in output.split_whitespace() {
            let count = mallocs(&folder.path().join(format!("stats.txt.{child}")));
            // Its own blocks, and what its parent had made by then, which is most of what the parent makes.
            assert!(count > 30_000 + own / 4, "{interpreter}: {count} and {own}");
        }
        let files = fs::read_dir(folder.path()).expect("the folder").count();
        // Older interpreters fork where newer ones borrow, so that a start that fails is a child like any other.
        let borrows = interpreter.minor >= 10;
        assert_eq!(files, if borrows { 3 } else { 4 }, "{interpreter}: one a process");
    }
}

#[test]
fn a_link_and_a_folder_that_is_not_there_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("link");
    symlink("target", &link).expect("a link");
    let Some(interpreter) = interpreters().last() else { return };
    for path in [link.as_path(), Path::new("/nobody/has/this")] {
        let mut command = preloaded(&interpreter.path);
        let outcome = run(command.env("PYMEM_STATS", path).args(["-c", "pass"]));
        assert_eq!(outcome.status, Some(1), "{outcome:?}");
        assert!(outcome.stderr.starts_with("pymem-preload: PYMEM_STATS: "), "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    }
    assert!(!folder.path().join("target").exists(), "no link is followed");
}
