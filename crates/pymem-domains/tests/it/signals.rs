//! A timer's signals among allocations. The handler allocates nothing, which is all that a handler in C may do: it may be in
//! the middle of any call.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use malloc_api::testing::alone;
use malloc_trace::{generate, run_domains};
use pymem_domains::{AllocatorName as N, Domain, Domains};

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_signal: libc::c_int) {
    SIGNALS.fetch_add(1, Relaxed);
}

#[test]
fn calls_go_on_after_a_handler() {
    // The timer and the handler are the whole process's.
    alone("signals::calls_go_on_after_a_handler", churn_until_enough);
}

fn churn_until_enough() {
    /// Signals in each row.
    const ENOUGH: usize = 60;
    // SAFETY: plain numbers and pointers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
    // Without SA_RESTART, so that system calls are broken off too.
    // SAFETY: a handler of one argument, which does what a handler may.
    assert_eq!(unsafe { libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()) }, 0);
    let millisecond = libc::timeval { tv_sec: 0, tv_usec: 1_000 };
    let timer = libc::itimerval { it_interval: millisecond, it_value: millisecond };
    // SAFETY: filled structures.
    assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
    for name in [N::Malloc, N::Pymalloc, N::PymallocDebug, N::Mimalloc, N::MimallocDebug] {
        let Ok(domains) = Domains::new(crate::profile(), Some(name)) else { continue };
        let [raw, mem, obj] = Domain::ALL.map(|domain| domains.get(domain));
        let start = SIGNALS.load(Relaxed);
        for seed in 0.. {
            let ops = generate::random(seed, 2_000, 9_000);
            let summary = run_domains(&ops, [&raw, &mem, &obj]).expect("no fault");
            assert_eq!(summary.failed, 0, "{name}");
            if SIGNALS.load(Relaxed) >= start + ENOUGH {
                break;
            }
        }
    }
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: none, it_value: none };
    // SAFETY: a filled structure.
    assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
}
