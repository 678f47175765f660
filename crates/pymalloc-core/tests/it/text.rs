//! The statistics' text, byte for byte.

use pymalloc_core::{LocalPymalloc, NoFallback, StaticArenas, Stats};

static BUFFER: StaticArenas<3> = StaticArenas::new();

const FRESH: &str = "\
Small block threshold = 512, in 32 size classes.

class   size   num pools   blocks in use  avail blocks
-----   ----   ---------   -------------  ------------

# arenas allocated total           =                    0
# arenas reclaimed                 =                    0
# arenas highwater mark            =                    0
# arenas allocated current         =                    0
0 arenas * 1048576 bytes/arena     =                    0

# bytes in allocated blocks        =                    0
# bytes in available blocks        =                    0
0 unused pools * 16384 bytes       =                    0
# bytes lost to pool headers       =                    0
# bytes lost to quantization       =                    0
# bytes lost to arena alignment    =                    0
Total                              =                    0

arena map counts
# arena map mid nodes              =                    0
# arena map bot nodes              =                    0

# bytes lost to arena map root     =                   72
# bytes lost to arena map mid      =                    0
# bytes lost to arena map bot      =                    0
Total                              =                   72
";

const LARGE: &str = "
large blocks beside the pools
# blocks                           =                    1
# bytes in these blocks            =               20,480
# bytes free beside them           =            1,026,048
# bytes of those in memory         =               10,240
";

#[test]
fn a_fresh_allocator_prints_zeros() {
    let alloc = LocalPymalloc::with_source(NoFallback, &BUFFER);
    assert_eq!(alloc.stats().to_string(), FRESH);
}

#[test]
fn rows_and_groups_line_up_as_in_cpython() {
    let alloc = LocalPymalloc::new(malloc_api::LibcMalloc);
    use malloc_api::Malloc;
    let blocks: Vec<_> = (0..27).map(|_| alloc.malloc(16).unwrap()).collect();
    let mut stats: Stats = alloc.stats();
    stats.malloc_calls = Some(1_234_567);
    let text = stats.to_string();
    let line = |wanted: &str| assert!(text.lines().any(|line| line == wanted), "{wanted}\n{text}");
    line("    0     16           1              27           741");
    line("# times object malloc called       =            1,234,567");
    line("# arenas allocated current         =                    1");
    line("1 arenas * 1048576 bytes/arena     =            1,048,576");
    line("# bytes in allocated blocks        =                  432");
    line("63 unused pools * 16384 bytes      =            1,032,192");
    line("# bytes lost to pool headers       =                4,096");
    line("Total                              =            1,048,576");
    assert!(!text.contains("large blocks"), "{text}");
    let order = text.find("# times object").unwrap();
    assert!(order < text.find("# arenas allocated total").unwrap());
    for block in blocks {
        // SAFETY: live, and forgotten.
        unsafe { alloc.free(Some(block)) };
    }
}

/// The C library's blocks and those of the pools are no large blocks of the span.
#[test]
#[cfg(all(
    target_os = "linux",
    not(any(feature = "hardened", feature = "asan", feature = "valgrind"))
))]
fn large_blocks_have_lines_of_their_own() {
    use malloc_api::testing::alone;
    use malloc_api::{LibcMalloc, Malloc};
    use pymalloc_core::{LargeRuns, large_runs_stats};
    alone("text::large_blocks_have_lines_of_their_own", || {
        let alloc = LocalPymalloc::new(LargeRuns::new(LibcMalloc));
        let mut stats = alloc.stats();
        let before = stats.to_string();
        stats.large_runs = Some(large_runs_stats());
        assert_eq!(stats.to_string(), before, "nothing to tell");
        let blocks = [10, 20].map(|kib| alloc.malloc(kib << 10));
        // SAFETY: live, and not used again.
        unsafe { alloc.free(blocks[0]) };
        stats.large_runs = Some(large_runs_stats());
        let text = stats.to_string();
        assert_eq!(text.strip_prefix(&before), Some(LARGE), "{text}");
    });
}
