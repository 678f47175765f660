//! Compiles mimalloc 2, whose sources ship beside version 3 in `libmimalloc-sys`, into a shared library of its own:
//! one program cannot link both. Without a C compiler the row is left out.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let library = mimalloc2().unwrap_or_default();
    println!("cargo::rustc-env=PYMEM_BENCH_MIMALLOC2={}", library.display());
}

/// Path of the library, or `None` where the sources or the compiler are missing.
fn mimalloc2() -> Option<PathBuf> {
    // `links = "mimalloc"` of libmimalloc-sys: .../c_src/mimalloc/v3/include
    let include = PathBuf::from(std::env::var_os("DEP_MIMALLOC_INCLUDE_DIR")?);
    let source = include.parent()?.parent()?.join("v2");
    let library = Path::new(&std::env::var_os("OUT_DIR")?).join("libmimalloc2.so");
    let status = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args([
            "-O3",
            "-DNDEBUG",
            "-DMI_DEBUG=0",
            "-DMI_BUILD_RELEASE",
            "-std=gnu11",
            "-fPIC",
            "-shared",
        ])
        .args([
            "-ftls-model=initial-exec",
            "-fvisibility=hidden",
            "-DMI_SHARED_LIB",
            "-DMI_SHARED_LIB_EXPORT",
        ])
        .arg("-I")
        .arg(source.join("include"))
        .arg(source.join("src").join("static.c"))
        .args(["-lpthread", "-o"])
        .arg(&library)
        .status();
    match status {
        Ok(status) if status.success() => Some(library),
        _ => {
            println!("cargo::warning=mimalloc 2 was not built: its row will be missing");
            None
        }
    }
}
