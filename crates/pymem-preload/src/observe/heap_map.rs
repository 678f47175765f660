//! Owns the heap map of a process: its picture, and the file that gets it. Without a request from the start only pools can be drawn,
//! and only by who asks now. Leaves the moments
//! at which it is drawn to `moments.rs`.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::io::{self, Write};
use std::path::{self, Path, PathBuf};
use std::process;
use std::sync::OnceLock;

use heap_report::{Snapshot, Svg};
use malloc_api::NewFile;
use pymem_domains::{Backend, Domains};

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
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Has `heaps` drawn into the file at `path`, at exit and on SIGUSR1.
///
/// # Errors
///
/// What the system says about the path or the signal.
pub(crate) fn start(heaps: Drawable, path: &Path, name: String) -> io::Result<()> {
    // The program may change its folder.
    let path = path::absolute(path)?;
    MAP.get_or_init(|| HeapMap { heaps, path, name });
    OWNER.store(process::id(), Relaxed);
    moments::at(Moment::End, draw)?;
    moments::at(Moment::User1, draw)
}

/// Draws now; says so where the file cannot be written.
fn draw() {
    let Some(map) = MAP.get().filter(|_| process::id() == OWNER.load(Relaxed)) else { return };
    if let Err(error) = map.draw_into(&map.path) {
        Refusal::NoHeapMap { path: map.path.clone(), error }.say();
    }
}

/// Draws now into the file at `path`, the heap that was asked for from the start or else the pools of `domains`; `None` where there is
/// neither. The calling thread holds the GIL.
pub(crate) fn draw_into(path: &Path, domains: Domains) -> Option<io::Result<()>> {
    if let Some(map) = MAP.get() {
        return Some(map.draw_into(path));
    }
    let name = title(domains.row().canonical_name().as_str());
    let pools = domains.row().uses(Backend::Pymalloc);
    pools.then(|| write(&Snapshot::of_pymalloc(name, |visit| domains.for_each_pool(visit)), path))
}

impl HeapMap {
    fn draw_into(&self, path: &Path) -> io::Result<()> {
        write(&self.heaps.snapshot(title(&self.name)), path)
    }
}

fn title(name: &str) -> String {
    format!("{name}, process {}", process::id())
}

/// Writes the picture such that a reader finds the old file or the new one.
fn write(snapshot: &Snapshot, path: &Path) -> io::Result<()> {
    let mut new = NewFile::beside(path)?;
    new.file().write_all(Svg(snapshot).to_string().as_bytes())?;
    new.publish()
}
