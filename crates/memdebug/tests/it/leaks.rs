//! The report of live blocks at exit, in children of their own: the registry is the process's.

use std::cell::Cell;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{ConfigureError, DebugHooks, Domain, Host, HostStacks, LiveBlocks};
use rstest::rstest;

use crate::support::{Hooks, SIZES, hooks_of, options};

#[inline(never)]
fn leaky_function(hooks: &Hooks, size: usize) {
    std::hint::black_box(hooks.malloc(size));
}

/// What a child does: leaks two blocks of mem and one of obj, and frees others.
pub(crate) fn child(options: &str) {
    let mem = hooks_of(Host::new(), Domain::Mem, options);
    let obj = hooks_of(Host::new(), Domain::Obj, options);
    // A length that the compiler does not know: an unrolled loop is two places that allocate.
    for &size in std::hint::black_box(&[100, 50][..]) {
        leaky_function(&mem, size);
    }
    std::hint::black_box(obj.calloc(1, 7));
    let freed = obj.malloc(1000);
    // SAFETY: live, and not used again.
    unsafe { obj.free(freed) };
    assert_eq!(LiveBlocks::now().blocks(), 3);
    assert_eq!(LiveBlocks::now().bytes(), 157);
    // The hooks stay: what is left at exit is what they handed out.
    std::mem::forget((mem, obj));
}

/// What a child of the table does: leaks one block of `size` bytes, gives others back. `text` is options, domain, size.
pub(crate) fn child_of_table(text: &str) {
    let mut words = text.split(';');
    let mut word = || words.next().expect("options, domain and size");
    let options = word();
    let domain = Domain::from_letter(word().as_bytes()[0]).expect("a domain's letter");
    let size = word().parse().expect("a size");
    let hooks = hooks_of(Host::new(), domain, options);
    let leaked = hooks.malloc(size);
    let moved = hooks.calloc(1, size);
    // SAFETY: live, and not used again but as the result.
    let moved = unsafe { hooks.realloc(moved, size + 1) };
    for block in [moved, hooks.malloc(size), hooks.calloc(size, 1)] {
        // SAFETY: live, and not used again.
        unsafe { hooks.free(block) };
    }
    std::hint::black_box(leaked);
    // The hooks stay: what is left at exit is what they handed out.
    std::mem::forget(hooks);
}

/// What a child does that ends in another way than its last test: leaks, and ends so.
pub(crate) fn child_that_ends_by(end: &str) {
    child("leaks,leak_exit=7");
    match end {
        // SAFETY: no handlers run.
        "_exit" => unsafe { libc::_exit(3) },
        "fork" => {
            // SAFETY: the child of a program with other threads calls `exit` alone, whose handlers are ours.
            let forked = unsafe { libc::fork() };
            if forked == 0 {
                // SAFETY: as above.
                unsafe { libc::exit(0) };
            }
            let mut status = 0;
            // SAFETY: a child that nobody else waits for, and room for its status.
            unsafe { libc::waitpid(forked, &mut status, 0) };
            assert_eq!(status, 0, "a forked child's blocks are its parent's");
        }
        "threads" => {
            for _ in 0..8 {
                std::thread::spawn(|| {
                    let hooks = hooks_of(Host::new(), Domain::Raw, "registry");
                    loop {
                        let block = hooks.malloc(48);
                        // SAFETY: live, and not used again.
                        unsafe { hooks.free(block) };
                    }
                });
            }
        }
        _ => unreachable!("no end is called {end:?}"),
    }
}

/// A forked child reports nothing of its parent's, `_exit` nothing at all; threads that still allocate are in nobody's way.
#[rstest]
#[case("_exit", 3, 0)]
#[case("fork", 7, 1)]
#[case("threads", 7, 1)]
fn ends_of_a_process(#[case] end: &str, #[case] status: i32, #[case] reports: usize) {
    let output = crate::child::run(&format!("leaks, and {end}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{errors}");
    assert_eq!(errors.matches("are still live.").count(), reports, "{errors}");
    assert_eq!(errors.matches("2 blocks with 150 bytes in the mem domain").count(), reports);
}

/// What a child does: writes to a block that the quarantine holds, leaks another one, and ends.
pub(crate) fn child_that_writes() {
    let host = Host::new().with_handler(memdebug::handler::report);
    let hooks = hooks_of(host, Domain::Mem, "quarantine,leaks,leak_exit=7");
    let hooks: &'static Hooks = Box::leak(Box::new(hooks));
    hooks.verify_at_exit();
    let p = hooks.malloc(32).expect("memory");
    // SAFETY: live; the quarantine keeps it.
    unsafe { hooks.free(Some(p)) };
    // SAFETY: a planted bug, into a held block.
    unsafe { p.write(0x58) };
    leaky_function(hooks, 100);
}

/// The status of a leak does not come before the last look at the held blocks, which is taken once.
#[test]
fn held_blocks_are_verified_before_the_leaks() {
    let output = crate::child::run("leaks, and writes");
    let errors = String::from_utf8_lossy(&output.stderr);
    let reports = ["use after free", "still live"].map(|words| errors.matches(words).count());
    assert_eq!((output.status.code(), reports), (Some(7), [1, 1]), "{errors}");
}

/// Of each domain and size the one block that leaks is reported, and a program that leaks none reports nothing.
#[rstest]
fn every_size_of_every_domain(
    #[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain,
    #[values("leaks", "leaks,strict,serial", "leaks,guard=1/1")] options: &str,
) {
    let letter = char::from(domain.letter());
    for size in SIZES {
        let text = format!("{options},leak_exit=7;{letter};{size}");
        let output = crate::child::run(&format!("leak of one:{text}"));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            format!(
                "memdebug: 1 blocks with {size} bytes are still live.\n\n\
                 1 blocks with {size} bytes in the {domain} domain\n"
            ),
            "{text}"
        );
        assert_eq!(output.status.code(), Some(7), "{text}");
    }
}

