//! Programs that are profiled: who holds their memory is told to the line, and they do what they did.

mod control;
mod places;
mod truth;

use std::fs;
use std::path::{Path, PathBuf};

use heap_report::profile::{ProfileFile, Row, Which};

fn folder(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    (folder, path)
}

fn read(path: &Path) -> ProfileFile {
    ProfileFile::read(fs::File::open(path).expect("a profile")).expect("a whole profile")
}

/// The bytes at the line `line` of `file`, in functions called `function`.
fn bytes_at(profile: &ProfileFile, which: Which, file: &str, function: &str, line: u32) -> u64 {
    let at = |row: &Row<'_>| {
        row.stack().next().is_some_and(|(name, path, number)| {
            (name, number) == (function, line) && path.ends_with(file)
        })
    };
    profile.rows().filter(at).map(|row| row.amount(which).bytes).sum()
}
