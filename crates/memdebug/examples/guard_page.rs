//! An access to a freed block faults at once where the block stands between guard pages.

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{Domain, GuardSampler};

fn buggy() -> Result<u8, Box<dyn Error>> {
    // One block in one; a long-running program would take one in a few thousand.
    let hooks = GuardSampler::new(LibcMalloc, Domain::Mem).with_options(&"guard=1/1".parse()?)?;
    let block = hooks.malloc(100).ok_or("no memory")?;
    // SAFETY: live.
    unsafe { hooks.free(Some(block)) };
    // SAFETY: the bug, a read.
    Ok(unsafe { block.as_ptr().wrapping_add(4).read_volatile() })
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).is_some() {
        println!("{}", buggy()?);
        return Ok(());
    }
    let output = Command::new(std::env::current_exe()?).arg("buggy").output()?;
    let report = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "a report, not a crash");
    assert!(output.stdout.is_empty(), "the read itself never finished");
    assert!(report.contains(" at p+4 of a guarded block.\n"));
    assert!(report.ends_with("Fatal Python error: _PyMem_DebugGuardPage: use of a freed block\n"));
    print!("{report}");
    Ok(())
}
