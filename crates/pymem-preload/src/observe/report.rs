//! Owns what is said of the process: a table for people, JSON for programs. Leaves the counts to `counting.rs` and to the
//! allocators.

use core::fmt::{self, Write as _};
use core::sync::atomic::Ordering::Relaxed;

use pymem_domains::Domain;
use serde_json::{Value, json};

use crate::host::python::host;
use crate::observe::counting;
use crate::service::{self, Service};

/// What was served, as lines; `None` where nothing is installed.
pub(crate) fn text() -> Option<String> {
    let service = service::installed()?;
    let mut out = String::new();
    write_text(&mut out, service).ok()?;
    Some(out)
}

fn write_text(out: &mut String, service: &Service) -> fmt::Result {
    writeln!(out, "pymem: {}", service.describe())?;
    writeln!(
        out,
        "{:<6} {:>12} {:>10} {:>10} {:>12} {:>8} {:>12} {:>14} {:>14}",
        "domain",
        "malloc",
        "calloc",
        "realloc",
        "free",
        "failed",
        "live blocks",
        "live bytes",
        "peak bytes"
    )?;
    for domain in Domain::ALL {
        let counts = counting::counts(domain);
        let live = counting::live(domain);
        writeln!(
            out,
            "{:<6} {:>12} {:>10} {:>10} {:>12} {:>8} {:>12} {:>14} {:>14}",
            domain.name(),
            counts.malloc.load(Relaxed),
            counts.calloc.load(Relaxed),
            counts.realloc.load(Relaxed),
            counts.free.load(Relaxed),
            counts.failed.load(Relaxed),
            live.blocks,
            live.bytes,
            live.peak_bytes
        )?;
    }
    if let Some(pools) = service.pool_stats().filter(|_| service.serves_all()) {
        writeln!(
            out,
            "arenas: {} now, {} at most, {} in all",
            pools.arenas_current, pools.arenas_peak, pools.arenas_ever
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
        report["calls"] = Domain::ALL
            .map(|domain| (domain.name().to_owned(), calls(domain)))
            .into_iter()
            .collect();
    }
    Some(report.to_string())
}

fn calls(domain: Domain) -> Value {
    let counts = counting::counts(domain);
    let live = counting::live(domain);
    json!({
        "malloc": counts.malloc.load(Relaxed),
        "calloc": counts.calloc.load(Relaxed),
        "realloc": counts.realloc.load(Relaxed),
        "free": counts.free.load(Relaxed),
        "failed": counts.failed.load(Relaxed),
        "live_blocks": live.blocks,
        "live_bytes": live.bytes,
        "peak_bytes": live.peak_bytes,
    })
}
