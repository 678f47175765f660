//! Owns the handler of SIGSEGV and SIGBUS: it ends a failed read of a header, names the guarded block that an access
//! missed, and hands every other fault on to the handler before it.

use core::ffi::{c_int, c_void};
use core::fmt::Write as _;
use core::ptr;

use std::io;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::sync::{Once, OnceLock};

use malloc_api::Domain;

use crate::error::ConfigureError;
use crate::guard::pool::{self, Guarded};
use crate::host::Host;
use crate::os::load;
use crate::os::mapping::Mapping;
use crate::report::facts::BlockFacts;
use crate::report::stderr::Stderr;
use crate::report::violation::{Call, Violation, ViolationKind};

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Whom faults are reported to. Slots name a host by its place.
static HOSTS: [OnceLock<Host>; MAX_HOSTS] = [const { OnceLock::new() }; MAX_HOSTS];
const MAX_HOSTS: usize = 64;

/// Makes ready for guarded blocks.
pub(crate) fn set_up() -> Result<(), ConfigureError> {
    const NO_MEMORY: ConfigureError = ConfigureError::NoMemory { option: "guard" };
    install_fault_handler().map_err(|error| ConfigureError::FaultHandler {
        errno: error.raw_os_error().unwrap_or_default(),
    })?;
    if REPORT_STACK.get().is_none() {
        // Another thread may have set one meanwhile.
        let _ = REPORT_STACK.set(Mapping::zeroed(REPORT_STACK_BYTES).ok_or(NO_MEMORY)?);
    }
    if pool::set_up() { Ok(()) } else { Err(NO_MEMORY) }
}

/// The number by which slots know `host`; `None` if there are too many hosts.
pub(crate) fn number_of(host: &Host) -> Option<u32> {
    let mine = |place: &OnceLock<Host>| {
        place.get().is_some_and(|known| known.is_same(host)) || place.set(*host).is_ok()
    };
    HOSTS.iter().position(mine).map(|index| index as u32)
}

static PREVIOUS: [OnceLock<libc::sigaction>; SIGNALS.len()] = [const { OnceLock::new() }; 2];

/// Installs the handler of memory faults, once for the process.
///
/// With it the free or resize of a pointer to nowhere, or of a block whose size was overwritten, ends in a report;
/// without it such a call faults, as in CPython. Guard pages need it, and install it. A fault that is none of the hooks'
/// goes to the handler that was there before.
///
/// A handler that is installed later gets a fault first. If it restores this one and lets the access happen
/// again, or raises the signal again from its own signal stack (Python's `faulthandler` does), the report follows.
///
/// # Errors
///
/// What `sigaction` answers.
pub fn install_fault_handler() -> io::Result<()> {
    static INSTALL: Once = Once::new();
    let mut result = Ok(());
    INSTALL.call_once(|| {
        result = (0..SIGNALS.len()).try_for_each(install);
    });
    result
}

