//! Changes one word of the offsets that an interpreter tells of itself, as `PYMEM_OFFSETS` says: `N=VALUE`, `N+VALUE`.
//! Preloaded after the library, it runs before the interpreter starts.

use std::ffi::c_void;

#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

extern "C" fn on_load() {
    let Ok(change) = std::env::var("PYMEM_OFFSETS") else { return };
    let Some(operator) = change.find(['=', '+']) else { return };
    let index: usize = change[..operator].parse().expect("the number of a word");
    let value: u64 = change[operator + 1..].parse().expect("a number");
    // SAFETY: a name that ends with a NUL.
    let runtime: *mut c_void = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyRuntime".as_ptr()) };
    if runtime.is_null() {
        return;
    }
    let word = runtime.cast::<u64>().wrapping_add(index);
    // SAFETY: one of the words with which the runtime's state begins.
    let old = unsafe { word.read() };
    let new = if change[operator..].starts_with('+') { old + value } else { value };
    // SAFETY: as above; nobody reads it yet.
    unsafe { word.write(new) };
}
