//! Owns the handler of SIGSEGV and SIGBUS: it ends a failed read of a header, names the guarded block that an access
//! missed, and hands every other fault on to the handler before it.

use core::ffi::{c_int, c_void};
use core::ptr;

use std::io;
use std::sync::{Once, OnceLock};

use crate::guard::pool;
use crate::os::load;

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

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
        pool::on_fault(address, write);
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
