//! Guard pages without hooks: every bug of a guarded block is named, and nothing else is reported or changed.

use std::os::unix::process::ExitStatusExt;
use std::ptr::NonNull;

use malloc_api::testing::{Counting, FailAfter, conformance, forked};
use malloc_api::{LibcMalloc, MAX_REQUEST, Malloc, page_bytes};
use malloc_trace::{generate, run, run_domains};
use memdebug::{
    ConfigureError, Domain, GuardCoverage, GuardSampler, Host, Violation, ViolationKind, handler,
};
use rstest::rstest;

use crate::support::{COLLECTING, SIZES, another, options, seen};

fn sampler(host: Host, domain: Domain, text: &str) -> GuardSampler<LibcMalloc> {
    let sampler = GuardSampler::new(LibcMalloc, domain).with_host(host);
    sampler.with_options(&options(text)).expect("address space for the guard pages")
}

/// Largest block that is guarded.
const MOST: usize = 16 << 10;
const RATES: [&str; 4] = ["guard=1/1", "guard=1/2,backtrace=4", "guard=1/7", ""];

fn kinds() -> Vec<ViolationKind> {
    seen().iter().map(Violation::kind).collect()
}

#[rstest]
fn conforms(#[values(0, 1, 2, 3)] index: usize) {
    for domain in Domain::ALL {
        conformance(&sampler(COLLECTING, domain, RATES[index]));
    }
    assert!(seen().is_empty());
}

#[rstest]
fn random_programs(#[values(0, 1, 2, 3)] index: usize) {
    let counting = Counting::new(LibcMalloc);
    let sampler = GuardSampler::new(&counting, Domain::Obj).with_host(COLLECTING);
    let sampler = sampler.with_options(&options(RATES[index])).unwrap();
    for seed in 0..8 {
        run(&generate::random(seed, 4000, 3000), &sampler).unwrap();
    }
    assert!(seen().is_empty());
    assert_eq!(counting.counts().live_blocks, 0, "every block went back");
}

#[test]
fn three_domains_at_once() {
    let [raw, mem, obj] = &Domain::ALL.map(|domain| sampler(COLLECTING, domain, "guard=1/3"));
    run_domains(&generate::random(3, 20_000, 700), [raw, mem, obj]).unwrap();
    assert!(seen().is_empty());
}

/// Without a guarded block the allocator below gets the very calls of the program.
#[test]
fn unguarded_blocks_are_those_of_the_allocator_below() {
    let counting = Counting::new(LibcMalloc);
    let sampler = GuardSampler::new(&counting, Domain::Mem).with_host(COLLECTING);
    let block = sampler.malloc(100);
    assert_eq!(counting.counts().calls(), 1, "it passes");
    // SAFETY: live, and not used again but as the result.
    let block = unsafe { sampler.realloc(block, 50) };
    // SAFETY: live, and not used again.
    unsafe { sampler.free(block) };
    assert_eq!((counting.counts().calls(), counting.counts().live_blocks), (3, 0));
    // A block from before the guard pages goes back as it came.
    let early = sampler.calloc(3, 7);
    sampler.configure(&options("guard=1/1")).unwrap();
    // SAFETY: live, and not used again.
    unsafe { sampler.free(early) };
    assert_eq!(counting.counts().live_blocks, 0);
    assert!(seen().is_empty());
}

#[rstest]
fn out_of_memory(#[values(0, 2, 3)] index: usize) {
    let ops = generate::random(11, 120, 600);
    for start in 0.. {
        let failing = FailAfter::new(Counting::new(LibcMalloc), start);
        let sampler = GuardSampler::new(&failing, Domain::Mem).with_host(COLLECTING);
        let sampler = sampler.with_options(&options(RATES[index])).unwrap();
        run(&ops, &sampler).unwrap();
        assert!(seen().is_empty());
        if failing.failures() == 0 {
            break;
        }
    }
}

