//! A profile that is written row by row is read as its snapshot is.

use std::cell::RefCell;

use heap_profile::{ExactProfiler, Frame, Location, Options, Profile, StackSource, Walk};
use heap_report::profile::{Mode, ProfileFile, Row, Which, stream};
use malloc_api::{Domain, LibcMalloc, Malloc as _};

thread_local! {
    /// Lines, outermost first.
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

struct Lines;

impl StackSource for Lines {
    fn capture(&self, walk: &mut Walk<'_>) {
        STACK.with_borrow(|stack| {
            let mut calls = stack.iter().enumerate().rev();
            let _ = calls.try_for_each(|(call, &at)| walk.visit(call, Frame { code: 1, at }));
        });
    }

    fn locate(&self, place: Frame) -> Location {
        Location { function: "\"f\"".into(), file: "a.rs".into(), line: place.at as u32 }
    }
}

#[test]
fn a_streamed_profile_is_its_snapshot_with_stacks_cut_to_the_limit() {
    let profile = Profile::new(Lines, Options { frames: 2, ..Options::default() }).unwrap();
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Obj);
    let stacks = [&[1, 2, 3][..], &[9, 2, 3], &[9, 2, 4], &[5], &[]];
    for (stack, size) in stacks.into_iter().zip([100, 100, 300, 50, 20]) {
        STACK.set(stack.to_vec());
        let gone = heap.malloc(size);
        // SAFETY: (1) the block is live and (2) not used afterwards.
        unsafe { heap.free(gone) };
        assert!(heap.malloc(size).is_some());
    }
    let (program, mode) = (vec!["a".to_owned()], Mode::Exact);
    let mut text = Vec::new();
    profile.with_tables(|tables| stream(tables, &program, 17, mode, &mut text)).unwrap();
    let streamed = ProfileFile::read(&*text).unwrap();
    let whole = ProfileFile::new(&profile.snapshot(), program, 17, mode);
    let told = |row: Row<'_>| {
        let lines: Vec<u32> = row.stack().map(|(.., line)| line).collect();
        let amounts = Which::ALL.map(|which| row.amount(which).bytes);
        (lines, row.domain().to_owned(), row.class_bytes(), amounts)
    };
    let rows: Vec<_> = streamed.rows().map(told).collect();
    assert_eq!(rows, whole.rows().map(told).collect::<Vec<_>>());
    assert_eq!((rows[1].0.as_slice(), rows[1].3), (&[3, 2][..], [200, 200, 400]));
    assert_eq!((rows.len(), &streamed.program), (4, &whole.program));
}
