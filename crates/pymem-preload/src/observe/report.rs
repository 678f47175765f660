//! Owns what is told of the process on stderr, in a file and as JSON: the report at exit (`PYMEM_STATS`), the statistics of
//! `PYTHONMALLOCSTATS`, and the object of `pymem_stats_json`. Leaves the counts to `counting.rs` and to the allocators.

use core::sync::atomic::Ordering::Relaxed;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;

use malloc_api::NewFile;
use memdebug::GuardCoverage;
use pymem_domains::{Domain, PoolStats};
use serde_json::json;

use crate::host::python::host;
use crate::observe::counting;
use crate::observe::writer::{self, Writer};
use crate::request::options::StatsRequest;
use crate::request::refusal::Refusal;
use crate::service::{self, Service};

static WRITER: Writer = Writer::new();

/// The file that gets the report in place of stderr.
static FILE: OnceLock<PathBuf> = OnceLock::new();

/// Has the report written when the process exits.
///
/// A process that ends by a signal writes none, and one that ends by `_exit` none to stderr. A forked child, which runs the same
/// handlers, writes to a file alone.
///
/// # Errors
///
/// [`Refusal::Stats`]: the file cannot be written.
pub(crate) fn report_at_exit(request: &StatsRequest) -> Result<(), Refusal> {
    extern "C" fn on_exit() {
        write_the_end();
        if FILE.get().is_none() && WRITER.is_first() {
            print(&text().unwrap_or_default());
        }
    }
    if let StatsRequest::File(path) = request {
        let refuse = |error| Refusal::Stats { path: path.clone(), error };
        let _ = FILE.set(writer::place(path).map_err(refuse)?);
        WRITER.follow_forks();
    }
    WRITER.begin();
    // SAFETY: a function that takes nothing; a full table of handlers costs the report alone.
    unsafe { libc::atexit(on_exit) };
    Ok(())
}

/// Whether this process has a file still to write.
pub(crate) fn is_due() -> bool {
    FILE.get().is_some() && WRITER.is_due()
}

/// Writes the file of this process once, if there is to be one: that of a child has the child's number after its name.
pub(crate) fn write_the_end() {
    let Some(path) = FILE.get().filter(|_| WRITER.ends()) else { return };
    let Some(text) = text() else { return };
    let mut path = path.clone();
    if !WRITER.is_first() {
        path.as_mut_os_string().push(format!(".{}", process::id()));
    }
    if let Err(error) = write_into(&path, &text) {
        Refusal::Stats { path, error }.say();
    }
}

fn write_into(path: &Path, text: &str) -> io::Result<()> {
    let mut new = NewFile::beside(path)?;
    new.file().write_all(text.as_bytes())?;
    new.publish()
}

/// Prints the statistics of `service` before each new arena and once at the end, as an interpreter prints those of its own
/// pools; unless the interpreter has kept objects for itself and prints its own.
///
/// The interpreter itself prints nothing for an allocator that it does not know. Where mimalloc serves there are no arenas,
/// and where the C library serves there is no text.
pub(crate) fn print_malloc_stats(service: &Service) {
    /// An interpreter prints when it is finalized. A process that ends before that may have threads in the pools.
    extern "C" fn on_exit() {
        if host().is_none_or(|host| host.is_initialized()) {
            return;
        }
        if let Some(service) = service::installed() {
            print(&service.domains.stats().to_string());
        }
    }
    fn before_new_arena(stats: &PoolStats) {
        print(&stats.to_string());
    }
    if !service.serves_all() {
        return;
    }
    // SAFETY: 1: the text goes to stderr, and its string is the library's own; 2: nothing in it unwinds.
    unsafe { service.domains.set_new_arena_hook(Some(before_new_arena)) };
    // SAFETY: a function that takes nothing; a full table of handlers costs the last print alone.
    unsafe { libc::atexit(on_exit) };
}

fn print(text: &str) {
    // Ignore write errors: there is nowhere to report them.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// What was served, as lines; `None` where nothing is installed.
fn text() -> Option<String> {
    let service = service::installed()?;
    let mut out = String::new();
    write_text(&mut out, service).ok()?;
    Some(out)
}

fn write_text(out: &mut String, service: &Service) -> fmt::Result {
    const WIDTHS: [usize; 8] = [12, 10, 10, 12, 8, 12, 14, 14];
    writeln!(out, "pymem: {}", service.describe())?;
    write!(out, "{:<6}", "domain")?;
    for ((name, _), width) in calls(Domain::Raw).iter().zip(WIDTHS) {
        write!(out, " {:>width$}", name.replace('_', " "))?;
    }
    for domain in Domain::ALL {
        write!(out, "\n{:<6}", domain.name())?;
        for ((_, number), width) in calls(domain).iter().zip(WIDTHS) {
            write!(out, " {number:>width$}")?;
        }
    }
    writeln!(out)?;
    if let Some(pools) = service.pool_stats().filter(|_| service.serves_all()) {
        writeln!(
            out,
            "arenas: {} now, {} at most, {} in all",
            pools.arenas_current, pools.arenas_peak, pools.arenas_ever
        )?;
        if let Some(runs) = pools.large_runs.filter(|runs| runs.has_span()) {
            writeln!(
                out,
                "large blocks: {} of {} bytes; {} bytes free beside them, {} in memory",
                runs.blocks, runs.used_bytes, runs.free_bytes, runs.free_resident_bytes
            )?;
        }
    }
    let guard = GuardCoverage::now();
    if guard.slots > 0 {
        writeln!(
            out,
            "guard pages: {} of {} slots in use, {} retired; {} blocks went without",
            guard.guarded, guard.slots, guard.retired, guard.passed_over
        )?;
    }
    Ok(())
}

/// The same and the allocators' own statistics, as one JSON object.
pub(crate) fn json() -> Option<String> {
    let Some(service) = service::installed() else {
        return Some(json!({ "installed": false }).to_string());
    };
    let mut stats = service.domains.stats();
    stats.pymalloc = service.pool_stats();
    let mut report = json!({
        "installed": true,
        "serves": service.describe(),
        "python": host().map(|host| format!("3.{}", host.minor)),
        "stats": serde_json::to_value(stats).ok()?,
    });
    if service.counts {
        let calls = |domain| calls(domain).into_iter().collect::<BTreeMap<_, _>>();
        report["calls"] =
            Domain::ALL.map(|domain| (domain.name(), json!(calls(domain)))).into_iter().collect();
    }
    let guard = GuardCoverage::now();
    if guard.slots > 0 {
        report["guard"] = json!({
            "slots": guard.slots,
            "guarded": guard.guarded,
            "retired": guard.retired,
            "passed_over": guard.passed_over,
        });
    }
    Some(report.to_string())
}

/// The counts of `domain`, with their names.
fn calls(domain: Domain) -> [(&'static str, u64); 8] {
    let counts = counting::counts(domain);
    let live = counting::live(domain);
    [
        ("malloc", counts.malloc.load(Relaxed)),
        ("calloc", counts.calloc.load(Relaxed)),
        ("realloc", counts.realloc.load(Relaxed)),
        ("free", counts.free.load(Relaxed)),
        ("failed", counts.failed.load(Relaxed)),
        ("live_blocks", live.blocks as u64),
        ("live_bytes", live.bytes as u64),
        ("peak_bytes", live.peak_bytes as u64),
    ]
}
