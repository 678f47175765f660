//! Owns the tests that an emulator cannot run, each with the reason. `docs/testing.md` says how the reasons were seen without us.

use crate::hosts::MALLOC_STATS;

/// Tests of a crate that need what the emulator has not got.
struct LeftOut {
    package: &'static str,
    /// A regular expression of names.
    names: &'static str,
    reason: &'static str,
}

impl LeftOut {
    const fn new(package: &'static str, names: &'static str, reason: &'static str) -> Self {
        Self { package, names, reason }
    }
}

const NO_LIMIT: &str = "the emulator takes no limit of a process's addresses";
const ITS_MEMORY: &str = "a process's memory and addresses are the emulator's too";
const ITS_THREAD: &str = "the emulator has a thread of its own in each process";
const HANGS: &str = "the emulator hangs where a process forks again and again beside threads";
const ENDS: &str = "the emulator ends where a child that was forked beside threads starts one";

const LEFT_OUT: [LeftOut; 15] = [
    LeftOut::new("malloc-trace", "too_many_threads_are_an_error", NO_LIMIT),
    LeftOut::new(
        "memdebug",
        "a_reader_never_faults::case_1_by_kernel",
        "the emulator has no process_vm_readv",
    ),
    LeftOut::new(
        "memdebug",
        "a_report_that_faults_itself_ends_in_sigabrt",
        "the emulator adds a line of its own to stderr when a signal ends a program",
    ),
    LeftOut::new("mimalloc-heaps", "a_refusing_system_is_survived", NO_LIMIT),
    LeftOut::new("mimalloc-heaps", "a_thousand_exits_with_live_blocks", ITS_MEMORY),
    LeftOut::new("mimalloc-heaps", "no_child_(hangs|of_3000)", HANGS),
    LeftOut::new("mimalloc-heaps", "without_handlers_children_hang", HANGS),
    LeftOut::new("pymalloc-core", "a_fork_with_much_free_memory_ends", ENDS),
    LeftOut::new("pymalloc-core", "a_child_of_threads_that_allocate", ENDS),
    LeftOut::new("pymalloc-core", "a_child_gets_arenas_while_its_parents", ENDS),
    LeftOut::new("pymalloc-core", "a_fork_has_no_second_thread", ITS_THREAD),
    LeftOut::new("pymalloc-core", "an_idle_process_holds_little", ITS_MEMORY),
    LeftOut::new("pymalloc-core", "addresses_follow|takes_what_is_kept", ITS_MEMORY),
    LeftOut::new("pymem-domains", "librarys_release_says_what", ITS_MEMORY),
    LeftOut::new("pymem-domains", "plain_blocks_of_every_thread_are_counted", ITS_THREAD),
];

/// Whether an interpreter is asked for what has this title. Says what is left out, and why.
pub(super) fn is_checked(title: &str) -> bool {
    let is_left_out = title == MALLOC_STATS;
    if is_left_out {
        println!("left out: {title}, of mimalloc's heaps: {ITS_THREAD}");
    }
    !is_left_out
}

/// A filter for the tests that are left. Says what is left out, and why.
pub(super) fn filter() -> String {
    let left_out = LEFT_OUT.map(|LeftOut { package, names, reason }| {
        println!("left out of {package}: {names}: {reason}");
        format!("(package({package}) & test(/{names}/))")
    });
    format!("not ({})", left_out.join(" | "))
}
