//! Guard pages in a program that runs as it always does: one block in N, no hooks, and a report when one of them is misused.

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use malloc_api::{GlobalAdapter, LibcMalloc};
use memdebug::{Domain, GuardSampler};

#[global_allocator]
static ALLOCATOR: GlobalAdapter<GuardSampler<LibcMalloc>> =
    GlobalAdapter::new(GuardSampler::new(LibcMalloc, Domain::Raw));

fn buggy() -> Result<(), Box<dyn Error>> {
    // A program in production would take one block in some thousand.
    ALLOCATOR.inner().configure(&"guard=1/50,backtrace=8".parse()?)?;
    for round in 0..1_000_000_u32 {
        let text = format!("round {round}");
        let stale = text.as_ptr();
        drop(text);
        // SAFETY: the bug, a read. Of most blocks nobody sees it.
        std::hint::black_box(unsafe { stale.read_volatile() });
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).is_some() {
        return buggy();
    }
    let output = Command::new(std::env::current_exe()?).arg("buggy").output()?;
    let report = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "a report, not a crash");
    assert!(report.contains("memdebug: use after free: "));
    assert!(report.contains("\nMemory block allocated by (most recent call first):\n"));
    assert!(report.contains("\nMemory block freed by (most recent call first):\n"));
    print!("{report}");
    Ok(())
}
