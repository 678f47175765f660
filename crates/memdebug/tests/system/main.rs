//! What the options do when the system refuses memory for the registry, the quarantine, the sites and the guard pages: each
//! memory call at each turn.
//!
//! A program of its own, for it takes the place of the C library's functions. Each refusal is met by a child of its own, as
//! what the options share is made once a process.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod reports;

use std::cell::RefCell;

use malloc_api::testing::{Counting, MemoryCall, Refusals, test_process};
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{ShadowModel, generate};
use memdebug::{ConfigureError, DebugHooks, Domain, GuardSampler, Host, Options, Violation};
use rstest::rstest;

malloc_api::refuse_memory_calls!();

const VARIABLE: &str = "MEMDEBUG_TEST_REFUSAL";

thread_local! {
    static SEEN: RefCell<Vec<Violation>> = const { RefCell::new(Vec::new()) };
}

fn collect(violation: &Violation) {
    SEEN.with_borrow_mut(|seen| seen.push(violation.clone()));
}

const COLLECTING: Host = Host::new().with_handler(collect).with_thread_check(|| true);

/// Runs a program under `options`; returns the requests that got no memory, or why the options could not be set.
fn program(options: &Options, ops: usize) -> Result<usize, ConfigureError> {
    let counting = Counting::new(LibcMalloc);
    let hooks = DebugHooks::new(&counting, Domain::Obj).with_host(COLLECTING);
    let hooks = hooks.with_options(&options.for_hooks())?;
    let sampler = GuardSampler::new(&hooks, Domain::Obj).with_host(COLLECTING);
    let sampler = sampler.with_options(&options.for_sampler())?;
    let mut model = ShadowModel::new([&sampler; 3]);
    for op in generate::random(29, ops, 3_000) {
        model.step(op).expect("no fault");
    }
    model.check_all().expect("no live block has changed");
    assert_eq!(hooks.check_all(), 0);
    let failed = model.summary().failed;
    model.free_all().expect("no fault");
    hooks.release_quarantine();
    assert_eq!(hooks.quarantined(), (0, 0));
    assert_eq!(counting.counts().live_blocks, 0, "every block went back");
    Ok(failed)
}

/// What a child runs; in the parent nothing is refused.
#[test]
fn child() {
    let words = std::env::var(VARIABLE).unwrap_or_else(|_| String::from("all;0;0;strict"));
    let words: Vec<&str> = words.split(';').collect();
    let &[kinds, start, stop, text] = &words[..] else { panic!("{words:?}") };
    let kinds = match kinds {
        "all" => &MemoryCall::ALL[..],
        "changes" => &[MemoryCall::Munmap, MemoryCall::Madvise, MemoryCall::Mprotect],
        _ => panic!("no calls are called {kinds:?}"),
    };
    let options: Options = text.parse().expect("options");
    let refusals = Refusals::of(kinds, start.parse().unwrap(), stop.parse().unwrap());
    let failed = match program(&options, 60) {
        Ok(failed) => failed.to_string(),
        Err(ConfigureError::NoMemory { option }) => {
            assert!(text.contains(option) || text == "strict", "{option} of {text}");
            String::from("no")
        }
        Err(error) => panic!("{text}: {error}"),
    };
    let (calls, failures) = (refusals.calls(), refusals.failures());
    drop(refusals);
    assert!(SEEN.take().is_empty(), "a report of no bug");
    println!("\n{calls} calls, {failures} failures, {failed} requests");
    // The system gives again; a pool of guard pages that could not be made is not tried again.
    match program(&options, 200) {
        Ok(failed) => assert_eq!(failed, 0),
        Err(error) => {
            assert_eq!(error, ConfigureError::NoMemory { option: "guard" });
            assert!(text.contains("guard") && failures > 0);
        }
    }
    assert!(SEEN.take().is_empty(), "a report of no bug");
}

