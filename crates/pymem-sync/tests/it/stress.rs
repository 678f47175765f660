//! Real threads for a second or two; the same programs run under ThreadSanitizer.

#[path = "../stress/mod.rs"]
mod programs;

use std::time::Duration;

#[test]
fn readers_never_see_a_reclaimed_record() {
    programs::readers_and_reclaimers(Duration::from_millis(1500));
}

#[test]
fn remote_frees_survive_changes_of_owner() {
    programs::owners_and_freers(Duration::from_millis(1000));
}

#[test]
fn a_record_is_always_whole() {
    programs::publishers_and_readers(Duration::from_millis(500));
}

#[test]
fn the_lock_excludes() {
    programs::lockers(Duration::from_millis(500));
}
