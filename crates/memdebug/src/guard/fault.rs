//! Owns the handler of SIGSEGV, SIGBUS and SIGABRT: it ends a failed read of a header, names the guarded block that an access
//! missed, and hands every other signal on to the handler before it.
//! Leaves the C library's refusal of a block to `c_free.rs`.

use core::ffi::{c_int, c_void};
use core::fmt::Write as _;
use core::ops::Range;
use core::ptr;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Once, OnceLock};

use crate::guard::c_free;
use crate::guard::pool::{self, Guarded};
use crate::host::Host;
use crate::options::ConfigureError;
use crate::os::machine;
use crate::os::mapping::Mapping;
use crate::report::handler::{Holder, Stderr, Turn, Turns};
use crate::report::violation::{BlockFacts, Call, Shape, Violation, ViolationKind};
use malloc_api::Domain;

const SIGNALS: [c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT];
/// The first of them are of memory faults.
const FAULTS: usize = 2;

/// Whom faults are reported to. Slots name a host by its place.
static HOSTS: [OnceLock<Host>; MAX_HOSTS] = [const { OnceLock::new() }; MAX_HOSTS];
const MAX_HOSTS: usize = 64;

/// Makes ready for guarded blocks.
pub(crate) fn set_up(slots: usize) -> Result<(), ConfigureError> {
    const NO_MEMORY: ConfigureError = ConfigureError::NoMemory { option: "guard" };
    install_fault_handler().map_err(|error| ConfigureError::FaultHandler {
        errno: error.raw_os_error().unwrap_or_default(),
    })?;
    if has_report_stack() && pool::set_up(slots) { Ok(()) } else { Err(NO_MEMORY) }
}

/// Makes the stack of reports, if it is not there; `false` without memory.
fn has_report_stack() -> bool {
    if REPORT_STACK.get().is_none() {
        if let Some(stack) = Mapping::zeroed(REPORT_STACK_BYTES) {
            // Ignore the error: another thread has set one meanwhile.
            let _ = REPORT_STACK.set(stack);
        }
    }
    REPORT_STACK.get().is_some()
}

/// The number by which slots know `host`; `None` if there are too many hosts.
pub(crate) fn number_of(host: &Host) -> Option<u32> {
    let mine = |place: &OnceLock<Host>| {
        place.get().is_some_and(|known| known.is_same(host)) || place.set(*host).is_ok()
    };
    HOSTS.iter().position(mine).map(|index| index as u32)
}

/// The action for the faults of a signal that are none of the hooks'. Words of one action may be read beside words of
/// another while it changes: any handler may be called with three arguments.
struct Next {
    /// Whether our handler is installed.
    installed: AtomicBool,
    /// Whether [`chain_handler`] has put a handler after ours.
    chains: AtomicBool,
    handler: AtomicUsize,
    flags: AtomicI32,
}

static NEXT: [Next; SIGNALS.len()] = [const { Next::new() }; SIGNALS.len()];

impl Next {
    const fn new() -> Self {
        Self {
            installed: AtomicBool::new(false),
            chains: AtomicBool::new(false),
            handler: AtomicUsize::new(libc::SIG_DFL),
            flags: AtomicI32::new(0),
        }
    }

    fn set(&self, action: &libc::sigaction) {
        self.flags.store(action.sa_flags, Relaxed);
        self.handler.store(action.sa_sigaction, Relaxed);
    }

    fn get(&self) -> libc::sigaction {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = self.handler.load(Relaxed);
        action.sa_flags = self.flags.load(Relaxed);
        action
    }
}

/// The place of a signal in [`NEXT`]; `None` if it is none of a fault's.
fn place_of(signal: c_int) -> Option<&'static Next> {
    SIGNALS.iter().position(|&known| known == signal).map(|index| &NEXT[index])
}

/// Installs the handler of memory faults, once for the process.
///
/// With it the free or resize of a pointer to nowhere, or of a block whose size was overwritten, ends in a report;
/// without it such a call faults, as in CPython. Guard pages need it, and install it. A fault that is none of the hooks'
/// goes to the handler that was there before.
///
/// A handler that is installed later gets a fault first, unless the program's `sigaction` asks [`chain_handler`]. If such a
/// handler restores this one and lets the access happen again, or raises the signal again from its own signal stack
/// (Python's `faulthandler` does), the report follows. A thread that blocks SIGSEGV or SIGBUS gets no report: the kernel ends the
/// process at a fault that is blocked, and asks no handler.
///
/// # Errors
///
/// What `sigaction` answers.
pub fn install_fault_handler() -> io::Result<()> {
    static INSTALL: Once = Once::new();
    install_for(&INSTALL, 0..FAULTS)
}

