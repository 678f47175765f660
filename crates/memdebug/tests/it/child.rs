//! The same bugs with the handler that a program gets: each ends in a report and SIGABRT, never in SIGSEGV.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::testing::{forked, test_process};
use malloc_api::{Malloc, page_bytes};
use memdebug::{Domain, Host, Violation, chain_handler, handler, install_fault_handler};
use rstest::rstest;

use crate::support::{Bug, SIZES, another, hooks_of};

const VARIABLE: &str = "MEMDEBUG_TEST_CHILD";

/// Runs `program` of this file in a child of its own.
pub(crate) fn run(program: &str) -> Output {
    test_process("child::program").env(VARIABLE, program).output().unwrap()
}

/// What a child runs. In the parent there is nothing to run, which is a program without a bug.
#[test]
fn program() {
    let Ok(program) = std::env::var(VARIABLE) else {
        let host = Host::new();
        Bug::None.plant(&hooks_of(host, Domain::Raw, ""), &hooks_of(host, Domain::Mem, ""), 1);
        return;
    };
    // SAFETY: a limit of this process alone: no core files.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    if let Some(rest) = program.strip_prefix("leaks:") {
        return crate::leaks::child(rest);
    }
    if let Some(rest) = program.strip_prefix("leaks since:") {
        return crate::leaks::child_with_a_baseline(rest);
    }
    if let Some(rest) = program.strip_prefix("leak of one:") {
        return crate::leaks::child_of_table(rest);
    }
    if let Some(rest) = program.strip_prefix("leaks of places:") {
        return crate::leaks::child_with_places(rest);
    }
    if program == "leaks, and writes" {
        return crate::leaks::child_that_writes();
    }
    if let Some(end) = program.strip_prefix("leaks, and ") {
        return crate::leaks::child_that_ends_by(end);
    }
    if let Some(rest) = program.strip_prefix("quarantine:") {
        return crate::quarantine::child(rest);
    }
    if let Some(rest) = program.strip_prefix("sampler:") {
        return crate::sampler::child(rest);
    }
    if program == "check" {
        return check();
    }
    if let Some(folder) = program.strip_prefix("closed:") {
        return reports_after_a_close(folder.as_ref());
    }
    if let Some(prefix) = program.strip_prefix("files:") {
        return reports_in_files(prefix);
    }
    if program == "reports at once" {
        return reports_at_once();
    }
    if program == "faults at once" {
        return faults_at_once();
    }
    if program == "again" {
        return again();
    }
    if program == "relay" {
        return relay();
    }
    if let Some(rest) = program.strip_prefix("signal:") {
        return signals(rest);
    }
    if let Some(rest) = program.strip_prefix("to C:") {
        return crate::c_free::child(rest);
    }
    let mut words = program.split(';');
    let mut word = || words.next().unwrap();
    let (bug, domain, size) = (Bug::parse(word()), word(), word().parse().unwrap());
    let options = word();
    let domain = Domain::from_letter(domain.as_bytes()[0]).unwrap();
    install_fault_handler().unwrap();
    let host = Host::new().with_handler(handler::abort).with_thread_check(|| false);
    let host = if bug == Bug::NoGil { host } else { host.with_thread_check(|| true) };
    bug.plant(&hooks_of(host, domain, options), &hooks_of(host, another(domain), options), size);
}

