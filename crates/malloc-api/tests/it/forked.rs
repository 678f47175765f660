//! A forked child ends as its work does.

use std::os::unix::process::ExitStatusExt as _;

use malloc_api::testing::forked;

#[test]
fn a_child_ends_as_its_work_does() {
    let end = |work: fn()| {
        // SAFETY: 1: none of these works waits for another thread, but for the error stream, which a child has to itself here.
        let (child, status) = unsafe { forked(work) };
        assert_ne!(child, std::process::id().cast_signed());
        (status.code(), status.signal())
    };
    assert_eq!(end(|| ()), (Some(0), None));
    assert_eq!(end(|| std::panic::resume_unwind(Box::new(()))), (Some(101), None));
    assert_eq!(end(|| std::process::abort()), (None, Some(libc::SIGABRT)));
}
