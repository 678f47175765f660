//! What going through a domain costs: replays traces through the backend itself, and through `Domains`.
//!
//! `cargo bench -p pymem-domains --bench dispatch -- FILE.trc.zst...`; without a file, a generated program. Each new block
//! gets two words written and each freed block is read, as a program would. The rounds of all ways alternate, and the
//! fastest of each counts.

use std::fs::File;
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use malloc_api::{LibcMalloc, Malloc};
use malloc_trace::{OpKind, Trace};
use pymem_domains::{AllocatorName, Build, Domain, Domains, Profile, Version};

/// The mimalloc functions through pointers, as a program calls them that chooses its allocator at start.
#[cfg(feature = "mimalloc")]
mod pointers {
    use core::ffi::c_void;
    use std::ptr::NonNull;

    use libmimalloc_sys::{mi_calloc, mi_free, mi_malloc, mi_realloc};
    use malloc_api::Malloc;

    pub(crate) struct Pointers {
        malloc: unsafe extern "C" fn(usize) -> *mut c_void,
        calloc: unsafe extern "C" fn(usize, usize) -> *mut c_void,
        realloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
        free: unsafe extern "C" fn(*mut c_void),
    }

    impl Pointers {
        pub(crate) fn new() -> Self {
            std::hint::black_box(Self {
                malloc: mi_malloc,
                calloc: mi_calloc,
                realloc: mi_realloc,
                free: mi_free,
            })
        }
    }

    fn c(ptr: Option<NonNull<u8>>) -> *mut c_void {
        ptr.map_or(std::ptr::null_mut(), |ptr| ptr.as_ptr().cast())
    }

    // SAFETY: 1-5: mimalloc's functions, for the sizes above 8 bytes and up to `isize::MAX` that a replay asks for.
    unsafe impl Malloc for Pointers {
        fn malloc(&self, size: usize) -> Option<NonNull<u8>> {
            // SAFETY: any size.
            NonNull::new(unsafe { (self.malloc)(size) }.cast())
        }

        fn calloc(&self, nelem: usize, elsize: usize) -> Option<NonNull<u8>> {
            // SAFETY: any size.
            NonNull::new(unsafe { (self.calloc)(nelem, elsize) }.cast())
        }

        unsafe fn realloc(&self, ptr: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
            // SAFETY: the caller's duties.
            NonNull::new(unsafe { (self.realloc)(c(ptr), size) }.cast())
        }

        unsafe fn free(&self, ptr: Option<NonNull<u8>>) {
            // SAFETY: the caller's duties.
            unsafe { (self.free)(c(ptr)) }
        }
    }
}

/// Replays `trace` once and frees what is left; the time is that of the trace.
fn replay(trace: &Trace, raw: &impl Malloc, other: &impl Malloc) -> Duration {
    let mut slots: Vec<(Option<NonNull<u8>>, Domain)> =
        vec![(None, Domain::Raw); trace.slots as usize];
    let start = Instant::now();
    for op in &trace.ops {
        let slot = &mut slots[op.slot() as usize];
        match op.domain() {
            Domain::Raw => step(op.kind(), op.size(), &mut slot.0, raw),
            Domain::Mem | Domain::Obj => step(op.kind(), op.size(), &mut slot.0, other),
        }
        slot.1 = op.domain();
    }
    let time = start.elapsed();
    for (block, domain) in slots {
        match domain {
            // SAFETY: live or none, of this domain, not used again.
            Domain::Raw => unsafe { raw.free(block) },
            // SAFETY: live or none, of this domain, not used again.
            Domain::Mem | Domain::Obj => unsafe { other.free(block) },
        }
    }
    time
}

fn step(kind: OpKind, size: usize, slot: &mut Option<NonNull<u8>>, allocator: &impl Malloc) {
    match kind {
        OpKind::Malloc => *slot = allocator.malloc(size),
        OpKind::Calloc => *slot = allocator.calloc(1, size),
        // SAFETY: live or none, of this allocator; the old pointer is overwritten.
        OpKind::Realloc => *slot = unsafe { allocator.realloc(*slot, size) }.or(*slot),
        OpKind::Free => {
            if let Some(block) = *slot {
                // SAFETY: every block has a byte, which was written or is any value.
                black_box(unsafe { block.cast::<std::mem::MaybeUninit<u8>>().read() });
            }
            // SAFETY: live or none, of this allocator; the pointer is overwritten.
            unsafe { allocator.free(slot.take()) };
        }
    }
    if let (Some(block), true) = (*slot, size >= 16) {
        // SAFETY: 16 bytes, aligned to 16.
        unsafe { block.cast::<[usize; 2]>().write([size, size]) };
    }
}

