//! Owns the walk over a heap that the report's own memory may come from.

use alloc::vec::Vec;

/// Collects what `walk` visits, without allocating while it walks.
///
/// The heap may be the program's global allocator, and locked during the walk. So this walks once to count and again to
/// keep, with room for what the room itself adds to the heap, until everything fits.
pub(crate) fn collect<T>(walk: impl Fn(&mut dyn FnMut(T))) -> Vec<T> {
    let mut items = Vec::new();
    loop {
        items.clear();
        let mut count = 0;
        walk(&mut |item| {
            count += 1;
            if items.len() < items.capacity() {
                items.push(item);
            }
        });
        if items.len() == count {
            return items;
        }
        items.reserve(count + count / 4 + 64);
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[test]
    fn a_heap_that_grows_between_walks_is_seen_whole() {
        let blocks = Cell::new(0);
        let walk = |visit: &mut dyn FnMut(usize)| {
            blocks.set(blocks.get() + 100);
            (0..blocks.get()).for_each(visit);
        };
        let items = collect(walk);
        assert_eq!(items.len(), blocks.get());
        assert!(items.into_iter().eq(0..blocks.get()));
    }

    #[test]
    fn nothing_is_allocated_while_it_walks() {
        let most = Cell::new(0);
        let kept = collect(|visit: &mut dyn FnMut([u8; 100])| {
            // A walk that sees as much as there was room for in the last one needs room before it begins.
            most.set(most.get() + 1);
            (0..1000).for_each(|_| visit([0; 100]));
        });
        assert_eq!((kept.len(), most.get()), (1000, 2), "one walk to count, one to keep");
    }
}
