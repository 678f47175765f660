//! The published record on one thread; `loom_published` shows the rest.

use pymem_sync::Published;

static ONE: u32 = 1;
static TWO: u32 = 2;
/// Equal to `ONE` by value, not by address.
static OTHER_ONE: u32 = 1;

#[test]
fn records_are_compared_by_address() {
    let published = Published::new(&ONE);
    assert_eq!(published.compare_exchange(&OTHER_ONE, &TWO), Err(&1));
    assert_eq!(*published.load(), 1);
    assert_eq!(published.compare_exchange(&ONE, &TWO), Ok(&1));
    assert_eq!(*published.load(), 2);
}

#[test]
fn an_update_can_decline() {
    let published = Published::new(&ONE);
    assert_eq!(published.update(|_| None), Err(&1));
    assert_eq!(published.update(|old| (*old == 1).then_some(&TWO)), Ok(&1));
    assert_eq!(format!("{published:?}"), "Published(2)");
}
