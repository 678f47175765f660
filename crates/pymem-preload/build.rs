//! Keeps the library where it is once it is loaded: an interpreter has its records for ever, and threads and `atexit` its
//! handlers, so `dlclose` must not unmap it. And puts what every process runs and reads side by side.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=often.ld");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        // A copy beside what is built: the tree may be gone when cargo links again, as that which pip unpacks an sdist into.
        let script = Path::new(&env::var("OUT_DIR").expect("a folder")).join("often.ld");
        fs::copy("often.ld", &script).expect("a copy of the linker script");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-T,{}", script.display());
    }
}
