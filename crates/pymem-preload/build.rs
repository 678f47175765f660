//! Keeps the library where it is once it is loaded: an interpreter has its records for ever, and threads and `atexit` its
//! handlers, so `dlclose` must not unmap it. And puts the code that every process runs side by side.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=often.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        println!(
            "cargo:rustc-cdylib-link-arg=-Wl,-T,{}/often.ld",
            std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default()
        );
    }
}