/// Reports it where the program gives a block of hooks to the C library's `free` or `realloc`, and the C library aborts or
/// faults on it: with `host`'s handler, before the process ends as it would have.
///
/// Nothing is looked at before the C library gives up, so that no call costs more. The block is named where the C library has its
/// address in a register still, as glibc has with blocks of the mem domain; else the report says which call was refused, and who
/// made it. A signal from elsewhere is not reported. The handler of memory faults is installed, too. The first host stays.
///
/// # Errors
///
/// What `sigaction` answers; [`OutOfMemory`](io::ErrorKind::OutOfMemory) without memory for a stack that reports are made on.
pub fn report_blocks_given_to_c(host: Host) -> io::Result<()> {
    static INSTALL: Once = Once::new();
    if !has_report_stack() {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    c_free::set_host(host);
    install_fault_handler()?;
    install_for(&INSTALL, FAULTS..SIGNALS.len())
}

fn install_for(once: &Once, places: Range<usize>) -> io::Result<()> {
    let mut result = Ok(());
    once.call_once(|| {
        result = SIGNALS[places.clone()]
            .iter()
            .zip(&NEXT[places])
            .try_for_each(|(&signal, next)| install(signal, next));
    });
    result
}

fn install(signal: c_int, next: &Next) -> io::Result<()> {
    let mut previous = next.get();
    // SAFETY: null asks for the present action alone.
    if unsafe { libc::sigaction(signal, ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Kept before ours can run.
    next.set(&previous);
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    let mut action = previous;
    // SAFETY: a set of signals to be written.
    unsafe { libc::sigemptyset(&mut action.sa_mask) };
    action.sa_sigaction = (handler as *const ()).addr();
    // An abort leaves its thread's stack as good as it was; that of signals is small, and a report may be on its way from there.
    let stack = if signal == libc::SIGABRT { 0 } else { libc::SA_ONSTACK };
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | stack;
    // SAFETY: `on_fault` has the three arguments of SA_SIGINFO, and does what a signal handler may.
    if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    next.installed.store(true, Relaxed);
    Ok(())
}

/// Stands in for `sigaction` where the hooks' handler is installed: `new` comes after that handler, and not instead of it.
///
/// For libraries that take the place of the C library's `sigaction`: a handler that the program installs later, as Python's
/// `faulthandler` does, then gets the faults that are none of the hooks', with the kernel's own record, and every signal that
/// was sent. `false` if the signal is not handled here, so that the C library's function must be called. The signals
/// that a handler wants blocked while it runs are not kept. A signal that the program ignores is kept here like a handler, as
/// reports come all the same; so a program that `exec` starts then has the default action for it, where it would inherit
/// that the signal is ignored.
///
/// # Safety
///
/// 1. `new` is null or readable; its handler may be installed for `signal`.
/// 2. `old` is null or writable.
pub unsafe fn chain_handler(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> bool {
    let Some(next) = place_of(signal).filter(|next| next.installed.load(Relaxed)) else {
        return false;
    };
    let before = next.get();
    // SAFETY: duty 1. It is read before `old` is written, which may be the same record.
    if let Some(new) = unsafe { new.as_ref() } {
        next.set(new);
        next.chains.store(true, Relaxed);
    }
    // SAFETY: duty 2.
    if let Some(old) = unsafe { old.as_mut() } {
        *old = before;
    }
    true
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid record.
    let record = unsafe { &*info };
    let code = record.si_code;
    // SAFETY: the kernel passes the context of the signal, and nothing else refers to it.
    let interrupted = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    if code > 0 {
        if machine::resume(interrupted) {
            return;
        }
        // SAFETY: the kernel raised the signal for an access, so the record has its address.
        let address = unsafe { record.si_addr() }.addr();
        report_access(address, machine::was_write(interrupted));
        report_refusal(interrupted, true);
    } else if signal == libc::SIGABRT {
        report_refusal(interrupted, false);
    } else if code == libc::SI_TKILL && !is_first(signal) && is_on_signal_stack(interrupted) {
        // A handler passes a fault on by raising it again; the access that faulted happens again when it returns.
        return;
    }
    chain(signal, info, context);
}

/// Whether no handler comes before ours, since the program's `sigaction` puts them after it.
fn is_first(signal: c_int) -> bool {
    place_of(signal).is_some_and(|next| next.chains.load(Relaxed))
}

/// Whether the signal came while the thread ran on its alternate signal stack, which is to say in another handler.
fn is_on_signal_stack(interrupted: &libc::ucontext_t) -> bool {
    let stack = interrupted.uc_stack;
    machine::stack_pointer(interrupted).wrapping_sub(stack.ss_sp.addr()) < stack.ss_size
}

/// Takes the action that comes after ours; without a handler the signal ends the process as it would have.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let action = place_of(signal).map_or(Next::new().get(), Next::get);
    if action.sa_flags & libc::SA_RESETHAND != 0 {
        if let Some(next) = place_of(signal) {
            next.handler.store(libc::SIG_DFL, Relaxed);
        }
    }
    // SAFETY: the kernel passes a valid record.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match action.sa_sigaction {
        libc::SIG_IGN if was_sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action needs no function.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: no memory is involved. A fault would come again by itself, a sent signal would not.
            unsafe { libc::raise(signal) };
        }
        handler => {
            let at = ptr::without_provenance::<c_void>(handler);
            // SAFETY: a handler takes three arguments, or one of them and leaves the others alone.
            let f: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { core::mem::transmute(at) };
            f(signal, info, context);
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
    let facts = guarded.map(|g| BlockFacts::known_at(p, g.block, g.size, g.domain, Shape::Guarded));
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

/// Whose turn it is to report: one thread at a time; others wait.
static TURNS: Turns = Turns::new();

/// Reports the access to `address` that faulted, if it is in the pool.
fn report_access(address: usize, write: Option<bool>) {
    if !pool::contains(address) {
        return;
    }
    let Some(_turn) = turn() else {
        // The handler, or the host in its last words, looked at a freed block itself.
        let _ = Stderr::new().write_str("memdebug: the report of this access made another one.\n");
        // SAFETY: no memory is involved.
        unsafe { libc::abort() };
    };
    let mut fault = Fault { address, write };
    // SAFETY: 1: the turn; 2: `report_fault` takes a `Fault`.
    unsafe { on_report_stack(report_fault, (&raw mut fault).cast()) };
}

/// A signal that may have come out of the C library's `free`.
struct Suspect<'a> {
    interrupted: &'a libc::ucontext_t,
    faulted: bool,
}

/// Reports a block that the C library refused to free or to resize, if that is what the signal interrupted.
fn report_refusal(interrupted: &libc::ucontext_t, faulted: bool) {
    // A report that ends in an abort comes here again.
    let Some(_turn) = turn() else { return };
    let mut suspect = Suspect { interrupted, faulted };
    // SAFETY: 1: the turn; 2: `report_refused` takes a `Suspect`.
    unsafe { on_report_stack(report_refused, (&raw mut suspect).cast()) };
}

/// Waits for this thread's turn; `None` if the thread has it already.
fn turn() -> Option<Turn> {
    loop {
        match TURNS.ask() {
            Holder::Taken(turn) => return Some(turn),
            Holder::Mine => return None,
            // SAFETY: no memory is involved.
            Holder::Other(_) => _ = unsafe { libc::sched_yield() },
        }
    }
}

/// Calls `f(argument)` on the stack of reports, if there is one.
///
/// # Safety
///
/// 1. This thread has the turn.
/// 2. `f` accepts `argument`, and does not unwind.
unsafe fn on_report_stack(f: extern "C" fn(*mut c_void), argument: *mut c_void) {
    let Some(stack) = REPORT_STACK.get() else {
        return;
    };
    let top = stack.start().as_ptr().wrapping_add(stack.bytes());
    // SAFETY: 1: a mapping's end, and duty 1 keeps others off it; 2: duty 2.
    unsafe { machine::call_on_stack(top, f, argument) };
}

extern "C" fn report_fault(fault: *mut c_void) {
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

extern "C" fn report_refused(suspect: *mut c_void) {
    // SAFETY: `report_refusal` passed it, and waits.
    let Suspect { interrupted, faulted } = unsafe { &*suspect.cast::<Suspect<'_>>() };
    c_free::report(interrupted, *faulted);
}
