//! Interpreters with a GIL of their own: the pools have no lock until the second one is made, and not a call too long.

use rstest::rstest;

use crate::process::{is_newest, python, succeed, tries_all, with_gil};

/// The first minor version in which a subinterpreter may have a GIL of its own.
pub(crate) const FIRST_WITH_OWN_GIL: u32 = 12;

/// `threads()`: which threads may call the pools now.
const ASK: &str = r"
import ctypes, json, os
library = ctypes.CDLL(os.environ['LD_PRELOAD'])
def threads():
    text = ctypes.create_string_buffer(1 << 18)
    library.pymem_stats_json(text, len(text))
    return json.loads(text.value)['stats']['configuration']['threads']
";

/// Threads of the first interpreter fill and drop lists while others make an interpreter each and run the same there, under GILs of
/// their own.
const SIDE_BY_SIDE: &str = r"
import sys, threading
try: import _interpreters as sub
except ImportError: import _xxsubinterpreters as sub
WORK = '''
import sys
for turn in range(ROUNDS):
    kept = [(bytes([n % 251]) * (n % 700), [n, str(n)], {n: n}) for n in range(3000)]
    for n in range(0, 3000, 3): kept[n] = None
    more = [bytes([n % 251]) * (n % 3000) for n in range(1000)]
    for n, bytes_n in enumerate(more): assert bytes_n == bytes([n % 251]) * (n % 3000), n
    for n, item in enumerate(kept):
        if n % 3: assert item == (bytes([n % 251]) * (n % 700), [n, str(n)], {n: n}), n
'''
def create():
    if sys.version_info >= (3, 13): return sub.create('isolated')
    return sub.create(isolated=True)
failed = []
def guarded(work):
    try: work()
    except BaseException as error: failed.append(repr(error))
def elsewhere():
    interpreter = create()
    answer = sub.run_string(interpreter, WORK.replace('ROUNDS', '25'))
    assert answer is None, answer
    sub.destroy(interpreter)
def here(): exec(WORK.replace('ROUNDS', '15'), {})
before = threads()
started = [threading.Thread(target=guarded, args=(here,)) for _ in range(2)]
for thread in started: thread.start()
started += [threading.Thread(target=guarded, args=(elsewhere,)) for _ in range(3)]
for thread in started[2:]: thread.start()
for thread in started: thread.join()
pid = os.fork()
if pid == 0:
    guarded(here)
    os._exit(len(failed))
print(before, threads(), failed, os.waitpid(pid, 0)[1])
";

#[rstest]
#[case::plain("pymalloc")]
#[case::hooks("pymalloc_debug")]
fn interpreters_with_a_gil_of_their_own_run_side_by_side(#[case] row: &str) {
    for interpreter in with_gil().filter(|python| python.minor >= FIRST_WITH_OWN_GIL) {
        let is_end = interpreter.minor == FIRST_WITH_OWN_GIL || is_newest(interpreter);
        if row == "pymalloc_debug" && !tries_all() && !is_end {
            continue;
        }
        let program = format!("{ASK}{SIDE_BY_SIDE}");
        let mut command = python(&interpreter.path, row);
        let output = succeed(command.args(["-S", "-W", "ignore", "-c", &program]));
        assert_eq!(output, "one-at-a-time any-thread [] 0\n", "{interpreter} with {row}");
    }
}

/// What an ordinary program does, threads, processes and large blocks of zeros among it.
const ORDINARY: &str = r"
import asyncio, concurrent.futures, decimal, hashlib, multiprocessing, tracemalloc, unittest, xml.etree.ElementTree
def cube(n): return n ** 3
if __name__ == '__main__':
    tracemalloc.start()
    kept = [str(n) for n in range(50_000)]
    tracemalloc.stop()
    zeros = bytearray(10 ** 6), [0] * 10 ** 6, bytes(70_000)
    with concurrent.futures.ThreadPoolExecutor(4) as pool: list(pool.map(cube, range(1000)))
    with multiprocessing.get_context('fork').Pool(2) as pool: pool.map(cube, range(100))
    asyncio.run(asyncio.sleep(0))
    print(threads())
";

#[test]
fn an_ordinary_program_takes_no_lock() {
    for interpreter in with_gil() {
        let program = format!("{ASK}{ORDINARY}");
        let mut command = python(&interpreter.path, "pymalloc");
        let output = succeed(command.args(["-W", "ignore", "-c", &program]));
        assert_eq!(output, "one-at-a-time\n", "{interpreter}");
    }
}