/// A name, and how the trace is replayed this way.
type Way<'a> = (&'a str, &'a dyn Fn(&Trace) -> Duration);

/// How many rounds each way gets: `PYMEM_ROUNDS`, or 15. One is enough to count instructions.
fn rounds() -> usize {
    std::env::var("PYMEM_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(15)
}

/// Whether a way is wanted: its title and name contain `PYMEM_ONLY`, so that one way's instructions can be counted.
fn wanted(title: &str, way: &str) -> bool {
    let only = std::env::var("PYMEM_ONLY").unwrap_or_default();
    format!("{title} {way}").contains(&only)
}

/// Alternates the ways and prints the fastest round of each, and its ratio to the first.
fn compare(title: &str, trace: &Trace, ways: &[Way<'_>]) {
    let ways: Vec<&Way<'_>> = ways.iter().filter(|(way, _)| wanted(title, way)).collect();
    if ways.is_empty() {
        return;
    }
    let mut fastest = vec![Duration::MAX; ways.len()];
    for _ in 0..rounds() {
        for (best, (_, way)) in fastest.iter_mut().zip(&ways) {
            *best = (*best).min(way(trace));
        }
    }
    let first = fastest[0].as_secs_f64();
    for (time, (way, _)) in fastest.iter().zip(&ways) {
        let nanos = time.as_secs_f64() * 1e9 / trace.ops.len() as f64;
        println!("{title:<28} {way:<22} {nanos:>7.2} ns/op {:>7.3}", time.as_secs_f64() / first);
    }
}

fn domains(name: AllocatorName) -> impl Fn(&Trace) -> Duration {
    let profile = Profile::new(Version::NEWEST, Build::Gil, true, true, false);
    let domains = Domains::new(profile.expect("a GIL build"), Some(name)).expect("compiled in");
    let (raw, mem) = (domains.get(Domain::Raw), domains.get(Domain::Mem));
    move |trace| replay(trace, &raw, &mem)
}

fn direct<R: Malloc, M: Malloc>(raw: R, mem: M) -> impl Fn(&Trace) -> Duration {
    move |trace| replay(trace, &raw, &mem)
}

/// The backend itself, chosen at run time: nothing of it can be inlined into the replay.
fn chosen(mem: Box<dyn Malloc>) -> impl Fn(&Trace) -> Duration {
    let mem = black_box(mem);
    move |trace| replay(trace, &LibcMalloc, &&*mem)
}

fn measure(name: &str, trace: &Trace) {
    compare(
        &format!("{name} malloc"),
        trace,
        &[
            ("LibcMalloc", &direct(LibcMalloc, LibcMalloc)),
            ("&dyn Malloc", &chosen(Box::new(LibcMalloc))),
            ("Domains", &domains(AllocatorName::Malloc)),
        ],
    );
    #[cfg(feature = "pymalloc")]
    compare(
        &format!("{name} pymalloc"),
        trace,
        &[
            ("LockedPymalloc", &direct(LibcMalloc, pymalloc_core::LockedPymalloc::new(LibcMalloc))),
            ("&dyn Malloc", &chosen(Box::new(pymalloc_core::LockedPymalloc::new(LibcMalloc)))),
            ("Domains", &domains(AllocatorName::Pymalloc)),
        ],
    );
    #[cfg(feature = "mimalloc")]
    compare(
        &format!("{name} mimalloc"),
        trace,
        &[
            ("mi_malloc by pointer", &direct(pointers::Pointers::new(), pointers::Pointers::new())),
            ("MiMalloc", &direct(mimalloc_heaps::MiMalloc, mimalloc_heaps::MiMalloc)),
            ("Domains", &domains(AllocatorName::Mimalloc)),
        ],
    );
}

fn main() {
    let files: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if files.is_empty() {
        measure("generated", &Trace::new(malloc_trace::generate::random(1, 1_000_000, 2_000)));
    }
    for file in files {
        let reader = File::open(&file).and_then(zstd::Decoder::new).expect("a readable file");
        let trace = malloc_trace::decode(reader).expect("a trace");
        let name = file.rsplit('/').next().and_then(|name| name.split('.').next());
        measure(name.unwrap_or(&file), &trace);
    }
}
