//! One program of operations through every row of the table: all of them show the caller the same.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use malloc_trace::{generate::ops_from_bytes, run_domains};
use pymem_domains::{AllocatorName, Domain, Domains, Profile};

/// A `Domains` lives for ever, so there is one a row and not one an input.
static ROWS: LazyLock<Vec<Domains>> = LazyLock::new(|| {
    let row =
        |name| Domains::new(Profile::NEWEST, Some(name)).expect("a row of the default profile");
    AllocatorName::ALL.into_iter().map(row).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let ops = ops_from_bytes(bytes, 64, 1 << 18);
    let mut first = None;
    for row in ROWS.iter() {
        let domains = [Domain::Raw, Domain::Mem, Domain::Obj].map(|domain| row.get(domain));
        let summary = run_domains(&ops, [&domains[0], &domains[1], &domains[2]])
            .unwrap_or_else(|error| panic!("row {:?}: {error}", row.current_name()));
        let first = first.get_or_insert(summary);
        assert_eq!(*first, summary, "row {:?} differs from the first", row.current_name());
    }
});
