//! Says whether the feature `nightly` can be had: with any other compiler it does nothing, so that all features build with every one.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(malloc_api_nightly)");
    if env::var_os("CARGO_FEATURE_NIGHTLY").is_none() {
        return;
    }
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = Command::new(compiler).arg("--version").output();
    if told.is_ok_and(|told| String::from_utf8_lossy(&told.stdout).contains("-nightly")) {
        println!("cargo::rustc-cfg=malloc_api_nightly");
    }
}
