//! The stress programs as a plain binary, for ThreadSanitizer: the standard test harness is itself reported.
//!
//! ```text
//! RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg pymem_tsan" \
//!     cargo +nightly test -p pymem-sync --test tsan --target x86_64-unknown-linux-gnu
//! ```
//!
//! `PYMEM_STRESS_MILLIS` is how long each program runs (default 300). With `PYMEM_TSAN_RACE` set it runs a race instead,
//! which must be reported.

#[cfg(feature = "std")]
#[path = "stress/mod.rs"]
mod programs;

/// A name and a program that runs so long.
#[cfg(feature = "std")]
type Program = (&'static str, fn(std::time::Duration));

#[cfg(feature = "std")]
fn main() {
    use std::env;
    use std::time::Duration;

    if env::var_os("PYMEM_TSAN_RACE").is_some() {
        programs::race();
        println!("raced");
        return;
    }
    let millis = env::var("PYMEM_STRESS_MILLIS").ok().and_then(|text| text.parse().ok());
    let duration = Duration::from_millis(millis.unwrap_or(300));
    let all: [Program; 4] = [
        ("readers_and_reclaimers", programs::readers_and_reclaimers),
        ("owners_and_freers", programs::owners_and_freers),
        ("publishers_and_readers", programs::publishers_and_readers),
        ("lockers", programs::lockers),
    ];
    for (name, program) in all {
        program(duration);
        println!("{name}: passed");
    }
}

#[cfg(not(feature = "std"))]
fn main() {}
