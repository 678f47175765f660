//! Owns the check of the crates on another machine: built for aarch64 Linux and run by an emulator. `.ci/aarch64` fetches what that
//! takes. An emulator does not show weak memory orderings, which are loom's.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pymem_domains::AllocatorName;
use xshell::{Shell, cmd};

use crate::workspace;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The crates whose tests run: those that start no process, for which the system itself would have to know the emulator.
const TESTED: [&str; 3] = ["malloc-api", "pymem-sync", "heap-report"];

/// Sizes of pages that kernels for aarch64 are built with; the emulator stands for each of them.
const PAGES: [&str; 3] = ["4096", "16384", "65536"];

/// What the kernel starts programs for aarch64 with, where it knows them.
const REGISTERED: &str = "/proc/sys/fs/binfmt_misc/qemu-aarch64";

/// What every row serves: collections, threads and a fork.
const PROGRAM: &str = "\
import json, os, threading
assert json.loads(json.dumps({'a': [1, 2]})) == {'a': [1, 2]}
sizes = []
def work(): sizes.append(sum(len(bytes(size)) for size in range(700)))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
child = os.fork()
if child == 0:
    work()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(len(sizes), 'threads')
";

/// A write behind a block.
const BUG: &str = "\
import ctypes
malloc, free = ctypes.pythonapi.PyMem_Malloc, ctypes.pythonapi.PyMem_Free
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def make(): return malloc(24)
def give_up():
    block = make()
    ctypes.memset(block + 24, 65, 1)
    free(block)
give_up()
";

/// Builds every crate for aarch64, runs tests, and an interpreter in every row.
///
/// # Errors
///
/// What does not build, or behaves otherwise than here.
pub(crate) fn run(shell: &Shell) -> Result<()> {
    let tools = workspace::target().join("aarch64-tools");
    let script = workspace::root().join(".ci/aarch64");
    let fetch = cmd!(shell, "{script} {tools}").quiet().ignore_status().output()?;
    if !fetch.status.success() {
        print!("skipped: {}", String::from_utf8_lossy(&fetch.stdout));
        return Ok(());
    }
    let (rust, python) = (tools.join("rust/usr"), tools.join("python"));
    let target = workspace::target().join("aarch64");
    let folders = [rust.join("lib"), rust.join("lib/x86_64-linux-gnu")];
    let _compiler = shell.push_env("RUSTC", rust.join("bin/rustc"));
    let _libraries = shell.push_env("LD_LIBRARY_PATH", std::env::join_paths(folders)?);
    let _linker =
        shell.push_env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    let _runner = shell.push_env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64");
    let _root = shell.push_env("QEMU_LD_PREFIX", &python);
    let build = ["--quiet", "--target", TARGET, "--target-dir"];
    cmd!(shell, "cargo build {build...} {target} -p pymem-preload").run()?;
    for name in TESTED {
        cmd!(shell, "cargo test {build...} {target} -p {name} --lib --tests").run()?;
    }
    run_with_all_pages(shell, &target)?;
    let library = target.join(TARGET).join("debug/libpymem_preload.so");
    let program = python.join("usr/bin/python3.11");
    let preload = format!("LD_PRELOAD={}", library.display());
    for name in AllocatorName::ALL {
        let row = cmd!(shell, "qemu-aarch64 -E {preload} {program} -c {PROGRAM}")
            .quiet()
            .env_remove("LD_LIBRARY_PATH")
            .envs([("PYTHONMALLOC", name.as_str()), ("PYMEM_STATS", "1")])
            .output()
            .with_context(|| format!("an interpreter in the row {name}"))?;
        let (said, told) =
            (String::from_utf8_lossy(&row.stdout), String::from_utf8_lossy(&row.stderr));
        ensure!(said == "4 threads\n" && told.contains("pymem: "), "{name}: {said}{told}");
        println!("{name}: {}", told.lines().next().unwrap_or_default());
    }
    let bug = cmd!(shell, "qemu-aarch64 -E {preload} {program} -c {BUG}")
        .quiet()
        .env_remove("LD_LIBRARY_PATH")
        .envs([("PYTHONMALLOC", "debug"), ("PYMEM_DEBUG", "backtrace=4")])
        .ignore_status()
        .output()?;
    let report = String::from_utf8_lossy(&bug.stderr);
    for part in ["at tail+0: 0x41 *** OUCH", "in make", "in give_up"] {
        ensure!(report.contains(part), "the report of a bug lacks `{part}`:\n{report}");
    }
    println!("a write behind a block: reported with its Python frames");
    Ok(())
}

/// Runs what asks for the size of a page with each. Tests that start themselves run where the kernel knows the emulator.
fn run_with_all_pages(shell: &Shell, target: &Path) -> Result<()> {
    let mut tests = vec!["--lib"];
    if Path::new(REGISTERED).exists() {
        tests.extend(["--test", "account"]);
    } else {
        println!("skipped: tests that start themselves; apt-get install qemu-user-binfmt");
    }
    for page in PAGES {
        let _page = shell.push_env("QEMU_PAGESIZE", page);
        // Larger pages than the machine's are the emulator's own: with them it ends in the standard library's backtrace of any panic.
        let _backtrace = shell.push_env("RUST_BACKTRACE", "0");
        let tests = &tests;
        cmd!(
            shell,
            "cargo test --quiet --target {TARGET} --target-dir {target} -p pymalloc-core {tests...}"
        )
        .run()?;
        println!("pages of {page} bytes: the pools' tests are green");
    }
    Ok(())
}