fn install(index: usize) -> io::Result<()> {
    // SAFETY: plain numbers and pointers, for which zero is a value.
    let mut previous: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: null asks for the present action alone.
    if unsafe { libc::sigaction(SIGNALS[index], ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Kept before ours can run.
    let _ = PREVIOUS[index].set(previous);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    action.sa_sigaction = (handler as *const ()).addr();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: `on_fault` has the three arguments of SA_SIGINFO, and does what a signal handler may.
    if unsafe { libc::sigaction(SIGNALS[index], &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid record.
    let code = unsafe { (*info).si_code };
    if code > 0 {
        // SAFETY: 1: this signal's context.
        if unsafe { load::resume(context) } {
            return;
        }
        // SAFETY: the kernel raised the signal for an access, so the record has its address.
        let address = unsafe { info.as_ref() }.map_or(0, |info| {
            // SAFETY: as above.
            unsafe { info.si_addr() }.addr()
        });
        // SAFETY: 1: this signal's context.
        let write = unsafe { load::was_write(context) };
        report_access(address, write);
    // SAFETY: 1: this signal's context.
    } else if code == libc::SI_TKILL && unsafe { from_signal_stack(context) } {
        // A handler passes a fault on by raising it again; the access that faulted happens again when it returns.
        return;
    }
    chain(signal, info, context);
}

/// Whether the signal came while the thread ran on its alternate signal stack, which is to say in another handler.
///
/// # Safety
///
/// 1. `context` is the `ucontext_t` of a signal that is being handled.
unsafe fn from_signal_stack(context: *mut c_void) -> bool {
    // SAFETY: 1: duty 1.
    let pointer = unsafe { load::stack_pointer(context) };
    // SAFETY: duty 1.
    let stack = unsafe { (*context.cast::<libc::ucontext_t>()).uc_stack };
    pointer.wrapping_sub(stack.ss_sp.addr()) < stack.ss_size
}

/// Calls the handler that was there before ours; without one, makes the fault end the process as it would have.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let index = usize::from(signal == SIGNALS[1]);
    let previous = PREVIOUS[index].get();
    match previous {
        Some(action) if action.sa_sigaction > libc::SIG_IGN => {
            let at = ptr::without_provenance::<c_void>(action.sa_sigaction);
            if action.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: an action with SA_SIGINFO has a function of three arguments.
                let f: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    unsafe { core::mem::transmute(at) };
                f(signal, info, context);
            } else {
                // SAFETY: one without it has a function of one.
                let f: extern "C" fn(c_int) = unsafe { core::mem::transmute(at) };
                f(signal);
            }
        }
        _ => {
            // SAFETY: the default action needs no function.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: no memory is involved. A fault would come again by itself, a sent signal would not.
            unsafe { libc::raise(signal) };
        }
    }
}

/// The violation of a guarded block.
pub(crate) fn violation(
    kind: ViolationKind,
    call: Call,
    p: usize,
    guarded: Option<&Guarded>,
    domain: Domain,
    host: &Host,
) -> Violation {
    let facts = guarded.map(|g| BlockFacts::guarded(p, g.size, g.domain));
    let mut violation = host.violation(kind, call, domain, facts);
    violation.allocated = guarded.and_then(|g| g.allocated);
    violation.freed = guarded.and_then(|g| g.freed).filter(|_| guarded.is_some_and(|g| !g.live));
    violation
}

/// Bytes of the stack that reports of faults are made on: signal stacks are small.
const REPORT_STACK_BYTES: usize = 512 << 10;

static REPORT_STACK: OnceLock<Mapping> = OnceLock::new();

/// An access that faulted.
struct Fault {
    address: usize,
    write: Option<bool>,
}

/// Reports the access to `address` that faulted, if it is in the pool. One thread at a time; others wait.
fn report_access(address: usize, write: Option<bool>) {
    /// The thread that reports; 0 is none.
    static REPORTING: AtomicI32 = AtomicI32::new(0);
    let Some(stack) = REPORT_STACK.get().filter(|_| pool::contains(address)) else {
        return;
    };
    // SAFETY: no memory is involved.
    let me = unsafe { libc::gettid() };
    while let Err(reporter) = REPORTING.compare_exchange(0, me, Relaxed, Relaxed) {
        if reporter == me {
            // The handler, or the host in its last words, looked at a freed block itself.
            let _ =
                Stderr::new().write_str("memdebug: the report of this access made another one.\n");
            // SAFETY: no memory is involved.
            unsafe { libc::abort() };
        }
        // SAFETY: no memory is involved.
        unsafe { libc::sched_yield() };
    }
    let top = stack.start().as_ptr().wrapping_add(stack.bytes());
    let mut fault = Fault { address, write };
    // SAFETY: 1: a mapping's end, and `REPORTING` keeps others off it; 2: `report_fault` takes a `Fault`.
    unsafe { load::call_on_stack(top, report_fault, (&raw mut fault).cast()) };
    REPORTING.store(0, Relaxed);
}

extern "C" fn report_fault(fault: *mut libc::c_void) {
    // SAFETY: `report_access` passed it, and waits.
    let Fault { address, write } = *unsafe { &*fault.cast::<Fault>() };
    let Some(guarded) = pool::nearest(address) else {
        return;
    };
    let Some(host) = HOSTS.get(guarded.host).and_then(OnceLock::get) else {
        return;
    };
    let offset = address.wrapping_sub(guarded.block) as isize;
    let kind = ViolationKind::GuardPage { offset, freed: !guarded.live, write };
    host.tell(&violation(kind, Call::Access, guarded.block, Some(&guarded), guarded.domain, host));
}