/// Without a leak there is no report, and the status stays.
#[test]
fn no_leak_is_no_report() {
    let output = crate::child::run("None;m;100;leaks,leak_exit=7");
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[rstest]
#[case("leaks", None)]
#[case("leaks,leak_exit=23", Some(23))]
#[case("leaks,quarantine,leak_exit=5", Some(5))]
#[case("leaks,guard=1/1,leak_exit=6", Some(6))]
fn as_text(#[case] options: &str, #[case] status: Option<i32>) {
    let output = crate::child::run(&format!("leaks:{options}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        errors,
        "memdebug: 3 blocks with 157 bytes are still live.\n\n\
         2 blocks with 150 bytes in the mem domain\n\n\
         1 blocks with 7 bytes in the obj domain\n"
    );
    assert_eq!(output.status.code(), Some(status.unwrap_or(0)));
}

#[test]
fn as_json() {
    let output = crate::child::run("leaks:leaks=json,leak_exit=9");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "{\"blocks\":3,\"bytes\":157,\"groups\":[\
         {\"domain\":\"mem\",\"blocks\":2,\"bytes\":150,\"site\":[]},\
         {\"domain\":\"obj\",\"blocks\":1,\"bytes\":7,\"site\":[]}]}\n"
    );
    assert_eq!(output.status.code(), Some(9));
}

/// With backtraces the two blocks of one line of the program are one group.
#[test]
fn by_site() {
    let output = crate::child::run("leaks:leaks,backtrace=8");
    let errors = String::from_utf8_lossy(&output.stderr);
    let groups: Vec<_> = errors.split("\n\n").skip(1).collect();
    assert_eq!(groups.len(), 2, "{errors}");
    let head =
        "2 blocks with 150 bytes in the mem domain, allocated by (most recent call first):\n  0x";
    assert!(groups[0].starts_with(head), "{errors}");
    assert!(
        groups[1].starts_with("1 blocks with 7 bytes in the obj domain, allocated by"),
        "{errors}"
    );
    let json = crate::child::run("leaks:leaks=json,backtrace=8");
    let json = String::from_utf8_lossy(&json.stderr);
    let site = "\"domain\":\"mem\",\"blocks\":2,\"bytes\":150,\"site\":[\"0x";
    assert!(json.contains(site), "{json}");
}

/// What a child does: leaks a block before and after the baseline.
pub(crate) fn child_with_a_baseline(options: &str) {
    let hooks = hooks_of(Host::new(), Domain::Obj, options);
    let early = [100, 200].map(|size| hooks.malloc(size));
    memdebug::leaks_baseline();
    // SAFETY: live, and not used again.
    unsafe { hooks.free(early[0]) };
    let late = hooks.malloc(30);
    memdebug::leaks_end();
    std::hint::black_box(hooks.malloc(40));
    assert_eq!(LiveBlocks::now().blocks(), 1);
    memdebug::report_to(std::fs::File::create("/dev/stdout").expect("standard output"));
    std::hint::black_box(late);
    std::mem::forget(hooks);
}

/// The report goes to the file that was set, and has what is newer than the baseline and older than the end alone.
#[rstest]
fn blocks_of_the_baseline_are_no_leaks(
    #[values("leaks,leak_exit=7", "leaks,leak_exit=7,guard=1/1")] options: &str,
) {
    let output = crate::child::run(&format!("leaks since:{options}"));
    let report = "memdebug: 1 blocks with 30 bytes are still live.\n\n1 blocks with 30 bytes in the obj domain\n";
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(7), &b""[..]));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with(report), "{output:?}");
}

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

const PLACES: [&str; 2] = ["load", "store"];