/// Runs the child; returns its calls, how many of them failed, and the requests that got no memory, if there was a program.
fn run(words: &str) -> (usize, usize, Option<usize>) {
    let output = test_process("child").env(VARIABLE, words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let counts = text.lines().find_map(|line| {
        let line = line.strip_suffix(" requests")?;
        let (calls, rest) = line.split_once(" calls, ")?;
        let (failures, requests) = rest.split_once(" failures, ")?;
        Some((calls.parse().ok()?, failures.parse().ok()?, requests.parse().ok()))
    });
    counts.expect("the child tells its counts")
}

/// One call refused, and every one from a turn on: an error at the start for guard pages, else null now and then, and no
/// report.
#[rstest]
#[case::quarantine("quarantine=64K", 2)]
#[case::strict("strict", 5)]
#[case::sites("registry,backtrace=2", 5)]
#[case::guard("guard=1/1", 30)]
fn each_refusal_is_survived(#[case] options: &str, #[case] least: usize) {
    for (lasting, step) in [(false, 1), (true, 5)] {
        let (mut start, mut refused, mut null) = (0, 0, 0);
        loop {
            let stop = if lasting { usize::MAX } else { start + 1 };
            let (calls, failures, requests) = run(&format!("all;{start};{stop};{options}"));
            refused += usize::from(requests.is_none());
            null += requests.unwrap_or(0);
            if failures == 0 {
                assert!(calls >= least, "the program makes {calls} calls");
                break;
            }
            start += step;
        }
        // All but the pages that guards need is had when it is needed first.
        assert_eq!(refused > 0, options.starts_with("guard"), "{refused} options were refused");
        assert_eq!(null > 0, options.contains("strict") || options.contains("registry"));
    }
}

/// Pages that cannot be given back, nor given another access: blocks are served and found intact all the same.
#[rstest]
fn pages_that_cannot_be_changed_cost_no_block(
    #[values("strict", "registry,backtrace=2", "guard=1/1", "guard=1/3,strict")] options: &str,
) {
    let (calls, failures, requests) = run(&format!("changes;0;{};{options}", usize::MAX));
    assert_eq!((failures, requests), (calls, Some(0)));
    assert!(failures > 0 || !options.contains("guard"));
}

/// The slot of a guarded block whose pages stayed open serves other blocks.
#[test]
fn slots_that_stay_open_serve_again() {
    let hooks = GuardSampler::new(LibcMalloc, Domain::Obj).with_host(COLLECTING);
    let hooks = hooks.with_options(&"guard=1/1".parse().expect("an option")).expect("pages");
    // More blocks than there are slots.
    for _ in 0..5_000 {
        let block = hooks.malloc(16).expect("memory");
        let refusals = Refusals::of(&[MemoryCall::Mprotect], 0, usize::MAX);
        // SAFETY: live, and not used again.
        unsafe { hooks.free(Some(block)) };
        assert_eq!(refusals.failures(), 1, "every block is guarded");
    }
}

/// Pages that are done with go back to the system even where it cannot end their mapping.
#[test]
fn pages_go_back_without_munmap() {
    let hooks = DebugHooks::new(LibcMalloc, Domain::Obj).with_host(COLLECTING);
    let hooks = hooks.with_options(&"registry".parse().expect("an option")).expect("memory");
    let refusals = Refusals::of(&[MemoryCall::Munmap, MemoryCall::Madvise], 0, 1);
    let mut blocks = Vec::new();
    // A table of the registry grows and leaves its pages.
    while refusals.calls() == 0 {
        assert!(blocks.len() < 1 << 20, "no table has grown");
        blocks.push(hooks.malloc(16).expect("memory"));
    }
    assert_eq!((refusals.calls(), refusals.failures()), (2, 1), "advice follows the refusal");
    for block in blocks {
        // SAFETY: live, and not used again.
        unsafe { hooks.free(Some(block)) };
    }
}