/// Each bug that a call of the sampler can see, of each domain and size. A wrong call has no effect: the right one after
/// it finds nothing.
#[rstest]
fn bugs_are_named_when_the_block_comes_back(
    #[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain,
) {
    use ViolationKind as V;
    let ours = sampler(COLLECTING, domain, "guard=1/1");
    let other = sampler(COLLECTING, another(domain), "guard=1/1");
    for size in SIZES.into_iter().chain([MOST]).filter(|&size| size <= MOST) {
        let p = ours.malloc(size).expect("memory");
        let inside = NonNull::new(p.as_ptr().wrapping_add(size / 2));
        if size > 1 {
            // SAFETY: a planted bug.
            unsafe { ours.free(inside) };
            assert_eq!(kinds(), [V::InteriorPointer { block: p.as_ptr().addr(), size }], "{size}");
            // SAFETY: a planted bug.
            assert_eq!(unsafe { ours.realloc(inside, 9) }, None);
            assert_eq!(kinds(), [V::InteriorPointer { block: p.as_ptr().addr(), size }], "{size}");
        }
        // SAFETY: a planted bug.
        unsafe { other.free(Some(p)) };
        assert_eq!(kinds(), [V::WrongDomain { allocated: domain }], "{size}");
        // SAFETY: live, and not used again.
        unsafe { ours.free(Some(p)) };
        assert_eq!(kinds(), [], "{size}");
        // SAFETY: a planted bug.
        unsafe { ours.free(Some(p)) };
        assert_eq!(kinds(), [V::DoubleFree], "{size}");
        // SAFETY: a planted bug.
        assert_eq!(unsafe { ours.realloc(Some(p), size) }, None);
        assert_eq!(kinds(), [V::DoubleFree], "{size}");
    }
}

/// What a report shows of a block is its own data, from the pointer to its end.
#[rstest]
#[case(5, "Data at p: 05 06 07 08 09 0a 0b 0c ... 10 11 12 13 14 15 16 17\n")]
#[case(12, "Data at p: 0c 0d 0e 0f 10 11 12 13 14 15 16 17\n")]
#[case(23, "Data at p: 17\n")]
fn a_report_shows_the_blocks_data_alone(#[case] offset: usize, #[case] line: &str) {
    let ours = sampler(COLLECTING, Domain::Mem, "guard=1/1");
    // On either side of its pages.
    for _ in 0..20 {
        let block = ours.malloc(24).expect("memory");
        // SAFETY: live, 24 bytes.
        (0..24_u8).for_each(|at| unsafe { block.as_ptr().wrapping_add(at.into()).write(at) });
        // SAFETY: a planted bug: a pointer into the block.
        unsafe { ours.free(NonNull::new(block.as_ptr().wrapping_add(offset))) };
        let seen = seen();
        let text = seen.first().expect("a violation").to_string();
        assert!(text.contains("\n    24 bytes originally requested\n"), "{text}");
        assert!(text.contains(line), "{text}");
        // SAFETY: live, and not used again.
        unsafe { ours.free(Some(block)) };
    }
}

/// A write that stays on the pages of the block is found when it comes back, on whichever side there is room for it.
#[rstest]
fn writes_beside_a_block_on_its_pages_are_named(
    #[values(Domain::Raw, Domain::Mem, Domain::Obj)] domain: Domain,
    #[values(1, 7, 8, 16, 512, 513)] size: usize,
) {
    let ours = sampler(COLLECTING, domain, "guard=1/1");
    let (mut left, mut right) = (0, 0);
    while left < 4 || right < 4 {
        let p = ours.calloc(1, size).expect("memory").as_ptr();
        let is_left = p.addr() % 4096 == 0;
        let at = if is_left { p.wrapping_add(size) } else { p.wrapping_sub(1) };
        // SAFETY: a planted bug; the byte is on the block's pages.
        unsafe { at.write(1) };
        // SAFETY: live, and not used again.
        unsafe { ours.free(NonNull::new(p)) };
        let expected = if is_left { ViolationKind::TrailingPad } else { ViolationKind::LeadingPad };
        assert_eq!(kinds(), [expected]);
        // SAFETY: as above; it was right but for that byte.
        unsafe { at.write(0xFD) };
        // SAFETY: live, as the sampler refused it.
        unsafe { ours.free(NonNull::new(p)) };
        assert_eq!(kinds(), []);
        if is_left { left += 1 } else { right += 1 }
    }
}

#[test]
fn what_cannot_be_guarded_is_served_all_the_same() {
    let counting = Counting::new(LibcMalloc);
    let sampler = GuardSampler::new(&counting, Domain::Raw).with_host(COLLECTING);
    let sampler = sampler.with_options(&options("guard=1/1")).unwrap();
    let large = sampler.malloc(MOST + 1);
    assert_eq!(counting.counts().live_blocks, 1);
    for size in [MAX_REQUEST + 1, usize::MAX] {
        assert_eq!(sampler.malloc(size), None);
        assert_eq!(sampler.calloc(size, 2), None);
        // SAFETY: live, and stays so.
        assert_eq!(unsafe { sampler.realloc(large, size) }, None);
    }
    // SAFETY: live, and not used again.
    unsafe { sampler.free(large) };
    // SAFETY: null.
    unsafe { sampler.free(None) };
    assert!(seen().is_empty());
}

