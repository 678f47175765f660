//! Owns the way to the system's unwinder. Its library is loaded by who asks for native frames, and not with this one: in every other
//! process it would take 128 KiB for nothing.
//!
//! Rust's own library names the unwinder's functions too, for the backtrace of a panic. What stands here under their names is hidden,
//! so that it answers this library alone.

use core::arch::global_asm;
use core::ffi::{CStr, c_int, c_void};
use core::ptr;

use crate::host::behind::Behind;

/// `_URC_END_OF_STACK`: there are no frames.
const END_OF_STACK: c_int = 5;

type Step = unsafe extern "C" fn(context: *mut c_void, state: *mut c_void) -> c_int;

/// The library of the unwinder's functions; null where there is none.
fn library() -> *mut c_void {
    // SAFETY: a name that ends with a NUL, of a library that programs load and keep as they like.
    unsafe { libc::dlopen(c"libgcc_s.so.1".as_ptr(), libc::RTLD_NOW) }
}

const fn text(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name of a function"),
    }
}

/// The instruction that goes to a function which returns to the caller.
#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    () => {
        "jmp"
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    () => {
        "b"
    };
}

/// Functions of the unwinder by their names in C, each with what it answers where there is no unwinder, and the loading of them all.
macro_rules! functions {
    ($($place:ident $name:literal $call:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?, else $without:expr;)*) => {
        $(
            static $place: Behind = Behind::new(text(concat!($name, "\0")));

            #[doc = concat!("`", $name, "` of the unwinder's library.\n\n# Safety\n\n1. As that function.")]
            unsafe extern "C-unwind" fn $call($($argument: $type),*) $(-> $result)? {
                type Call = unsafe extern "C-unwind" fn($($type),*) $(-> $result)?;
                // SAFETY: 1: the function's type in the ABI of C++, which all its libraries share.
                match unsafe { $place.find_in::<Call>(library) } {
                    // SAFETY: by duty 1.
                    Some(call) => unsafe { call($($argument),*) },
                    None => $without,
                }
            }

            global_asm!(
                concat!(".pushsection .text.", $name, ", \"ax\", @progbits"),
                concat!(".globl ", $name),
                concat!(".hidden ", $name),
                concat!(".type ", $name, ", @function"),
                concat!($name, ":"),
                concat!(jump!(), " {function}"),
                concat!(".size ", $name, ", . - ", $name),
                ".popsection",
                function = sym $call,
            );
        )*

        /// Loads the unwinder now: later a call may come while its thread holds the dynamic linker's lock, or from a signal's handler.
        pub(crate) fn load() {
            // SAFETY: 1: any function may be taken for one without arguments that nobody calls.
            $(let _ = unsafe { $place.find_in::<unsafe extern "C" fn()>(library) };)*
        }
    };
}

functions! {
    BACKTRACE "_Unwind_Backtrace" backtrace(step: Step, state: *mut c_void) -> c_int, else END_OF_STACK;
    ENCLOSING_FUNCTION "_Unwind_FindEnclosingFunction" enclosing_function(at: *mut c_void) -> *mut c_void, else ptr::null_mut();
    FRAME_ADDRESS "_Unwind_GetCFA" frame_address(context: *mut c_void) -> usize, else 0;
    DATA_BASE "_Unwind_GetDataRelBase" data_base(context: *mut c_void) -> usize, else 0;
    REGISTER "_Unwind_GetGR" register(context: *mut c_void, index: c_int) -> usize, else 0;
    INSTRUCTION "_Unwind_GetIP" instruction(context: *mut c_void) -> usize, else 0;
    INSTRUCTION_INFO "_Unwind_GetIPInfo" instruction_info(context: *mut c_void, is_before: *mut c_int) -> usize, else 0;
    LANGUAGE_DATA "_Unwind_GetLanguageSpecificData" language_data(context: *mut c_void) -> *mut c_void, else ptr::null_mut();
    REGION_START "_Unwind_GetRegionStart" region_start(context: *mut c_void) -> usize, else 0;
    TEXT_BASE "_Unwind_GetTextRelBase" text_base(context: *mut c_void) -> usize, else 0;
    // SAFETY: may be called at any time.
    RESUME "_Unwind_Resume" resume(exception: *mut c_void), else unsafe { libc::abort() };
    SET_REGISTER "_Unwind_SetGR" set_register(context: *mut c_void, index: c_int, value: usize), else ();
    SET_INSTRUCTION "_Unwind_SetIP" set_instruction(context: *mut c_void, value: usize), else ();
}
