//! Owns the walk over pools that may be used meanwhile.

use malloc_api::Malloc;

use crate::pymalloc::Pymalloc;
use crate::source::ArenaSource;
use crate::stats::{PoolStats, PoolWalk};

/// What lends an allocator's pools for the time of a call.
type Lend<'a, R, S> = dyn Fn(&mut dyn FnMut(&mut Pymalloc<R, S>)) + 'a;

/// Calls `f` with each pool of the allocator whose pools `lend` lends; `f` may use the allocator.
pub(crate) fn walk_pinned<R: Malloc, S: ArenaSource>(
    lend: &Lend<'_, R, S>,
    mut f: impl FnMut(PoolStats),
) {
    struct Unpin<'a, R: Malloc, S: ArenaSource>(&'a Lend<'a, R, S>);
    impl<R: Malloc, S: ArenaSource> Drop for Unpin<'_, R, S> {
        fn drop(&mut self) {
            (self.0)(&mut |core| core.stock.arenas.unpin());
        }
    }
    let mut pools = None;
    lend(&mut |core| {
        core.stock.arenas.pin();
        pools = Some(core.pools());
    });
    let _unpin = Unpin(lend);
    loop {
        let mut next = None;
        lend(&mut |_| next = pools.as_mut().and_then(PoolWalk::next));
        let Some(pool) = next else { return };
        f(pool);
    }
}
