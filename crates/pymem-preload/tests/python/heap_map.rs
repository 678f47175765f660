//! Pictures of a program's heap: at its end, and when it is asked for one.

use std::fs;

use rstest::rstest;

use crate::process::{
    few_with_gil, free_threaded, interpreters, plain, preloaded, python, run, succeed, with_gil,
};

/// Keeps 1000 blocks of a size that nothing else has; threads come and go before.
const PROGRAM: &str = r"
import sys, threading
def churn():
    for _ in range(20): waste = [bytes(i) for i in range(500)]
threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
kept = [bytes(450 - sys.getsizeof(b'') + i % 2) for i in range(1000)]
print(len(kept))
";

/// The blocks handed out of the class of 464 bytes or, in a debug configuration or by mimalloc, the next ones.
fn blocks_about(svg: &str, sizes: std::ops::Range<usize>) -> usize {
    let titles = svg.split("<title>").skip(2);
    let blocks = titles.filter_map(|title| {
        let title = title.split_once(" bytes</title>")?.0;
        let (used, rest) = title.split_once(" of ")?;
        let size: usize = rest.split_once(" blocks of ")?.1.parse().ok()?;
        sizes.contains(&size).then_some(used.parse::<usize>().ok()?)
    });
    blocks.sum()
}

#[rstest]
fn the_map_of_the_end_shows_what_the_program_had(
    #[values("pymalloc", "mimalloc", "pymalloc_debug", "mimalloc_debug")] row: &str,
) {
    for interpreter in few_with_gil() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("map.svg");
        let expected = succeed(plain(&interpreter.path).args(["-c", PROGRAM]));
        let mut command = python(&interpreter.path, row);
        let output = succeed(command.env("PYMEM_HEAP_MAP", &path).args(["-c", PROGRAM]));
        assert_eq!(output, expected, "{interpreter} with {row}");
        let svg = fs::read_to_string(&path).expect("the map");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        let blocks = blocks_about(&svg, 450..600);
        assert!((1000..1900).contains(&blocks), "{interpreter} with {row}: {blocks}");
    }
}

/// The signal arrives within a system call; the map is there when the program goes on.
#[rstest]
fn a_signal_asks_for_a_map(#[values("pymalloc", "mimalloc")] row: &str) {
    let program = r"
import os, signal, sys, time
kept = [bytes(450 - sys.getsizeof(b'') + i % 2) for i in range(1000)]
os.kill(os.getpid(), signal.SIGUSR1)
waste = [bytes(i) for i in range(1000)]
print(os.path.exists(sys.argv[1]))
del kept, waste
os.rename(sys.argv[1], sys.argv[2])
";
    for interpreter in with_gil() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, asked] = ["map.svg", "asked.svg"].map(|name| folder.path().join(name));
        let mut command = python(&interpreter.path, row);
        command.env("PYMEM_HEAP_MAP", &path).args(["-c", program]).arg(&path).arg(&asked);
        assert_eq!(succeed(&mut command), "True\n", "{interpreter} with {row}");
        let [end, asked] = [path, asked].map(|path| fs::read_to_string(path).expect("a map"));
        let [end, asked] = [end, asked].map(|svg| blocks_about(&svg, 450..600));
        assert!(asked >= 1000 && end + 900 < asked, "{interpreter} with {row}: {asked}, {end}");
    }
}

#[test]
fn a_child_leaves_its_parents_map_alone() {
    let program = r"
import os, signal, sys
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGUSR1)
    waste = [bytes(i) for i in range(1000)]
    sys.exit(0)
print(os.waitpid(child, 0)[1], os.path.exists(sys.argv[1]))
";
    for interpreter in with_gil() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("map.svg");
        let mut command = preloaded(&interpreter.path);
        command.env("PYMEM_HEAP_MAP", &path).args(["-c", program]).arg(&path);
        assert_eq!(succeed(&mut command), "0 False\n", "{interpreter}");
        assert!(path.exists());
    }
}

#[test]
fn a_heap_that_is_not_ours_is_refused() {
    let pythons = interpreters().iter().map(|python| (python, "malloc"));
    let own = free_threaded().into_iter().map(|python| (python, "default"));
    for (interpreter, row) in pythons.filter(|(python, _)| !python.free_threaded).chain(own) {
        let mut command = python(&interpreter.path, row);
        let outcome = run(command.env("PYMEM_HEAP_MAP", "map.svg").args(["-c", "print(1)"]));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(1), ""), "{interpreter}");
        assert!(outcome.stderr.contains("not on a heap of this library"), "{outcome:?}");
    }
}
