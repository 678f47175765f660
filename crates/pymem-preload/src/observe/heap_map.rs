//! Owns the heap map of a process: its picture, and the file that gets it. Without a request there is none. Leaves the moments
//! at which it is drawn to `moments.rs`.

use core::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::io::{self, Write};
use std::path::{self, Path, PathBuf};
use std::sync::OnceLock;

use heap_report::Svg;
use malloc_api::NewFile;

use crate::observe::drawable::Drawable;
use crate::observe::moments::{self, Moment};
use crate::request::refusal::Refusal;

/// What is drawn, and where it goes.
#[derive(Debug)]
struct HeapMap {
    heaps: Drawable,
    path: PathBuf,
    /// The configuration, for the title.
    name: String,
}

static MAP: OnceLock<HeapMap> = OnceLock::new();

/// The process that draws: a forked child, which runs the same handlers, does not.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Has `heaps` drawn into the file at `path`, at exit and on SIGUSR1.
///
/// # Errors
///
/// What the system says about the path or the signal.
pub(crate) fn start(heaps: Drawable, path: &Path, name: String) -> io::Result<()> {
    // The program may change its folder.
    let path = path::absolute(path)?;
    MAP.get_or_init(|| HeapMap { heaps, path, name });
    // SAFETY: `getpid` has no preconditions.
    OWNER.store(unsafe { libc::getpid() }, Relaxed);
    moments::at(Moment::End, draw)?;
    moments::at(Moment::User1, draw)
}

/// Draws now; says so where the file cannot be written.
fn draw() {
    let Some(map) = MAP.get() else { return };
    // SAFETY: `getpid` has no preconditions.
    let process = unsafe { libc::getpid() };
    if process != OWNER.load(Relaxed) {
        return;
    }
    let snapshot = map.heaps.snapshot(format!("{}, process {process}", map.name));
    if let Err(error) = write_whole(&map.path, &Svg(&snapshot).to_string()) {
        Refusal::NoHeapMap { path: map.path.clone(), error }.say();
    }
}

/// Draws now into the file at `path`; `None` where the heap is not one that can be drawn.
pub(crate) fn draw_into(path: &Path) -> Option<io::Result<()>> {
    let map = MAP.get()?;
    let snapshot = map.heaps.snapshot(format!("{}, process {}", map.name, std::process::id()));
    Some(write_whole(path, &Svg(&snapshot).to_string()))
}

/// Writes a file such that a reader finds the old one or the new one.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut new = NewFile::beside(path)?;
    new.file().write_all(text.as_bytes())?;
    new.publish()
}
