//! A correct program of operations through the debug hooks, and through a sampler of guard pages, over each backend: no
//! report, no shadow-model fault.
#![no_main]

use libfuzzer_sys::fuzz_target;
use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{generate::ops_from_bytes, run};
use memdebug::{ApiId, DebugHooks, GuardSampler, Host, handler};
use mimalloc_heaps::MiMalloc;
use pymalloc_core::LocalPymalloc;

fuzz_target!(|bytes: &[u8]| {
    let ops = ops_from_bytes(bytes, 64, 1 << 14);
    let over = |inner: &dyn Malloc| {
        let hooks =
            DebugHooks::new(inner, ApiId::Obj).with_host(Host::new().with_handler(handler::panic));
        run(&ops, &hooks).unwrap_or_else(|error| panic!("{error}"));
        let sampler = GuardSampler::new(inner, ApiId::Obj)
            .with_host(Host::new().with_handler(handler::panic))
            .with_options(&"guard=1/3".parse().expect("an option's word"))
            .expect("address space for guard pages");
        run(&ops, &sampler).unwrap_or_else(|error| panic!("{error}"));
    };
    over(&LibcMalloc);
    over(&LocalPymalloc::new(LibcMalloc));
    over(&MiMalloc);
});