#[rstest]
fn every_bug_ends_in_sigabrt(
    #[values("", "strict", "guard=1/1")] options: &str,
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8)] size_index: usize,
) {
    let size = SIZES[size_index];
    let guard = options.starts_with("guard");
    // The offsets of a class are all tried in the process; here its ends are.
    let sampled = |bug: &Bug| match *bug {
        Bug::Overflow(n) | Bug::ReallocOverflow(n) => n == 1 || n == 8,
        Bug::Underflow(n) => n == 1 || n == 8 || n == 16,
        Bug::WriteAfterFree(at) => at == 0 || at == size as isize - 1,
        _ => true,
    };
    for bug in Bug::all(size, options == "strict").into_iter().filter(sampled) {
        for domain in [Domain::Raw, Domain::Mem, Domain::Obj] {
            if bug == Bug::NoGil && domain == Domain::Raw {
                continue;
            }
            let letter = char::from(domain.letter());
            let output = run(&format!("{};{letter};{size};{options}", bug.text()));
            let errors = String::from_utf8_lossy(&output.stderr);
            let context = format!(
                "{bug:?}, {size} bytes, {domain:?}, {options:?}: {:?}\n{errors}",
                output.status
            );
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{context}");
            // The id byte in the last line may be any, a line feed too.
            let fatal = errors.matches("\nFatal Python error: _PyMem_Debug").count();
            let first = errors.starts_with("Fatal Python error: _PyMem_Debug");
            assert_eq!(fatal + usize::from(first), 1, "{context}");
            // Writes to freed blocks are met by a check, those to guard pages at the access.
            let met_in_call =
                !errors.contains("_PyMem_DebugGuardPage") && !errors.contains("use after free");
            let caller = errors.contains("\nReported call made by (most recent call first):\n  0x");
            assert_eq!(caller, met_in_call, "{context}");
            if bug != Bug::NoGil && !guard {
                assert!(errors.contains("Debug memory block at address p=0x"), "{context}");
            }
        }
    }
}

