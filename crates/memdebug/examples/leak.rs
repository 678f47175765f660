//! Blocks that nobody freed are found, grouped by domain and by where they were allocated.

use std::error::Error;

use malloc_api::{LibcMalloc, Malloc};
use memdebug::{DebugHooks, Domain, LiveBlocks};

fn forgetful(hooks: &impl Malloc) {
    // A count that the compiler cannot see: an unrolled loop would be three sites.
    for _ in 0..std::hint::black_box(3) {
        std::hint::black_box(hooks.malloc(40));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // `leaks` would print the report at exit; `registry` keeps the blocks, `backtrace` their sites.
    let hooks =
        DebugHooks::new(LibcMalloc, Domain::Mem).with_options(&"registry,backtrace=8".parse()?)?;
    let freed = hooks.malloc(1000);
    forgetful(&hooks);
    // SAFETY: live, and not used again.
    unsafe { hooks.free(freed) };

    let live = LiveBlocks::now();
    assert_eq!((live.blocks(), live.bytes()), (3, 120));
    let groups: Vec<_> = live.groups().collect();
    assert_eq!(groups.len(), 1, "one site");
    assert!(groups[0].domain == Domain::Mem && groups[0].site.is_some());
    let mut json = String::new();
    live.write_json(&mut json)?;
    assert!(json.starts_with(r#"{"blocks":3,"bytes":120,"groups":[{"domain":"mem","#));
    print!("{live}");
    Ok(())
}
