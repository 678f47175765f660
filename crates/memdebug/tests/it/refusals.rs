//! Every error of the crate, as a person reads it: what was wrong, what was expected, what to do.

use malloc_api::testing::assert_reviewed;
use memdebug::{ConfigureError as E, Options, ParseOptionsError};

fn faulty(text: &str) -> ParseOptionsError {
    text.parse::<Options>().expect_err("a faulty text")
}

#[test]
fn every_error_is_as_it_was_reviewed() {
    let option = "quarantine";
    let out_of_range = E::OutOfRange { option: "backtrace", expected: "at most 32 frames" };
    assert_reviewed(
        include_str!("../refusals.txt"),
        &[
            ("memdebug::ConfigureError::AlreadySet", &E::AlreadySet),
            ("memdebug::ConfigureError::NoMemory", &E::NoMemory { option }),
            ("memdebug::ConfigureError::TooManyHosts", &E::TooManyHosts),
            ("memdebug::ConfigureError::FaultHandler", &E::FaultHandler { errno: 12 }),
            ("memdebug::ConfigureError::NeedsHooks", &E::NeedsHooks { option: "strict" }),
            ("memdebug::ConfigureError::NeedsSampler", &E::NeedsSampler),
            ("memdebug::ConfigureError::TooManyHooks", &E::TooManyHooks),
            ("memdebug::ConfigureError::OutOfRange", &out_of_range),
            ("memdebug::ConfigureError::NoRules", &E::NoRules { errno: 2 }),
            ("memdebug::ConfigureError::BadRule", &E::BadRule { line: 3 }),
            ("memdebug::ConfigureError::Unsupported", &E::Unsupported { option }),
            ("memdebug::ParseOptionsError::UnknownOption", &faulty("stricct")),
            ("memdebug::ParseOptionsError::BadValue", &faulty("guard=1")),
        ],
    );
}