#[test]
fn options_that_need_hooks_are_refused() {
    let refused = |text: &str| {
        GuardSampler::new(LibcMalloc, Domain::Mem).with_options(&options(text)).map(|_| ())
    };
    for (text, option) in [
        ("serial", "serial"),
        ("guard=1/9,full_erase", "full_erase"),
        ("strict,guard=1/9", "strict"),
        ("guard,registry", "registry"),
        ("guard,quarantine=1M", "quarantine"),
        ("leaks,guard", "leaks"),
    ] {
        assert_eq!(refused(text), Err(ConfigureError::NeedsHooks { option }), "{text}");
    }
    assert_eq!(refused("backtrace=3"), Ok(()));
    let twice = sampler(COLLECTING, Domain::Mem, "guard=1/9");
    assert_eq!(twice.configure(&options("guard=1/9")), Err(ConfigureError::AlreadySet));
}

/// Threads allocate, resize and free, each other's blocks too.
#[test]
fn threads_share_a_sampler() {
    let sampler = sampler(COLLECTING, Domain::Raw, "guard=1/5,backtrace=2");
    let (give, take) = std::sync::mpsc::sync_channel::<usize>(64);
    std::thread::scope(|scope| {
        let sampler = &sampler;
        scope.spawn(move || {
            for block in take {
                let block = std::ptr::with_exposed_provenance_mut::<u8>(block);
                // SAFETY: live, 40 bytes, and this thread's alone since it was sent.
                assert_eq!(unsafe { block.wrapping_add(39).read() }, 0x5A);
                // SAFETY: as above, and not used again.
                unsafe { sampler.free(NonNull::new(block)) };
            }
            assert!(seen().is_empty());
        });
        for seed in 0..3 {
            let give = give.clone();
            scope.spawn(move || {
                run(&generate::random(seed, 10_000, 900), sampler).unwrap();
                for _ in 0..2000 {
                    let block = sampler.malloc(40).expect("memory").as_ptr();
                    // SAFETY: 40 bytes of a new block.
                    unsafe { block.write_bytes(0x5A, 40) };
                    give.send(block.expose_provenance()).unwrap();
                }
                assert!(seen().is_empty());
            });
        }
        drop(give);
    });
}

/// What a child does: an access that meets a guard page, or forks.
pub(crate) fn child(program: &str) {
    let host = Host::new().with_handler(handler::abort);
    if program == "fork" {
        return fork_among_threads();
    }
    if let Some(rest) = program.strip_prefix("long:") {
        return among_long_lived_blocks(rest);
    }
    let (bug, size) = program.split_once(':').expect("a bug and a size");
    let size: usize = size.parse().expect("a size");
    let sampler = sampler(host, Domain::Obj, "guard=1/1,backtrace=8");
    // The side is random: until the block stands where the access leaves its pages.
    let wants_left = bug == "underflow";
    let mut block;
    loop {
        block = sampler.malloc(size).expect("memory").as_ptr();
        let end = (block.addr() + size) % page_bytes();
        if bug == "freed" || if wants_left { block.addr() % page_bytes() == 0 } else { end == 0 } {
            break;
        }
    }
    match bug {
        "underflow" => touch(block.wrapping_sub(1)),
        "overflow" => touch(block.wrapping_add(size)),
        _ => {
            // SAFETY: live; what follows is the bug.
            unsafe { sampler.free(NonNull::new(block)) };
            touch(block.wrapping_add(size / 2));
        }
    }
}

#[inline(never)]
fn touch(at: *mut u8) {
    // SAFETY: a planted bug.
    unsafe { at.write_volatile(1) };
}

