//! `PYTHONMALLOCSTATS`: what is printed, and when.

use rstest::rstest;

use crate::process::{Outcome, few_with_gil, free_threaded, plain, python, run, with_gil};

/// The first line of the pools' text.
const POOLS: &str = "Small block threshold = 512, in 32 size classes.\n";

/// Fills more than two arenas, and frees them.
const PROGRAM: &str = "a = [bytes(300) for i in range(12_000)]; del a; print('done')";

fn stats(path: &std::path::Path, row: &str, value: &str, option: &str) -> Outcome {
    run(python(path, row).env("PYTHONMALLOCSTATS", value).args([option, "-c", PROGRAM]))
}

/// Any value but the empty one asks, also 0.
#[rstest]
fn the_pools_print_before_each_arena_and_at_the_end(
    #[values("pymalloc", "pymalloc_debug")] row: &str,
    #[values("1", "0")] value: &str,
) {
    for interpreter in few_with_gil() {
        let outcome = stats(&interpreter.path, row, value, "-s");
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(0), "done\n"), "{outcome:?}");
        let mut texts = outcome.stderr.split(POOLS);
        assert_eq!(texts.next(), Some(""), "{interpreter} with {row}: {outcome:?}");
        let arenas = texts.map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("# arenas allocated total"));
            let count = line.and_then(|line| line.rsplit(' ').next()).expect("a count of arenas");
            count.parse().expect("a number")
        });
        let arenas: Vec<usize> = arenas.collect();
        let last = arenas.len() - 1;
        assert!(last >= 3, "{interpreter} with {row}: {arenas:?}");
        // Before the first arena there is none, and so on; the last text is that of the end.
        assert!(arenas[..last].iter().copied().eq(0..last), "{interpreter} with {row}: {arenas:?}");
        assert_eq!(arenas[last], last, "{interpreter} with {row}: {arenas:?}");
        // The program itself has freed its large blocks by now.
        let (_, large) =
            outcome.stderr.rsplit_once("\nlarge blocks beside the pools\n").expect("lines");
        assert_eq!(large.lines().count(), 4, "{large}");
    }
}

/// The first three lines about mimalloc's heaps are those of the interpreter itself, where it has some: since 3.13.
#[test]
fn mimallocs_text_is_that_of_the_version_that_the_interpreter_bundles() {
    let program = "import sys; sys._debugmallocstats()";
    for interpreter in with_gil().filter(|python| python.minor > 12) {
        let mut own = plain(&interpreter.path);
        let own = run(own.env("PYTHONMALLOC", "mimalloc").args(["-c", program]));
        let own = own.stderr.lines().rfind(|line| line.contains(" threshold = "));
        let outcome = stats(&interpreter.path, "mimalloc", "1", "-s");
        let ours = outcome.stderr.lines().nth(1);
        assert!(own.is_some_and(|line| line.starts_with("Medium")), "{interpreter}: {own:?}");
        assert_eq!(ours, own, "{interpreter}");
    }
}

#[rstest]
#[case::mimalloc("mimalloc", "1", "-s", "Small block threshold = ")]
#[case::the_c_library("malloc", "1", "-s", "")]
#[case::empty_is_unset("pymalloc", "", "-s", "")]
fn what_has_no_arenas_prints_once_or_nothing(
    #[case] row: &str,
    #[case] value: &str,
    #[case] option: &str,
    #[case] start: &str,
) {
    for interpreter in with_gil() {
        let outcome = stats(&interpreter.path, row, value, option);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(0), "done\n"), "{outcome:?}");
        assert!(outcome.stderr.starts_with(start), "{interpreter} with {row}: {outcome:?}");
        assert_eq!(outcome.stderr.is_empty(), start.is_empty(), "{interpreter}: {outcome:?}");
        let texts = outcome.stderr.matches("Small block threshold").count();
        assert_eq!(texts, usize::from(!start.is_empty()), "{interpreter}: {outcome:?}");
    }
}

/// An interpreter that is told to ignore its variables has none of this one either.
#[rstest]
fn an_ignored_environment_asks_for_nothing(#[values("-E", "-I")] option: &str) {
    for interpreter in with_gil() {
        let outcome = stats(&interpreter.path, "pymalloc", "1", option);
        assert_eq!(outcome.stderr, "", "{interpreter} {option}: {outcome:?}");
    }
}

/// A host without the GIL keeps its objects, and prints its own text.
#[test]
fn a_host_that_keeps_its_objects_prints_itself() {
    for interpreter in free_threaded() {
        let outcome = stats(&interpreter.path, "default", "1", "-s");
        assert_eq!(outcome.stderr.matches("Small block threshold").count(), 1, "{outcome:?}");
    }
}
