//! Owns what a process that does nothing may have of memory because of the library.

use std::path::Path;

use anyhow::{Result, ensure};
use pymem_domains::{AllocatorName, Row};

use super::run::{Host, Run};

/// What a program that does nothing has of anonymous memory more than on the interpreter's own allocator of the same name. Pages of
/// the library's file are shared by all processes that have it, those that it has written to are not.
pub(super) fn memory(host: &Host, name: &str, most_kib: usize) -> Result<String> {
    let python = &host.python;
    let has_own = python.minor >= 13 || name == "pymalloc";
    if python.free_threaded || !has_own {
        return Ok(String::from("none to compare"));
    }
    let without = Host::new(python, Path::new(""));
    let (own, ours) = (kib(&without, name, MEMORY)?, kib(host, name, MEMORY)?);
    let more = ours.saturating_sub(own);
    ensure!(more <= most_kib, "{ours} KiB, {own} without the library; at most {most_kib} more");
    Ok(format!("{more} KiB"))
}

/// The KiB of anonymous memory of this process.
const MEMORY: &str = "
with open('/proc/self/smaps_rollup') as lines:
    print(*(line.split()[1] for line in lines if line.startswith('Anonymous:')))";

/// The KiB that `program` prints on the row `name`.
fn kib(host: &Host, name: &str, program: &str) -> Result<usize> {
    let run = Run::new(host, &["-c", program], &[("PYTHONMALLOC", name)])?;
    run.ensure(run.output.status.success(), "no success")?;
    Ok(String::from_utf8_lossy(&run.output.stdout).trim().parse()?)
}

/// What is in memory of the library's file where nothing is asked for: the code that every process runs, its constants, and what it
/// writes to. Without the order of `often.ld`, and without giving back what the start has touched, it is 1,060 to 1,250 KiB, as the
/// kernel maps by what lies together in its cache.
pub(super) fn file(host: &Host) -> Result<String> {
    let kib = kib(host, "default", FILE)?;
    // The code of the hooks is read where a build of Python has them from the start.
    let has_hooks = AllocatorName::Default.row(&host.python.profile()).is_ok_and(Row::debug);
    let most_kib = if has_hooks { 500 } else { 200 };
    ensure!(
        (1..=most_kib).contains(&kib),
        "{kib} KiB, where {most_kib} are allowed: is a name missing in `often.ld`?"
    );
    Ok(format!("{kib} KiB"))
}

/// The KiB of this process that are pages of the library's file.
const FILE: &str = "
kib = ours = 0
with open('/proc/self/smaps') as lines:
    for line in lines:
        first, *rest = line.split()
        if '-' in first: ours = line.rstrip().endswith('libpymem_preload.so')
        elif first == 'Rss:' and ours: kib += int(rest[0])
print(kib)";
