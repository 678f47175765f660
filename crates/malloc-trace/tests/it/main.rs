//! The integration tests of `malloc-trace`.

mod auto_traits;
mod codec;
mod flawed;
mod generate;
#[cfg(target_os = "linux")]
mod log;
mod refusals;
mod replay;
mod shadow;
mod shipped;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
malloc_api::refuse_memory_calls!();