#[rstest]
fn accesses_fault_and_are_reported(
    #[values("underflow", "overflow", "freed")] bug: &str,
    #[values(16, 512, 4096, 16384)] size: usize,
) {
    let output = crate::child::run(&format!("sampler:{bug}:{size}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
    let at = match bug {
        "underflow" => String::from("underflow: write at p-1"),
        "overflow" => format!("overflow: write at p+{size}"),
        _ => format!("use after free: write at p+{}", size / 2),
    };
    assert!(errors.contains(&format!("memdebug: {at} of a guarded block.")), "{errors}");
    assert!(
        errors.contains("Memory block allocated by (most recent call first):\n  0x"),
        "{errors}"
    );
    assert_eq!(errors.contains("Memory block freed by"), bug == "freed", "{errors}");
    assert!(errors.contains("Fatal Python error: _PyMem_DebugGuardPage: "), "{errors}");
}

/// Forks while others hold the pool's lock now and then; a child that finds it locked would never end.
fn fork_among_threads() {
    let sampler = &sampler(Host::new(), Domain::Raw, "guard=1/1");
    let done = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    run(&generate::random(seed, 200, 300), sampler).unwrap();
                }
            });
        }
        let work = || {
            for size in 0..20 {
                let block = sampler.malloc(size);
                // SAFETY: live, and not used again.
                unsafe { sampler.free(block) };
            }
        };
        // SAFETY: 1: the child allocates from the sampler alone.
        let failed = (0..200).map(|_| unsafe { forked(work) }.1).find(|end| !end.success());
        // Before any panic, or the threads would go on for ever.
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(failed, None, "status of a child");
    });
}

#[test]
fn a_fork_finds_no_lock_held() {
    let output = crate::child::run("sampler:fork");
    assert!(output.status.success(), "{output:?}");
}

/// Blocks that stay live, and then 3,000 that come and go: how many of these are guarded, and of 3,000 more once the first are freed.
fn among_long_lived_blocks(program: &str) {
    let (text, live) = program.rsplit_once(':').expect("options and a number");
    let live: usize = live.parse().expect("a number");
    let counting = Counting::new(LibcMalloc);
    let sampler = GuardSampler::new(&counting, Domain::Obj);
    let sampler = sampler.with_options(&options(text)).expect("address space for the guard pages");
    let made = |size: usize| {
        let before = counting.counts().calls();
        let block = sampler.malloc(size).expect("memory");
        (block, counting.counts().calls() == before)
    };
    let come_and_go = || {
        let blocks = (0..3000).map(|_| {
            let (block, is_guarded) = made(48);
            // SAFETY: live, and not used again.
            unsafe { sampler.free(Some(block)) };
            usize::from(is_guarded)
        });
        blocks.sum::<usize>()
    };
    let long_lived: Vec<_> = (0..live).map(|_| made(32)).collect();
    let guarded = come_and_go();
    for &(block, _) in &long_lived {
        // SAFETY: live, 32 bytes.
        unsafe { block.as_ptr().wrapping_add(31).write(1) };
        // SAFETY: live, and not used again.
        unsafe { sampler.free(Some(block)) };
    }
    assert_eq!(counting.counts().live_blocks, 0);
    let coverage = GuardCoverage::now();
    assert_eq!((coverage.guarded, coverage.retired), (0, 0), "pages are guarded for nobody");
    let passed_over = coverage.passed_over;
    for (block, _) in long_lived.into_iter().filter(|&(_, is_guarded)| is_guarded) {
        // SAFETY: any address may be asked for.
        let answer = unsafe { libc::access(block.as_ptr().cast(), libc::F_OK) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((answer, error), (-1, Some(libc::EFAULT)), "a freed block can be read");
    }
    println!("\n{guarded} guarded {passed_over} {}", come_and_go());
}

/// Long-lived blocks do not use up the guard pages: what is made later has some, and all of it once they are freed.
#[rstest]
#[case::small_reproducer("guard=1/1:131072", 40_000, 3000..=3000, false)]
#[case::all_slots_taken("guard=1/1", 300_000, 1..=2999, true)]
#[case::one_in_hundred("guard=1/100", 200_000, 10..=60, false)]
#[case::few_slots("guard=1/1:4096", 3000, 100..=2000, true)]
fn long_lived_blocks_leave_guard_pages(
    #[case] options: &str,
    #[case] live: usize,
    #[case] expected: std::ops::RangeInclusive<usize>,
    #[case] says: bool,
) {
    let output = crate::child::run(&format!("sampler:long:{options}:{live}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let line = text.lines().find(|line| line.contains(" guarded ")).expect("counts");
    let counts: Vec<_> = line.split(' ').filter_map(|word| word.parse::<usize>().ok()).collect();
    assert!(expected.contains(&counts[0]), "guarded, passed over, guarded at last: {line}");
    let at_last = if options == "guard=1/100" { expected } else { 3000..=3000 };
    assert!(at_last.contains(&counts[2]), "guarded, passed over, guarded at last: {line}");
    assert_eq!(errors.matches("fewer blocks are guarded from now on").count(), usize::from(says));
}
