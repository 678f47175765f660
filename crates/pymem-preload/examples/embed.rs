//! A program that embeds Python and chooses its allocators: `embed [LIBPYTHON] [NAME]`, by default python3's library.

use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::process::Command;

use pymem_preload::{pymem_get_allocator, pymem_setup};

/// Looks a function of the embedded interpreter up.
fn symbol<F: Copy>(name: &CStr) -> F {
    // SAFETY: the name ends with a NUL.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!address.is_null(), "libpython exports {name:?}");
    // SAFETY: the address of a function, as a function pointer of the same size.
    unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) }
}

fn python3s_library() -> Option<String> {
    let ask = "import sysconfig as s, os; g = s.get_config_var
p = os.path.join(g('LIBDIR') or '', g('INSTSONAME') or ''); print(p if '.so' in p and os.path.exists(p) else '')";
    let output = Command::new("python3").args(["-c", ask]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!path.is_empty()).then_some(path)
}

fn main() {
    let mut arguments = env::args().skip(1);
    let Some(library) = arguments.next().or_else(python3s_library) else {
        return println!("python3 has no shared libpython: nothing to embed");
    };
    let name = arguments.next().unwrap_or_else(|| "pymalloc".to_owned());
    let [choice, path] = [&name, &library].map(|text| CString::new(text.as_str()).expect("no NUL"));
    // SAFETY: (1) a text that ends with a NUL; (2) the only thread, and there is no interpreter.
    assert_eq!(unsafe { pymem_setup(choice.as_ptr()) }, -2, "there is no interpreter yet");
    // SAFETY: libpython's constructors ask for nothing.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!handle.is_null(), "{library:?} loads");
    for expected in [0, -2] {
        // SAFETY: (1) a text that ends with a NUL; (2) the only thread, before Py_Initialize.
        assert_eq!(unsafe { pymem_setup(choice.as_ptr()) }, expected, "installed, and only once");
    }
    let initialize: unsafe extern "C" fn() = symbol(c"Py_Initialize");
    let run: unsafe extern "C" fn(*const c_char) -> c_int = symbol(c"PyRun_SimpleString");
    let get: unsafe extern "C" fn(c_int, *mut [usize; 5]) = symbol(c"PyMem_GetAllocator");
    // SAFETY: the library is loaded, and this is its only thread.
    unsafe { initialize() };
    for domain in 0..3 {
        let (mut installed, mut ours) = ([0; 5], [0; 5]);
        // SAFETY: five writable words.
        unsafe { get(domain, &raw mut installed) };
        // SAFETY: (1) five writable words.
        unsafe { pymem_get_allocator(domain, (&raw mut ours).cast()) };
        assert_eq!(installed, ours, "domain {domain} is served by this library");
    }
    println!("{name} serves raw, mem and obj");
    let program = c"import os; print(os.environ.get('PYTHONMALLOC'), flush=True)";
    // SAFETY: initialized, and the thread holds the GIL.
    assert_eq!(unsafe { run(program.as_ptr()) }, 0);
}