#[rstest]
fn no_bug_ends_well(#[values("", "strict,serial", "guard=1/1")] options: &str) {
    let output = run(&format!("None;m;100;{options}"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// A walk over the live blocks finds the one that was overrun, though nobody frees it.
fn check() {
    let hooks = hooks_of(Host::new().with_handler(handler::report), Domain::Mem, "registry");
    let blocks: Vec<_> = (0..100).map(|size| hooks.malloc(size).unwrap()).collect();
    assert_eq!(hooks.check_all(), 0);
    for at in [20, 70] {
        // SAFETY: a planted bug: the first guard byte of the block.
        unsafe { blocks[at].as_ptr().wrapping_add(at).write(1) };
    }
    assert_eq!(hooks.check_all(), 2);
}

#[test]
fn a_walk_finds_damage() {
    let output = run("check");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    for size in [20, 70] {
        assert!(errors.contains(&format!("    {size} bytes originally requested\n")), "{errors}");
    }
    assert_eq!(errors.matches("at tail+0: 0x01 *** OUCH").count(), 2, "{errors}");
}

/// Reports a double free, and another one in a forked child.
fn reports_in_files(prefix: &str) {
    memdebug::report_to_files(prefix.as_ref()).unwrap();
    let hooks = hooks_of(Host::new().with_handler(handler::report), Domain::Mem, "strict");
    let block = hooks.malloc(100).unwrap();
    let overrun = |at: usize| {
        // SAFETY: a planted bug: a guard byte after the block.
        unsafe { block.as_ptr().wrapping_add(100 + at).write(0x41) };
        // SAFETY: live, and it stays so.
        unsafe { hooks.free(Some(block)) };
    };
    // A link in the place of this process's file, where the parent says so.
    let own = format!("{prefix}.{}", std::process::id());
    if prefix.ends_with("link") {
        std::os::unix::fs::symlink("/dev/null", own).unwrap();
    }
    overrun(0);
    // SAFETY: 1: the child of a program with one more thread, which waits, uses nothing that the thread may hold.
    let (child, status) = unsafe { forked(|| overrun(3)) };
    assert!(status.success(), "{status}");
    println!("\n{child}");
}

/// Reports, closes the descriptor of the reports as a program does that closes all it does not know, opens a file of its own, and
/// reports again.
fn reports_after_a_close(folder: &std::path::Path) {
    if folder.ends_with("named") {
        memdebug::report_to_files(&folder.join("report")).unwrap();
    } else {
        memdebug::report_to(std::fs::File::create(folder.join("report")).unwrap());
    }
    let hooks = hooks_of(Host::new().with_handler(handler::report), Domain::Mem, "");
    let block = hooks.malloc(100).unwrap();
    let overrun = |at: usize| {
        // SAFETY: a planted bug: a guard byte after the block.
        unsafe { block.as_ptr().wrapping_add(100 + at).write(0x41) };
        // SAFETY: live, and it stays so.
        unsafe { hooks.free(Some(block)) };
    };
    overrun(0);
    let target = handler::target();
    // SAFETY: it is nobody's but the reports', which must cope.
    unsafe { libc::close(target) };
    let own = std::fs::File::create(folder.join("own")).unwrap();
    assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&own), target);
    overrun(1);
}

/// No report is written into a file that the program opened in the place of the closed one, and none is lost.
#[rstest]
fn a_closed_descriptor_is_no_place_for_reports(#[values("named", "given")] way: &str) {
    let folder = std::env::temp_dir().join(format!("memdebug-{:x}", fastrand::u64(..)));
    let inner = folder.join(way);
    std::fs::create_dir_all(&inner).unwrap();
    let output = run(&format!("closed:{}", inner.display()));
    let files = std::fs::read_dir(&inner).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| (path.clone(), std::fs::read_to_string(path).unwrap());
    let files: Vec<_> = files.map(read).collect();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{output:?}");
    let (own, report): (Vec<_>, Vec<_>) = files.iter().partition(|(path, _)| path.ends_with("own"));
    assert_eq!([own.len(), report.len()], [1, 1], "{files:?}");
    assert_eq!(own[0].1, "", "a report in the program's file");
    let errors = String::from_utf8_lossy(&output.stderr);
    let expected = if way == "named" { [2, 0] } else { [1, 1] };
    let count = |text: &str| text.matches("Fatal Python error: _PyMem_DebugRawFree").count();
    assert_eq!([count(&report[0].1), count(&errors)], expected, "{files:?}\n{errors}");
}

/// Each process has a file of its own, which no link is taken for; nothing is lost.
#[rstest]
fn every_process_has_a_file_for_its_reports(#[values("file", "link")] name: &str) {
    let folder = std::env::temp_dir().join(format!(
        "memdebug-{}-{:x}",
        std::process::id(),
        fastrand::u64(..)
    ));
    std::fs::create_dir(&folder).unwrap();
    let prefix = folder.join(name);
    let output = run(&format!("files:{}", prefix.display()));
    let mut reports: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.is_symlink())
        .map(|path| (path.extension().unwrap().to_owned(), std::fs::read(path).unwrap()))
        .collect();
    std::fs::remove_dir_all(&folder).unwrap();
    if name == "link" {
        reports.push(("stderr".into(), output.stderr.clone()));
    }
    assert_eq!(output.stderr.is_empty(), name == "file", "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(reports.len(), 2, "{reports:?}");
    for (process, report) in reports {
        let text = String::from_utf8_lossy(&report);
        let is_childs = stdout.lines().any(|line| line == process.to_string_lossy());
        let childs = text.contains("at tail+3: 0x41 *** OUCH");
        assert_eq!(
            (childs, text.contains("at tail+0: 0x41 *** OUCH")),
            (is_childs, true),
            "{text}"
        );
        assert_eq!(text.matches("Fatal Python error: _PyMem_DebugRawFree").count(), 1, "{text}");
    }
}

/// Eight threads free each of their blocks twice, all at once.
fn reports_at_once() {
    let hooks = hooks_of(Host::new().with_handler(handler::report), Domain::Mem, "strict");
    std::thread::scope(|scope| {
        for size in 100..108 {
            let hooks = &hooks;
            scope.spawn(move || {
                for _ in 0..20 {
                    let block = hooks.malloc(size);
                    for _ in 0..2 {
                        // SAFETY: live at first; then a planted bug.
                        unsafe { hooks.free(block) };
                    }
                }
            });
        }
    });
}

/// Reports of several threads stand one after the other, each in one piece.
#[test]
fn reports_at_once_do_not_mix() {
    let output = run("reports at once");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let begins: Vec<_> = errors.split("Debug memory block at address p=0x").skip(1).collect();
    assert_eq!(begins.len(), 160, "{errors}");
    for report in begins {
        let (dump, rest) = report.split_once("\nFatal Python error: ").unwrap_or((report, ""));
        assert_eq!(dump.matches("bytes originally requested\n").count(), 1, "{errors}");
        assert!(dump.contains("memdebug: double free: the block was freed before.\n"), "{errors}");
        assert!(rest.starts_with("_PyMem_DebugRawFree: bad ID: Allocated using API"), "{errors}");
        assert!(rest.contains("\nReported call made by (most recent call first):\n"), "{errors}");
    }
}

/// Two threads touch freed blocks. The handler, which is slow, must not be entered by the second one.
fn faults_at_once() {
    static ENTERED: AtomicUsize = AtomicUsize::new(0);
    fn alone(_: &Violation) {
        if ENTERED.fetch_add(1, Relaxed) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(300));
            // SAFETY: no handlers run.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: no handlers run.
        unsafe { libc::_exit(9) };
    }
    let hooks = hooks_of(Host::new().with_handler(alone), Domain::Mem, "guard=1/1");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let p = hooks.malloc(100).unwrap();
                // SAFETY: live.
                unsafe { hooks.free(Some(p)) };
                // SAFETY: a planted bug: the block's pages are guarded.
                std::hint::black_box(unsafe { p.read_volatile() });
            });
        }
    });
}

