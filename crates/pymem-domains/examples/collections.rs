//! Collections on the obj domain: `std`'s through the global allocator, `hashbrown`'s and `bumpalo`'s by handing one over.

use malloc_api::{AllocatorAdapter, GlobalAdapter};
use pymem_domains::{AllocatorName, Domain, Domains, Profile, global};

#[global_allocator]
static GLOBAL: GlobalAdapter<global::Obj> = GlobalAdapter::new(global::Obj);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The program's own: every `Vec`, `Box` and `String` is a block of the process-wide obj domain.
    let squares: std::collections::BTreeMap<u32, u32> = (0..1_000).map(|n| (n, n * n)).collect();
    assert_eq!(squares[&31], 961);
    println!("std collections on `{}`", global::domains().row().name());

    // Domains of one's own: their blocks can be counted apart, and checked by the debug hooks.
    let domains = Domains::new(Profile::NEWEST, Some(AllocatorName::Debug))?;
    let obj = AllocatorAdapter::new(domains.get(Domain::Obj));
    {
        let mut words = hashbrown::HashMap::new_in(obj);
        for word in "the quick brown fox jumps over the lazy dog".split(' ') {
            *words.entry(word).or_insert(0) += 1;
        }
        assert_eq!(words["the"], 2);

        let mut vector = allocator_api2::vec::Vec::new_in(obj);
        vector.extend(0..10_000);
        assert_eq!(vector.iter().sum::<u32>(), 49_995_000);
    }
    #[cfg(feature = "pymalloc")]
    assert_eq!(domains.allocated_blocks().unwrap_or(0), 0);

    // bumpalo's arenas come from the global allocator, so from the obj domain too; its vectors live in them.
    let bump = bumpalo::Bump::new();
    let mut vector = allocator_api2_02::vec::Vec::new_in(&bump);
    vector.extend((0..100).map(|n| n * 2));
    assert_eq!(vector.last(), Some(&198));
    println!("hashbrown and bumpalo on the obj domain");
    Ok(())
}
