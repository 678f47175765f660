//! A child that misuses an allocator, and what it says at its end.

use malloc_api::testing::test_process;

const MISUSE: &str = "PYMALLOC_CORE_TEST_MISUSE";

/// What this process is to do as a child, by name; `None` elsewhere.
pub(crate) fn asked_for() -> Option<String> {
    std::env::var(MISUSE).ok()
}

/// The child that runs `test` ends by a failure that says `message`, or well if there is none.
pub(crate) fn is_named(test: &str, name: &str, message: Option<&str>) {
    let child = test_process(test).env(MISUSE, name).output().unwrap();
    let text = String::from_utf8_lossy(&child.stderr);
    match message {
        Some(message) => {
            assert!(!child.status.success());
            assert!(text.contains(message), "{text}");
        }
        None => assert!(child.status.success(), "{text}"),
    }
}