#[test]
fn a_second_fault_waits_for_the_report_of_the_first() {
    let output = run("faults at once");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Installs a handler over ours that does what Python's `faulthandler` does: says so, puts ours back, and raises again.
fn relay() {
    extern "C" fn relaying(signal: libc::c_int) {
        let text = b"relayed\n";
        // SAFETY: `text` is readable for its length.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        // SAFETY: the action that was saved before this one was installed.
        unsafe { libc::sigaction(signal, OURS.get().unwrap(), std::ptr::null_mut()) };
        // SAFETY: no memory is involved.
        unsafe { libc::raise(signal) };
    }
    static OURS: std::sync::OnceLock<libc::sigaction> = std::sync::OnceLock::new();
    let hooks = hooks_of(Host::new(), Domain::Mem, "guard=1/1");
    // SAFETY: plain numbers and pointers, for which zero is a value.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: null asks for the present action alone.
    unsafe { libc::sigaction(libc::SIGSEGV, std::ptr::null(), &mut ours) };
    assert!(OURS.set(ours).is_ok());
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = relaying as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: a handler of one argument.
    unsafe { libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()) };
    Bug::WriteAfterFree(3).plant(&hooks, &hooks, 100);
}

#[test]
fn a_fault_that_another_handler_relays_is_reported() {
    let output = run("relay");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
    assert!(errors.starts_with("relayed\nDebug memory block at"), "{errors}");
    assert!(errors.contains("use after free: write at p+3 of a guarded block."), "{errors}");
}

/// The report's handler looks at the freed block too.
fn again() {
    static FREED: AtomicUsize = AtomicUsize::new(0);
    fn look(_: &Violation) {
        let freed = std::ptr::with_exposed_provenance::<u8>(FREED.load(Relaxed));
        // SAFETY: a planted bug: the block's pages are guarded.
        std::hint::black_box(unsafe { freed.read_volatile() });
    }
    let hooks = hooks_of(Host::new().with_handler(look), Domain::Mem, "guard=1/1");
    let p = hooks.malloc(100).unwrap();
    FREED.store(p.as_ptr().expose_provenance(), Relaxed);
    // SAFETY: live.
    unsafe { hooks.free(Some(p)) };
    // SAFETY: no memory is involved: ends the process by another signal if it hangs.
    unsafe { libc::alarm(60) };
    // SAFETY: a planted bug, as above.
    std::hint::black_box(unsafe { p.read_volatile() });
}

#[test]
fn a_report_that_faults_itself_ends_in_sigabrt() {
    let output = run("again");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
    assert_eq!(errors, "memdebug: the report of this access made another one.\n");
}

