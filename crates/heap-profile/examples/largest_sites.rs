//! Which functions of a Rust program hold the memory of its collections.

use hashbrown::HashMap;
use heap_profile::{ExactProfiler, NativeStack, Options, Profile};
use malloc_api::{AllocatorAdapter, Domain, LibcMalloc};

type Heap<'a> = AllocatorAdapter<&'a ExactProfiler<LibcMalloc, NativeStack>>;

#[inline(never)]
fn squares<'a>(heap: Heap<'a>) -> HashMap<u64, u64, hashbrown::DefaultHashBuilder, Heap<'a>> {
    let mut map = HashMap::new_in(heap);
    map.extend((0..1_000).map(|n| (n, n * n)));
    map
}

#[inline(never)]
fn cubes<'a>(heap: Heap<'a>) -> HashMap<u64, u64, hashbrown::DefaultHashBuilder, Heap<'a>> {
    let mut map = HashMap::new_in(heap);
    map.extend((0..10).map(|n| (n, n * n * n)));
    map
}

fn main() -> Result<(), heap_profile::ProfileError> {
    let profile = Profile::new(NativeStack, Options { frames: 64, ..Options::default() })?;
    let heap = ExactProfiler::new(LibcMalloc, profile, Domain::Mem);
    let squares = squares(AllocatorAdapter::new(&heap));
    let cubes = cubes(AllocatorAdapter::new(&heap));

    let snapshot = profile.snapshot();
    let names = ["squares", "cubes"].map(|name| format!("largest_sites::{name}"));
    let held = names.map(|name| {
        let of_name = |site: &&heap_profile::Site| {
            site.stack.iter().any(|frame| frame.function.ends_with(&name))
        };
        let bytes: u64 = snapshot.sites.iter().filter(of_name).map(|site| site.live.bytes).sum();
        println!("{name}: {bytes} bytes");
        bytes
    });
    assert_eq!(held.iter().sum::<u64>(), snapshot.live().bytes);
    assert!(held[0] > 16_000 && held[1] > 160 && held[1] < 1_000);
    drop((squares, cubes));
    assert_eq!(profile.live_bytes(), 0);
    Ok(())
}