/// What a child does: leaks a block of each domain at places of a program of its host.
pub(crate) fn child_with_places(options: &str) {
    static STACKS: HostStacks = HostStacks {
        current: || Some(PLACE.get() as u32 + 1),
        show: |stack, out| {
            out.frame("/app/cache.py", 3, Some(PLACES[stack as usize - 1]));
            out.frame("/app/main.py", 9, None);
        },
        alike: |stack| stack,
    };
    let host = Host::new().with_stacks(&STACKS);
    let all = [(Domain::Raw, 0, 10), (Domain::Mem, 0, 200), (Domain::Obj, 1, 3000)];
    for (domain, place, size) in all {
        PLACE.set(place);
        let hooks = hooks_of(host, domain, options);
        std::hint::black_box(hooks.malloc(size));
        std::mem::forget(hooks);
    }
}

/// The report has what was asked for and was not listed, and without any of it there is none.
#[rstest]
#[case::all("backtrace=4", "", &[3000, 200, 10])]
#[case::a_domain("leak_domain=mem", "", &[200])]
#[case::a_function("leak_site=in load", "", &[200, 10])]
#[case::a_module("leak_site=/app/main.py", "", &[3000, 200, 10])]
#[case::a_pattern("leak_site=cache.py*in store", "", &[3000])]
#[case::both("leak_site=in load,leak_domain=raw", "", &[10])]
#[case::neither("leak_site=in load,leak_domain=obj", "", &[])]
#[case::listed("backtrace=4", "# The cache.\n\n  leak:in load\n", &[3000])]
#[case::listed_by_domain("backtrace=4", "raw:in load\nobj:in load\n", &[3000, 200])]
#[case::listed_without_sites("leak_exit=7", "raw:*\nmem:*\nobj:in load", &[3000])]
#[case::all_listed("backtrace=4", "leak:in load\nobj:cache.py*store\n", &[])]
fn leaks_are_filtered(#[case] options: &str, #[case] rules: &str, #[case] sizes: &[usize]) {
    let file = RulesFile::new(rules);
    let output = crate::child::run(&format!(
        "leaks of places:leaks,leak_exit=7,{options},leak_ignore={}",
        file.path()
    ));
    let errors = String::from_utf8_lossy(&output.stderr);
    let sum: usize = sizes.iter().sum();
    let head = format!("memdebug: {} blocks with {sum} bytes are still live.\n", sizes.len());
    let found = errors.lines().filter_map(|line| line.strip_prefix("1 blocks with "));
    let found: Vec<usize> = found.map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(found, sizes, "{errors}");
    assert_eq!(errors.starts_with(&head), !sizes.is_empty(), "{errors}");
    assert_eq!(output.status.code(), Some(if sizes.is_empty() { 0 } else { 7 }), "{errors}");
}

/// Rules come from a pipe as from a file, and are read to their end.
#[test]
fn rules_come_from_a_pipe() {
    let mut ends = [0; 2];
    // SAFETY: room for two numbers.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: new descriptors, each of which one file has from now on.
    let [reader, mut writer] = ends.map(|end| unsafe { File::from_raw_fd(end) });
    let rules = "# A comment of 20,000 lines.\n".repeat(20_000) + "leak:in load\nwrong";
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(rules.as_bytes()).expect("a reader"));
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let options = options(&format!("leak_ignore={path}"));
        let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_options(&options);
        assert_eq!(hooks.map(drop), Err(ConfigureError::BadRule { line: 20_002 }));
    });
}

/// A file of rules in the system's folder, gone when dropped.
struct RulesFile(std::path::PathBuf);

impl RulesFile {
    fn new(text: &str) -> Self {
        let name = format!("memdebug-{}-{:x}.txt", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of text")
    }
}

impl Drop for RulesFile {
    fn drop(&mut self) {
        // The file is in nobody's way if it stays.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Rules that cannot be read are refused when they are asked for, not at exit.
#[rstest]
#[case::not_there(None, ConfigureError::NoRules { errno: libc::ENOENT })]
#[case::a_folder(Some("/"), ConfigureError::NoRules { errno: libc::EISDIR })]
#[case::without_end(Some("/dev/zero"), ConfigureError::NoRules { errno: libc::EFBIG })]
#[case::no_rule(Some("leak:x\n\n# y\nin load\n"), ConfigureError::BadRule { line: 4 })]
#[case::no_domain(Some("all:x"), ConfigureError::BadRule { line: 1 })]
#[case::no_pattern(Some("leak:"), ConfigureError::BadRule { line: 1 })]
fn faulty_rules_are_refused(#[case] text: Option<&str>, #[case] error: ConfigureError) {
    let file = text.filter(|text| !text.starts_with('/')).map(RulesFile::new);
    let path = file.as_ref().map_or(text.unwrap_or("/no/such/file"), RulesFile::path);
    let options = options(&format!("leak_ignore={path}"));
    let hooks = DebugHooks::new(LibcMalloc, Domain::Mem).with_options(&options);
    assert_eq!(hooks.map(drop), Err(error));
}