/// A freed or overrun guarded block faults at the access itself. The block is a page, so that both of its ends are the page's.
#[rstest]
#[case("WriteAfterFree", 0, "use after free: write at p+0")]
#[case("WriteAfterFree", page() - 1, "use after free: write at p+LAST")]
#[case("Overflow", 1, "overflow: write at p+END")]
#[case("Read", page(), "overflow: read at p+END")]
#[case("Read", 2 * page() - 1, "overflow: read at p+FAR")]
#[case("Read", -1, "underflow: read at p-1")]
#[case("ReadAfterFree", 0, "use after free: read at p+0")]
#[case("ReadAfterFree", 2000, "use after free: read at p+2000")]
fn guard_pages_fault_at_the_access(#[case] bug: &str, #[case] at: isize, #[case] line: &str) {
    let page = page();
    // No guarded block fills a larger page; `sampler.rs` looks for one at either end of a page.
    if page > 16 << 10 {
        return;
    }
    let output = run(&format!("{bug}({at});m;{page};guard=1/1"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
    let places = [("LAST", page - 1), ("END", page), ("FAR", 2 * page - 1)];
    let line = places
        .iter()
        .fold(line.to_owned(), |line, (name, place)| line.replace(name, &place.to_string()));
    assert!(errors.contains(&format!("memdebug: {line} of a guarded block.")), "{errors}");
    assert!(errors.contains("Fatal Python error: _PyMem_DebugGuardPage: "), "{errors}");
}

/// Bytes of a page.
fn page() -> isize {
    page_bytes() as isize
}

/// Ends the process with status 3: a handler of another library.
extern "C" fn other_handler(_: libc::c_int) {
    // SAFETY: no handlers run.
    unsafe { libc::_exit(3) };
}

/// What a child does: raises a signal, or makes an access that is none of the hooks', with another handler before or after ours,
/// or with none.
fn signals(program: &str) {
    let (order, cause) = program.split_once(':').expect("an order and a cause");
    // SAFETY: plain numbers and pointers, for which zero is a value.
    let mut other: libc::sigaction = unsafe { std::mem::zeroed() };
    other.sa_sigaction = other_handler as extern "C" fn(libc::c_int) as usize;
    // The standard library has a handler too, which takes a signal that was sent for a fault.
    // SAFETY: the default action needs no function.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
    if order == "before" {
        // SAFETY: a handler of one argument.
        unsafe { libc::sigaction(libc::SIGSEGV, &other, std::ptr::null_mut()) };
    }
    install_fault_handler().unwrap();
    if order == "after" {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: 1: a handler of one argument; 2: a local record.
        assert!(unsafe { chain_handler(libc::SIGSEGV, &other, &mut old) });
        assert_eq!(old.sa_sigaction, libc::SIG_DFL);
        // SAFETY: 1: null; 2: a local record.
        assert!(unsafe { chain_handler(libc::SIGSEGV, std::ptr::null(), &mut old) });
        assert_eq!(old.sa_sigaction, other.sa_sigaction);
        // SAFETY: 1: a handler of one argument; 2: null.
        assert!(!unsafe { chain_handler(libc::SIGUSR1, &other, std::ptr::null_mut()) });
    }
    match cause {
        // SAFETY: no memory is involved.
        "raised" => assert_eq!(unsafe { libc::raise(libc::SIGSEGV) }, 0),
        // SAFETY: a planted bug: the page is not mapped.
        _ => unsafe { std::ptr::without_provenance_mut::<u8>(64).write_volatile(1) },
    }
}

/// A signal that was sent, and a fault of nobody's, take the program's handler, or end the process as they would have.
#[rstest]
fn faults_of_others_are_handed_on(
    #[values("none", "before", "after")] order: &str,
    #[values("raised", "access")] cause: &str,
) {
    let output = run(&format!("signal:{order}:{cause}"));
    let expected = if order == "none" { (Some(libc::SIGSEGV), None) } else { (None, Some(3)) };
    assert_eq!((output.status.signal(), output.status.code()), expected, "{output:?}");
}
